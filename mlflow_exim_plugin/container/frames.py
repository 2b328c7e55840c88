"""The physical layer: zstd frames and the seek table that lists them.

An archive is a sequence of independent zstd frames, each with content size and checksum, then
three skippable frames: index, footer, seek table. Nothing else: the sizes in the seek table add up
to the whole file. Source: spec/v1/archive.md, "Frames" and "Seek table"; zstd seekable format
0.1.0 for the table itself.
"""

from __future__ import annotations

import struct
import sys
import threading
from array import array
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

import zstandard

from mlflow_exim_plugin.container.refusal import refuse
from mlflow_exim_plugin.errors import InvalidArchiveError, TruncatedArchiveError, UsageError
from mlflow_exim_plugin.schema.rules import EXPANSION, LIMITS, Limits

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "FOOTER_MAGIC",
    "INDEX_MAGIC",
    "SEEK_TABLE_MAGIC",
    "SKIPPABLE_HEADER_BYTES",
    "ZSTD_MAGIC",
    "SeekTable",
    "begins_frame",
    "compress_frame",
    "decompress_frame",
    "decompressor_of",
    "skippable_frame",
    "skippable_payload",
]

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
INDEX_MAGIC = 0x184D2A5B
FOOTER_MAGIC = 0x184D2A5C
SEEK_TABLE_MAGIC = 0x184D2A5E
SKIPPABLE_HEADER_BYTES = 8

# The low 32 bits of the content's XXH64: the last bytes of a zstd frame, and what the seek table
# calls a frame's checksum. Equal by specification, so no xxhash is needed.
_CHECKSUM_BYTES = 4
_ENTRY = struct.Struct("<II4s")
_SKIPPABLE_HEADER = struct.Struct("<II")
# Number of entries, descriptor, magic. Bit 7: entries have checksums; bits 6-2 reserved, zero;
# bits 1-0 without meaning.
_TABLE_END = struct.Struct("<IBI")
_TABLE_END_MAGIC = 0x8F92EAB1
_HAS_CHECKSUMS = 0x80
_DESCRIPTOR_MASK = 0xFC
_SMALLEST_WINDOW_BYTES, _LARGEST_WINDOW_BYTES = 1 << 10, 1 << 31
"""Of zstd."""
# MemberIndex and footer; the seek table does not list itself.
_LISTED_SKIPPABLE_FRAMES = 2

_SKIPPABLE_MAGICS = range(0x184D2A50, 0x184D2A60)

_contexts = threading.local()


def begins_frame(start: bytes) -> bool:
    """Whether bytes begin as a zstd frame does, a skippable one too."""
    magic = start[:4]
    is_skippable = len(magic) == 4 and int.from_bytes(magic, "little") in _SKIPPABLE_MAGICS
    return magic == ZSTD_MAGIC or is_skippable


def compress_frame(data: bytes, level: int) -> bytes:
    """Return one zstd frame; equal input gives equal bytes for one version of libzstd.

    Raises:
        UsageError: zstd knows no such level.
    """
    contexts: dict[int, zstandard.ZstdCompressor] = _contexts.__dict__.setdefault("compress", {})
    compressor = contexts.get(level)
    if compressor is None:
        try:
            compressor = zstandard.ZstdCompressor(
                level=level, write_checksum=True, write_content_size=True, write_dict_id=False
            )
        except (ValueError, OverflowError, zstandard.ZstdError) as error:
            raise UsageError(f"zstd has no level {level}", "use 1 to 19") from error
        contexts[level] = compressor
    return compressor.compress(data)


