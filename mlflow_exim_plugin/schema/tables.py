"""Arrow schema of the Parquet tables and what holds for their rows (spec, "Metric histories")."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "HISTORY",
    "METRICS",
    "ROWS_PER_PART",
    "ROW_GROUP_ROWS",
    "history_table",
    "in_one_piece",
    "metrics_writer",
    "sort_history",
]

HISTORY = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
    ]
)
"""One run's metric rows; ``timestamp`` is in ms since the Unix epoch, UTC."""

METRICS = pa.schema([pa.field("run_id", pa.string(), nullable=False), *HISTORY])
"""Columns of ``metrics/part-NNNNN.parquet``."""

ROW_GROUP_ROWS = 131_072
"""Measured knee: smaller groups cost bytes, larger ones cost range reads."""

ROWS_PER_PART = 8 * ROW_GROUP_ROWS
"""About a million rows a file, so that a part is buffered in a few megabytes."""


def history_table(
    key: str, step: Sequence[int], timestamp: Sequence[int], value: Sequence[float]
) -> pa.Table:
    """Build the rows of one key from columns.

    Args:
        key: Metric key.
        step: Steps, int64.
        timestamp: Milliseconds since the Unix epoch, UTC, int64.
        value: Values; NaN and infinities allowed.

    Returns:
        Table with the schema ``HISTORY``.

    Raises:
        OverflowError: A number is beyond 64 bits.
    """
    return pa.Table.from_arrays(
        [
            pa.repeat(pa.scalar(key, pa.string()), len(step)),
            _numbers(step, pa.int64()),
            _numbers(timestamp, pa.int64()),
            _numbers(value, pa.float64()),
        ],
        schema=HISTORY,
    )


def _numbers(column: Sequence[float], kind: pa.DataType) -> pa.Array:
    if isinstance(column, array):  # machine numbers already: no copy
        return pa.Array.from_buffers(kind, len(column), [None, pa.py_buffer(column)])
    return pa.array(column, kind)


def sort_history(table: pa.Table, *by: str) -> pa.Table:
    """Sort rows by key, step, timestamp and the value's bits, keeping duplicates.

    The value's bits break ties, so that the order does not depend on a source's paging.

    Args:
        table: Columns of ``HISTORY`` and perhaps others.
        by: Other columns that come before.
    """
    bits = in_one_piece(table.column("value")).view(pa.uint64())
    order = pc.sort_indices(
        table.append_column("bits", bits),
        sort_keys=[(name, "ascending") for name in (*by, "key", "step", "timestamp", "bits")],
    )
    return table.take(order).combine_chunks()


def in_one_piece(column: pa.ChunkedArray) -> pa.Array:
    """Return the values of a column as one array."""
    whole = column.combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # some versions of Arrow give one back, of one chunk
        whole = whole.chunk(0) if whole.num_chunks else pa.array([], column.type)
    return whole


def metrics_writer(sink: Any) -> pq.ParquetWriter:
    """Open a Parquet writer with the format's recipe on a file-like object."""
    return pq.ParquetWriter(
        sink,
        METRICS,
        version="2.6",
        compression="zstd",
        compression_level=3,
        use_dictionary=["run_id", "key"],
        column_encoding={
            "step": "DELTA_BINARY_PACKED",
            "timestamp": "PLAIN",
            "value": "BYTE_STREAM_SPLIT",
        },
        write_page_index=True,
        write_page_checksum=True,
        data_page_size=1 << 20,
    )
