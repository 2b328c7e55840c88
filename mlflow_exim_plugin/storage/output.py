"""Where archives lie: ranged reads and all-or-nothing writes on any fsspec store.

fsspec commits what was written so far when a ``with fs.open(path, "wb")`` block raises, and also
when the handle is garbage-collected. :func:`atomic_output` exists because of that.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import stat
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol
from urllib.parse import urlsplit

import fsspec
from fsspec.core import url_to_fs

from mlflow_exim_plugin.errors import (
    ArchiveExistsError,
    EximError,
    MissingDependencyError,
    NotFoundError,
    StoreError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping

__all__ = [
    "OutputFile",
    "RangeSource",
    "Writable",
    "atomic_output",
    "is_database",
    "open_range",
    "redact_url",
]

# The extra of this package that brings a protocol's file system.
_EXTRAS = {
    "s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure",
    "az": "azure", "adl": "azure", "sftp": "sftp", "ssh": "sftp",
}  # fmt: skip
# Stores where an object appears whole at commit and never before; elsewhere we write under another
# name and move.
_COMMITTING_PROTOCOLS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}
_DATABASES = {"sqlite", "postgresql", "mysql", "mssql"}
_log = logging.getLogger(__name__)
_URL = re.compile(r"\w[\w+.-]*://[^\s'\"<>]+")
_EXISTS_HINT = "choose another name, or pass --overwrite"


def is_database(uri: str) -> bool:
    """Whether a URI is a database's, in SQLAlchemy's words."""
    return urlsplit(uri).scheme.partition("+")[0] in _DATABASES


def redact_url(url: str) -> str:
    """Return a URL that may be shown: no user, no password, no values in its query.

    Presigned URLs carry their secret in the query. ``versionId`` is no secret and stays. A local
    path comes back as it is.
    """
    if "://" not in url:
        return url
    shown = re.sub(r"://[^/]*@", "://***@", url)
    return re.sub(r"([?&](?!versionId=)[^=&?]+=)(?:(?!::)[^&#])*", r"\1***", shown)


def _redact_text(text: str, url: str) -> str:
    """Return one line of a foreign error's text with every URL in it redacted."""
    line = " ".join(text.replace(url, redact_url(url)).split())
    return _URL.sub(lambda found: redact_url(found.group()), line)[:500]


class RangeSource(Protocol):
    """A file of known size that gives any range of its bytes; safe to use from many threads.

    Attributes:
        name: What to call it in messages, without credentials.
        size_bytes: Size of the file when it was opened.
        requests: How many ranges were asked for.
        bytes_read: How many bytes they gave.
    """

    name: str
    size_bytes: int
    requests: int
    bytes_read: int

    def read_range(self, start: int, end: int) -> bytes:
        """Return exactly the bytes ``[start, end)``.

        Raises:
            StoreError: The store refused, died, or the file has become shorter.
        """

    def close(self) -> None:
        """Let go of the file; closing twice is no error."""


class _CountedSource:
    """What all sources share: the checks around a read and the counters."""

    def __init__(self, name: str, size_bytes: int) -> None:
        self.name = name
        self.size_bytes = size_bytes
        self.requests = 0
        self.bytes_read = 0
        self._lock = threading.Lock()

    def read_range(self, start: int, end: int) -> bytes:
        if not 0 <= start <= end <= self.size_bytes:
            raise StoreError(f"{self.name}: {self.size_bytes} bytes hold no range {start} to {end}")
        if start == end:
            return b""
        data = self._fetch(start, end)
        with self._lock:
            self.requests += 1
            self.bytes_read += len(data)
        if len(data) == end - start:
            return data
        if len(data) == self.size_bytes:
            raise StoreError(
                f"{self.name}: the server does not support range requests",
                "download the archive and open the local copy",
            )
        raise StoreError(
            f"{self.name}: asked for {end - start} bytes at {start}, got {len(data)}",
            "the file may have changed while it was read",
        )

    def _fetch(self, start: int, end: int) -> bytes:
        raise NotImplementedError


class _LocalSource(_CountedSource):
    def __init__(self, path: str) -> None:
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            status = os.fstat(self._descriptor)
        except (OSError, ValueError) as error:
            self.close()
            _raise_for(error, path, "open")
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise NotFoundError(f"{path} is not a file")
        super().__init__(path, status.st_size)

    def _fetch(self, start: int, end: int) -> bytes:
        try:
            return b"".join(self._pieces(start, end))
        except OSError as error:
            _raise_for(error, self.name, "read")

    def _pieces(self, start: int, end: int) -> Iterator[bytes]:
        while start < end:  # one call gives at most 2 GiB
            if hasattr(os, "pread"):
                piece = os.pread(self._descriptor, end - start, start)
            else:  # Windows
                with self._lock:
                    os.lseek(self._descriptor, start, os.SEEK_SET)
                    piece = os.read(self._descriptor, end - start)
            if not piece:
                return
            start += len(piece)
            yield piece

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __del__(self) -> None:
        # Readers live long inside file systems and stores that nobody closes.
        self.close()


