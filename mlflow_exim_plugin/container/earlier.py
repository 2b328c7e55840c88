"""What is safe of an archive whose writing was broken off: whole frames, and whole objects in them.

Nothing is believed but the bytes: frames have checksums, and each object's envelope comes after all
that belongs to it and names its files with their digests. So what stands before the last envelope
is safe, and what stands behind it is written again. Source: spec/rationale.md, "Going on".
"""

from __future__ import annotations

import hashlib
import json
import mmap
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import zstandard

from mlflow_exim_plugin.container import bag, layout
from mlflow_exim_plugin.container.frames import (
    ZSTD_MAGIC,
    SeekTable,
    decompress_frame,
)
from mlflow_exim_plugin.container.tarball import PiecewiseTar, padding_bytes, read_entry
from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.schema.rules import LIMITS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Earlier", "EarlierMember"]

_FRAME_HEADER_BYTES = 18
_RLE_BLOCK = 1
_CHECKSUM_BYTES = 4
_ENTRY_BYTES = 12
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class EarlierMember:
    """A member of the earlier attempt.

    Attributes:
        path: Relative to the base directory.
        start: Where its header begins in the tar stream.
        offset: Where its data begin there; of a link those of its target.
        size_bytes: Size of the data.
        digest: SHA-256 of the data.
        original: Number of the member that it is a link to; None for one with data of its own.
    """

    path: str
    start: int
    offset: int
    size_bytes: int
    digest: bytes
    original: int | None = None


class Earlier:
    """The safe beginning of an archive.

    Args:
        file: The unfinished file, open to be read and written.
        base_directory: Top-level directory that it must have.

    Attributes:
        members: In the order of the stream; none where nothing is safe.
        listed: Digest by path of the files that an envelope among them names: all other data may
            have been cut short by their source.
        end: Where they end in the tar stream.
        system: Part ``system`` of the first envelope.
    """

    def __init__(self, file: IO[bytes], base_directory: str) -> None:
        self.members: list[EarlierMember] = []
        self.listed: dict[str, bytes] = {}
        self.end = 0
        self.system: dict[str, Any] = {}
        self._file = file
        self._base = base_directory + "/"
        self._entries = bytearray()
        file.seek(0, 2)
        if file.tell():
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                self._walk(data)
        self._table = SeekTable(bytes(self._entries) + SeekTable.entry(b"", 0) * 2)

    def go_on(self, tar_offset: int) -> tuple[bytes, bytes]:
        """Cut the file so that writing can go on from a place of the tar stream.

        Returns:
            The seek table's entries of the frames that stay, and the beginning of the next frame.
        """
        table = self._table
        frame = table.frame_count
        if tar_offset < table.tar_bytes:
            frame = table.frame_at(tar_offset)
        start, begun = table.file_offsets[frame], b""
        if tar_offset > table.tar_offsets[frame]:
            self._file.seek(start)
            data = self._file.read(table.file_offsets[frame + 1] - start)
            content = decompress_frame(data, table.size_bytes(frame), table.checksum(frame), frame)
            begun = content[: tar_offset - table.tar_offsets[frame]]
        self._file.seek(start)
        self._file.truncate()
        return bytes(self._entries[: frame * _ENTRY_BYTES]), begun

    def _walk(self, data: mmap.mmap) -> None:
        """Find the members, up to the last envelope."""
        stream = _Stream(self._frames(data))
        rows: dict[str, int] = {}
        found: list[EarlierMember] = []
        count = 0
        while True:
            start = stream.position
            try:
                entry = read_entry(stream.read)
            except InvalidArchiveError:  # the end of what is there
                break
            if entry is None or not entry.name.startswith(self._base):
                break
            path = entry.name.removeprefix(self._base)
            if bag.is_reserved(path):
                break
            is_envelope = layout.object_at(path) is not None and not entry.link_name
            offset, envelope = stream.position, b""
            if entry.link_name:
                original = rows.get(entry.link_name.removeprefix(self._base))
                if original is None:
                    break
                to = found[original]
                one = EarlierMember(path, start, to.offset, to.size_bytes, to.digest, original)
            else:
                content = stream.content(entry.size_bytes, keep=is_envelope)
                if content is None:
                    break
                digest, envelope = content
                one = EarlierMember(path, start, offset, entry.size_bytes, digest)
            rows[path] = len(found)
            found.append(one)
            if is_envelope:
                if not self._names(envelope):
                    break
                count, self.end = len(found), stream.position
        self.members = found[:count]
        listed = {one.path: one.digest for one in self.members}
        self.listed = {
            path: digest for path, digest in self.listed.items() if listed.get(path) == digest
        }

    def _names(self, envelope: bytes) -> bool:
        """Take what an envelope says; False if it is none."""
        try:
            document = json.loads(envelope)
            info = document["info"]
            for entry in (*info.get("artifacts", ()), *info.get("attachments", ())):
                self.listed[entry["member"]] = bytes.fromhex(entry["sha256"])
            self.system = self.system or document["system"]
        except (ValueError, LookupError, TypeError, AttributeError):
            return False
        return True

    def _frames(self, data: mmap.mmap) -> Iterator[bytes]:
        """Yield the contents of the whole frames, and list them."""
        start, number = 0, 0
        while (end := _frame_end(data, start)) is not None:
            frame = data[start:end]
            size_bytes = zstandard.get_frame_parameters(frame).content_size
            if not 0 < size_bytes <= LIMITS.frame_bytes:
                return
            try:
                content = decompress_frame(frame, size_bytes, frame[-_CHECKSUM_BYTES:], number)
            except InvalidArchiveError:
                return
            self._entries += SeekTable.entry(frame, size_bytes)
            start, number = end, number + 1
            yield content


def _frame_end(data: mmap.mmap, start: int) -> int | None:
    """Return where a frame ends by the sizes of its blocks; None if it is no whole one."""
    header = data[start : start + _FRAME_HEADER_BYTES]
    if header[: len(ZSTD_MAGIC)] != ZSTD_MAGIC:
        return None
    try:
        position = start + zstandard.frame_header_size(header)
    except zstandard.ZstdError:
        return None
    is_last = False
    while not is_last:
        block = int.from_bytes(data[position : position + 3], "little")
        is_last, kind, size_bytes = bool(block & 1), block >> 1 & 3, block >> 3
        position += 3 + (1 if kind == _RLE_BLOCK else size_bytes)
        if position > len(data):
            return None
    position += _CHECKSUM_BYTES
    return position if position <= len(data) else None


class _Stream(PiecewiseTar):
    """The tar stream of whole frames, whose members may be cut off."""

    def content(self, size_bytes: int, *, keep: bool) -> tuple[bytes, bytes] | None:
        """Return digest and, if they are to be kept, bytes of a member's data; None at the end."""
        digest, kept, left = hashlib.sha256(), [], size_bytes
        while left:
            piece = self.read(min(left, _PIECE_BYTES))
            if not piece:
                return None
            digest.update(piece)
            left -= len(piece)
            if keep:
                kept.append(piece)
        padding = padding_bytes(size_bytes)
        if len(self.read(padding)) != padding:
            return None
        return digest.digest(), b"".join(kept)
