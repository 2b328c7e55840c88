"""Tar headers: one way to write them, one strict way to read them.

Lenient readers end silently at a damaged header and resolve double names each in their own way,
so that two tools can see two contents in one stream. Here everything that is not exactly a regular
file or a hard link with a right header is an error. Source: spec/v1/archive.md, "Tar stream";
POSIX.1-2001 pax interchange format.
"""

from __future__ import annotations

import re
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.refusal import refuse
from mlflow_exim_plugin.errors import InvalidArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "BLOCK_BYTES",
    "END_OF_TAR",
    "PiecewiseTar",
    "TarEntry",
    "padding_bytes",
    "read_entry",
    "tar_header",
]

BLOCK_BYTES = 512
END_OF_TAR = bytes(2 * BLOCK_BYTES)

_NAME_BYTES = 100
_OCTAL_SIZE_LIMIT = 8**11
_MAX_PAX_BYTES = 8192  # two paths with base directory, twice over
_CHECKSUM = slice(148, 156)
_BLANK_CHECKSUM = b" " * 8
_REGULAR, _LINK, _PAX = b"0", b"1", b"x"
# mode, uid, gid | size | mtime ... magic, version; no names, no device, no prefix
_FIXED_OWNER = b"0000644\0" + b"0000000\0" * 2
_FIXED_TIME = b"%011o\0" % 0
_FIXED_END = b"ustar\x0000" + bytes(64 + 16 + 155 + 12)
_USTAR = b"%b" + _FIXED_OWNER + b"%b" + _FIXED_TIME + b"%06o\0 %b%b" + _FIXED_END
_FIXED_SUM = sum(_FIXED_OWNER + _FIXED_TIME + _BLANK_CHECKSUM + _FIXED_END)
_METADATA = {
    "mode": (slice(100, 108), 0o644),
    "uid": (slice(108, 116), 0),
    "gid": (slice(116, 124), 0),
    "mtime": (slice(136, 148), 0),
}
"""Fields that say nothing of a member's content, and what they should be."""
_OWNER_NAMES = slice(265, 329)
_OCTAL = re.compile(rb" *[0-7]+[ \0]+")
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,4}) (path|linkpath|size)=")


def padding_bytes(size_bytes: int) -> int:
    """Return how many zero bytes follow data of this size."""
    return -size_bytes % BLOCK_BYTES


def tar_header(name: str, size_bytes: int, link_name: str = "") -> bytes:
    """Return the header blocks of a member: the same bytes on every machine and day.

    Args:
        name: Full name in the stream, base directory included.
        size_bytes: Size of the data that follow; 0 for a link.
        link_name: Full name of the earlier member that a hard link points to.
    """
    if (
        max(len(name), len(link_name)) <= _NAME_BYTES
        and size_bytes < _OCTAL_SIZE_LIMIT
        and name.isascii()
        and link_name.isascii()
    ):
        # What TarInfo.tobuf gives, many times as fast; a test holds that they are equal.
        start, link = name.encode(), link_name.encode()
        size, kind = b"%011o\0" % size_bytes, _LINK if link else _REGULAR
        checksum = _FIXED_SUM + sum(start) + sum(size) + sum(kind) + sum(link)
        names = start.ljust(_NAME_BYTES, b"\0"), link.ljust(_NAME_BYTES, b"\0")
        return _USTAR % (names[0], size, checksum, kind, names[1])
    header = tarfile.TarInfo(name)
    header.size = size_bytes
    if link_name:
        header.type, header.linkname = tarfile.LNKTYPE, link_name
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


@dataclass(frozen=True)
class TarEntry:
    """A member's header as read.

    Attributes:
        name: Full name in the stream, base directory included.
        size_bytes: Size of the data that follow.
        link_name: Full name of a hard link's target; empty for a regular file.
        oddity: What the header says beyond that and should not (W001); mostly empty.
    """

    name: str
    size_bytes: int
    link_name: str
    oddity: str = ""


class PiecewiseTar:
    """A tar stream that comes in pieces.

    Args:
        pieces: Its bytes, such as those of frames; an empty piece is its end.

    Attributes:
        position: How many bytes were read.
    """

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")
        self.position = 0

    def read(self, size_bytes: int) -> bytes:
        """Return so many bytes, fewer at the end."""
        return b"".join(self.pieces(size_bytes))

    def pieces(self, size_bytes: int) -> Iterator[memoryview]:
        """Yield so many bytes without copying them, fewer at the end."""
        while size_bytes > 0:
            if not self._left:
                self._left = memoryview(next(self._pieces, b""))
                if not self._left:
                    return
            piece, self._left = self._left[:size_bytes], self._left[size_bytes:]
            size_bytes -= len(piece)
            self.position += len(piece)
            yield piece