class _FsspecSource(_CountedSource):
    def __init__(self, file_system: Any, path: str, url: str) -> None:
        self._file_system = file_system
        self._path = path
        self._url = url
        with _store_errors(url, "open"):
            info = file_system.info(path)
        if info.get("type") == "directory":
            raise NotFoundError(f"{redact_url(url)} is not a file")
        size_bytes = info.get("size")
        if not isinstance(size_bytes, int):
            raise StoreError(
                f"{redact_url(url)}: the store does not tell the file's size",
                "download the archive and open the local copy",
            )
        # A versioned bucket lets us read one and the same object however long we stay open; without
        # it, frame checksums and digests find the mixture of two objects.
        version = info.get("VersionId")
        self._pin = {"version_id": version} if version and version != "null" else {}
        super().__init__(redact_url(url), size_bytes)

    def _fetch(self, start: int, end: int) -> bytes:
        with _store_errors(self._url, "read"):
            return bytes(self._file_system.cat_file(self._path, start=start, end=end, **self._pin))

    def close(self) -> None:
        """Nothing is held open: fsspec shares its sessions between files."""


def open_range(url: str, storage_options: Mapping[str, Any] | None = None) -> RangeSource:
    """Open a local path or any fsspec URL for ranged reads.

    Args:
        url: Local path or URL, chained ones (``simplecache::s3://...``) included.
        storage_options: For the file system, see fsspec.

    Raises:
        NotFoundError: No such file, or a directory.
        StoreError: The store refused or died, or the protocol is unknown.
        MissingDependencyError: The protocol needs a package that is not installed.
    """
    local_path = _local_path(url)
    if local_path is not None:
        return _LocalSource(local_path)
    file_system, path = _file_system(url, storage_options)
    return _FsspecSource(file_system, path, url)


class Writable(Protocol):
    """All that a writer asks of its output."""

    def write(self, data: bytes, /) -> Any:
        """Append the bytes."""


class OutputFile:
    """The file :func:`atomic_output` gives: it can be written, only its context commits it.

    Attributes:
        bytes_written: Size so far.
    """

    def __init__(self, file: Any, url: str) -> None:
        self._file = file
        self._url = url
        self.bytes_written = 0

    def write(self, data: bytes) -> int:
        """Append all the bytes.

        Raises:
            StoreError: The disk is full, the store refused or died.
        """
        with _store_errors(self._url, "write"):
            self._file.write(data)
        self.bytes_written += len(data)
        return len(data)


@contextlib.contextmanager
def atomic_output(
    url: str, *, overwrite: bool = False, storage_options: Mapping[str, Any] | None = None
) -> Generator[OutputFile]:
    """Write a file that appears at its name complete or not at all.

    On any exception in the block, ``KeyboardInterrupt`` included, nothing appears and an older
    file stays. A killed process may leave ``.NAME.partial-<id>`` beside a local target.

    Args:
        url: Local path or fsspec URL; its folder must exist.
        overwrite: Replace what is there; without it that is an error, found before anything is
            written and again, where the store can, at the end.
        storage_options: For the file system, see fsspec.

    Raises:
        ArchiveExistsError: The target exists and ``overwrite`` is false.
        StoreError: The disk is full, the folder is missing, the store refused or died.
        MissingDependencyError: The protocol needs a package that is not installed.
    """
    local_path = _local_path(url)
    if local_path is not None:
        writing = _local_output(local_path, overwrite=overwrite)
    else:
        file_system, path = _file_system(url, storage_options)
        with _store_errors(url, "write"):
            if not overwrite and file_system.exists(path):
                raise ArchiveExistsError(f"{redact_url(url)} exists", _EXISTS_HINT)
        protocols = file_system.protocol
        protocols = {protocols} if isinstance(protocols, str) else set(protocols)
        write = _object_output if protocols & _COMMITTING_PROTOCOLS else _moved_output
        writing = write(file_system, path, url, overwrite=overwrite)
    with writing as output:
        yield output


@contextlib.contextmanager
def _local_output(path: str, *, overwrite: bool) -> Generator[OutputFile]:
    with _store_errors(path, "write"):
        target = Path(os.path.realpath(path))  # a symbolic link is written through, not replaced
        if target.exists() and not target.is_file():
            raise StoreError(f"{path} is not a regular file")
        if target.exists() and not overwrite:
            raise ArchiveExistsError(f"{path} exists", _EXISTS_HINT)
        partial = target.with_name(f".{target.name[:150]}.partial-{uuid.uuid4().hex}")
        file = partial.open("xb")
    try:
        yield OutputFile(file, path)
        with _store_errors(path, "write"):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            if overwrite:
                partial.replace(target)
            else:
                _publish_new(partial, target)
            _sync_folder(target.parent)
    finally:
        # Closing flushes, which fails again on a full disk; the error that counts is on its way.
        with contextlib.suppress(OSError):
            file.close()
        partial.unlink(missing_ok=True)


