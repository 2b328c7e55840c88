"""Arrow schema of the Parquet tables and what holds for their rows (spec, "Metric histories")."""

from __future__ import annotations

import hashlib
import struct
from array import array
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = [
    "HISTORY",
    "MAX_ROW_GROUP_ROWS",
    "METRICS",
    "ROWS_PER_PART",
    "ROW_GROUP_ROWS",
    "MetricsDigest",
    "history_table",
    "metrics_file",
    "metrics_writer",
    "read_row_group",
    "rows_by_key",
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

MAX_ROW_GROUP_ROWS = 1 << 20
"""A larger row group is refused before it is read into memory."""

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
    value = table.column("value").combine_chunks()
    if isinstance(value, pa.ChunkedArray):
        value = value.chunk(0) if value.num_chunks else pa.array([], pa.float64())
    bits = value.view(pa.uint64())
    order = pc.sort_indices(
        table.append_column("bits", bits),
        sort_keys=[(name, "ascending") for name in (*by, "key", "step", "timestamp", "bits")],
    )
    return table.take(order).combine_chunks()


def rows_by_key(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Yield each key's rows of a table that is sorted by key."""
    start = 0
    for chunk in table.column("key").chunks:
        for key, begin, end in _key_ranges(chunk):
            yield key, table.slice(start + begin, end - begin)
        start += len(chunk)


def _key_ranges(keys: pa.Array) -> Iterator[tuple[str, int, int]]:
    """Yield each key of a sorted array with its first place and the one after its last."""
    encoded = pc.run_end_encode(keys)
    begin = 0
    for key, end in zip(encoded.values.to_pylist(), encoded.run_ends.to_pylist(), strict=True):
        yield key, begin, end
        begin = end


def metrics_file(stream: Any) -> pq.ParquetFile:
    """Open a metrics table; read it with ``read_row_group``.

    Arrow's own threads must never hold what a Python stream gave: one of them may let go of it
    while the interpreter ends, and that aborts the process.
    """
    return pq.ParquetFile(stream, pre_buffer=False, page_checksum_verification=True)


def read_row_group(file: pq.ParquetFile, number: int) -> pa.Table:
    """Read one row group on this very thread, see ``metrics_file``."""
    return file.read_row_group(number, use_threads=False)


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


class MetricsDigest:
    """Digest over one run's rows, fed in sorted batches of any size.

    For each key in UTF-8 byte order it covers the key's length (u32) and bytes, the number of rows
    (u64) and the SHA-256 of the steps, timestamps and values, each column as little-endian 64-bit
    words. Source: spec/v1/archive.md, "Content digests".
    """

    def __init__(self) -> None:
        self.rows = 0
        self.keys = 0
        self._outer = hashlib.sha256()
        self._key: str | None = None
        self._key_rows = 0
        self._columns = [hashlib.sha256() for _ in range(3)]

    def update(self, table: pa.Table) -> None:
        """Add rows; keys must not go backwards from one call to the next."""
        for rows in table.to_batches():
            columns = [_bytes_of(rows.column(name)) for name in ("step", "timestamp", "value")]
            for key, begin, end in _key_ranges(rows.column("key")):
                if key != self._key:
                    self._finish_key()
                    self._key = key
                self._key_rows += end - begin
                for data, digest in zip(columns, self._columns, strict=True):
                    digest.update(data[8 * begin : 8 * end])
        self.rows += table.num_rows

    def hexdigest(self) -> str:
        """Finish and return ``sha256:`` and 64 hex digits."""
        self._finish_key()
        return "sha256:" + self._outer.hexdigest()

    def _finish_key(self) -> None:
        if self._key is None:
            return
        name = self._key.encode("utf-8")
        self._outer.update(struct.pack("<I", len(name)) + name + struct.pack("<Q", self._key_rows))
        for digest in self._columns:
            self._outer.update(digest.digest())
        self.keys += 1
        self._key, self._key_rows = None, 0
        self._columns = [hashlib.sha256() for _ in range(3)]


def _bytes_of(numbers: pa.Array) -> memoryview:
    """Return the 64-bit words of an array without nulls."""
    data = memoryview(numbers.buffers()[1])
    return data[8 * numbers.offset : 8 * (numbers.offset + len(numbers))]
