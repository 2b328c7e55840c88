"""Files that appear at their name complete or not at all, on any fsspec store.

fsspec commits what was written so far when a ``with fs.open(path, "wb")`` block raises, and also
when the handle is garbage-collected. :func:`atomic_output` exists because of that.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from mlflow_exim_plugin.errors import ArchiveExistsError, EximError, StoreError
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.file_systems import EXISTS_HINT, file_system, store_errors
from mlflow_exim_plugin.storage.leftovers import (
    held,
    held_on,
    is_held,
    partial_name,
    partial_prefix,
    remove_left,
)
from mlflow_exim_plugin.storage.ranges import open_range
from mlflow_exim_plugin.storage.upload.parts import Parts
from mlflow_exim_plugin.storage.upload.publication import upload_to
from mlflow_exim_plugin.storage.upload.under_way import kept_for, note, remove_noted, taken_over
from mlflow_exim_plugin.storage.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

__all__ = ["OutputFile", "Writable", "atomic_output", "publish_new"]

_PIECE_BYTES = 1 << 20


class Writable(Protocol):
    """All that a writer asks of its output."""

    def write(self, data: bytes, /) -> Any:
        """Append the bytes."""


class OutputFile:
    """The file :func:`atomic_output` gives: it can be written, only its context commits it.

    Attributes:
        bytes_written: Size so far, beside what was there.
        earlier: The file itself where an earlier attempt left something in it.
    """

    def __init__(self, file: Any, url: str, earlier: IO[bytes] | None = None) -> None:
        self._file = file
        self._url = url
        self.bytes_written = 0
        self.earlier = earlier

    def write(self, data: bytes) -> int:
        """Append all the bytes.

        Raises:
            StoreError: The disk is full, the store refused or died.
        """
        with store_errors(self._url, "write"):
            self._file.write(data)
        self.bytes_written += len(data)
        return len(data)


@contextlib.contextmanager
def atomic_output(
    url: str,
    *,
    overwrite: bool = False,
    resume: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Generator[OutputFile]:
    """Write a file that appears at its name complete or not at all.

    On any exception in the block, ``KeyboardInterrupt`` included, nothing appears and an older
    file stays. What a killed process leaves, ``.NAME.partial-<id>`` or the parts of an upload, the
    next one to that name removes.

    Args:
        url: Local path or fsspec URL; its folder must exist.
        overwrite: Replace what is there; without it that is an error, found before anything is
            written and again, where the store can, at the end.
        resume: Go on with what a process that is no more left, which is given as ``earlier``; after
            an exception what is written stays for another attempt. What is for a store is kept on
            this machine meanwhile, and parts that are there are not sent again.
        storage_options: For the file system, see fsspec.

    Raises:
        ArchiveExistsError: The target exists and ``overwrite`` is false.
        StoreError: The disk is full, the folder is missing, the store refused or died.
        MissingDependencyError: The protocol needs a package that is not installed.
    """
    path = local_path(url)
    if path is not None:
        writing = _local_output(path, overwrite=overwrite, resume=resume)
    else:
        writing = _far_output(url, storage_options, overwrite=overwrite, resume=resume)
    with writing as output:
        yield output


@contextlib.contextmanager
def _local_output(path: str, *, overwrite: bool, resume: bool) -> Generator[OutputFile]:
    with store_errors(path, "write"):
        target = Path(os.path.realpath(path))  # a symbolic link is written through, not replaced
        if target.exists() and not target.is_file():
            raise StoreError(f"{path} is not a regular file")
        if target.exists() and not overwrite:
            raise ArchiveExistsError(f"{path} exists", EXISTS_HINT)
    with _partial_file(target, resume=resume) as (partial, file, earlier):
        yield OutputFile(file, path, earlier)
        with store_errors(path, "write"):
            file.flush()
            os.fsync(file.fileno())
            file.close()
            if overwrite:
                partial.replace(target)
            else:
                publish_new(partial, target)
            _sync_folder(target.parent)


@contextlib.contextmanager
def _partial_file(
    target: Path, *, resume: bool
) -> Generator[tuple[Path, IO[bytes], IO[bytes] | None]]:
    """Give a file beside a target, open, and open again as an earlier attempt's if it is that."""
    with store_errors(str(target), "write"):
        beside = partial_prefix(target.name)
        left = [file for file in target.parent.iterdir() if file.name.startswith(beside)]
        begun = _largest(left) if resume else None
        remove_left(file for file in left if file != begun)
        partial = begun or target.with_name(partial_name(target.name))
        file = partial.open("r+b" if begun else "x+b")
    with contextlib.ExitStack() as stack:
        with store_errors(str(target), "write"):
            stack.enter_context(held_on(partial) if resume else held(partial))
        try:
            yield partial, file, file if begun else None
        finally:
            # Closing flushes, which fails again on a full disk; what counts is on its way.
            with contextlib.suppress(OSError):
                file.close()


