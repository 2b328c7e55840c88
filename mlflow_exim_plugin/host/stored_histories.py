"""Complete metric histories out of the database of a store that this process opens itself.

MLflow's own call builds an object a row. Here the rows of a run come with one query, and those of a
run that is too long for that with one a key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.errors import ServerError, ServerLostError
from mlflow_exim_plugin.host.connection import translated
from mlflow_exim_plugin.host.histories import empty, failed
from mlflow_exim_plugin.schema.tables import HISTORY, sort_history

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import ColumnElement, Engine

    from mlflow_exim_plugin.host.histories import Reading
    from mlflow_exim_plugin.schema.objects import Failure

__all__ = ["StoredHistories"]

_FETCH_ROWS = 50_000
_ROWS_AT_ONCE = 1_000_000
"""Rows that one query may bring: some tens of megabytes."""


class StoredHistories:
    """Reads histories from a database.

    Args:
        engine: The store's own, with MLflow's schema.
        rows_at_once: How many rows a run may have to come with one query.

    Source: ``SqlAlchemyStore.engine`` and MLflow's table ``metrics``.
    """

    def __init__(self, engine: Engine, *, rows_at_once: int = _ROWS_AT_ONCE) -> None:
        self._engine = engine
        self._rows_at_once = rows_at_once

    def start(self, runs: dict[str, dict[str, int]]) -> Reading:
        """Prepare the histories of some runs; each is read when it is taken."""
        return _Reading(self, runs)

    def take(self, run_id: str, keys: list[str]) -> Iterator[pa.Table | Failure]:
        """Yield the rows of a run's keys, sorted, then what the run lists and has no rows for."""
        if not keys:
            return
        try:
            if self._count(run_id) > self._rows_at_once:
                for key in keys:
                    rows = self._rows(run_id, key)
                    yield sort_history(rows) if rows.num_rows else empty(run_id, key)
                return
            rows = self._rows(run_id)
            there = set(pc.unique(rows.column("key")).to_pylist())
            if there - set(keys):
                rows = rows.filter(pc.is_in(rows.column("key"), pa.array(keys, pa.string())))
            if rows.num_rows:
                yield sort_history(rows)
            for key in keys:
                if key not in there:
                    yield empty(run_id, key)
        except ServerLostError:
            raise
        except ServerError as error:
            for key in keys:
                yield failed(run_id, key, error.message)

    def _count(self, run_id: str) -> int:
        from mlflow.store.tracking.dbmodels.models import SqlMetric
        from sqlalchemy import func, select

        query = select(func.count()).select_from(SqlMetric).where(SqlMetric.run_uuid == run_id)
        doing = f"counting the metric rows of run {run_id}"
        with translated(doing), self._engine.connect() as connection:
            return int(connection.execute(query).scalar_one())

    def _rows(self, run_id: str, key: str | None = None) -> pa.Table:
        """Return the rows of a run, or of one of its keys, in any order; schema ``HISTORY``."""
        from mlflow.store.tracking.dbmodels.models import SqlMetric
        from sqlalchemy import select

        wanted: list[ColumnElement[bool]] = [SqlMetric.run_uuid == run_id]
        if key is not None:
            wanted.append(SqlMetric.key == key)
        query = select(
            SqlMetric.key, SqlMetric.step, SqlMetric.timestamp, SqlMetric.value, SqlMetric.is_nan
        ).where(*wanted)
        with (
            translated(f"reading the metrics of run {run_id}"),
            self._engine.connect() as connection,
        ):
            streaming = connection.execution_options(yield_per=_FETCH_ROWS)
            batches = [
                _table(list(zip(*rows, strict=True)))
                for rows in streaming.execute(query).partitions()
            ]
        table = pa.concat_tables(batches) if batches else HISTORY.empty_table()
        if key is not None:  # to some databases a capital letter is no difference
            table = table.filter(pc.equal(table.column("key"), key))
        return table


class _Reading:
    """The histories of some runs."""

    def __init__(self, reader: StoredHistories, runs: dict[str, dict[str, int]]) -> None:
        self._reader = reader
        self._runs = runs

    def finish(self) -> dict[str, Iterator[pa.Table | Failure]]:
        """Return what reads each run's rows."""
        return {
            run_id: self._reader.take(run_id, sorted(keys, key=lambda key: key.encode()))
            for run_id, keys in self._runs.items()
        }


def _table(columns: list[tuple[Any, ...]]) -> pa.Table:
    """Return rows as they stand in the database: NaN is a flag beside a zero."""
    keys, steps, timestamps, values, is_nan = columns
    value = pc.if_else(pa.array(is_nan, pa.bool_()), float("nan"), pa.array(values, pa.float64()))
    return pa.Table.from_arrays(
        [pa.array(keys, pa.string()), pa.array(steps, pa.int64()),
         pa.array(timestamps, pa.int64()), value],
        schema=HISTORY,
    )  # fmt: skip
