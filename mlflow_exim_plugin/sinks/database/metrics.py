"""Metric rows to a database's tables: as it keeps them, each once, with the latest of each key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.host.sql.stored_values import as_stored
from mlflow_exim_plugin.schema.metric_rows import RunRows, add_piece
from mlflow_exim_plugin.schema.tables import HISTORY, in_one_piece, sort_history

if TYPE_CHECKING:
    from mlflow_exim_plugin.host.sql.writer import TableWriter
    from mlflow_exim_plugin.schema.metric_rows import Piece

__all__ = ["LatestMetrics", "MetricRows", "differs_from_before", "stored_rows"]

_ROWS_HELD = 100_000
_GROUP = ["run_uuid", "key"]
_MOMENT = [*_GROUP, "step", "timestamp"]


class MetricRows:
    """Collects the histories of runs and writes them a hundred thousand rows at a time.

    Args:
        tables: The database.
    """

    def __init__(self, tables: TableWriter) -> None:
        self._tables = tables
        self._waiting: dict[str, list[RunRows]] = {}
        self._rows = 0
        self._latest = LatestMetrics()
        self._ended: set[str] = set()
        self._there: dict[tuple[str, str], dict[str, Any]] = {}
        self._infinite: set[tuple[str, str]] = set()

    def resume(self, run_id: str, latest: list[dict[str, Any]]) -> None:
        """Let a run go on that is there, of some of whose keys nothing but the latest is known."""
        for row in self._tables.select("latest_metrics", run_uuid=run_id):
            self._there[run_id, row["key"]] = row
            self._latest.see(row)
        for row in latest:
            self._latest.see(row)

    def add(self, rows: RunRows) -> None:
        """Add rows of a run, those of a run never going backwards."""
        self._waiting.setdefault(rows.run_id, []).append(rows)
        self._rows += rows.num_rows
        if self._rows >= _ROWS_HELD:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait, but those of the moment that a run was left at.

        More rows of that moment may come, and they may be the same as some that wait.
        """
        waiting, self._waiting, self._rows = self._waiting, {}, 0
        tables: list[pa.Table] = []
        pieces: list[Piece] = []
        for run_id, parts in waiting.items():
            if run_id in self._ended:
                for part in parts:
                    add_piece(pieces, part)
                continue
            rows, held = _without_last_moment(pa.concat_tables([part.table for part in parts]))
            self._waiting[run_id] = [RunRows.of(run_id, held)]
            self._rows += held.num_rows
            if rows.num_rows:
                tables.append(RunRows.of(run_id, rows).batch.table)
        self._ended.clear()
        tables += [batch.table.slice(first, stop - first) for batch, first, stop in pieces]
        if not tables:
            return
        rows = pa.concat_tables(tables).rename_columns(["run_uuid", *HISTORY.names])
        self._note_infinities(rows)
        rows = stored_rows(rows)
        latest = self._latest.of(rows, unfinished=set(self._waiting))
        self._tables.add_table("metrics", rows)
        if latest.num_rows:
            self._tables.add_table("latest_metrics", latest)

    def _note_infinities(self, rows: pa.Table) -> None:
        is_infinite = pc.is_inf(rows.column("value"))
        if pc.any(is_infinite).as_py():
            of = rows.filter(is_infinite).group_by(["run_uuid", "key"]).aggregate([])
            self._infinite.update((row["run_uuid"], row["key"]) for row in of.to_pylist())

    def foresee(self, rows: RunRows) -> None:
        """Know of rows that are not written now what writing them would change."""
        self._note_infinities(
            rows.table.append_column("run_uuid", pa.repeat(rows.run_id, rows.num_rows))
        )

    def note_infinite(self, run_id: str, keys: set[str]) -> None:
        """Know of histories whose infinities do not come along with the rows that are written."""
        self._infinite.update((run_id, key) for key in keys)

    def take_infinite(self) -> list[tuple[str, str]]:
        """Return run and key of each history with infinities that was written, and forget them."""
        found = sorted(self._infinite)
        self._infinite.clear()
        return found

    def end(self, run_id: str) -> None:
        """Say that a run has no more rows."""
        self._ended.add(run_id)

    def finish(self) -> None:
        """Write the rows that wait, and the latest of each key."""
        self._ended.update(self._waiting)
        self.flush()
        there, self._there = self._there, {}
        latest = [(row, there.get((row["run_uuid"], row["key"]))) for row in self._latest.take()]
        self._tables.add(("latest_metrics", row) for row, before in latest if before is None)
        for row, before in latest:
            if before is not None and row is not before:
                key = {"run_uuid": row["run_uuid"], "key": row["key"]}
                self._tables.update("latest_metrics", row, **key)

    def forget(self) -> None:
        """Drop what waits: its transaction was taken back."""
        self._waiting, self._rows = {}, 0
        self._ended.clear()
        self._there.clear()
        self._infinite.clear()
        self._latest = LatestMetrics()