def _largest(files: list[Path]) -> Path | None:
    """Return the file that holds most of those that nobody is at."""
    free = [(file.stat().st_size, file) for file in files if file.is_file() and not is_held(file)]
    return max(free, default=(0, None))[1]


def publish_new(partial: Path, target: Path) -> None:
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
def _far_output(
    url: str, storage_options: Mapping[str, Any] | None, *, overwrite: bool, resume: bool
) -> Generator[OutputFile]:
    store, path = file_system(url, storage_options)
    with store_errors(url, "write"):
        upload = upload_to(store, path, url, overwrite=overwrite)
        if not overwrite and store.exists(path):
            raise ArchiveExistsError(f"{redact_url(url)} exists", EXISTS_HINT)
        if not resume:
            remove_noted(url, upload.remove)
    parts = Parts(upload, url)
    keeping = _kept_here(parts, url) if resume else contextlib.nullcontext((parts, None))
    with keeping as (file, earlier):
        try:
            yield OutputFile(file, url, earlier)
            with store_errors(url, "write"):
                is_there = _published(parts, url, storage_options)
        except BaseException:
            parts.abandon()
            raise
        if not is_there:
            raise StoreError(
                f"{redact_url(url)}: the store took {parts.bytes_written} bytes, and has others",
                "pack again, to another name; what is there is no archive",
            )


@contextlib.contextmanager
def _kept_here(parts: Parts, url: str) -> Generator[tuple[Writable, IO[bytes] | None]]:
    """Keep what goes to a store on this machine too, until all of it is there.

    The parts of an upload cannot be read: what another attempt goes on with is this file.
    """
    target = kept_for(url)
    # What is kept goes before the notes that tell of it.
    with contextlib.ExitStack() as noted, contextlib.ExitStack() as kept:
        with store_errors(str(target), "write"):
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        taken = noted.enter_context(taken_over(url))
        partial, file, earlier = kept.enter_context(_partial_file(target, resume=True))
        if not any(one.left == str(partial) for one in taken):
            noted.enter_context(note(url, str(partial), is_here=True))
        with store_errors(url, "write"):
            parts.go_on([one.left for one in taken if not one.is_here])
        yield _SentAlong(file, parts), earlier


class _SentAlong:
    """A file of this machine of which all is sent to a store, first what is in it already."""

    def __init__(self, file: IO[bytes], parts: Parts) -> None:
        self._file = file
        self._parts = parts

    def write(self, data: bytes) -> None:
        if not self._parts.bytes_written:
            self._file.seek(0)
            for piece in iter(lambda: self._file.read(_PIECE_BYTES), b""):
                self._parts.write(piece)
        with store_errors(str(self._file.name), "write"):
            self._file.write(data)
        self._parts.write(data)


def _published(parts: Parts, url: str, storage_options: Mapping[str, Any] | None) -> bool:
    """Let the file be at its name; whether it is what was written that is there then."""

    def is_there() -> bool:
        # The end of an archive has its root, and so tells it from all others.
        with contextlib.closing(open_range(url, storage_options)) as source:
            end = parts.bytes_written
            return (
                source.size_bytes == end
                and source.read_range(end - len(parts.end), end) == parts.end
            )

    try:
        parts.publish()
    except Exception:
        # Of a call whose answer was lost clients make another one, and hear that the file exists.
        is_ours = False
        with contextlib.suppress(EximError):
            is_ours = is_there()
        if not is_ours:
            raise
        parts.close()
        return True
    return is_there()
