"""Complete metric histories out of the database of a store that this process opens itself.

MLflow's own call builds an object a row. Here the rows of many runs come with one query, and those
of a run that is too long for that with one a key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.api.histories import empty, failed, sorted_rows
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.open.workspaces import workers
from mlflow_exim_plugin.host.tables import TableReader, rows_seen_by
from mlflow_exim_plugin.schema.metric_rows import RowBatch
from mlflow_exim_plugin.schema.tables import HISTORY, METRICS, sort_history

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future

    from sqlalchemy import ColumnClause, Connection, Engine

    from mlflow_exim_plugin.host.api.histories import HistoriesAhead
    from mlflow_exim_plugin.host.tables import Where
    from mlflow_exim_plugin.schema.metric_rows import RunRows
    from mlflow_exim_plugin.schema.objects import Failure

__all__ = ["StoredHistories", "metric_rows"]

_ROWS_AT_ONCE = 500_000
"""Rows that one query may bring: some tens of megabytes."""


class StoredHistories:
    """Reads histories from a database.

    Args:
        engine: The database's, of any of MLflow's schemas.
        rows_at_once: How many rows one query may bring.

    Attributes:
        rows_ahead: See ``HistorySource``.

    Source: MLflow's table ``metrics``.
    """

    rows_ahead = 25_000

    def __init__(self, engine: Engine, *, rows_at_once: int = _ROWS_AT_ONCE) -> None:
        self._engine = engine
        self._tables = TableReader(engine)
        self._rows_at_once = rows_at_once
        self._reader = workers(1, "exim-histories")

    def close(self) -> None:
        """Let go of the database."""
        self._reader.shutdown(cancel_futures=True)
        self._tables.close()

    def stamps(self, run_ids: list[str]) -> dict[str, str]:
        """Return what is another for each run when it has more rows: how many these are.

        Raises:
            ServerError: The database refused.
        """
        return {run_id: str(rows) for run_id, rows in self._counts(run_ids).items()}

    def start(self, runs: dict[str, dict[str, int]]) -> HistoriesAhead:
        """Begin to read the histories of some runs; long ones are read when they are taken."""
        # Those that list no metric too: the rows are the truth, and the list is made of them.
        return _StoredReading(self, runs, self._reader.submit(self._read, list(runs)))

    def take(self, run_id: str, keys: list[str]) -> Iterator[RunRows | Failure]:
        """Yield the rows of a run's keys, read one by one, or why one cannot be read."""
        for key in keys:
            try:
                yield sorted_rows(run_id, key, self._rows_of_key(run_id, key))
            except ServerError as error:
                yield failed(run_id, key, error.message)

    def _read(self, run_ids: list[str]) -> tuple[list[pa.Table], set[str]]:
        """Return the rows of runs, and those runs that are too long to be read now."""
        if not run_ids:
            return [], set()
        if (all_rows := self._rows_of(run_ids)) is not None:
            return [all_rows], set()
        counts = self._counts(run_ids)
        read: list[pa.Table] = []
        long = {run_id for run_id, rows in counts.items() if rows > self._rows_at_once}
        for some in self._batches(counts):
            if (rows := self._rows_of(some)) is None:  # they have grown since
                long.update(some)
            else:
                read.append(rows)
        return read, long

    def _batches(self, counts: dict[str, int]) -> Iterator[list[str]]:
        """Yield runs whose rows one query may bring."""
        some: list[str] = []
        rows = 0
        for run_id, count in counts.items():
            if count > self._rows_at_once:
                continue
            if some and rows + count > self._rows_at_once:
                yield some
                some, rows = [], 0
            some.append(run_id)
            rows += count
        if some:
            yield some

    def _counts(self, run_ids: list[str]) -> dict[str, int]:
        """Return how many rows each run has, none left out that has any."""
        from sqlalchemy import column, func, select, table

        run_id: ColumnClause[str] = column("run_uuid")
        query = select(run_id, func.count()).select_from(table("metrics"))
        query = query.where(run_id.in_(run_ids)).group_by(run_id)
        with translated("counting metric rows"), self._engine.connect() as connection:
            return {run_id: int(rows) for run_id, rows in connection.execute(query).all()}

    def _rows_of(self, run_ids: list[str]) -> pa.Table | None:
        """Return the rows of runs in any order; None where one query may not bring all."""
        doing, most = "reading metric rows", self._rows_at_once
        found = self._tables.rows("metrics", _STORED, doing, limit=most + 1, run_uuid=run_ids)
        return found if found.num_rows <= most else None

    def _rows_of_key(self, run_id: str, key: str) -> pa.Table:
        doing = f"reading metric {key!r}"
        found = self._tables.rows("metrics", _STORED, doing, run_uuid=[run_id], key=key)
        # To some databases a capital letter is no difference.
        return _as_rows(found.filter(pc.equal(found.column("key"), key))).select(HISTORY.names)


def metric_rows(connection: Connection, run_ids: list[str], key: str | None = None) -> pa.Table:
    """Return what a connection sees of the rows of some runs, or of one key of theirs.

    Returns:
        Rows in any order, schema ``METRICS``. To some databases a capital letter is no difference,
        so those of other keys may be among them.
    """
    where: Where = {"run_uuid": run_ids}
    if key is not None:
        where["key"] = key
    return _as_rows(rows_seen_by(connection, "metrics", _STORED, where))


class _StoredReading:
    """The histories of some runs.

    Args:
        reader: Reads what was not read yet.
        runs: Keys by run.
        read: Rows of runs, and those runs that are too long to be read with others.
    """

    def __init__(
        self,
        reader: StoredHistories,
        runs: dict[str, dict[str, int]],
        read: Future[tuple[list[pa.Table], set[str]]],
    ) -> None:
        self._reader = reader
        self._runs = runs
        self._reading = read
        self._read: dict[str, RunRows] = {}
        self._long: set[str] = set()
        self._is_broken = False

    def finish(self) -> dict[str, Iterator[RunRows | Failure]]:
        """Return what gives each run's rows, then what it lists and has no rows for."""
        try:
            tables, self._long = self._reading.result()
        except ServerError:  # of one bad row: each key is read alone, and the broken one is named
            tables, self._is_broken = [], True
        for table in tables:
            batch = RowBatch(sort_history(_as_rows(table), "run_id"))
            self._read.update((rows.run_id, rows) for rows in batch.runs())
        return {run_id: self._of(run_id, keys) for run_id, keys in self._runs.items()}

    def _of(self, run_id: str, keys: dict[str, int]) -> Iterator[RunRows | Failure]:
        if self._is_broken or run_id in self._long:
            yield from self._reader.take(run_id, _in_order(keys))
            return
        rows = self._read.pop(run_id, None)
        there = set(rows.keys) if rows else set()
        if rows:
            yield rows
        for key in _in_order(keys.keys() - there):
            yield empty(run_id, key)


_STORED = pa.schema(
    [pa.field("run_uuid", pa.string()), *HISTORY, pa.field("is_nan", pa.bool_(), nullable=False)]
)
"""Columns of MLflow's table ``metrics``."""


def _as_rows(table: pa.Table) -> pa.Table:
    """Return rows as they stand in the database, where NaN is a flag beside a zero."""
    value = pc.if_else(table.column("is_nan"), float("nan"), table.column("value"))
    arrays = [value if name == "value" else table.column(name) for name in _STORED.names[:-1]]
    return pa.Table.from_arrays(arrays, schema=METRICS)


def _in_order(keys: Iterable[str]) -> list[str]:
    return sorted(keys, key=lambda key: key.encode())
