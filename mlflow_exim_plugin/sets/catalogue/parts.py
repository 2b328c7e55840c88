"""Parts of a catalogue: some tables each, written once, read by row groups, merged into one.

A table is read by two requests: its footer, whose length the listing says, and the row groups that
may hold what is asked for.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.sets.catalogue.tables import (
    TABLES,
    TableKind,
    numbered,
    part_of,
    row_of,
    sorted_rows,
    writer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from mlflow_exim_plugin.storage.folders.folder import Folder, Range
    from mlflow_exim_plugin.storage.output import Writable

__all__ = ["FOLDER", "Part", "PartTable", "RowGroup", "TableFile", "merge", "write_part"]

FOLDER = "catalogue"
_REBUILD = "`mlflow exim index --rebuild` makes it anew"
_MAX_FOOTER_BYTES = 64 << 20
_MAX_GROUP_ROWS = 1 << 17
_MAX_GROUP_BYTES = 256 << 20
_ENDING_BYTES = 8
_MAGIC = b"PAR1"


@dataclass(frozen=True)
class TableFile:
    """What a listing says of one table of a part.

    Attributes:
        rows: How many it has.
        size_bytes: Size of its file.
        footer_bytes: Size of the end of it that says where all is.
    """

    rows: int
    size_bytes: int
    footer_bytes: int


@dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
        number: What its objects' numbers begin with, and its files' names are made of.
        tables: Its tables by name.
    """

    number: int
    tables: Mapping[str, TableFile]

    @property
    def objects(self) -> int:
        """How many objects it tells of."""
        return self.tables["objects"].rows

    def path(self, table: str) -> str:
        """Return where a table lies, below the folder of the catalogue."""
        return f"{FOLDER}/{table}/{self.number:08x}.parquet"


@dataclass(frozen=True)
class RowGroup:
    """A row group.

    Attributes:
        number: Which of its table.
        first_row: First of its rows, counted from 0.
        rows: How many it has.
        zones: Smallest and largest value by column; None where it does not say.
    """

    number: int
    first_row: int
    rows: int
    zones: Mapping[str, tuple[Any, Any] | None]


@dataclass
class PartTable:
    """One table of a part, of which the footer was read.

    Attributes:
        part: The part.
        kind: Which table.
        groups: Its row groups.
    """

    part: Part
    kind: TableKind
    _folder: Folder
    _metadata: Any
    groups: list[RowGroup] = field(default_factory=list)

    @classmethod
    def open_all(
        cls, folder: Folder, wanted: Sequence[tuple[Part, str]]
    ) -> dict[tuple[int, str], PartTable]:
        """Read the footers of many tables at once; by number of the part and name.

        Raises:
            NotFoundError: A file is gone: the parts were merged meanwhile.
            InvalidArchiveError: One is no table of a catalogue.
            StoreError: The store refused or died.
        """
        spans = []
        for part, name in wanted:
            file = part.tables[name]
            if not _ENDING_BYTES < file.footer_bytes <= min(file.size_bytes, _MAX_FOOTER_BYTES):
                raise _broken(folder, part, name, f"a footer of {file.footer_bytes} bytes")
            start = file.size_bytes - file.footer_bytes
            spans.append((part.path(name), start, file.size_bytes))
        return {
            (part.number, name): cls._of(folder, part, name, data)
            for (part, name), data in zip(wanted, folder.ranges(spans), strict=True)
        }

    @classmethod
    def _of(cls, folder: Folder, part: Part, name: str, footer: bytes) -> PartTable:
        kind = TABLES[name]
        try:
            metadata = pq.read_metadata(io.BytesIO(_MAGIC + footer))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _broken(folder, part, name, str(error)) from None
        if not metadata.schema.to_arrow_schema().equals(kind.schema):
            raise _broken(folder, part, name, "other columns")
        if metadata.num_rows != part.tables[name].rows:
            raise _broken(folder, part, name, f"{metadata.num_rows} rows, its listing says others")
        table = cls(part, kind, folder, metadata)
        table._tell_groups()
        return table

    def _tell_groups(self) -> None:
        metadata, first_row = self._metadata, 0
        places = {name: self.kind.schema.get_field_index(name) for name in self.kind.zones}
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            if group.num_rows > _MAX_GROUP_ROWS or group.total_byte_size > _MAX_GROUP_BYTES:
                raise self._broken(f"row group {number} is over the limit")
            zones = {name: _zone(group.column(place)) for name, place in places.items()}
            self.groups.append(RowGroup(number, first_row, group.num_rows, zones))
            first_row += group.num_rows

    def span(self, group: RowGroup, columns: int | None = None) -> Range:
        """Return where a row group lies, or the first columns of it."""
        of = self._metadata.row_group(group.number)
        ends = []
        for place in range(of.num_columns if columns is None else columns):
            column = of.column(place)
            start = column.data_page_offset
            if column.has_dictionary_page:
                start = min(start, column.dictionary_page_offset)
            ends += [start, start + column.total_compressed_size]
        start, end = min(ends), max(ends)
        if not 0 <= start < end <= self.part.tables[self.kind.name].size_bytes:
            raise self._broken(f"row group {group.number} lies outside")
        return self.part.path(self.kind.name), start, end

    def rows_of(
        self, group: RowGroup, data: bytes, start: int, columns: int | None = None
    ) -> pa.Table:
        """Return the rows of a row group.

        Args:
            group: Which.
            data: What `span` named.
            start: Where that begins in the file.
            columns: How many columns, as for `span`.

        Raises:
            InvalidArchiveError: They are damaged.
        """
        names = self.kind.schema.names[:columns]
        try:
            file = pq.ParquetFile(
                _Span(data, start, self.part.tables[self.kind.name].size_bytes),
                metadata=self._metadata,
                page_checksum_verification=True,
                pre_buffer=False,
            )
            # Arrow's own threads must never hold what a Python stream gave.
            table = file.read_row_group(group.number, columns=names, use_threads=False)
            wanted = pa.schema([self.kind.schema.field(name) for name in names])
            return table if table.schema.equals(wanted) else table.cast(wanted)
        except (pa.ArrowException, KeyError, OSError, ValueError) as error:
            raise self._broken(f"row group {group.number}: {error}") from None

    def all_rows(self) -> Iterator[pa.Table]:
        """Yield all rows, a row group at a time."""
        for group in self.groups:
            span = self.span(group)
            (data,) = self._folder.ranges([span])
            yield self.rows_of(group, data, span[1])

    def _broken(self, what: str) -> InvalidArchiveError:
        return _broken(self._folder, self.part, self.kind.name, what)


