"""Reading frames: ranged reads that grow when they go on, and a small cache."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.frames import SeekTable, decompress_frame
from mlflow_exim_plugin.errors import EximError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["FrameReader"]

CACHE_BYTES = 32 << 20
"""Decompressed frames kept for later reads."""
REQUEST_BYTES = 8 << 20
"""Most that one request asks for, compressed and decompressed, when it is several frames."""
REQUESTS_AT_ONCE = 8


class FrameReader:
    """Gives the frames of an archive, checked and decompressed; safe to use from many threads.

    Args:
        read_range: Returns the bytes ``[start, end)`` of the file.
        table: The file's seek table.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], table: SeekTable) -> None:
        self.table = table
        self._read_range = read_range
        self._cache: OrderedDict[int, bytes] = OrderedDict()
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

        Those in the same frame or the next are read together, and a few such groups at once.
        """
        groups: list[list[int]] = []
        group_start, next_frame = 0, -1
        for number in sorted(range(len(wanted)), key=wanted.__getitem__):
            start, end = wanted[number]
            first, last = self.table.frame_at(start), self.table.frame_at(max(start, end - 1))
            if first <= next_frame and end - group_start <= REQUEST_BYTES:
                groups[-1].append(number)
                next_frame = max(next_frame, last + 1)
            else:
                groups.append([number])
                group_start, next_frame = start, last + 1
        found: list[bytes | EximError] = [b""] * len(wanted)

        def read(group: list[int]) -> None:
            start, end = wanted[group[0]][0], max(wanted[number][1] for number in group)
            try:
                data = b"".join(self.span(start, end))
            except EximError as error:
                if len(group) > 1:  # each alone: only what is damaged is lost
                    for number in group:
                        read([number])
                else:
                    found[group[0]] = error
                return
            for number in group:
                found[number] = data[wanted[number][0] - start : wanted[number][1] - start]

        if len(groups) < 2:
            for group in groups:
                read(group)
            return found
        with ThreadPoolExecutor(min(REQUESTS_AT_ONCE, len(groups)), "exim-read") as pool:
            for done in [pool.submit(read, group) for group in groups]:
                done.result()
        return found

    def frames(self, first: int, last: int, at_once: int = 0) -> Iterator[bytes]:
        """Yield the frames ``[first, last)``, one request for as many as 8 MiB hold.

        Args:
            first: Number of the first frame.
            last: Number after the last one.
            at_once: Begin with requests for so many and double them, for a reader that may stop or
                seek elsewhere; 0 for one that takes all.
        """
        frame = first
        most_frames = at_once or last - first
        while frame < last:
            data = self._cached(frame)
            if data is not None:
                yield data
                frame += 1
                continue
            end = self._request_end(frame, min(last, frame + most_frames))
            yield from self._fetched(frame, end)
            frame = end
            most_frames *= 2

    def compressed(self, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        """Yield number and compressed bytes of the frames ``[first, last)``, past the cache."""
        while first < last:
            end = self._request_end(first, last)
            yield from self._requested(first, end)
            first = end

    def decompress(self, frame: int, compressed: bytes) -> bytes:
        """Check and decompress one frame.

        Raises:
            InvalidArchiveError: It is damaged.
        """
        table = self.table
        return decompress_frame(compressed, table.size_bytes(frame), table.checksum(frame), frame)

    def _requested(self, first: int, last: int) -> Iterator[tuple[int, bytes]]:
        offsets = self.table.file_offsets
        data = self._read_range(offsets[first], offsets[last])
        for frame in range(first, last):
            start = offsets[frame] - offsets[first]
            yield frame, data[start : offsets[frame + 1] - offsets[first]]

    def _fetched(self, first: int, last: int) -> Iterator[bytes]:
        for frame, compressed in self._requested(first, last):
            data = self.decompress(frame, compressed)
            self._keep(frame, data)
            yield data

    def _request_end(self, first: int, last: int) -> int:
        """Return where a request that begins with a frame should end."""
        table = self.table
        end = first + 1
        while (
            end < last
            and table.file_offsets[end + 1] - table.file_offsets[first] <= REQUEST_BYTES
            and table.tar_offsets[end + 1] - table.tar_offsets[first] <= REQUEST_BYTES
            and end not in self._cache
        ):
            end += 1
        return end

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
