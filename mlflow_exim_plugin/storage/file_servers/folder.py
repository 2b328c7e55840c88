"""The files below a folder of a server: listed a folder at a time, many read or written at once.

What is written is another file beside its name until all of it is there.
"""

from __future__ import annotations

import contextlib
import functools
import io
import posixpath
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

from mlflow_exim_plugin.errors import EximError, StoreError
from mlflow_exim_plugin.redaction import redact_text, redact_url
from mlflow_exim_plugin.storage.file_servers.transfer import Sending, Transfer
from mlflow_exim_plugin.storage.leftovers import HALF_FILE, half_name, is_half
from mlflow_exim_plugin.storage.names import escaped, shown
from mlflow_exim_plugin.storage.retries import retried

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_exim_plugin.storage.file_servers.connections import Connections

__all__ = ["AT_ONCE", "SMALL_BYTES", "FileServer", "FolderEntry", "FolderListing", "ServerFolder"]

AT_ONCE = 16
"""How many files are read at once, and how many written."""
SMALL_BYTES = 8 << 20
"""What comes, and goes, as a whole."""
_MAX_DEPTH = 64


@dataclass(frozen=True)
class FolderEntry:
    """What a folder has.

    Attributes:
        name: As text; bytes that are no UTF-8 are surrogates.
        size_bytes: Of a file; None of a folder.
        stamp: Another one when it was written anew; empty where the server does not tell.
        problem: Why it is no file that could be taken; empty where it is one, or a folder.
    """

    name: str
    size_bytes: int | None = None
    stamp: str = ""
    problem: str = ""


@dataclass(frozen=True)
class FolderListing:
    """A folder.

    Attributes:
        entries: What it has.
        identity: The same by whatever way it is come to; empty where the server does not tell.
    """

    entries: list[FolderEntry]
    identity: str = ""


class Connection(Sending, Protocol):
    """One connection to a server. Paths are absolute, with surrogates for what is no UTF-8."""

    def listing(self, folder: str) -> FolderListing:
        """Return what a folder has.

        Raises:
            FileNotFoundError: It is not there, or is no folder.
        """

    def small(self, path: str, most_bytes: int) -> tuple[int, bytes]:
        """Return how many bytes a file has, and these where they are not more than so many."""

    def write(self, path: str, stream: BinaryIO) -> int:
        """Write a file and return how many bytes the server then says it has.

        Raises:
            FileNotFoundError: Its folder is not there.
        """

    def replace(self, old: str, new: str) -> None:
        """Give a file a name that another may have."""

    def has_folder(self, path: str) -> bool:
        """Whether a folder is there."""

    def make_folder(self, path: str) -> None:
        """Make a folder in one that is there."""

    def remove(self, path: str) -> None:
        """Remove a file."""


@dataclass(frozen=True)
class FileServer:
    """A server, as it is opened.

    Attributes:
        reading: Connections that read.
        writing: Others, as what is written may come from those.
        transient: Errors after which it is asked again.
        refusal: Says why it cannot have a file of a name, nothing where it can.
    """

    reading: Connections[Any]
    writing: Connections[Any]
    transient: tuple[type[Exception], ...]
    refusal: Callable[[str], str] = lambda _: ""


