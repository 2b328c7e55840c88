"""What the pages of a Parquet file say of themselves, read before anything is allocated for them.

The footer of a file may say one size and the header of a page another, and it is the latter that a
decoder believes. Headers are Thrift's compact protocol.
Source: https://github.com/apache/parquet-format, ``parquet.thrift``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MAX_PAGES", "Page", "pages_of"]

MAX_PAGES = 1 << 16
"""Of one column of a row group; this package writes a few hundred at most."""
_HEADER_BYTES = 64 << 10
"""Longer than the header of any page: Arrow's statistics end at 4 KiB."""
_MAX_LEVELS = 8
_SIZES, _DATA, _DICTIONARY, _DATA_V2 = (2, 3), 5, 7, 8
_STRUCT, _LISTS, _TEXT, _DOUBLE, _BYTE, _BOOLEANS = 12, {9, 10}, 8, 7, 3, {1, 2}


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        size_bytes: Its size, decompressed.
        values: How many values it has; 0 for a dictionary.
        encoding: Number of its encoding.
    """

    size_bytes: int
    values: int
    encoding: int


def pages_of(stream: BinaryIO, start: int, end: int) -> Iterator[Page]:
    """Yield the pages of one column of a row group.

    Args:
        stream: The file.
        start: Where the first page begins.
        end: Where the last one ends.

    Raises:
        ValueError: That is no row of pages.
    """
    pages = 0
    while start < end:
        stream.seek(start)
        header = _Header(stream.read(min(_HEADER_BYTES, end - start)))
        try:
            fields = header.struct()
            size_bytes, compressed_bytes = (int(fields[name]) for name in _SIZES)
            page = Page(size_bytes, *_values_and_encoding(fields))
        except (IndexError, KeyError, TypeError) as error:
            raise ValueError("the header of a page cannot be read") from error
        start += header.position + compressed_bytes
        if min(size_bytes, compressed_bytes, page.values) < 0 or start > end:
            raise ValueError("a page has an impossible size")
        pages += 1
        if pages > MAX_PAGES:
            raise ValueError(f"a column of a row group has more than {MAX_PAGES} pages")
        yield page


def _values_and_encoding(fields: dict[int, Any]) -> tuple[int, int]:
    for kind, encoding in ((_DATA_V2, 4), (_DATA, 2)):
        if kind in fields:
            if not isinstance(data := fields[kind], dict):
                raise TypeError("no struct")
            return int(data.get(1, 0)), int(data.get(encoding, 0))
    return 0, 0


class _Header:
    """A struct of Thrift's compact protocol."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def struct(self, level: int = 0) -> dict[int, Any]:
        """Return the fields of a struct by number."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._integer()
            fields[number] = self._value(head & 15, level)
        return fields

    def _value(self, kind: int, level: int, *, in_list: bool = False) -> Any:
        if level > _MAX_LEVELS:
            raise IndexError("nested too deep")
        if kind in _BOOLEANS:
            return bool(self._byte()) if in_list else kind == 1
        if kind == _BYTE:
            return self._byte()
        if kind == _DOUBLE:
            return self._skip(8)
        if kind == _TEXT:
            return self._skip(self._varint())
        if kind == _STRUCT:
            return self.struct(level + 1)
        if kind in _LISTS:
            head = self._byte()
            count = head >> 4 if head >> 4 < 15 else self._varint()
            some = range(min(count, 1000))
            return [self._value(head & 15, level + 1, in_list=True) for _ in some]
        return self._integer()

    def _skip(self, size_bytes: int) -> None:
        self.position += size_bytes

    def _byte(self) -> int:
        self.position += 1
        return self._data[self.position - 1]

    def _varint(self) -> int:
        number = shift = 0
        while shift < 64:
            byte = self._byte()
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        return number

    def _integer(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)
