"""Where the pages of a Parquet file are and what they say of themselves, before any is decoded.

The footer of a file may say one size and the header of a page another, and it is the latter that a
decoder believes. Both are Thrift's compact protocol. The footer is read here because Arrow's own
account of a column ends the process where size statistics do not fit the schema (``column`` of its
``RowGroupMetaData``, 19 to 25).
Source: https://github.com/apache/parquet-format, ``parquet.thrift``.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from mlflow_exim_plugin.schema.rules import LIMITS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Chunks", "Page", "pages_of"]

MAX_PAGES = 1 << 16
"""Of one column of a row group; this package writes a few hundred at most."""
_HEADER_BYTES = 64 << 10
"""Longer than the header of any page: Arrow's statistics end at 4 KiB."""
_MAX_LEVELS = 8
_SIZES = (2, 3)
_VALUES, _ENCODING = 1, {5: 2, 8: 4}
"""Fields that are headers of data pages, of either version, and which of theirs is the encoding."""
_ROW_GROUPS, _COLUMNS, _OF_COLUMN = 4, 1, 3
_COMPRESSED, _FIRST_DATA, _FIRST_DICTIONARY = 7, 9, 11
_STRUCT, _LIST, _LISTS, _TEXT, _DOUBLE, _BYTE, _BOOLEANS = 12, 9, {9, 10}, 8, 7, 3, {1, 2}
_INT16, _INT32, _INT64 = 4, 5, 6
_HALF = 1 << 15


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        size_bytes: Its size, decompressed.
        values: How many values it has; 0 for a dictionary.
        encodings: Numbers of its encoding, and 0.
    """

    size_bytes: int
    values: int
    encodings: frozenset[int]


class Chunks:
    """Where the footer of a Parquet file says that the columns of its row groups are.

    Args:
        footer: The footer, without its length.
        columns: How many columns the schema has.

    Raises:
        ValueError: It cannot be read, or a row group has another number of columns.
    """

    def __init__(self, footer: bytes, columns: int) -> None:
        self._columns = columns
        self._told = array("q")
        thrift = _Thrift(footer)
        try:
            for number, kind in thrift.fields():
                if number != _ROW_GROUPS or kind != _LIST:
                    thrift.skip(kind)
                    continue
                del self._told[:]  # of a field that comes twice the last one counts
                for _ in range(thrift.list_of(_STRUCT)):
                    self._add_group(thrift)
        except (IndexError, TypeError, OverflowError) as error:
            raise ValueError("its footer cannot be read") from error

    def place(self, group: int, column: int) -> tuple[int, int]:
        """Return where the pages of a column of a row group begin and end."""
        at = 3 * (group * self._columns + column)
        size_bytes, data, dictionary = self._told[at : at + 3]
        start = min(data, dictionary) if dictionary > 0 else data
        return start, start + size_bytes

    def has_dictionary(self, column: int) -> bool:
        """Whether a column has a dictionary in any row group."""
        return any(dictionary > 0 for dictionary in self._told[3 * column + 2 :: 3 * self._columns])

    def _add_group(self, thrift: _Thrift) -> None:
        columns, before = 0, len(self._told)
        for number, kind in thrift.fields():
            if number != _COLUMNS or kind != _LIST:
                thrift.skip(kind)
                continue
            del self._told[before:]
            columns = thrift.list_of(_STRUCT)
            for _ in range(columns):
                self._add_column(thrift)
        if columns != self._columns:
            raise ValueError(f"a row group has {columns} columns, the schema {self._columns}")

    def _add_column(self, thrift: _Thrift) -> None:
        told = {_COMPRESSED: 0, _FIRST_DATA: 0, _FIRST_DICTIONARY: 0}
        for number, kind in thrift.fields():
            if number != _OF_COLUMN or kind != _STRUCT:
                thrift.skip(kind)
                continue
            for inner, its_kind in thrift.fields():
                if inner in told:
                    told[inner] = thrift.integer(its_kind, _INT64)
                else:
                    thrift.skip(its_kind)
        self._told.extend(told.values())


def pages_of(
    stream: BinaryIO, start: int, end: int, most: int = LIMITS.column_pages
) -> Iterator[Page]:
    """Yield the pages of one column of a row group.

    Args:
        stream: The file.
        start: Where the first page begins.
        end: Where the last one ends.
        most: How many there may be.

    Raises:
        ValueError: That is no row of pages.
    """
    pages = 0
    while start < end:
        stream.seek(start)
        header = _Thrift(stream.read(min(_HEADER_BYTES, end - start)))
        try:
            page, compressed_bytes = _page(header)
        except (IndexError, KeyError, TypeError) as error:
            raise ValueError("the header of a page cannot be read") from error
        start += header.position + compressed_bytes
        if min(page.size_bytes, compressed_bytes, page.values) < 0 or start > end:
            raise ValueError("a page has an impossible size")
        pages += 1
        if pages > most:
            raise ValueError(f"a column of a row group has more than {most} pages")
        yield page


def _page(header: _Thrift) -> tuple[Page, int]:
    """Return a page and how many bytes of the file it takes."""
    sizes: dict[int, int] = {}
    # A decoder takes the one that the page's type says, and of what comes twice both.
    told = {number: {_VALUES: 0, encoding: 0} for number, encoding in _ENCODING.items()}
    for number, kind in header.fields():
        if number in _SIZES:
            sizes[number] = header.integer(kind, _INT32)
        elif number in told:
            if kind != _STRUCT:
                raise TypeError("no struct")
            for inner, its_kind in header.fields():
                if inner in told[number]:
                    told[number][inner] = header.integer(its_kind, _INT32)
                else:
                    header.skip(its_kind)
        else:
            header.skip(kind)
    size_bytes, compressed_bytes = (sizes[number] for number in _SIZES)
    values = max((one[_VALUES] for one in told.values()), key=abs)
    encodings = frozenset(told[number][encoding] for number, encoding in _ENCODING.items())
    return Page(size_bytes, values, encodings), compressed_bytes


class _Thrift:
    """Thrift's compact protocol; what is not asked for is passed over, and never made.

    Attributes:
        position: How many bytes were read.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """Yield number and kind of each field of a struct, whose value is to be read then."""
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._zigzag()
            number = (number + _HALF & 2 * _HALF - 1) - _HALF  # of 16 bits
            yield number, head & 15

    def integer(self, kind: int, wanted: int) -> int:
        """Read an integer.

        Raises:
            TypeError: The field is another: decoders pass over it.
        """
        if kind != wanted:
            raise TypeError("no such integer")
        return self._zigzag()

    def list_of(self, kind: int) -> int:
        """Read the beginning of a list, and return how many values of a kind follow.

        Raises:
            TypeError: It is a list of others.
        """
        found, count = self._list()
        if count and found != kind:
            raise TypeError("a list of something else")
        return count

    def skip(self, kind: int, level: int = 0, *, in_list: bool = False) -> None:
        """Pass over a value."""
        if level > _MAX_LEVELS:
            raise IndexError("nested too deep")
        if kind in _BOOLEANS:
            self.position += in_list  # elsewhere the kind is the value
        elif kind == _BYTE:
            self.position += 1
        elif kind == _DOUBLE:
            self.position += 8
        elif kind == _TEXT:
            size_bytes = self._varint()
            self.position += size_bytes
        elif kind == _STRUCT:
            for _, inner in self.fields():
                self.skip(inner, level + 1)
        elif kind in _LISTS:
            inner, count = self._list()
            for _ in range(count):
                self.skip(inner, level + 1, in_list=True)
        elif kind in {_INT16, _INT32, _INT64}:
            self._varint()
        else:
            raise TypeError("a kind that no Parquet file has")

    def _list(self) -> tuple[int, int]:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._varint()
        if count > len(self._data) - self.position:
            raise IndexError("more values than bytes")
        return head & 15, count

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

    def _zigzag(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)