class ServerFolder:
    """The files below one folder; safe to use from many threads.

    Args:
        url: Of the folder.
        server: Where it is.
        path: Of the folder there.

    Attributes:
        stamps: By path, what the server says of a listed file that is another when it was written
            anew.
        problems: By path, why what was listed is no file that could be taken.
        renamed: By path, the name at the server of a file whose name is no UTF-8, as text.
    """

    at_once = AT_ONCE

    def __init__(self, url: str, server: FileServer, path: str) -> None:
        self.stamps: dict[str, str] = {}
        self.problems: dict[str, str] = {}
        self.renamed: dict[str, str] = {}
        self._url = redact_url(url).rstrip("/")
        self._server = server
        self._root = path.rstrip("/")
        self._real: dict[str, str] = {}
        self._made: set[str] = set()
        self._made_turn = threading.Lock()

    def refusal(self, path: str) -> str:
        """Return why a file cannot be written; empty where it can."""
        return self._server.refusal(path)

    def files(self) -> list[tuple[str, int]]:
        """Return path and size in bytes of every file, in path order within each folder.

        Raises:
            StoreError: The folder cannot be listed. What cannot be below it is among the problems.
        """
        found: list[tuple[str, int]] = []
        level: list[tuple[str, frozenset[str]]] = [("", frozenset())]
        for depth in range(_MAX_DEPTH + 1):
            if depth == _MAX_DEPTH:
                reason = f"it is nested deeper than {_MAX_DEPTH}"
                self.problems |= {f"{folder}/": reason for folder, _ in level}
                break
            # Nobody waits in a thread of this pool for another one.
            listings = _reads().map(self._listed, [folder for folder, _ in level])
            below: list[tuple[str, frozenset[str]]] = []
            for (folder, chain), listing in zip(level, listings, strict=True):
                if isinstance(listing, StoreError):
                    if not folder:
                        raise listing
                    self.problems[f"{folder}/"] = listing.message
                elif listing.identity and listing.identity in chain:
                    self.problems[f"{folder}/"] = "it leads back to a folder above it"
                else:
                    inner = chain | {listing.identity}
                    below += [(path, inner) for path in self._sorted(folder, listing, found)]
            level = below
        return sorted(found, key=lambda file: file[0].split("/"))

    def _sorted(
        self, folder: str, listing: FolderListing, found: list[tuple[str, int]]
    ) -> Iterator[str]:
        """Add the files of a folder to those that were found, and yield the folders in it."""
        for entry in listing.entries:
            path = posixpath.join(folder, name := escaped(entry.name))
            if name != entry.name or folder in self._real:
                self._real[path] = posixpath.join(self._real.get(folder, folder), entry.name)
            if name != entry.name:
                self.renamed[path] = shown(entry.name)
            if entry.problem or is_half(name):
                self.problems[path] = entry.problem or HALF_FILE
            elif entry.size_bytes is None:
                yield path
            else:
                self.stamps[path] = entry.stamp
                found.append((path, entry.size_bytes))

    def _listed(self, folder: str) -> FolderListing | StoreError:
        def ask() -> FolderListing:
            with self._server.reading.one() as connection:
                listing: FolderListing = connection.listing(self._place(folder))
                return listing

        try:
            with self._told("listing", folder):
                return retried(ask, self._server.transient)
        except StoreError as error:
            if not folder and isinstance(error.__cause__, FileNotFoundError):
                return FolderListing([])
            return error

    def read(self, path: str, size_bytes: int | None = None) -> Future[bytes]:
        """Begin to read a file that is small; what comes has the size that it has now.

        Args:
            path: Below the folder.
            size_bytes: As it was listed; None takes any.
        """
        del size_bytes  # the server says which it has now
        return _reads().submit(self._read, path)

    def open(self, path: str, size_bytes: int | None = None) -> BinaryIO:
        """Open a file of any size as a stream of bytes, of one version of it.

        Args:
            path: Below the folder.
            size_bytes: As it was listed; None takes any.

        Raises:
            StoreError: It is gone, or the server refused. The stream raises likewise.
        """
        if size_bytes is not None and size_bytes <= SMALL_BYTES:
            return io.BytesIO(self.read(path).result())
        with self._told("reading", path):
            stream = Transfer(self._server.reading, self._place(path), self._server.transient)
        return cast("BinaryIO", _NamedStream(stream, self._told, path))

    def put(self, path: str, data: bytes) -> Future[None]:
        """Begin to write a small file; one that is there is replaced by the whole of it or stays.

        Args:
            path: Below the folder.
            data: Its bytes.
        """

        def write() -> None:
            with self._told("writing", path):
                retried(lambda: self._write(path, io.BytesIO(data)), self._server.transient)

        return _writes().submit(write)

    def put_stream(self, path: str, stream: BinaryIO, size_bytes: int) -> None:
        """Write a large file, likewise.

        Args:
            path: Below the folder.
            stream: Its bytes; what it raises goes through, and nothing is written then.
            size_bytes: How many there may be.

        Raises:
            StoreError: The server refused.
        """
        del size_bytes
        with self._told("writing", path):
            self._write(path, stream)

    def _read(self, path: str) -> bytes:
        def ask() -> tuple[int, bytes]:
            with self._server.reading.one() as connection:
                size_bytes, data = connection.small(self._place(path), SMALL_BYTES)
                return size_bytes, data

        with self._told("reading", path):
            size_bytes, data = retried(ask, self._server.transient)
        if size_bytes > SMALL_BYTES:
            raise StoreError(f"{self._url}/{path}: it grew to {size_bytes} bytes meanwhile")
        if size_bytes != len(data):
            raise StoreError(
                f"{self._url}/{path}: {len(data)} bytes came, the server says it has {size_bytes}"
            )
        return data

    def _write(self, path: str, stream: BinaryIO) -> None:
        counted = _CountedStream(stream)
        place = self._place(path)
        beside = f"{posixpath.dirname(place)}/{half_name(path)}"
        self._make_folders(posixpath.dirname(place))
        try:
            with self._server.writing.one() as connection:
                there_bytes = connection.write(beside, counted)
                if there_bytes != counted.bytes:
                    raise StoreError(  # noqa: TRY301 - it is removed, as after any other
                        f"{self._url}/{path}: {counted.bytes} bytes were sent, "
                        f"the server has {there_bytes}"
                    )
                connection.replace(beside, place)
        except BaseException:
            with contextlib.suppress(Exception), self._server.writing.one() as connection:
                connection.remove(beside)
            raise

    def _make_folders(self, folder: str) -> None:
        with self._made_turn:  # others wait, and need not make them
            if folder in self._made:
                return
            with self._server.writing.one() as connection:
                missing = []
                while folder not in self._made and not connection.has_folder(folder):
                    missing.append(folder)
                    folder = posixpath.dirname(folder)
                for path in reversed(missing):
                    try:
                        connection.make_folder(path)
                    except self._server.transient:
                        raise
                    except Exception:
                        if not connection.has_folder(path):  # as another process has made it
                            raise
                self._made.update(missing, [folder])

    def _place(self, path: str) -> str:
        return f"{self._root}/{self._real.get(path, path)}".rstrip("/") or "/"

    @contextlib.contextmanager
    def _told(self, doing: str, path: str = "") -> Iterator[None]:
        """Turn what clients raise into errors of ours with one line."""
        what = f"{doing} {self._url}/{path}".rstrip("/")
        try:
            yield
        except EximError:
            raise
        except FileNotFoundError as error:
            raise StoreError(f"{what}: it is not there") from error
        except Exception as error:
            said = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise StoreError(f"{what}: {redact_text(' '.join(str(said).split()))}") from error


class _NamedStream(io.RawIOBase):
    """A stream whose errors are told with the name of its file."""

    def __init__(self, stream: io.RawIOBase, told: Callable[[str, str], Any], path: str) -> None:
        self._stream = stream
        self._told = told
        self._path = path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with self._told("reading", self._path):
            return self._stream.readinto(buffer) or 0

    def close(self) -> None:
        self._stream.close()
        super().close()


class _CountedStream(io.RawIOBase):
    """A stream that knows how many bytes were read from it."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self.bytes += len(data)
        return len(data)


@functools.cache
def _reads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(AT_ONCE, "exim-files")


@functools.cache
def _writes() -> ThreadPoolExecutor:
    """Of their own: what they send may come from files that are read."""
    return ThreadPoolExecutor(AT_ONCE, "exim-sends")
