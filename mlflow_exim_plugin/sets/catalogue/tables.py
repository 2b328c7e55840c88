"""The tables of a catalogue: columns, order and size of row groups (spec, "Catalogue").

Each is sorted by what it is asked for, in row groups so small that one answer takes few bytes and
so large that all their statistics do too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlflow_exim_plugin.schema.digests import sha256_of

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "EARLIER",
    "ID",
    "ORIGIN",
    "TABLES",
    "TableKind",
    "column_tables",
    "hash_of",
    "numbered",
    "part_of",
    "row_of",
    "shortened",
    "sorted_rows",
    "writer",
]

ID, ORIGIN, EARLIER = "id", "origin", "earlier"
"""How an object is known by a text: its id; what tells it from others of this id; an id that it
had before it was copied."""

_LONGEST = 300
"""Longer texts are kept by their beginning and digest: a row group has statistics of each."""
_BEGINNING = 200
_ROWS = 1 << 32
_BEFORE_ALL = -(1 << 63)
"""Of the columns that rows are sorted by, times alone may be null."""


@dataclass(frozen=True)
class TableKind:
    """One table.

    Attributes:
        name: Its folder in the catalogue.
        schema: Columns; those that are asked for come first.
        order: Columns that its rows are sorted by; nulls come first, NaN last.
        group_rows: CatalogueRows of a row group.
        zones: Columns of which row groups tell the smallest and largest value.
        repeats: Columns that have a dictionary.
        encodings: Of other columns.
        meaning: What each column says.
    """

    name: str
    schema: pa.Schema
    order: tuple[str, ...]
    group_rows: int
    zones: tuple[str, ...]
    repeats: tuple[str, ...]
    encodings: dict[str, str] = field(default_factory=dict)
    meaning: tuple[str, ...] = ()


def _kind(
    name: str, order: str, group_rows: int, columns: Sequence[tuple[str, str, str]], **how: str
) -> TableKind:
    """Declare a table; a type with ``?`` may be null."""
    types = {"text": pa.string(), "int": pa.int64(), "double": pa.float64()}
    fields = [
        pa.field(column, types[of.rstrip("?")], nullable=of.endswith("?"))
        for column, of, _ in columns
    ]
    encodings = dict.fromkeys(how.get("deltas", "").split(), "DELTA_BINARY_PACKED")
    encodings |= dict.fromkeys(how.get("splits", "").split(), "BYTE_STREAM_SPLIT")
    return TableKind(
        name,
        pa.schema(fields),
        tuple(order.split()),
        group_rows,
        tuple(how["zones"].split()),
        tuple(how.get("repeats", "").split()),
        encodings,
        tuple(meaning for _, _, meaning in columns),
    )


_OBJECT = ("object", "int", ("number of the object in this catalogue: 2^32 times that of its part, "
           "and its row in the part's `objects`, from 0"))  # fmt: skip

TABLES = {
    table.name: table
    for table in (
        _kind(
            "objects",
            "start_time_ms kind id packed_ms",
            2048,
            (
                _OBJECT,
                ("archive", "text", "archive that holds it, a path below the folder or set"),
                (
                    "packed_ms",
                    "int",
                    ("`export_time_ms` of that archive, milliseconds since the Unix epoch, UTC"),
                ),
                ("source", "text", "`mlflow_tracking_uri` of that archive"),
                ("workspace", "text", "its workspace, `default` where the archive names none"),
                ("kind", "text", "its kind, such as `run`"),
                (
                    "id",
                    "text",
                    (
                        "its id; of a registered model or prompt its name, of a version "
                        "`NAME/NUMBER`"
                    ),
                ),
                (
                    "origin",
                    "text?",
                    ("what tells it from others that have its id; null where no two have one id"),
                ),
                ("name", "text", "the name that people know it by, empty without one"),
                ("experiment_id", "text?", "id of its experiment"),
                ("experiment", "text?", "name of its experiment"),
                ("user", "text?", "who made it"),
                ("status", "text?", "status"),
                ("lifecycle_stage", "text?", "`active` or `deleted`"),
                (
                    "start_time_ms",
                    "int?",
                    (
                        "when it began, milliseconds since the Unix epoch, UTC: "
                        "start of a run, request of a trace, creation of all others"
                    ),
                ),
                ("end_time_ms", "int?", "end of a run or trace in the same way"),
            ),
            zones="start_time_ms",
            repeats="archive packed_ms source workspace kind experiment_id experiment user status"
            " lifecycle_stage",
            deltas="object",
        ),
        _kind(
            "ids",
            "id object",
            4096,
            (
                ("id", "text", "an id that an object has or had"),
                (
                    "how",
                    "text",
                    (
                        "`id`: its id; `origin`: that of `objects`; `earlier`: an id that "
                        "it had where it was copied from"
                    ),
                ),
                ("packed_ms", "int", "`packed_ms` of the object"),
                _OBJECT,
            ),
            zones="id packed_ms",
            repeats="how packed_ms",
            deltas="object",
        ),
        _kind(
            "hashes",
            "hash object",
            16_384,
            (
                (
                    "hash",
                    "int",
                    "first 32 bits of the SHA-256 of `origin`, or of `id` where that is null",
                ),
                _OBJECT,
            ),
            zones="hash",
            deltas="hash object",
        ),
        _kind(
            "values",
            "field key text object",
            65_536,
            (
                (
                    "field",
                    "text",
                    (
                        "what it is: `tag`, `param`, `name`, `user`, `kind`, "
                        "`experiment`, `model`, `dataset`"
                    ),
                ),
                (
                    "key",
                    "text",
                    (
                        "key of a tag or param, id of an experiment, name of a registered "
                        "model, digest of a dataset; else empty"
                    ),
                ),
                (
                    "text",
                    "text",
                    (
                        "value of a tag or param, name of a dataset or experiment, number "
                        "of a model's version; else the name, user or kind"
                    ),
                ),
                _OBJECT,
            ),
            zones="field key text",
            repeats="field key text",
            deltas="object",
        ),
        _kind(
            "metrics",
            "key value object",
            65_536,
            (
                ("key", "text", "key of the metric"),
                ("value", "double", "its last value"),
                _OBJECT,
                ("step", "int?", "step of that value"),
                (
                    "timestamp_ms",
                    "int?",
                    ("when that was logged, milliseconds since the Unix epoch, UTC"),
                ),
            ),
            zones="key value",
            repeats="key step",
            deltas="object",
            splits="value",
        ),
        _kind(
            "files",
            "sha256 object",
            8192,
            (
                ("sha256", "text", "SHA-256 of the file, lower-case hex"),
                _OBJECT,
                ("path", "text", "its path, as MLflow lists it"),
                ("size_bytes", "int", "its size"),
            ),
            zones="sha256",
            repeats="path",
            deltas="object size_bytes",
        ),
        _kind(
            "archives",
            "archive",
            65_536,
            (
                ("archive", "text", "a path below the folder or set"),
                ("root", "text", "its root, lower-case hex"),
                ("size_bytes", "int", "its size"),
                (
                    "mark",
                    "text",
                    (
                        "what the store called its version when it was read, such as an "
                        "ETag; empty where nothing told"
                    ),
                ),
                ("packed_ms", "int", "its `export_time_ms`"),
                ("snapshot", "int?", "of a set, the first snapshot that names it"),
                ("source", "text", "its `mlflow_tracking_uri`"),
                ("objects", "int", "how many of its objects are in `objects`"),
                ("unread", "int", "how many could not be read, and are not"),
            ),
            zones="archive",
            repeats="snapshot source",
        ),
    )
}
"""By name, in the order in which they are written."""


def numbered(part: int, rows: pa.Array) -> pa.Array:
    """Return the objects' numbers of rows of a part."""
    return pc.add(pc.cast(rows, pa.int64()), pa.scalar(part * _ROWS, pa.int64()))


