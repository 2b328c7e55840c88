"""Metric rows on their way: parts of batches, and their digest."""

from __future__ import annotations

import hashlib
import math
import random
import struct

import pyarrow as pa
import pytest

from mlflow_exim_plugin.schema.metric_rows import (
    MetricsDigest,
    Piece,
    RowBatch,
    RunRows,
    add_piece,
)
from mlflow_exim_plugin.schema.tables import HISTORY, METRICS

NAN = struct.unpack("<d", bytes.fromhex("010000000000f8ff"))[0]
Row = tuple[str, int, int, float]
ROWS: list[Row] = [
    ("a", -(2**63), 0, 0.0),
    ("a", 0, -1, 1.0),
    ("a", 0, 0, math.nan),
    ("a", 2**63 - 1, 2**63 - 1, 5e-324),
    ("b", 0, 0, 1.0),
    ("\u00e9", 0, 0, 1.0),
    ("\uffff", 0, 0, 1.0),
    ("\U0001f680", 0, 0, 1.0),
    ("\U0001f680", 1, 0, -0.0),
]


def table(rows: list[Row]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [()] * 4
    arrays = [pa.array(c, f.type) for c, f in zip(columns, HISTORY, strict=True)]
    return pa.Table.from_arrays(arrays, schema=HISTORY)


def batch(runs: dict[str, list[Row]]) -> RowBatch:
    tables = [RunRows.of(run_id, table(rows)).batch.table for run_id, rows in runs.items()]
    return RowBatch(pa.concat_tables(tables))


def rows_of(rows: RunRows) -> list[Row]:
    return [tuple(row.values()) for row in rows.table.to_pylist()]


def shown(rows: list[Row]) -> str:
    return repr(rows)  # a NaN equals none


def digest_of(*tables: list[Row]) -> str:
    digest = MetricsDigest()
    for rows in tables:
        if rows:
            digest.update(RunRows.of("r", table(rows)))
    return digest.hexdigest()


def digest_by_the_text(rows: list[Row]) -> str:
    """The digest as the spec says it, column by column."""
    outer = hashlib.sha256()
    for key in dict.fromkeys(row[0] for row in rows):
        own = [row for row in rows if row[0] == key]
        name = key.encode()
        outer.update(struct.pack("<I", len(name)) + name + struct.pack("<Q", len(own)))
        for column, form in ((1, "<q"), (2, "<q"), (3, "<d")):
            words = b"".join(struct.pack(form, row[column]) for row in own)
            outer.update(hashlib.sha256(words).digest())
    return f"sha256:{outer.hexdigest()}"


def test_a_batch_gives_each_run_its_rows() -> None:
    runs = {"r1": ROWS, "r2": ROWS[4:5], "r3": ROWS[:4]}
    whole = batch(runs)
    found = {rows.run_id: rows for rows in whole.runs()}
    assert list(found) == list(runs)
    for run_id, rows in runs.items():
        assert shown(rows_of(found[run_id])) == shown(rows)
        assert found[run_id].num_rows == len(rows)
        assert found[run_id].keys == list(dict.fromkeys(row[0] for row in rows))
        assert {key: some.column("step").to_pylist() for key, some in found[run_id].by_key()} == {
            key: [row[1] for row in rows if row[0] == key] for key in found[run_id].keys
        }
    assert list(RowBatch(METRICS.empty_table()).runs()) == []


def test_any_range_of_a_batch_is_rows_of_its_run_or_none() -> None:
    runs = {"r1": ROWS, "r2": ROWS[3:6], "r3": ROWS[:2]}
    whole = batch(runs)
    owners = [(run_id, row) for run_id, rows in runs.items() for row in rows]
    assert RowBatch(METRICS.empty_table()).of_run("r2", 0, 0) is None
    for first in range(len(owners)):
        assert whole.of_run("r2", first, first) is None
        for stop in range(first + 1, len(owners) + 1):
            some = owners[first:stop]
            rows = whole.of_run("r2", first, stop)
            if any(run_id != "r2" for run_id, _ in some):
                assert rows is None
            else:
                assert rows is not None
                assert shown(rows_of(rows)) == shown([row for _, row in some])
                digest = MetricsDigest()
                digest.update(rows)
                assert digest.hexdigest() == digest_by_the_text([row for _, row in some])


@pytest.mark.parametrize("first", range(1, len(ROWS) + 2))
def test_rows_are_split_anywhere(first: int) -> None:
    rows = RunRows.of("r", table(ROWS))
    before, after = rows.split(first)
    assert shown(rows_of(before)) == shown(ROWS[:first])
    assert shown(rows_of(after) if after else []) == shown(ROWS[first:])
    digest = MetricsDigest()
    digest.update(before)
    if after:
        digest.update(after)
        assert after.keys == list(dict.fromkeys(row[0] for row in ROWS[first:]))
    assert (digest.hexdigest(), digest.keys) == (digest_of(ROWS), 5)


def test_rows_of_other_keys_stay() -> None:
    rows = RunRows.of("r", table(ROWS))
    kept = rows.without({"a", "\uffff"})
    assert kept is not None
    assert kept.keys == ["b", "\u00e9", "\U0001f680"]
    assert rows.without({row[0] for row in ROWS}) is None


def test_rows_that_follow_each_other_in_a_batch_are_one_piece() -> None:
    whole, other = batch({"r1": ROWS, "r2": ROWS[:3], "r3": ROWS}), batch({"r4": ROWS})
    one, two, three = whole.runs()
    pieces: list[Piece] = []
    for rows in (one, two, *other.runs(), three):
        add_piece(pieces, rows)
    count = len(ROWS)
    assert pieces == [
        (whole, 0, count + 3),
        (other, 0, count),
        (whole, count + 3, 2 * count + 3),
    ]


def test_digest_is_what_the_spec_says() -> None:
    for seed in range(20):
        some = sorted(random.Random(seed).sample(ROWS, seed % len(ROWS)), key=lambda row: row[0])
        assert digest_of(some) == digest_by_the_text(some)


def test_digest_does_not_depend_on_batches() -> None:
    for cut in range(len(ROWS) + 1):
        assert digest_of(ROWS[:cut], ROWS[cut:]) == digest_of(ROWS)


@pytest.mark.parametrize(
    "changed",
    [
        [("a", 0, 0, -0.0)],
        [("a", 0, 1, 0.0)],
        [("a", 1, 0, 0.0)],
        [("b", 0, 0, 0.0)],
        [("a", 0, 0, 0.0)] * 2,
        [],
        [("a", 0, 0, math.nan)],
        [("a", 0, 0, NAN)],
    ],
)
def test_any_change_changes_the_digest(changed: list[Row]) -> None:
    assert digest_of(changed) != digest_of([("a", 0, 0, 0.0)])


def test_rows_cannot_move_between_keys() -> None:
    one: list[Row] = [("a", 0, 0, 1.0), ("a", 1, 0, 2.0), ("b", 0, 0, 3.0)]
    other: list[Row] = [("a", 0, 0, 1.0), ("b", 1, 0, 2.0), ("b", 0, 0, 3.0)]
    assert digest_of(one) != digest_of(other)