def _publish_new(partial: Path, target: Path) -> None:
    """Give ``partial`` its final name; FileExistsError when another process was faster."""
    try:
        os.link(partial, target)
    except FileExistsError:
        raise
    except OSError:
        # No hard links here (FAT, some network file systems): reserve the name, then replace.
        target.open("xb").close()
        try:
            partial.replace(target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def _sync_folder(folder: Path) -> None:
    """Make a new name survive a power cut, where the system lets us."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _object_output(
    file_system: Any, path: str, url: str, *, overwrite: bool
) -> Generator[OutputFile]:
    # The handle is ours alone: used as a context manager, or left to the garbage collector, it
    # would commit what it has.
    with _store_errors(url, "write"):
        file = file_system.open(path, "wb" if overwrite else "xb")
    try:
        yield OutputFile(file, url)
        with _store_errors(url, "write"):
            file.close()
    except BaseException:
        _abandon(file)
        raise


def _abandon(file: Any) -> None:
    """Drop an upload so that neither close() nor __del__ can commit it."""
    # adlfs has no discard: blocks that were never committed expire by themselves.
    if hasattr(file, "discard"):
        _try(file.discard)
    file.closed = True


def _try(cleanup: Callable[..., object], *args: object) -> None:
    """Clean up after an error, which is the one to show whatever happens here."""
    try:
        cleanup(*args)
    except Exception as error:  # noqa: BLE001 - stores have no common base of errors
        _log.debug("cleaning up after a failed write: %s", error)


@contextlib.contextmanager
def _moved_output(
    file_system: Any, path: str, url: str, *, overwrite: bool
) -> Generator[OutputFile]:
    folder, slash, name = path.rpartition("/")
    partial = f"{folder}{slash}.{name[:150]}.partial-{uuid.uuid4().hex}"
    with _store_errors(url, "write"):
        file = file_system.open(partial, "wb")
    try:
        yield OutputFile(file, url)
        with _store_errors(url, "write"):
            file.close()
            _move_into_place(file_system, partial, path, overwrite=overwrite)
    except BaseException:
        _try(file.close)
        _try(file_system.rm_file, partial)
        raise


def _move_into_place(file_system: Any, partial: str, path: str, *, overwrite: bool) -> None:
    """Rename on a store that may not rename over a file: the old one steps aside first."""
    aside = f"{partial}.replaced"
    has_old = file_system.exists(path)
    if has_old:
        if not overwrite:
            raise FileExistsError(path)
        file_system.mv(path, aside)
    try:
        file_system.mv(partial, path)
    except BaseException:
        if has_old:
            file_system.mv(aside, path)
        raise
    if has_old:
        file_system.rm_file(aside)


def _local_path(url: str) -> str | None:
    """Return the path when the URL is of this machine's file system, else None."""
    if url.startswith("file://"):
        return str(fsspec.filesystem("file")._strip_protocol(url))  # noqa: SLF001
    if "://" in url or "::" in url:
        return None
    return os.path.expanduser(url)  # noqa: PTH111 - Path would drop a trailing slash


def _file_system(url: str, storage_options: Mapping[str, Any] | None) -> tuple[Any, str]:
    with _store_errors(url, "open"):
        file_system, path = url_to_fs(url, **(storage_options or {}))
    return file_system, str(path)


@contextlib.contextmanager
def _store_errors(url: str, action: str) -> Generator[None]:
    """Turn whatever a file system raises into this package's errors."""
    try:
        yield
    except EximError:
        raise
    except Exception as error:  # noqa: BLE001 - botocore, aiohttp, paramiko... have no common base
        _raise_for(error, url, action)


def _raise_for(error: Exception, url: str, action: str) -> NoReturn:
    """Raise what ``error`` means for the user, one line, without credentials."""
    name = redact_url(url)
    detail = _redact_text(str(error), url)
    if isinstance(error, FileExistsError):
        raise ArchiveExistsError(f"{name} exists", _EXISTS_HINT) from error
    if isinstance(error, FileNotFoundError) and _hides_a_refusal(error):
        detail = _redact_text(str(error.__cause__), url)
    elif isinstance(error, FileNotFoundError | NotADirectoryError):
        if action == "write":
            raise StoreError(f"cannot write {name}: its folder does not exist") from error
        raise NotFoundError(f"{name} does not exist") from error
    if isinstance(error, ImportError):
        protocol = url.rpartition("::")[2].partition("://")[0]
        package = f"mlflow-exim-plugin[{_EXTRAS[protocol]}]" if protocol in _EXTRAS else protocol
        raise MissingDependencyError(
            f"cannot {action} {name}: {detail}", f"pip install '{package}'"
        ) from error
    if isinstance(error, OSError) and error.errno and error.strerror:
        detail = error.strerror
    if isinstance(error, NotImplementedError):
        detail = "this kind of store cannot do that"
    raise StoreError(f"cannot {action} {name}: {detail or type(error).__name__}") from error


def _hides_a_refusal(error: FileNotFoundError) -> bool:
    """Whether fsspec's HTTP calls a file missing because the server is, or does not let us in."""
    cause = error.__cause__
    status = getattr(cause, "status", None)
    return (status is not None and status not in {404, 410}) or (
        isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)
    )
