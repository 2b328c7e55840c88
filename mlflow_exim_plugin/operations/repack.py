"""``repack``: the same archive in other frames; root, content root and signatures stay.

The tar stream goes over byte for byte, so nothing but its compression can change.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.container.frame_writer import FrameWriter, has_to_pay, paid_pieces
from mlflow_exim_plugin.container.frames import (
    FOOTER_MAGIC,
    INDEX_MAGIC,
    SKIPPABLE_HEADER_BYTES,
)
from mlflow_exim_plugin.container.member_stream import wrong_digest
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.container.refusal import refuse
from mlflow_exim_plugin.container.tarball import (
    BLOCK_BYTES,
    END_OF_TAR,
    PiecewiseTar,
    padding_bytes,
    read_entry,
)
from mlflow_exim_plugin.container.writer import (
    GROUP_FRAME_BYTES,
    SMALL_MEMBER_BYTES,
    frame_bytes,
)
from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.options import Opening, Repacking, flat
from mlflow_exim_plugin.sources.archive.archive import Archive
from mlflow_exim_plugin.storage.output import atomic_output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_exim_plugin.storage.output import Writable

__all__ = ["Repacked", "repack"]

_MOST_GROUP_BYTES = (4 << 20) - SMALL_MEMBER_BYTES - (64 << 10)
"""So that a group with its last member is no frame of more than 4 MiB."""


@dataclass(frozen=True)
class Repacked:
    """An archive that was written anew.

    Attributes:
        root: Root digest of both, hex.
        content_root: Content root of both, hex; None where the archive does not state it.
        old_size_bytes: Size of the archive that was read.
        size_bytes: Size of the one that was written.
    """

    root: str
    content_root: str | None
    old_size_bytes: int
    size_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return vars(self)


@flat()
def repack(
    archive: str, output: str, *, opening: Opening = Opening(), repacking: Repacking = Repacking()
) -> Repacked:
    """Write an archive anew, compressed in another way.

    Every member stays what it is, and with them the root, the content root and what was signed;
    so does the version of the format. Each member is compared with its digest on the way. Parquet
    tables, which are compressed inside, keep their frames. At ``output`` there is a complete
    archive afterwards, or none.

    Args:
        archive: Path or fsspec URL of the archive to read.
        output: Path or fsspec URL of the one to write.
        opening: How the two are opened; each option is a keyword of its own too, here and below.
        repacking: How it is compressed and written.

    Raises:
        NotFoundError: There is no such archive.
        InvalidArchiveError: It cannot be opened, or is damaged; nothing is written.
        UnsupportedFormatError: It needs a newer reader.
        ArchiveExistsError: There is a file at ``output`` and ``overwrite`` is false.
        StoreError: One of the two cannot be read or written.
    """
    options = opening.storage_options
    with (
        ArchiveReader.open(archive, storage_options=options) as reader,
        atomic_output(output, overwrite=repacking.overwrite, storage_options=options) as file,
    ):
        _Frames(reader, file, repacking).write()
        has_summary = layout.ARCHIVE in reader
        stated = Archive(reader).summary.info.content_root if has_summary else None
        return Repacked(reader.root, stated, reader.size_bytes, file.bytes_written)


class _Frames:
    """Cuts the tar stream of an archive into other frames, where a new archive has its cuts."""

    def __init__(self, reader: ArchiveReader, file: Writable, how: Repacking) -> None:
        self._reader = reader
        self._how = how
        self._stream = _Decompressed(reader, how.progress)
        self._frames = FrameWriter(file, level=how.level, workers=how.jobs)
        self._group = bytearray()
        self._group_bytes = min(how.frame_bytes or GROUP_FRAME_BYTES, _MOST_GROUP_BYTES)
        self._small_bytes = min(how.frame_bytes or SMALL_MEMBER_BYTES, SMALL_MEMBER_BYTES)
        self._tag_start = _start_of_tag_files(reader)
        self._tag_frame: int | None = None

    def write(self) -> None:
        """Write the file."""
        try:
            while self._write_member():
                continue
            self._write_tail()
        finally:
            self._frames.abandon()

    def _write_member(self) -> bool:
        """Write the next member; False at the end of the tar stream."""
        if self._stream.position == self._tag_start:
            self._cut()
            self._tag_frame = self._frames.frame_count
        header = bytearray()

        def read(size_bytes: int) -> bytes:
            data = self._stream.read(size_bytes)
            header.extend(data)
            return data

        entry = read_entry(read)
        if entry is None:
            header += self._stream.read(BLOCK_BYTES)
            if header != END_OF_TAR or self._stream.read(1):
                message = "it does not end with two zero blocks"
                raise refuse(InvalidArchiveError, "E039", "<tar stream>", message)
            self._cut()
            self._frames.write_frame(END_OF_TAR)
            return False
        self._group += header
        base, _, path = entry.name.partition("/")
        if base != self._reader.base_directory or path not in self._reader:
            raise refuse(InvalidArchiveError, "E030", ascii(entry.name), "is in no manifest")
        if not entry.link_name:
            self._write_data(path, entry.size_bytes)
            self._group += self._stream.read(padding_bytes(entry.size_bytes))
        if len(self._group) >= self._group_bytes:
            self._cut()
        return True

    def _write_data(self, path: str, size_bytes: int) -> None:
        """Write the data of a regular member, and compare them with its digest."""
        reader, digest = self._reader, hashlib.sha256()
        member = reader.member(path)
        is_placed = reader.data_offset(reader.place_of(path)) == self._stream.position
        if not is_placed or member.size_bytes != size_bytes:
            message = "lies elsewhere than the index says"
            raise refuse(InvalidArchiveError, "E026", path, message)
        own = reader.own_frames(path) if path.endswith(".parquet") else None
        if size_bytes <= self._small_bytes:
            data = self._stream.read(size_bytes)
            digest.update(data)
            self._group += data
        else:
            self._cut()
            if own is not None:
                for packed, data in self._stream.frames(*own):
                    digest.update(data)
                    self._frames.copy_frame(packed, len(data))
            else:
                pieces = self._pieces(size_bytes, self._how.frame_bytes or frame_bytes(path))
                if has_to_pay(path, size_bytes):
                    pieces = paid_pieces(pieces, self._how.level, size_bytes)
                for data in pieces:
                    digest.update(data)
                    self._frames.write_frame(data)
        if digest.hexdigest() != member.sha256:
            raise wrong_digest(path)

    def _pieces(self, size_bytes: int, piece_bytes: int) -> Iterator[bytes]:
        for start in range(0, size_bytes, piece_bytes):
            yield self._stream.read(min(piece_bytes, size_bytes - start))

    def _cut(self) -> None:
        if self._group:
            self._frames.write_frame(bytes(self._group))
            self._group.clear()

    def _write_tail(self) -> None:
        """Write index and footer again: only where they and the frames lie is another."""
        self._frames.drain()
        offset = self._frames.bytes_written + SKIPPABLE_HEADER_BYTES
        tag_frame = self._tag_frame
        open_offset = 0 if tag_frame is None else self._frames.frame_offset(tag_frame)
        footer = replace(self._reader.footer, index_offset=offset, open_offset=open_offset)
        self._frames.write_skippable(INDEX_MAGIC, self._reader.packed_index())
        self._frames.write_skippable(FOOTER_MAGIC, footer.encode())
        self._frames.finish()


class _Decompressed(PiecewiseTar):
    """The tar stream of an archive, which whole frames can be taken of as they are stored."""

    def __init__(self, reader: ArchiveReader, progress: Callable[[int, int], None] | None) -> None:
        self._reader = reader
        self._progress = progress
        self._each = self._all()
        super().__init__(data for _, data in self._each)

    def frames(self, first: int, last: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield frames ``first`` to ``last - 1``, which come next, as stored and decompressed."""
        for packed, data in islice(self._each, last - first):
            self.position += len(data)
            yield packed, data

    def _all(self) -> Iterator[tuple[bytes, bytes]]:
        frames = self._reader.frames
        for number, packed in frames.compressed(0, frames.table.frame_count):
            if self._progress is not None:
                self._progress(frames.table.file_offsets[number + 1], self._reader.size_bytes)
            yield packed, frames.decompress(number, packed)


def _start_of_tag_files(reader: ArchiveReader) -> int | None:
    """Return where the bag's tag files begin in the tar stream, None where nothing says so."""
    table = reader.frames.table
    for number, offset in enumerate(table.file_offsets[: table.frame_count]):
        if offset == reader.footer.open_offset != 0:
            return int(table.tar_offsets[number])
    return None