class LatestMetrics:
    """Finds the latest row of each key of each run: by step, time, and value at last.

    Source: ``SqlAlchemyStore._update_latest_metrics_if_necessary``.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], dict[str, Any]] = {}

    def of(self, rows: pa.Table, *, unfinished: set[str]) -> pa.Table:
        """Return the latest rows of the runs that have no more; those of others are kept.

        Args:
            rows: Sorted by run, key, step and time, NaN as a zero beside ``is_nan``.
            unfinished: Runs of which more rows come.
        """
        is_last = _is_last(rows, _GROUP)
        same_moment = pc.invert(differs_from_before(rows, _MOMENT))
        # Of one moment the largest value is the latest. That is rare, and so are long histories.
        runs = pa.array(sorted(unfinished | {run_id for run_id, _ in self._found}), pa.string())
        is_open = pc.is_in(in_one_piece(rows.column("run_uuid")), runs)
        looked_at = pc.and_(is_last, pc.or_(is_open, same_moment))
        for last in pc.indices_nonzero(looked_at).to_pylist():
            at = last
            self.see(rows.slice(at, 1).to_pylist()[0])
            while same_moment[at].as_py():
                at -= 1
                self.see(rows.slice(at, 1).to_pylist()[0])
        return rows.filter(pc.and_not(is_last, looked_at))

    def see(self, row: dict[str, Any]) -> None:
        """Look at one row."""
        whose = (row["run_uuid"], row["key"])
        known = self._found.get(whose)
        if known is None or _moment(row) > _moment(known):
            self._found[whose] = row

    def take(self) -> list[dict[str, Any]]:
        """Return the rows that were kept, and forget them."""
        found, self._found = self._found, {}
        return list(found.values())


def _moment(row: dict[str, Any]) -> tuple[int, int, float]:
    return row["step"], row["timestamp"], row["value"]


def stored_rows(rows: pa.Table) -> pa.Table:
    """Return rows as a database keeps them: each once, NaN as a flag beside a zero, in order."""
    value = rows.column("value")
    is_negative_zero = pc.and_(pc.equal(value, 0.0), pc.less(pc.divide(1.0, value), 0.0))
    moved = pc.or_(pc.or_(pc.is_nan(value), pc.is_inf(value)), is_negative_zero)
    kept = as_stored(rows)
    if pc.any(moved).as_py():
        kept = sort_history(kept, "run_uuid")
    is_nan = pc.is_nan(kept.column("value"))
    value = pc.if_else(is_nan, 0.0, kept.column("value"))
    at = kept.column_names.index("value")
    kept = kept.set_column(at, "value", value).append_column("is_nan", is_nan).combine_chunks()
    return kept.filter(differs_from_before(kept, kept.column_names))


def _without_last_moment(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Split sorted rows of a run before those of its last key, step and time."""
    last = rows.slice(rows.num_rows - 1).to_pylist()[0]
    of_moment = None
    for name in ("key", "step", "timestamp"):
        same = pc.equal(rows.column(name), last[name])
        of_moment = same if of_moment is None else pc.and_(of_moment, same)
    held = rows.filter(of_moment)
    return rows.slice(0, rows.num_rows - held.num_rows), held


def _is_last(rows: pa.Table, names: list[str]) -> pa.BooleanArray:
    """Return for each row whether any of some columns differs from the row after."""
    starts = differs_from_before(rows, names)
    return pa.concat_arrays([starts.slice(1), pa.array([True])])


def differs_from_before(rows: pa.Table, names: list[str]) -> pa.BooleanArray:
    """Return for each row whether any of some columns differs from the row before."""
    differs = None
    for name in names:
        column = in_one_piece(rows.column(name))
        one = pc.not_equal(column.slice(1), column.slice(0, len(column) - 1))
        differs = one if differs is None else pc.or_(differs, one)
    return pa.concat_arrays([pa.array([True]), differs])