def _broken(folder: Folder, part: Part, name: str, what: str) -> InvalidArchiveError:
    place = f"{redact_url(folder.url)}/{part.path(name)}"
    return InvalidArchiveError(f"{place} is no table of a catalogue: {what}", _REBUILD)


def _zone(column: Any) -> tuple[Any, Any] | None:
    statistics = column.statistics
    if statistics is None or not statistics.has_min_max:
        return None
    return statistics.min, statistics.max


class _Span(io.RawIOBase):
    """A file of which one range is there."""

    def __init__(self, data: bytes, start: int, size_bytes: int) -> None:
        self._data = data
        self._start = start
        self._size_bytes = size_bytes
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        first = self._at - self._start
        if size < 0 or not 0 <= first <= first + size <= len(self._data):
            raise OSError(f"{size} bytes at {self._at} are not a part of it")
        self._at += size
        return self._data[first : first + size]


class _ParquetSink:
    """What Parquet is written to; remembers how long it is, and its end."""

    closed = False

    def __init__(self, output: Writable) -> None:
        self._output = output
        self.size_bytes = 0
        self.end = b""

    def write(self, data: Any) -> int:
        data = bytes(data)
        self._output.write(data)
        self.size_bytes += len(data)
        self.end = (self.end + data[-_ENDING_BYTES:])[-_ENDING_BYTES:]
        return len(data)

    def tell(self) -> int:
        return self.size_bytes

    def writable(self) -> bool:
        return True

    def flush(self) -> None: ...

    def close(self) -> None: ...


def write_part(folder: Folder, number: int, tables: Mapping[str, pa.Table]) -> Part:
    """Write the tables of a part, each sorted.

    Raises:
        StoreError: The store refused or died.
    """
    written = {
        name: _write(folder, number, kind, iter([tables[name]])) for name, kind in TABLES.items()
    }
    return Part(number, written)


def _write(folder: Folder, number: int, kind: TableKind, tables: Iterator[pa.Table]) -> TableFile:
    """Write a table in row groups of its size."""
    waiting: list[pa.Table] = []
    rows = count = 0
    with folder.new_file(Part(number, {}).path(kind.name)) as output:
        sink = _ParquetSink(output)
        with contextlib.closing(writer(sink, kind)) as parquet:
            for table in itertools.chain(tables, [None]):
                if table is not None:
                    waiting.append(table)
                    count += table.num_rows
                if count < kind.group_rows and (table is not None or not count):
                    continue
                joined = pa.concat_tables(waiting).combine_chunks()
                whole = count if table is None else count - count % kind.group_rows
                parquet.write_table(joined.slice(0, whole), row_group_size=kind.group_rows)
                waiting, rows, count = [joined.slice(whole)], rows + whole, count - whole
    footer_bytes = int.from_bytes(sink.end[:4], "little") + _ENDING_BYTES
    return TableFile(rows, sink.size_bytes, footer_bytes)


