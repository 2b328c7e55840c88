"""Writing frames: compressed by a few threads, put out in order, listed in the seek table."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container import bag
from mlflow_exim_plugin.container.frames import SeekTable, compress_frame, skippable_frame
from mlflow_exim_plugin.errors import EximError, StoreError, UsageError
from mlflow_exim_plugin.schema.rules import LIMITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Protocol

    from mlflow_exim_plugin.storage.output import Writable

    class _Hash(Protocol):
        def update(self, data: bytes, /) -> None: ...


__all__ = ["FrameWriter", "default_workers", "has_to_pay", "paid_pieces"]

_SMALLER_BYTES = (16 << 10, 1 << 10, 64)
"""Pieces of a text that is much in few bytes: a frame has some 25 bytes, whatever is in it."""

# In flight for each worker: one large frame being compressed and one waiting, or many small ones.
# A worker gets the interpreter back only in its turn, and meanwhile the caller fills some more.
_FRAMES_PER_WORKER = 2
_BYTES_PER_WORKER = 2 << 20


def default_workers() -> int:
    """Return how many threads compress when the caller does not say."""
    return min(4, os.cpu_count() or 1)


def has_to_pay(path: str, size_bytes: int) -> bool:
    """Tell whether readers ask what a member is made of (spec, "Hostile input")."""
    is_document = path.endswith(".json") and "/artifacts/" not in path
    is_large = size_bytes > min(LIMITS.free_bytes, 2 * LIMITS.free_values)
    return is_large and (is_document or path == bag.MANIFEST)


def paid_pieces(pieces: Iterable[bytes], level: int, size_bytes: int) -> Iterator[bytes]:
    """Yield pieces of a document or manifest, smaller ones where it says much in few bytes.

    Args:
        pieces: Of the size that is best for others.
        level: zstd's compression level.
        size_bytes: Size of all together.
    """
    for piece in pieces:
        yield from _paid(piece, level, _SMALLER_BYTES, size_bytes > LIMITS.free_bytes)


def _paid(
    piece: bytes, level: int, smaller_bytes: tuple[int, ...], is_large: bool
) -> Iterator[bytes]:
    if not smaller_bytes or _is_paid(piece, len(compress_frame(piece, level)), is_large):
        yield piece
        return
    step, *others = smaller_bytes
    for start in range(0, len(piece), step):
        yield from _paid(piece[start : start + step], level, tuple(others), is_large)


def _is_paid(piece: bytes, stored_bytes: int, is_large: bool) -> bool:
    values = sum(map(piece.count, (b",", b"[", b"{")))
    fits = not is_large or len(piece) <= LIMITS.text_expansion * stored_bytes
    return fits and values <= stored_bytes


class FrameWriter:
    """Turns pieces of the tar stream into frames of a file, one frame a piece.

    The bytes written do not depend on ``workers``: each frame is compressed alone, and frames are
    written in the order they were given.

    Args:
        file: Gets the bytes; only ``write`` is used.
        level: zstd's compression level.
        workers: Threads that compress; 0 compresses in the caller's thread.

    Attributes:
        bytes_written: Size of the file so far.
        tar_bytes: Decompressed bytes of all frames given so far.
    """

    def __init__(self, file: Writable, *, level: int, workers: int) -> None:
        if workers < 0:
            raise UsageError(f"{workers} is no number of workers")
        compress_frame(b"", level)  # so that a wrong level is found at once
        self._file = file
        self._level = level
        self._limit = workers * _FRAMES_PER_WORKER
        self._limit_bytes = workers * _BYTES_PER_WORKER
        self._entries = bytearray()
        self._compressing: deque[tuple[Future[bytes], int]] = deque()
        self._compressing_bytes = 0
        self._hashing: deque[Future[None]] = deque()
        self._pool = ThreadPoolExecutor(workers, "exim-zstd") if workers else None
        # One thread, so that a member's pieces are hashed in order.
        self._hasher = ThreadPoolExecutor(1, "exim-sha256") if workers else None
        self.bytes_written = 0
        self.tar_bytes = 0
        self.frame_count = 0

    def write_frame(self, data: bytes) -> None:
        """Make ``data`` the next frame. The caller must not change it afterwards.

        Raises:
            StoreError: The file cannot be written.
        """
        self.tar_bytes += len(data)
        self.frame_count += 1
        if self._pool is None:
            self._put(compress_frame(data, self._level), len(data))
            return
        while self._is_full():
            self._put_oldest()
        self._wait_for(self._pool.submit(compress_frame, data, self._level), len(data))

    def copy_frame(self, frame: bytes, size_bytes: int) -> None:
        """Make a frame of another archive, as it is, the next one.

        Args:
            frame: It.
            size_bytes: Its decompressed size.

        Raises:
            StoreError: The file cannot be written.
        """
        self.tar_bytes += size_bytes
        self.frame_count += 1
        if not self._compressing:
            self._put(frame, size_bytes)
            return
        while self._is_full():
            self._put_oldest()
        ready: Future[bytes] = Future()
        ready.set_result(frame)
        self._wait_for(ready, size_bytes)

    def go_on(self, entries: bytes) -> None:
        """Begin behind frames that are in the file already.

        Args:
            entries: Theirs in the seek table.
        """
        table = SeekTable(entries + SeekTable.entry(b"", 0) * 2)
        self._entries = bytearray(entries)
        self.tar_bytes, self.frame_count = table.tar_bytes, table.frame_count
        self.bytes_written = table.file_offsets[table.frame_count]

    def hash_along(self, digest: _Hash, data: bytes) -> None:
        """Update a digest while frames are compressed; :meth:`finish_hashing` waits for it."""
        if self._hasher is None:
            digest.update(data)
            return
        while len(self._hashing) >= self._limit:
            self._hashing.popleft().result()
        self._hashing.append(self._hasher.submit(digest.update, data))

    def finish_hashing(self) -> None:
        """Wait until all that was given to :meth:`hash_along` is hashed."""
        while self._hashing:
            self._hashing.popleft().result()

    def write_skippable(self, magic: int, payload: bytes) -> None:
        """Write a skippable frame after all frames given so far."""
        self.drain()
        self._put(skippable_frame(magic, payload), 0)

    def finish(self) -> None:
        """Write what is left, then the seek table. The file stays open."""
        self.drain()
        self._write(SeekTable.encode(bytes(self._entries)))
        self.abandon()

    def abandon(self) -> None:
        """Stop the threads; nothing more is written."""
        for pool in (self._pool, self._hasher):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)

    def frame_offset(self, frame: int) -> int:
        """Return where a frame begins in the file; call :meth:`drain` before."""
        return SeekTable(bytes(self._entries)).file_offsets[frame]

    def drain(self) -> None:
        """Write all frames given so far."""
        while self._compressing:
            self._put_oldest()

    def _wait_for(self, frame: Future[bytes], size_bytes: int) -> None:
        self._compressing.append((frame, size_bytes))
        self._compressing_bytes += size_bytes

    def _is_full(self) -> bool:
        many = len(self._compressing) >= self._limit
        return many and self._compressing_bytes >= self._limit_bytes

    def _put_oldest(self) -> None:
        frame, size_bytes = self._compressing.popleft()
        self._compressing_bytes -= size_bytes
        self._put(frame.result(), size_bytes)

    def _put(self, frame: bytes, size_bytes: int) -> None:
        self._entries += SeekTable.entry(frame, size_bytes)
        self._write(frame)

    def _write(self, data: bytes) -> None:
        try:
            while data:
                written = self._file.write(data)
                self.bytes_written += len(data) if written is None else written
                # An unbuffered file may take less than it was given.
                data = b"" if written is None else data[written:]
        except EximError:
            raise
        except Exception as error:  # the file is the caller's and may raise anything
            raise StoreError(f"cannot write the archive: {error}") from error