def read_entry(read: Callable[[int], bytes]) -> TarEntry | None:
    """Read the next member's header blocks.

    Args:
        read: Returns the next bytes of the stream, as many as asked for unless it ends.

    Returns:
        None at a zero block, the first of the two that end the stream.

    Raises:
        InvalidArchiveError: E009, E035, E036 or E039.
    """
    block = read(BLOCK_BYTES)
    if not block:
        raise refuse(InvalidArchiveError, "E039", "<tar stream>", "ends without two zero blocks")
    if block == bytes(BLOCK_BYTES):
        return None
    _check_block(block)
    records: dict[bytes, bytes] = {}
    is_pax = block[156:157] == _PAX
    if is_pax:
        size_bytes = _octal(block[124:136])
        if size_bytes > _MAX_PAX_BYTES:
            raise _bad_header("a pax header of more than 8 KiB")
        body = read(size_bytes + padding_bytes(size_bytes))
        records = _pax_records(body, size_bytes)
        block = read(BLOCK_BYTES)
        _check_block(block)
    kind = block[156:157]
    if kind not in {_REGULAR, _LINK}:
        raise refuse(InvalidArchiveError, "E036", "<tar stream>", f"a member of type {kind!r}")
    name = records.get(b"path")
    if name is None:
        name = _text_field(block[:_NAME_BYTES])
        if prefix := _text_field(block[345:500]):
            name = prefix + b"/" + name
    link_name = records.get(b"linkpath", _text_field(block[157:257]))
    size_bytes = int(records[b"size"]) if b"size" in records else _octal(block[124:136])
    if (kind == _LINK) != bool(link_name) or (kind == _LINK and size_bytes):
        raise _bad_header("a link needs a target and no data, a regular file no target")
    oddity = "a pax header without records" if is_pax and not records else _oddity(block, records)
    try:
        return TarEntry(name.decode("utf-8"), size_bytes, link_name.decode("utf-8"), oddity)
    except UnicodeDecodeError as error:
        raise refuse(
            InvalidArchiveError, "E009", "<tar stream>", "a member's name is not UTF-8"
        ) from error


def _check_block(block: bytes) -> None:
    if len(block) < BLOCK_BYTES:
        raise _bad_header("the stream ends within a header")
    summed = sum(block) - sum(block[_CHECKSUM]) + sum(_BLANK_CHECKSUM)
    if block[257:265] != b"ustar\x0000" or _octal(block[_CHECKSUM]) != summed:
        raise _bad_header("no ustar header with a right checksum")


def _oddity(block: bytes, records: dict[bytes, bytes]) -> str:
    """Return what a member's header and its pax records say that no header should."""
    if block[100:124] != _FIXED_OWNER or block[136:148] != _FIXED_TIME:
        for name, (field, wanted) in _METADATA.items():
            if not _OCTAL.fullmatch(block[field]) or _octal(block[field]) != wanted:
                return f"its {name} is {block[field]!r}"
    if any(block[_OWNER_NAMES]):
        return "it names a user or group"
    for key, value in records.items():
        is_needed = len(value) > _NAME_BYTES or not value.isascii()
        if key == b"size":
            is_needed = int(value) >= _OCTAL_SIZE_LIMIT
        if not is_needed:
            return f"its pax record {key.decode()} is not needed"
    return ""


def _octal(field: bytes) -> int:
    if not _OCTAL.fullmatch(field):
        raise _bad_header(f"{field!r} is no octal number")
    return int(field.rstrip(b" \0"), 8)


def _text_field(field: bytes) -> bytes:
    text, _, rest = field.partition(b"\0")
    if rest.strip(b"\0"):
        raise _bad_header("bytes behind the end of a name")
    return text


def _pax_records(body: bytes, size_bytes: int) -> dict[bytes, bytes]:
    """Return the records of a pax header; any that could change a member's meaning is refused."""
    if len(body) < size_bytes or body[size_bytes:].strip(b"\0"):
        raise _bad_header("a pax header that ends too early or has bytes behind its end")
    records: dict[bytes, bytes] = {}
    position = 0
    while position < size_bytes:
        found = _PAX_RECORD.match(body, position, size_bytes)
        if not found:
            raise _bad_header("a pax record other than path, linkpath or size")
        end = position + int(found[1])
        value = body[found.end() : end - 1]
        if end > size_bytes or end <= found.end() or body[end - 1 : end] != b"\n":
            raise _bad_header("a pax record of a wrong length")
        if found[2] in records or not value or b"\0" in value:
            raise _bad_header("a pax record that is double, empty or holds a zero byte")
        if found[2] == b"size" and not re.fullmatch(rb"0|[1-9][0-9]{0,18}", value):
            raise _bad_header("a pax size that is no number")
        records[found[2]] = value
        position = end
    return records


def _bad_header(message: str) -> InvalidArchiveError:
    return refuse(InvalidArchiveError, "E035", "<tar stream>", message)