def merge(
    folder: Folder, parts: Sequence[Part], number: int, gone: Mapping[int, Collection[str]]
) -> Part:
    """Write what several parts hold as one, a few row groups of each in memory at once.

    Args:
        folder: Where they lie, and the new one will.
        parts: The parts.
        number: Of the new one.
        gone: Archives to leave out, by number of the part.

    Raises:
        NotFoundError: A part is gone.
        InvalidArchiveError: One is damaged.
        StoreError: The store refused or died.
    """
    opened = PartTable.open_all(folder, [(part, name) for part in parts for name in TABLES])
    numbers: dict[int, list[tuple[pa.Array, pa.Array]]] = {part.number: [] for part in parts}
    first = 0

    def objects() -> Iterator[pa.Table]:
        nonlocal first
        kind = TABLES["objects"]
        streams = [
            _without(opened[part.number, "objects"], gone.get(part.number, ())) for part in parts
        ]
        for table in _merged(streams, kind):
            old = table.column("object").combine_chunks()
            new = numbered(number, pa.array(range(first, first + len(old)), pa.int64()))
            of = part_of(old)
            for part in parts:
                mine = pc.equal(of, part.number)
                numbers[part.number].append((row_of(old.filter(mine)), new.filter(mine)))
            first += len(old)
            yield table.set_column(0, kind.schema.field(0), new)

    written = {"objects": _write(folder, number, TABLES["objects"], objects())}
    now = {part.number: _places(part.objects, numbers.pop(part.number)) for part in parts}
    for name, kind in TABLES.items():
        if name == "objects":
            continue
        streams = [
            _without(opened[part.number, name], gone.get(part.number, ()))
            if name == "archives"
            else _renumbered(opened[part.number, name], now[part.number])
            for part in parts
        ]
        written[name] = _write(folder, number, kind, _merged(streams, kind))
    return Part(number, written)


def _places(rows: int, pairs: list[tuple[pa.Array, pa.Array]]) -> pa.Array:
    """Return the new number of each row of a part, null where it has none."""
    old = pa.concat_arrays([pa.array([], pa.int64()), *(of for of, _ in pairs)])
    new = pa.concat_arrays([pa.array([], pa.int64()), *(of for _, of in pairs)])
    if len(old) == rows:  # they come in the order that they have
        return new
    return new.take(pc.index_in(pa.array(range(rows), pa.int64()), value_set=old))


def _without(table: PartTable, gone: Collection[str]) -> Iterator[pa.Table]:
    left_out = pa.array(sorted(gone), pa.string())
    for rows in table.all_rows():
        if not gone:
            yield rows
            continue
        yield rows.filter(pc.invert(pc.is_in(rows.column("archive"), value_set=left_out)))


def _renumbered(table: PartTable, now: pa.Array) -> Iterator[pa.Table]:
    at = table.kind.schema.get_field_index("object")
    for rows in table.all_rows():
        new = now.take(row_of(rows.column("object").combine_chunks()))
        renumbered = rows.set_column(at, table.kind.schema.field(at), new)
        yield renumbered.filter(pc.is_valid(new)) if new.null_count else renumbered


def _merged(streams: Sequence[Iterator[pa.Table]], kind: TableKind) -> Iterator[pa.Table]:
    """Merge streams that are sorted each."""
    key_of = _key_of(kind)
    heads: dict[int, pa.Table] = {}
    more = set(range(len(streams)))
    while True:
        for place in [place for place in more if place not in heads]:
            head = next((table for table in streams[place] if table.num_rows), None)
            if head is None:
                more.discard(place)
            else:
                heads[place] = head
        if not heads:
            return
        # What is not larger than the end of any head comes before all that is still to be read.
        ends = [key_of(head, head.num_rows - 1) for place, head in heads.items() if place in more]
        end = min(ends, default=None)
        taken = []
        for place, head in list(heads.items()):
            count = head.num_rows if end is None else _up_to(head, end, key_of)
            if count:
                taken.append(head.slice(0, count))
            if count == head.num_rows:
                del heads[place]
            else:
                heads[place] = head.slice(count)
        yield taken[0] if len(taken) == 1 else sorted_rows(pa.concat_tables(taken), kind)


def _up_to(table: Any, end: Any, key_of: Callable[[Any, int], Any]) -> int:
    return bisect_right(range(table.num_rows), end, key=lambda row: key_of(table, row))


def _key_of(kind: TableKind) -> Callable[[Any, int], Any]:
    """Return what gives the key of a row, by which Python sorts as Arrow does."""
    places = [kind.schema.get_field_index(name) for name in kind.order]

    def key(table: Any, row: int) -> tuple[Any, ...]:
        values = (table.column(place)[row].as_py() for place in places)
        return tuple(_comparable(value) for value in values)

    return key


def _comparable(value: Any) -> tuple[int, Any]:
    if value is None:
        return 0, 0
    return (2, 0) if value != value else (1, value)  # noqa: PLR0124 - NaN comes last
