"""The tables of a set: what left its state, and what its state is (spec/v1/set.md)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_exim_plugin.schema.digests import sha256_of
from mlflow_exim_plugin.schema.stored_tables import StoredTable
from mlflow_exim_plugin.sources.archive.snapshot.documents import FileEntry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder

__all__ = [
    "GONE",
    "IDS",
    "LAYER",
    "STATE",
    "gone_paths",
    "gone_table",
    "read_table",
    "write_table",
]

GONE = pa.schema([pa.field("path", pa.string(), nullable=False)])
"""Columns of the objects that left the state."""

STATE = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("content_digest", pa.binary(32), nullable=False),
        pa.field("mark", pa.binary(), nullable=False),
        pa.field("member", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("start_ms", pa.int64()),
        *(
            pa.field(name, pa.int64(), nullable=False)
            for name in (
                "metric_keys",
                "metric_rows",
                "artifacts",
                "artifact_bytes",
                "spans",
                "assessments",
                "records",
            )
        ),
    ]
)
"""Columns of the objects of the state, before layers."""

LAYER = STATE.append(pa.field("block", pa.int64()))
"""Columns of the objects of a layer; what left the state has no kind."""

IDS = pa.schema(
    [
        pa.field("segment", pa.string(), nullable=False),
        pa.field("folder", pa.string(), nullable=False),
    ]
)
"""Columns of where the ids of a layer are."""
_REPEATED = ("kind", "folder", "block")
_ROWS_A_GROUP = 128 << 10


def gone_paths(folder: SetFolder, entry: FileEntry) -> frozenset[str]:
    """Return the paths of the objects that left the state.

    Raises:
        InvalidArchiveError: The table is damaged.
        NotFoundError: It is not there.
        StoreError: The store refused or died.
    """
    return frozenset(read_table(folder, entry, GONE).column("path").to_pylist())


def read_table(folder: SetFolder, entry: FileEntry, schema: pa.Schema) -> pa.Table:
    """Return a table that a snapshot names.

    Raises:
        InvalidArchiveError: It is damaged, or not what the snapshot says.
        NotFoundError: It is not there.
        StoreError: The store refused or died.
    """
    data = folder.table(entry)
    table = StoredTable(io.BytesIO(data), entry.path, schema, "N005", len(data))
    try:
        groups = [table.row_group(number) for number in range(len(table.groups))]
    finally:
        table.close()
    return pa.concat_tables(groups) if groups else schema.empty_table()


def write_table(folder: SetFolder, name: str, rows: pa.Table) -> FileEntry:
    """Write a table under a name that is made of its content.

    Args:
        folder: The set.
        name: Folder in it.
        rows: The table.

    Raises:
        StoreError: The store refused or died.
    """
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer,
        rows.schema,
        version="2.6",
        compression="zstd",
        compression_level=3,
        use_dictionary=[name for name in _REPEATED if name in rows.column_names] or False,
        write_page_checksum=True,
    ) as writer:
        if rows.num_rows:  # a row group without rows has no pages
            writer.write_table(rows, row_group_size=_ROWS_A_GROUP)
    data = buffer.getvalue()
    digest = sha256_of(data).hexdigest()
    path = f"{name}/{digest}.parquet"
    folder.put_named_by_content(path, data)
    return FileEntry(path=path, sha256=digest, rows=rows.num_rows)


def gone_table(paths: Iterable[str]) -> pa.Table:
    """Return the table of the objects that left the state."""
    return pa.table({"path": pa.array(sorted(paths), pa.string())}, schema=GONE)
