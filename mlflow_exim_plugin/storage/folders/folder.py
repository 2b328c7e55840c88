"""A folder of files that are written once, read by many ranges of them at once."""

from __future__ import annotations

import contextlib
import itertools
import os
import posixpath
import threading
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlflow_exim_plugin.errors import ArchiveExistsError, StoreError
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.file_systems import file_system, raise_for, store_errors
from mlflow_exim_plugin.storage.folders.store_folder import StoreFolder
from mlflow_exim_plugin.storage.objects import NoPartsError, OddKeyError, object_folder
from mlflow_exim_plugin.storage.output import Writable, atomic_output
from mlflow_exim_plugin.storage.ranges import mark_of
from mlflow_exim_plugin.storage.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from mlflow_exim_plugin.storage.objects import ObjectFolder

__all__ = ["FileThere", "Folder", "MemoryFolder", "Range", "open_folder"]

_AT_ONCE = 32
_JOINED_BYTES = 16 << 10
"""Ranges of one file that are no farther apart than this come by one request."""

Range = tuple[str, int, int]
"""A path below the folder, and the bytes ``[start, end)`` of that file."""


@dataclass(frozen=True)
class FileThere:
    """A file that lies in a folder.

    Attributes:
        name: Its name there.
        size_bytes: Its size.
        mark: What its store calls its version, such as an ETag; empty where nothing tells.
    """

    name: str
    size_bytes: int
    mark: str = ""


class Folder(Protocol):
    """A folder whose files nobody changes once they are there; safe to use from many threads.

    Attributes:
        url: Where it is.
        requests: How many requests reading took.
        bytes_read: How many bytes they gave.
    """

    url: str
    requests: int
    bytes_read: int

    def files(self, path: str = "") -> list[FileThere]:
        """Return the files directly in a folder below it, by name; none where there is none.

        Raises:
            StoreError: It cannot be listed.
        """

    def ranges(self, wanted: Sequence[Range]) -> list[bytes]:
        """Return many ranges, all asked for at once.

        Raises:
            NotFoundError: A file is gone.
            StoreError: The store refused or died, or a file is shorter.
        """

    def new_file(self, path: str) -> AbstractContextManager[Writable]:
        """Open a file to be written that appears whole or not at all, where there is none.

        Raises:
            ArchiveExistsError: There is one.
            StoreError: The store refused or died.
        """

    def remove(self, path: str) -> bool:
        """Remove a file; returns whether it was there.

        Raises:
            StoreError: The store refused.
        """


class _Counted:
    """What folders share: ranges that lie close come as one, and requests are counted."""

    url: str

    def __init__(self) -> None:
        self.requests = 0
        self.bytes_read = 0
        self._turn = threading.Lock()

    def ranges(self, wanted: Sequence[Range]) -> list[bytes]:
        """See `Folder`."""
        joined = _joined(wanted)
        data = self._get([span for span, _ in joined])
        self._count(len(joined), sum(map(len, data)))
        found: list[bytes] = [b""] * len(wanted)
        for ((path, start, end), inner), whole in zip(joined, data, strict=True):
            if len(whole) != end - start:
                raise StoreError(
                    f"{redact_url(self.url)}/{path}: asked for {end - start} bytes at {start}, "
                    f"got {len(whole)}"
                )
            for place in inner:
                _, first, last = wanted[place]
                found[place] = whole[first - start : last - start]
        return found

    def _get(self, wanted: Sequence[Range]) -> list[bytes]:
        raise NotImplementedError

    def _count(self, requests: int, size_bytes: int = 0) -> None:
        with self._turn:
            self.requests += requests
            self.bytes_read += size_bytes


def _joined(wanted: Sequence[Range]) -> list[tuple[Range, list[int]]]:
    """Return the ranges to ask for, and which of those that are wanted lie in each."""
    joined: list[tuple[Range, list[int]]] = []
    for place in sorted(range(len(wanted)), key=wanted.__getitem__):
        path, start, end = wanted[place]
        if joined:
            (last, first, before), inner = joined[-1]
            if last == path and start <= before + _JOINED_BYTES:
                joined[-1] = (path, first, max(before, end)), [*inner, place]
                continue
        joined.append(((path, start, end), [place]))
    return joined