def decompress_frame(
    frame: bytes,
    size_bytes: int,
    checksum: bytes,
    number: int,
    most_bytes: int = LIMITS.frame_bytes,
) -> bytes:
    """Return a frame's content, after every check that needs no digest.

    Args:
        frame: Exactly one frame.
        size_bytes: Its decompressed size in the seek table.
        checksum: Its checksum in the seek table, 4 bytes.
        number: Its place in the archive, for messages.
        most_bytes: The window that it may need.

    Raises:
        InvalidArchiveError: E013 to E016.
    """
    place = f"<frame {number}>"
    try:
        parameters = zstandard.get_frame_parameters(frame)
    except zstandard.ZstdError as error:
        raise refuse(InvalidArchiveError, "E014", place, f"no zstd frame: {error}") from error
    if (
        frame[:4] != ZSTD_MAGIC
        or parameters.content_size != size_bytes
        or not parameters.has_checksum
        or parameters.dict_id
    ):
        raise refuse(
            InvalidArchiveError,
            "E014",
            place,
            "content size, checksum or dictionary not as required",
        )
    if parameters.window_size > most_bytes:
        message = f"needs a window of more than {most_bytes >> 20} MiB"
        raise refuse(InvalidArchiveError, "E013", place, message, LIMITS.hint("frame_bytes"))
    try:
        data: bytes = decompressor_of(most_bytes).decompress(
            frame, max_output_size=size_bytes, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise refuse(InvalidArchiveError, "E015", place, f"damaged: {error}") from error
    if len(data) != size_bytes:
        raise refuse(InvalidArchiveError, "E015", place, "decompresses to another size")
    if frame[-_CHECKSUM_BYTES:] != checksum:
        raise refuse(InvalidArchiveError, "E016", place, "checksum differs from the seek table's")
    return data


def decompressor_of(most_bytes: int) -> zstandard.ZstdDecompressor:
    """Return this thread's decompressor for windows of so many bytes at most."""
    kept: dict[int, zstandard.ZstdDecompressor] = _contexts.__dict__.setdefault("decompress", {})
    decompressor = kept.get(most_bytes)
    if decompressor is None:
        window_bytes = min(max(most_bytes, _SMALLEST_WINDOW_BYTES), _LARGEST_WINDOW_BYTES)
        decompressor = kept[most_bytes] = zstandard.ZstdDecompressor(max_window_size=window_bytes)
    return decompressor


def skippable_frame(magic: int, payload: bytes) -> bytes:
    """Return a frame that every zstd decoder passes over."""
    return _SKIPPABLE_HEADER.pack(magic, len(payload)) + payload


def skippable_payload(frame: bytes, magic: int) -> bytes | None:
    """Return what a skippable frame holds, or None when it is not exactly one with this magic."""
    if len(frame) < SKIPPABLE_HEADER_BYTES:
        return None
    if _SKIPPABLE_HEADER.unpack_from(frame) != (magic, len(frame) - SKIPPABLE_HEADER_BYTES):
        return None
    return frame[SKIPPABLE_HEADER_BYTES:]


class SeekTable:
    """Where each frame lies in the file and in the decompressed tar stream.

    Attributes:
        file_offsets: Start of each listed frame in the file, and the end of the last one; the last
            two frames are index and footer.
        tar_offsets: Start of each data frame in the tar stream, and the stream's end.
        frame_count: Number of data frames.
    """

    def __init__(self, entries: bytes) -> None:
        columns = array("I", entries)
        if sys.byteorder == "big":
            columns.byteswap()
        compressed, sizes = columns[0::3], columns[1::3]
        self._checksums = columns[2::3]
        self.frame_count = max(len(sizes) - _LISTED_SKIPPABLE_FRAMES, 0)
        self.listed_sizes = sizes
        self.file_offsets = array("Q", accumulate(compressed, initial=0))
        self.tar_offsets = array("Q", accumulate(sizes[: self.frame_count], initial=0))

    @property
    def tar_bytes(self) -> int:
        """Length of the tar stream."""
        return self.tar_offsets[-1]

    def frame_at(self, tar_offset: int) -> int:
        """Return the number of the data frame that holds this byte of the tar stream."""
        return bisect_right(self.tar_offsets, tar_offset) - 1

    def size_bytes(self, frame: int) -> int:
        """Return a data frame's decompressed size."""
        return self.tar_offsets[frame + 1] - self.tar_offsets[frame]

    def checksum(self, frame: int) -> bytes:
        """Return a data frame's checksum as it stands at the frame's end."""
        return self._checksums[frame].to_bytes(_CHECKSUM_BYTES, "little")

    @staticmethod
    def entry(frame: bytes, size_bytes: int) -> bytes:
        """Return the table's entry for a frame; a skippable one has no size and no checksum."""
        checksum = frame[-_CHECKSUM_BYTES:] if size_bytes else bytes(_CHECKSUM_BYTES)
        return _ENTRY.pack(len(frame), size_bytes, checksum)

    @staticmethod
    def encode(entries: bytes) -> bytes:
        """Return the whole skippable frame for these entries."""
        end = _TABLE_END.pack(len(entries) // _ENTRY.size, _HAS_CHECKSUMS, _TABLE_END_MAGIC)
        return skippable_frame(SEEK_TABLE_MAGIC, entries + end)

    @classmethod
    def parse(
        cls, file_bytes: int, read: Callable[[int, int], bytes], limits: Limits = LIMITS
    ) -> SeekTable:
        """Read the table from the end of a file and check that it accounts for every byte.

        Args:
            file_bytes: Size of the file.
            read: Returns the bytes ``[start, end)`` of the file.
            limits: What the archive may be at most.

        Raises:
            TruncatedArchiveError: E010, no seek table at the end.
            InvalidArchiveError: E011 to E014.
        """
        smallest = SKIPPABLE_HEADER_BYTES + _TABLE_END.size
        end = read(file_bytes - _TABLE_END.size, file_bytes) if file_bytes >= smallest else b""
        count, descriptor, magic = _TABLE_END.unpack(end) if end else (0, 0, 0)
        if magic != _TABLE_END_MAGIC:
            raise refuse(
                TruncatedArchiveError, "E010", "<seek table>", "none at the end of the file"
            )
        start = file_bytes - smallest - count * _ENTRY.size
        if descriptor & _DESCRIPTOR_MASK != _HAS_CHECKSUMS or start < 0:
            raise refuse(
                InvalidArchiveError, "E011", "<seek table>", "no checksums, or larger than the file"
            )
        if count > limits.frames:
            message = f"it lists {count} frames, over the limit"
            hint = limits.hint("frames")
            raise refuse(InvalidArchiveError, "E011", "<seek table>", message, hint)
        payload = skippable_payload(read(start, file_bytes), SEEK_TABLE_MAGIC)
        if payload is None:
            raise refuse(InvalidArchiveError, "E011", "<seek table>", "wrong magic or size")
        table = cls(payload[: -_TABLE_END.size])
        if table.file_offsets[-1] != start:
            raise refuse(
                InvalidArchiveError,
                "E012",
                "<seek table>",
                f"its frames have {table.file_offsets[-1]} bytes, before it there are {start}",
                "bytes were inserted, removed or put before the archive",
            )
        table.check_sizes(limits)
        return table

    def check_sizes(self, limits: Limits = LIMITS) -> None:
        """Refuse declared sizes that no archive has, before anything is allocated for them.

        Args:
            limits: What a frame may hold, and all together.

        Raises:
            InvalidArchiveError: E013 or E014.
        """
        sizes = self.listed_sizes
        if max(sizes, default=0) > limits.frame_bytes:
            message = f"a frame of more than {limits.frame_bytes >> 20} MiB is declared"
            hint = limits.hint("frame_bytes")
            raise refuse(InvalidArchiveError, "E013", "<seek table>", message, hint)
        if self.tar_bytes > limits.archive_bytes:
            message = f"its frames hold {self.tar_bytes} bytes, over the limit"
            hint = limits.hint("archive_bytes")
            raise refuse(InvalidArchiveError, EXPANSION, "<seek table>", message, hint)
        data_sizes, skippable_sizes = sizes[: self.frame_count], sizes[self.frame_count :]
        if not data_sizes or 0 in data_sizes or any(skippable_sizes):
            raise refuse(
                InvalidArchiveError,
                "E014",
                "<seek table>",
                "must list data frames with content, then index and footer without",
            )
