"""Reading frames: asked for before they are needed, several requests at once, and a small cache."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.frames import decompress_frame
from mlflow_exim_plugin.errors import EximError
from mlflow_exim_plugin.schema.rules import LIMITS, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Iterator, Sequence

    from mlflow_exim_plugin.container.frames import SeekTable

__all__ = ["FrameReader"]

CACHE_BYTES = 32 << 20
"""Decompressed frames kept for later reads."""
_REQUEST_BYTES = 8 << 20
"""Most that one request asks for, when it is several frames."""
_REQUEST_OF_SEVERAL_BYTES = 11 << 19
"""... where several are on their way."""
_GAP_BYTES = 64 << 10
"""What nobody wants between two wanted frames is fetched with them: that is faster than to ask."""


class FrameReader:
    """Gives the frames of an archive, checked and decompressed; safe to use from many threads.

    Args:
        read_range: Returns the bytes ``[start, end)`` of the file.
        table: The file's seek table.
        at_once: How many requests are worth to be made at once.
        limits: What a frame may be at most.
    """

    def __init__(
        self,
        read_range: Callable[[int, int], bytes],
        table: SeekTable,
        at_once: int = 1,
        limits: Limits = LIMITS,
    ) -> None:
        self.table = table
        self._limits = limits
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._ahead = _FramesAhead(read_range, table, at_once, self._cache)
        self._cached_bytes = 0
        self._lock = threading.Lock()

    def span(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes ``[start, end)`` of the tar stream in pieces.

        Raises:
            InvalidArchiveError: A frame is damaged.
            StoreError: The file cannot be read.
        """
        if start >= end:
            return
        position = start
        for data in self.frames(self.table.frame_at(start), self.table.frame_at(end - 1) + 1):
            frame_start = self.table.tar_offsets[self.table.frame_at(position)]
            piece = data[position - frame_start : end - frame_start]
            position += len(piece)
            yield piece

    def spans(self, wanted: Sequence[tuple[int, int]]) -> list[bytes | EximError]:
        """Return the bytes of many spans of the tar stream, or why one cannot be read.

        They are read in the order of the file, so that neighbours come with one request.
        """
        self.expect(wanted)
        found: list[bytes | EximError] = [b""] * len(wanted)
        for number in sorted(range(len(wanted)), key=wanted.__getitem__):
            try:
                found[number] = b"".join(self.span(*wanted[number]))
            except EximError as error:
                found[number] = error
        return found

    def frames(self, first: int, last: int, at_once: int = 0) -> Iterator[bytes]:
        """Yield the frames ``[first, last)``, with one request for many.

        Args:
            first: Number of the first frame.
            last: Number after the last one.
            at_once: Begin with requests for so many and double them, for a reader that may stop or
                seek elsewhere; 0 for one that takes all.
        """
        ahead, in_store = at_once or last - first, 0
        sure_until = first + ahead
        for frame in range(first, last):
            if frame >= sure_until - in_store:  # who goes on once is taken to go on again
                in_store = ahead
                ahead *= 2
                sure_until = min(last, sure_until + ahead)
            data = self._cached(frame)
            if data is None:
                data = self.decompress(frame, self._ahead.take(frame, sure_until))
                self._keep(frame, data)
            yield data

    def stored_bytes(self, start: int, size_bytes: int) -> int:
        """Return how many bytes of the file hold a part of the tar stream, and what is beside it.

        Args:
            start: Where it begins.
            size_bytes: How long it is.
        """
        table = self.table
        last = table.frame_at(max(start + size_bytes - 1, start))
        return table.file_offsets[last + 1] - table.file_offsets[table.frame_at(start)]

    def own(self, start: int, end: int) -> tuple[int, int] | None:
        """Return the frames that hold a span of the tar stream and nothing else, if any do."""
        offsets = self.table.tar_offsets
        if start >= end:
            return None
        first, last = self.table.frame_at(start), self.table.frame_at(end - 1) + 1
        return (first, last) if (offsets[first], offsets[last]) == (start, end) else None

    def compressed(self, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        """Yield number and compressed bytes of the frames ``[first, last)``, past the cache."""
        for frame in range(first, last):
            yield frame, self._ahead.take(frame, last)

    def expect(self, spans: Iterable[tuple[int, int]]) -> None:
        """Say which spans of the tar stream will be read, so that they are on their way by then."""
        table = self.table
        if self._ahead.looks_ahead:
            self._ahead.expect(
                range(table.frame_at(start), table.frame_at(end - 1) + 1)
                for start, end in spans
                if start < end <= table.tar_bytes
            )

    def close(self) -> None:
        """Ask for nothing any more."""
        self._ahead.close()

    def decompress(self, frame: int, compressed: bytes) -> bytes:
        """Check and decompress one frame.

        Raises:
            InvalidArchiveError: It is damaged.
        """
        size_bytes, checksum = self.table.size_bytes(frame), self.table.checksum(frame)
        return decompress_frame(compressed, size_bytes, checksum, frame, self._limits.frame_bytes)

    def _cached(self, frame: int) -> bytes | None:
        with self._lock:
            data = self._cache.get(frame)
            if data is not None:
                self._cache.move_to_end(frame)
            return data

    def _keep(self, frame: int, data: bytes) -> None:
        with self._lock:
            if frame in self._cache or len(data) > CACHE_BYTES:
                return
            self._cache[frame] = data
            self._cached_bytes += len(data)
            while self._cached_bytes > CACHE_BYTES:
                _, dropped = self._cache.popitem(last=False)
                self._cached_bytes -= len(dropped)


class _FramesAhead:
    """Gives compressed frames; safe to use from many threads.

    What is on its way and not taken yet is bounded: so many requests of a few MiB. Those that were
    forgotten make room for others.

    Args:
        read_range: Returns the bytes ``[start, end)`` of the file.
        table: The file's seek table.
        at_once: How many requests are made at once; with 1 none is made before it is needed.
        known: Numbers of frames that nobody will take.
    """

    def __init__(
        self,
        read_range: Callable[[int, int], bytes],
        table: SeekTable,
        at_once: int,
        known: Container[int],
    ) -> None:
        self._read_range = read_range
        self._table = table
        self._at_once = at_once
        self._known = known
        self._request_bytes = _REQUEST_BYTES if at_once == 1 else _REQUEST_OF_SEVERAL_BYTES
        self._expected = bytearray()
        self._coming: dict[int, _Request] = {}
        self._requests: OrderedDict[_Request, None] = OrderedDict()
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    @property
    def looks_ahead(self) -> bool:
        """Whether it is of any use to say what will be taken."""
        return self._at_once > 1

    def expect(self, frames: Iterable[range]) -> None:
        """Say which frames will be taken some time, in about the order of the file."""
        with self._lock:
            if not self._expected:
                self._expected = bytearray(self._table.frame_count)
            for some in frames:
                self._expected[some.start : some.stop] = b"\1" * len(some)

    def take(self, frame: int, sure_until: int) -> bytes:
        """Return a frame; those before ``sure_until`` will be taken next.

        Raises:
            StoreError: The file cannot be read.
        """
        with self._lock:
            request = self._coming.get(frame)
            is_new = request is None
            if request is None:
                while len(self._requests) >= self._at_once:
                    self._forget(next(iter(self._requests)))
                request = self._ask(frame, sure_until)
            self._requests.move_to_end(request)
            self._ask_ahead(frame + 1, sure_until)
        if is_new and self._at_once == 1:
            self._fetch(request)
        try:
            data = request.data.result()
        except CancelledError:  # another thread went elsewhere, and this one was too late
            return self.take(frame, sure_until)
        except BaseException:
            with self._lock:
                self._forget(request)
            raise
        with self._lock:
            request.left.discard(frame)
            self._coming.pop(frame, None)
            if not request.left:
                self._requests.pop(request, None)
        offsets = self._table.file_offsets
        return data[offsets[frame] - request.start : offsets[frame + 1] - request.start]

    def close(self) -> None:
        """Ask for nothing any more; what is on its way is not waited for."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask_ahead(self, frame: int, sure_until: int) -> None:
        """Have as many requests on their way as there may be."""
        while len(self._requests) < self._at_once:
            if frame >= sure_until:
                frame = self._expected.find(1, frame)
            if not 0 <= frame < self._table.frame_count:
                return
            if self._is_wanted(frame, sure_until):
                self._ask(frame, sure_until)
            elif self._expected:
                self._expected[frame] = 0  # it is there, or on its way
            frame += 1

    def _ask(self, first: int, sure_until: int) -> _Request:
        """Ask for a frame, and for those after it that are wanted too."""
        table = self._table
        start = table.file_offsets[first]
        wanted = {first}
        last = end = first + 1
        while end < table.frame_count:
            end_bytes = table.file_offsets[end + 1]
            if end_bytes - start > self._request_bytes:
                break
            if self._is_wanted(end, sure_until):
                wanted.add(end)
                last = end + 1
            elif end_bytes - table.file_offsets[last] > _GAP_BYTES:
                break
            end += 1
        request = _Request(start, table.file_offsets[last], wanted)
        self._requests[request] = None
        for frame in wanted:
            self._coming[frame] = request
            if self._expected:
                self._expected[frame] = 0
        if self._at_once > 1:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._at_once, "exim-ranges")
            self._pool.submit(self._fetch, request)
        return request

    def _is_wanted(self, frame: int, sure_until: int) -> bool:
        is_wanted = frame < sure_until or (self._expected and self._expected[frame])
        return bool(is_wanted) and frame not in self._coming and frame not in self._known

    def _fetch(self, request: _Request) -> None:
        if not request.data.set_running_or_notify_cancel():
            return
        try:
            request.data.set_result(self._read_range(request.start, request.end))
        except BaseException as error:  # noqa: BLE001 - whoever takes it has it
            request.data.set_exception(error)

    def _forget(self, request: _Request) -> None:
        request.data.cancel()
        self._requests.pop(request, None)
        for frame in request.left:
            self._coming.pop(frame, None)


class _Request:
    """One range of the file on its way."""

    def __init__(self, start: int, end: int, wanted: set[int]) -> None:
        self.start = start
        self.end = end
        self.left = wanted
        """Frames in it that nobody took yet."""
        self.data: Future[bytes] = Future()
