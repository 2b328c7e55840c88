"""Metric rows: their order, their digest, their Parquet file."""

from __future__ import annotations

import io
import math
import random
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_exim_plugin.schema.tables import (
    HISTORY,
    METRICS,
    ROW_GROUP_ROWS,
    ROWS_PER_PART,
    history_table,
    metrics_writer,
    sort_history,
)

NAN = struct.unpack("<d", bytes.fromhex("010000000000f8ff"))[0]
ROWS = [
    ("a", -(2**63), 0, 0.0),
    ("a", 0, -1, 1.0),
    ("a", 0, 0, 0.0),
    ("a", 0, 0, 0.0),
    ("a", 0, 0, math.inf),
    ("a", 0, 0, math.nan),
    ("a", 0, 0, -0.0),
    ("a", 0, 0, NAN),
    ("a", 2**63 - 1, 2**63 - 1, 5e-324),
    ("b", 0, 0, 1.0),
    ("\u00e9", 0, 0, 1.0),
    ("\uffff", 0, 0, 1.0),
    ("\U0001f680", 0, 0, 1.0),
]
"""Sorted as the format wants it: texts by UTF-8, values by their bits."""

Row = tuple[str, int, int, float]


def table(rows: list[Row]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * 4
    arrays = [pa.array(c, f.type) for c, f in zip(columns, HISTORY, strict=True)]
    return pa.Table.from_arrays(arrays, schema=HISTORY)


def bits(rows: pa.Table) -> list[tuple[str, int, int, bytes]]:
    return [
        (row["key"], row["step"], row["timestamp"], struct.pack("<d", row["value"]))
        for row in rows.to_pylist()
    ]


def test_every_order_is_sorted_to_the_same_bits() -> None:
    wanted = bits(table(ROWS))
    for seed in range(20):
        shuffled = random.Random(seed).sample(ROWS, len(ROWS))
        assert bits(sort_history(table(shuffled))) == wanted


def test_chunked_and_empty_tables_are_sorted() -> None:
    chunked = pa.concat_tables([table(ROWS[5:]), table([]), table(ROWS[:5])])
    assert bits(sort_history(chunked)) == bits(table(ROWS))
    assert sort_history(table([])).num_rows == 0


def test_history_is_built_from_columns() -> None:
    built = history_table("k", [2, 1], [20, 10], [0.5, math.nan])
    assert built.schema == HISTORY
    assert bits(built) == bits(table([("k", 2, 20, 0.5), ("k", 1, 10, math.nan)]))
    with pytest.raises((OverflowError, pa.ArrowException)):
        history_table("k", [2**63], [0], [0.0])


def test_parquet_keeps_every_bit_and_follows_the_recipe() -> None:
    ids = pa.array(["r"] * len(ROWS))
    rows = table(ROWS).add_column(0, METRICS.field("run_id"), ids)
    sink = io.BytesIO()
    with metrics_writer(sink) as writer:
        writer.write_table(rows)
    file = pq.ParquetFile(sink)
    assert file.schema_arrow.equals(METRICS)
    assert bits(file.read().drop_columns(["run_id"])) == bits(table(ROWS))
    group = file.metadata.row_group(0)
    columns = {group.column(n).path_in_schema: group.column(n) for n in range(len(METRICS))}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert "BYTE_STREAM_SPLIT" in columns["value"].encodings
    assert "DELTA_BINARY_PACKED" in columns["step"].encodings
    assert "PLAIN" in columns["timestamp"].encodings
    assert columns["timestamp"].dictionary_page_offset is None
    assert columns["run_id"].dictionary_page_offset is not None
    assert ROWS_PER_PART % ROW_GROUP_ROWS == 0
