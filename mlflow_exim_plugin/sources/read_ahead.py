"""The small files of one owner, some of them read while the ones before are used."""

from __future__ import annotations

import io
import threading
import weakref
from typing import TYPE_CHECKING, BinaryIO, cast

from mlflow_exim_plugin.host.files.tree import SMALL_BYTES
from mlflow_exim_plugin.storage.room import ROOM

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future, ThreadPoolExecutor

    from mlflow_exim_plugin.host.files.tree import ArtifactTree

__all__ = ["ReadAhead"]

_AT_ONCE = 64
_KEPT = 256
"""Files that were read and not asked for are forgotten when so many later ones were."""


class ReadAhead:
    """Opens files in nearly the order in which they are listed, the next ones being on their way.

    The first are read at once. Memory is that of :data:`ROOM`, of which half is for those that
    were asked for; what nobody asked for goes with the last one who could.

    Args:
        tree: Where the files are.
        files: Path and size in bytes of each.
        pool: Reads those of trees that have no threads of their own.
    """

    def __init__(
        self, tree: ArtifactTree, files: Sequence[tuple[str, int]], pool: ThreadPoolExecutor
    ) -> None:
        self._tree = tree
        self._files = files
        self._pool = pool
        self._lock = threading.Lock()
        self._begun: dict[int, Future[bytes]] = {}
        self._next = 0
        weakref.finalize(self, _forget, self._begun, files).atexit = False
        self._begin(_AT_ONCE, leaving_bytes=ROOM.size_bytes // 2)

    def open(self, number: int) -> BinaryIO:
        """Open a file.

        Args:
            number: Which of the files; it can be opened again.

        Raises:
            EximError: It cannot be read.
        """
        path, size_bytes = self._files[number]
        with self._lock:
            coming = self._begun.pop(number, None)
            while (old := next(iter(self._begun), number)) < number - _KEPT:
                _drop(self._begun.pop(old), self._files[old][1])
            self._next = max(self._next, number + 1)
        try:
            if coming is None:
                self._begin(number + 1 + _AT_ONCE)
                return self._tree.open(path, size_bytes)
            return cast("BinaryIO", io.BytesIO(coming.result()))
        finally:
            if coming is not None:
                ROOM.give(size_bytes)
                self._begin(number + 1 + _AT_ONCE)

    def _begin(self, end: int, leaving_bytes: int = 0) -> None:
        with self._lock:
            while self._next < min(end, len(self._files)):
                path, size_bytes = self._files[self._next]
                if size_bytes <= SMALL_BYTES:  # others come by ranges in their turn
                    if not ROOM.take(size_bytes, leaving_bytes):
                        return
                    if (coming := self._read(path, size_bytes)) is None:
                        ROOM.give(size_bytes)
                    else:
                        self._begun[self._next] = coming
                self._next += 1

    def _read(self, path: str, size_bytes: int) -> Future[bytes] | None:
        coming = self._tree.read(path, size_bytes)
        if coming is not None or not size_bytes:  # or its store tells no sizes
            return coming
        try:
            return self._pool.submit(_read_all, self._tree, path, size_bytes)
        except RuntimeError:  # its source is closed, and a sink still writes
            return None


def _read_all(tree: ArtifactTree, path: str, size_bytes: int) -> bytes:
    with tree.open(path, size_bytes) as stream:
        return b"".join(iter(lambda: stream.read(1 << 20), b""))


def _forget(begun: dict[int, Future[bytes]], files: Sequence[tuple[str, int]]) -> None:
    for number, coming in begun.items():
        _drop(coming, files[number][1])


def _drop(coming: Future[bytes], size_bytes: int) -> None:
    coming.cancel()
    coming.add_done_callback(lambda _: ROOM.give(size_bytes))