def part_of(objects: pa.Array | pa.ChunkedArray) -> Any:
    """Return which part each object is of."""
    return pc.shift_right(objects, pa.scalar(32, pa.int64()))


def row_of(objects: pa.Array | pa.ChunkedArray) -> Any:
    """Return which row of its part each object is."""
    return pc.bit_wise_and(objects, pa.scalar(_ROWS - 1, pa.int64()))


def hash_of(identity: str) -> int:
    """Return what stands in ``hashes`` for what tells an object from others."""
    return int.from_bytes(sha256_of(identity.encode("utf-8", "surrogatepass")).digest()[:4], "big")


def shortened(text: str) -> str:
    """Return a text as it stands in a catalogue, and as it is looked for there."""
    if len(text) <= _LONGEST:
        return text
    digest = sha256_of(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{text[:_BEGINNING]}…sha256:{digest}"


def sorted_rows(table: pa.Table, kind: TableKind) -> pa.Table:
    """Return rows in the order of their table."""
    keyed = table.select(list(kind.order))
    for place, name in enumerate(kind.order):
        if (column := keyed.column(name)).null_count:
            keyed = keyed.set_column(place, name, pc.fill_null(column, _BEFORE_ALL))
    keys = [(name, "ascending") for name in kind.order]
    return table.take(pc.sort_indices(keyed, sort_keys=keys))


def column_tables(kind: TableKind, columns: dict[str, list[Any]]) -> pa.Table:
    """Make rows of columns."""
    return pa.Table.from_arrays(
        [pa.array(columns[of.name], of.type) for of in kind.schema], schema=kind.schema
    )


def writer(sink: Any, kind: TableKind) -> pq.ParquetWriter:
    """Open a Parquet writer on a file-like object.

    Of other columns than the zones nothing is said: readers ask for the whole of the footer.
    """
    return pq.ParquetWriter(
        sink,
        kind.schema,
        version="2.6",
        compression="zstd",
        compression_level=3,
        use_dictionary=list(kind.repeats),
        column_encoding=kind.encodings or None,
        write_statistics=list(kind.zones),
        write_page_checksum=True,
        store_schema=False,
        data_page_size=1 << 20,
    )
