"""Full fixity: every frame and every member once, and nothing in the file that no list names.

The tar stream is parsed again from its first byte, strictly, because it is what other tools see:
what they extract must be what index and manifests say. Source: spec/v1/archive.md.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container import bag
from mlflow_exim_plugin.container.tarball import (
    BLOCK_BYTES,
    PiecewiseTar,
    padding_bytes,
    read_entry,
)
from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.verification.findings import Findings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_exim_plugin.container.reader import ArchiveReader
    from mlflow_exim_plugin.container.tarball import TarEntry
    from mlflow_exim_plugin.schema.rules import Finding

__all__ = ["verify_archive", "verify_tail"]

_COARSE_FRAME_BYTES = 4 << 20
_FRAMES_PER_JOB = 2
# What has been seen of a member in the tar stream.
_MISSING, _REGULAR, _LINK = 0, 1, 2


def verify_archive(
    reader: ArchiveReader, *, jobs: int = 1, progress: Callable[[int, int], None] | None = None
) -> list[Finding]:
    """Check everything in an open archive that the format demands.

    A damaged member does not stop the check of the others. No finding with an ``E`` code means that
    the archive is whole and agrees with itself; that it is authentic follows from a signature or an
    expected root, never from this.

    Args:
        reader: An open archive; opening has checked seek table, footer, index and manifests.
        jobs: Threads that decompress.
        progress: Called with the bytes of the file done and their total.

    Returns:
        What breaks a rule, in the order of the file, of each code at most ``MAX_FINDINGS`` and one.

    Raises:
        StoreError: The file cannot be read.
    """
    findings = Findings()
    _check_granularity(reader, findings)
    stream = _TarStream(reader, max(jobs, 1), findings, progress)
    try:
        _TarWalk(reader, stream, findings).run()
    finally:
        stream.close()
    _check_bag(reader, findings)
    return findings.listed()


def verify_tail(reader: ArchiveReader) -> list[Finding]:
    """Check what an open archive tells without its members: frame sizes and the bag's own files.

    Raises:
        StoreError: The file cannot be read.
    """
    findings = Findings()
    _check_granularity(reader, findings)
    _check_bag(reader, findings)
    return findings.listed()


class _TarStream(PiecewiseTar):
    """The decompressed tar stream; zeros stand for what damaged frames held.

    Attributes:
        is_damaged: Whether any byte given since this was last set to false is such a zero.
    """

    def __init__(
        self,
        reader: ArchiveReader,
        jobs: int,
        findings: Findings,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        super().__init__(self._with_zeros())
        self._frames = reader.frames
        self._total_bytes = reader.size_bytes
        self._findings = findings
        self._progress = progress
        self._jobs = jobs
        self._pool = ThreadPoolExecutor(jobs, "exim-verify") if jobs > 1 else None
        self._is_piece_damaged = False
        self.is_damaged = False

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def pieces(self, size_bytes: int) -> Iterator[memoryview]:
        """Yield so many bytes without copying them, fewer at the end; note damaged ones."""
        for piece in super().pieces(size_bytes):
            self.is_damaged |= self._is_piece_damaged
            yield piece

    def skip_to(self, position: int) -> None:
        """Pass over bytes without looking at them."""
        for _ in self.pieces(position - self.position):
            continue

    def _with_zeros(self) -> Iterator[bytes]:
        for frame, found in self._all_frames():
            if self._progress is not None:
                self._progress(self._frames.table.file_offsets[frame + 1], self._total_bytes)
            self._is_piece_damaged = isinstance(found, InvalidArchiveError)
            if isinstance(found, InvalidArchiveError):
                self._findings.add_error(found)
                data = bytes(self._frames.table.size_bytes(frame))
            else:
                data = found
            if data:
                yield data

    def _all_frames(self) -> Iterator[tuple[int, bytes | InvalidArchiveError]]:
        compressed = self._frames.compressed(0, self._frames.table.frame_count)
        if self._pool is None:
            for frame, data in compressed:
                yield frame, self._decompress(frame, data)
            return
        waiting: deque[tuple[int, Future[bytes | InvalidArchiveError]]] = deque()
        for frame, data in compressed:
            waiting.append((frame, self._pool.submit(self._decompress, frame, data)))
            if len(waiting) > self._jobs * _FRAMES_PER_JOB:
                number, future = waiting.popleft()
                yield number, future.result()
        for number, future in waiting:
            yield number, future.result()

    def _decompress(self, frame: int, compressed: bytes) -> bytes | InvalidArchiveError:
        try:
            return self._frames.decompress(frame, compressed)
        except InvalidArchiveError as error:
            return error


class _TarWalk:
    """Goes through the tar stream and ticks off the members."""

    def __init__(self, reader: ArchiveReader, stream: _TarStream, findings: Findings) -> None:
        self._reader = reader
        self._stream = stream
        self._findings = findings
        self._prefix = f"{reader.base_directory}/"
        self._seen = bytearray(len(reader))
        self._by_offset: list[int] = []

    def run(self) -> None:
        while self._next():
            continue
        for position, seen in enumerate(self._seen):
            if seen == _MISSING:
                path = self._reader.member_at(position).path
                self._findings.add("E031", path, "is not in the tar stream")

    def _next(self) -> bool:
        """Take in one member; false at the end of the stream."""
        stream = self._stream
        start = stream.position
        stream.is_damaged = False
        try:
            entry = read_entry(stream.read)
        except InvalidArchiveError as error:
            if not stream.is_damaged:
                self._findings.add_error(error)
            return self._resume_after(start)
        if stream.is_damaged:
            return self._resume_after(start)
        if entry is None:
            self._check_end()
            return False
        self._take(entry)
        return True

    def _take(self, entry: TarEntry) -> None:
        path = entry.name.removeprefix(self._prefix)
        position = self._reader.position(path)
        if not entry.name.startswith(self._prefix):
            self._findings.add("E022", ascii(entry.name)[:300], "is not in the base directory")
            position = None
        elif position is None:
            self._findings.add("E030", ascii(path)[:300], "is in the tar stream, in no manifest")
        elif self._seen[position] != _MISSING:
            self._findings.add("E038", path, "is in the tar stream again")
        if entry.oddity:
            self._findings.add("W001", ascii(path)[:300], entry.oddity)
        if entry.link_name:
            self._take_link(entry, position)
        elif position is None:
            self._digest_of_data(path, entry.size_bytes)
        else:
            self._take_data(position, entry.size_bytes)

    def _take_data(self, position: int, size_bytes: int) -> None:
        reader = self._reader
        member = reader.member_at(position)
        is_placed = reader.data_offset(position) == self._stream.position
        if not is_placed or member.size_bytes != size_bytes:
            self._findings.add("E026", member.path, "lies elsewhere than the index says")
        self._seen[position] = _REGULAR
        if self._digest_of_data(member.path, size_bytes) != member.sha256:
            self._findings.add("E029", member.path, "is not what its manifest says")

    def _digest_of_data(self, path: str, size_bytes: int) -> str:
        digest = hashlib.sha256()
        start = self._stream.position
        for piece in self._stream.pieces(size_bytes):
            digest.update(piece)
        self._stream.is_damaged = False
        padding = self._stream.read(padding_bytes(size_bytes))
        if self._stream.position - start != size_bytes + padding_bytes(size_bytes):
            self._findings.add("E039", path, "the tar stream ends within it")
        elif any(padding):
            self._findings.add("E039", path, "is not padded with zero bytes")
        return digest.hexdigest()

    def _take_link(self, entry: TarEntry, position: int | None) -> None:
        reader = self._reader
        target = None
        if entry.link_name.startswith(self._prefix):
            target = reader.position(entry.link_name.removeprefix(self._prefix))
        if target is None or self._seen[target] != _REGULAR or target == position:
            name = ascii(entry.name)[:300]
            self._findings.add("E037", name, "points to no earlier regular member")
        elif position is not None:
            member, original = reader.member_at(position), reader.member_at(target)
            if member.sha256 != original.sha256:
                self._findings.add("E037", member.path, "points to a member of other content")
            is_placed = reader.data_offset(position) == reader.data_offset(target)
            if not is_placed or member.size_bytes != original.size_bytes:
                self._findings.add("E026", member.path, "the index has another place for a link")
        if position is not None:
            self._seen[position] = _LINK

    def _resume_after(self, start: int) -> bool:
        """Go on behind a header that cannot be read, with the next data the index knows of."""
        reader = self._reader
        if not self._by_offset:
            self._by_offset = sorted(range(len(reader)), key=reader.data_offset)
        earliest = max(start + BLOCK_BYTES, self._stream.position)
        number = bisect_left(self._by_offset, earliest, key=reader.data_offset)
        for position in self._by_offset[number:]:
            if self._seen[position] == _MISSING:
                self._stream.skip_to(reader.data_offset(position))
                self._take_data(position, reader.member_at(position).size_bytes)
                return True
        self._stream.skip_to(reader.footer.tar_bytes)
        return False

    def _check_end(self) -> None:
        stream = self._stream
        if stream.read(BLOCK_BYTES) != bytes(BLOCK_BYTES):
            self._findings.add("E039", "<tar stream>", "ends without two zero blocks")
        elif stream.position != self._reader.footer.tar_bytes:
            self._findings.add("E039", "<tar stream>", "goes on behind its end")
        stream.skip_to(self._reader.footer.tar_bytes)


def _check_granularity(reader: ArchiveReader, findings: Findings) -> None:
    sizes = reader.frames.table.listed_sizes
    coarse = sum(size > _COARSE_FRAME_BYTES for size in sizes)
    if coarse:
        message = f"{coarse} hold more than 4 MiB, which reading in place has to fetch whole"
        findings.add("W002", "<frames>", message)


def _check_bag(reader: ArchiveReader, findings: Findings) -> None:
    bagit, info = (_tag_file(reader, path) for path in (bag.BAGIT, bag.BAG_INFO))
    if bagit != bag.BAGIT_CONTENT:
        findings.add("E032", bag.BAGIT, "is absent, or does not declare BagIt 1.0 in UTF-8")
    sizes = [reader.member(path).size_bytes for path in reader.paths(bag.PAYLOAD)]
    try:
        oxum = bag.payload_oxum(info)
    except InvalidArchiveError as error:
        findings.add_error(error)
        return
    if oxum != f"{sum(sizes)}.{len(sizes)}":
        findings.add("E033", bag.BAG_INFO, f"Payload-Oxum is not {sum(sizes)}.{len(sizes)}")


def _tag_file(reader: ArchiveReader, path: str) -> bytes:
    """Return a tag file, nothing when it is absent or damaged, which the walk has found."""
    try:
        return reader.read(path) if path in reader else b""
    except InvalidArchiveError:
        return b""