class MemoryFolder(_Counted):
    """A folder that ends with the process."""

    def __init__(self, url: str = "") -> None:
        super().__init__()
        self.url = url
        self._files: dict[str, bytes] = {}

    def files(self, path: str = "") -> list[FileThere]:
        """See `Folder`."""
        there = (name for name in self._files if posixpath.dirname(name) == path)
        return [FileThere(posixpath.basename(n), len(self._files[n])) for n in sorted(there)]

    def _get(self, wanted: Sequence[Range]) -> list[bytes]:
        return [self._files[path][start:end] for path, start, end in wanted]

    @contextlib.contextmanager
    def new_file(self, path: str) -> Generator[Writable]:
        """See `Folder`."""
        if path in self._files:
            raise ArchiveExistsError(f"{path} exists")
        data = _Bytes()
        yield data
        self._files[path] = bytes(data.written)

    def remove(self, path: str) -> bool:
        """See `Folder`."""
        return self._files.pop(path, None) is not None


class _Bytes:
    def __init__(self) -> None:
        self.written = bytearray()

    def write(self, data: bytes, /) -> int:
        self.written += data
        return len(data)


class _StoredFolder(_Counted, StoreFolder):
    """A folder of a store: read by obstore where that serves it, else by fsspec's file system."""

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None) -> None:
        StoreFolder.__init__(self, url, storage_options)
        _Counted.__init__(self)
        self._local = local_path(url)
        self._objects: ObjectFolder | None = None
        if self._local is None:
            self._objects = object_folder(url, storage_options or {})
        self._made: set[str] = set()

    @cached_property
    def _store(self) -> tuple[Any, str]:
        """File system and path there: its client takes a second, and is not made where unneeded."""
        store, root = file_system(self.url, self.storage_options)
        return store, root.rstrip("/")

    def files(self, path: str = "") -> list[FileThere]:
        self._count(1)
        if self._local is not None:
            return _local_files(Path(self._local) / path)
        if self._objects is not None:
            with contextlib.suppress(OddKeyError):
                return [FileThere(*told) for told in self._objects.names(path)]
        url = self.at(path) if path else self.url
        store, root = self._store
        folder = f"{root}/{path}" if path else root
        with store_errors(url, "list"):
            store.invalidate_cache(folder)
            try:
                listed = store.ls(folder, detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
        there = [
            FileThere(posixpath.basename(info["name"]), int(info.get("size") or 0), mark_of(info))
            for info in listed
            if info.get("type") == "file"
        ]
        return sorted((file for file in there if file.name), key=lambda file: file.name)

    def _get(self, wanted: Sequence[Range]) -> list[bytes]:
        if self._local is not None:
            return _local_ranges(Path(self._local), wanted)
        if self._objects is not None:
            coming = [self._objects.part(*span) for span in wanted]
            try:
                return [future.result() for future in coming]
            except NoPartsError:
                self._objects = None
        store, root = self._store
        paths = [f"{root}/{path}" for path, _, _ in wanted]
        starts, ends = [start for _, start, _ in wanted], [end for _, _, end in wanted]
        with store_errors(self.url, "read"):
            found = store.cat_ranges(paths, starts, ends, batch_size=_AT_ONCE, on_error="return")
        for (path, _, _), data in zip(wanted, found, strict=True):
            if isinstance(data, Exception):
                raise_for(data, self.at(path), "read")
        return [bytes(data) for data in found]

    @contextlib.contextmanager
    def new_file(self, path: str) -> Generator[Writable]:
        if (folder := posixpath.dirname(path)) not in self._made:
            self.make_folder_of(path)
            self._made.add(folder)
        with atomic_output(self.at(path), storage_options=self.storage_options) as output:
            yield output


def _local_files(folder: Path) -> list[FileThere]:
    found = []
    with store_errors(str(folder), "list"):
        for entry in os.scandir(folder) if folder.is_dir() else ():
            with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                if entry.is_file():
                    status = entry.stat()
                    found.append(FileThere(entry.name, status.st_size, str(status.st_mtime_ns)))
    return sorted(found, key=lambda file: file.name)


def _local_ranges(root: Path, wanted: Sequence[Range]) -> list[bytes]:
    found = []
    for path, spans in itertools.groupby(wanted, key=lambda span: span[0]):
        with store_errors(str(root / path), "read"), (root / path).open("rb") as file:
            for _, start, end in spans:
                file.seek(start)
                found.append(file.read(end - start))
    return found


def open_folder(url: str, storage_options: Mapping[str, Any] | None = None) -> Folder:
    """Open a folder of this machine or of any fsspec store; it may be that nothing is there yet.

    Args:
        url: Path or URL.
        storage_options: For the file system, see fsspec.

    Raises:
        StoreError: The protocol is unknown, or the options are not enough.
        MissingDependencyError: The protocol needs a package that is not installed.
    """
    return _StoredFolder(url, storage_options)
