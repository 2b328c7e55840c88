"""Ranges of files on any fsspec store, each of the one version that was opened."""

from __future__ import annotations

import os
import stat
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.storage.file_systems import file_system, raise_for
from mlflow_exim_plugin.storage.pinned import Changed, FileVersion, PinnedSource
from mlflow_exim_plugin.storage.schemes import reader_of
from mlflow_exim_plugin.storage.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["RangeSource", "mark_of", "open_range"]


class RangeSource(Protocol):
    """A file of known size that gives any range of its bytes; safe to use from many threads.

    Attributes:
        name: What to call it in messages, without credentials.
        requests: How many requests were made.
        bytes_read: How many bytes they gave.
        at_once: How many ranges it is worth to ask for at once.
    """

    name: str
    requests: int
    bytes_read: int
    at_once: int

    @property
    def size_bytes(self) -> int:
        """Size of the file."""

    def read_range(self, start: int, end: int) -> bytes:
        """Return exactly the bytes ``[start, end)``.

        Raises:
            ReplacedError: Another file is at the name now.
            StoreError: The store refused or died.
        """

    def close(self) -> None:
        """Let go of the file; closing twice is no error."""


def open_range(url: str, storage_options: Mapping[str, Any] | None = None) -> RangeSource:
    """Open a local path or any fsspec URL for ranged reads.

    What it returns can be pickled, and then reads the same version elsewhere.

    Args:
        url: Local path or URL, chained ones (``simplecache::s3://...``) included.
        storage_options: For the file system, see fsspec.

    Raises:
        NotFoundError: No such file, or a directory.
        StoreError: The store refused or died, or the protocol is unknown.
        MissingDependencyError: The protocol needs a package that is not installed.
    """
    if local_path(url) is not None:
        return _LocalSource(url, storage_options, None)
    store, _ = file_system(url, storage_options)
    module, _, name = reader_of(store.protocol).rpartition(".")
    own = f"mlflow_exim_plugin.storage.{module}"
    kind = getattr(import_module(own), name) if module else _PlainSource
    source: RangeSource = kind(url, storage_options, None)
    return source


_OPENING = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
"""A pipe is opened at once, and then refused: it would wait for somebody who writes."""


class _LocalSource(PinnedSource):
    at_once = 1

    def _begin(self) -> tuple[FileVersion, bytes]:
        self.name = local_path(self._url) or self._url
        self._descriptor = -1
        try:
            self._descriptor = os.open(self.name, _OPENING)
            status = os.fstat(self._descriptor)
        except (OSError, ValueError) as error:
            self.close()
            raise_for(error, self.name, "open")
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise self._no_file()
        return self._now(), b""

    def _get(self, start: int, end: int) -> bytes:
        data = b"".join(self._pieces(start, end))
        if self._now() != self.version:  # written to; a file that takes its name is another one
            raise Changed
        return data

    def _now(self) -> FileVersion:
        status = os.fstat(self._descriptor)
        return FileVersion(status.st_size, str(status.st_mtime_ns))

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
        descriptor, self._descriptor = getattr(self, "_descriptor", -1), -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        # Readers live long inside file systems and stores that nobody closes.
        self.close()


_MARKS = (
    *("ETag", "etag", "generation", "mtime", "modified", "LastModified", "last_modified"),
    *("created", "md5", "sha256"),
)
"""What file systems call that by which a file differs from the one that it replaced."""


def mark_of(info: Mapping[str, Any]) -> str:
    """Return which version of a file fsspec's file system tells of, empty where it does not."""
    return next((str(info[mark]) for mark in _MARKS if mark in info), "")


class _PlainSource(PinnedSource):
    """A file of a file system that gives no more than fsspec asks of all."""

    def _begin(self) -> tuple[FileVersion, bytes]:
        self._store, self._path = file_system(self._url, self._storage_options)
        return self._now(), b""

    def _get(self, start: int, end: int) -> bytes:
        data = bytes(self._store.cat_file(self._path, start=start, end=end))
        if len(data) == self.size_bytes != end - start:
            raise StoreError(
                f"{self.name}: the server does not support range requests",
                "download the archive and open the local copy",
            )
        if self.version.mark and self._now() != self.version:
            raise Changed
        return data

    def _now(self) -> FileVersion:
        info = self._store.info(self._path)
        if info.get("type") == "directory":
            raise self._no_file()
        if not isinstance(size_bytes := info.get("size"), int):
            raise StoreError(
                f"{self.name}: the store does not tell the file's size",
                "download the archive and open the local copy",
            )
        return FileVersion(size_bytes, mark_of(info))
