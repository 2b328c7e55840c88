"""Complete metric histories out of the database of a store that this process opens itself.

MLflow's own call builds an object a row. Here the rows of many runs come with one query, and those
of a run that is too long for that with one a key.
"""

from __future__ import annotations

import io
import json
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from mlflow_exim_plugin.errors import ServerError, ServerLostError
from mlflow_exim_plugin.host.connection import translated
from mlflow_exim_plugin.host.histories import empty, failed
from mlflow_exim_plugin.schema.tables import HISTORY, sort_history

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

    from mlflow_exim_plugin.host.histories import Reading
    from mlflow_exim_plugin.schema.objects import Failure

__all__ = ["StoredHistories"]

_FETCH_ROWS = 50_000
_ROWS_AT_ONCE = 500_000
"""Rows that one query may bring: some tens of megabytes."""


class StoredHistories:
    """Reads histories from a database.

    Args:
        engine: The store's own, with MLflow's schema.
        rows_at_once: How many rows one query may bring.

    Attributes:
        rows_ahead: See ``HistorySource``.

    Source: ``SqlAlchemyStore.engine`` and MLflow's table ``metrics``.
    """

    rows_ahead = 100_000

    def __init__(self, engine: Engine, *, rows_at_once: int = _ROWS_AT_ONCE) -> None:
        self._engine = engine
        self._rows_at_once = rows_at_once

    def start(self, runs: dict[str, dict[str, int]]) -> Reading:
        """Read the histories of some runs; those that are long are read when they are taken."""
        with_keys = [run_id for run_id, keys in runs.items() if keys]
        try:
            counts = self._counts(with_keys)
            read: dict[str, pa.Table] = {run_id: HISTORY.empty_table() for run_id in with_keys}
            for some in self._batches(counts):
                read |= self._rows_of(some)
        except ServerLostError:
            raise
        except ServerError as error:
            return _Reading(self, runs, {}, error.message)
        for run_id, rows in counts.items():
            if rows > self._rows_at_once:
                del read[run_id]
        return _Reading(self, runs, read)

    def take(self, run_id: str, keys: list[str]) -> Iterator[pa.Table | Failure]:
        """Yield the rows of a run's keys, read one by one, or why one cannot be read."""
        for key in keys:
            try:
                rows = self._rows_of_key(run_id, key)
                yield sort_history(rows) if rows.num_rows else empty(run_id, key)
            except ServerLostError:
                raise
            except ServerError as error:
                yield failed(run_id, key, error.message)

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
        from sqlalchemy import func, select

        column = self._columns.run_uuid
        query = select(column, func.count()).where(column.in_(run_ids)).group_by(column)
        with translated("counting metric rows"), self._engine.connect() as connection:
            return {run_id: int(rows) for run_id, rows in connection.execute(query)}

    def _rows_of(self, run_ids: list[str]) -> dict[str, pa.Table]:
        """Return the rows of runs, sorted, by run id."""
        table = sort_history(self._query(run_ids), "run_uuid")
        rows = table.select(HISTORY.names)
        ends = pc.run_end_encode(table.column("run_uuid").combine_chunks())
        found, start = {}, 0
        for run_id, end in zip(ends.values.to_pylist(), ends.run_ends.to_pylist(), strict=True):
            found[run_id] = rows.slice(start, end - start)
            start = end
        return found

    def _rows_of_key(self, run_id: str, key: str) -> pa.Table:
        table = self._query([run_id], key)
        # To some databases a capital letter is no difference.
        return table.filter(pc.equal(table.column("key"), key)).select(HISTORY.names)

    def _query(self, run_ids: list[str], key: str | None = None) -> pa.Table:
        """Return rows in any order, schema ``HISTORY`` after ``run_uuid``."""
        with translated("reading metric rows"):
            if self._engine.dialect.name == "sqlite" and (driver := _arrow_driver()):
                return _as_rows(_sqlite_rows(driver, self._engine, run_ids, key))
            with self._engine.connect() as connection:
                cursor = connection.connection.cursor()
                if hasattr(cursor, "copy_expert"):
                    return _as_rows(_postgres_rows(cursor, run_ids, key))
                tables = [_as_rows(some) for some in self._fetched(connection, run_ids, key)]
        return pa.concat_tables(tables) if tables else _ROWS.empty_table()

    def _fetched(
        self, connection: Connection, run_ids: list[str], key: str | None
    ) -> Iterator[pa.Table]:
        """Yield rows as the driver's own tuples, which cost less than SQLAlchemy's."""
        from sqlalchemy import select

        columns = self._columns
        query = select(*(columns[name] for name in _NAMES)).where(columns.run_uuid.in_(run_ids))
        if key is not None:
            query = query.where(columns.key == key)
        cursor = connection.execute(query).cursor
        while rows := cursor.fetchmany(_FETCH_ROWS):
            arrays = [pa.array(column) for column in zip(*rows, strict=True)]
            yield pa.Table.from_arrays(arrays, names=_NAMES)

    @property
    def _columns(self) -> Any:
        from mlflow.store.tracking.dbmodels.models import SqlMetric

        return SqlMetric.__table__.c


class _Reading:
    """The histories of some runs.

    Args:
        reader: Reads what was not read yet.
        runs: Keys by run.
        read: Sorted rows of runs.
        problem: Why nothing could be read, empty where it could.
    """

    def __init__(
        self,
        reader: StoredHistories,
        runs: dict[str, dict[str, int]],
        read: dict[str, pa.Table],
        problem: str = "",
    ) -> None:
        self._reader = reader
        self._runs = runs
        self._read = read
        self._problem = problem

    def finish(self) -> dict[str, Iterator[pa.Table | Failure]]:
        """Return what gives each run's rows, then what it lists and has no rows for."""
        return {
            run_id: self._of(run_id, sorted(keys, key=lambda key: key.encode()))
            for run_id, keys in self._runs.items()
        }

    def _of(self, run_id: str, keys: list[str]) -> Iterator[pa.Table | Failure]:
        if self._problem:
            yield from (failed(run_id, key, self._problem) for key in keys)
        elif keys and (rows := self._read.pop(run_id, None)) is None:
            yield from self._reader.take(run_id, keys)
        elif keys:
            there = set(pc.unique(rows.column("key")).to_pylist())
            if there - set(keys):
                rows = rows.filter(pc.is_in(rows.column("key"), pa.array(keys, pa.string())))
            if rows.num_rows:
                yield rows
            yield from (empty(run_id, key) for key in keys if key not in there)


_ROWS = pa.schema([pa.field("run_uuid", pa.string()), *HISTORY])
_NAMES = [*_ROWS.names, "is_nan"]
_SELECT = f"SELECT {', '.join(_NAMES)} FROM metrics"  # noqa: S608 - of constants


def _as_rows(table: pa.Table) -> pa.Table:
    """Return rows as they stand in the database, where NaN is a flag beside a zero."""
    is_nan = table.column("is_nan").cast(pa.bool_())
    value = pc.if_else(is_nan, float("nan"), table.column("value").cast(pa.float64()))
    at = table.column_names.index("value")
    return table.set_column(at, "value", value).drop_columns(["is_nan"]).cast(_ROWS)


def _arrow_driver() -> Any:
    """Return the driver that gives SQLite's rows as Arrow, None where it is not installed."""
    try:
        from adbc_driver_sqlite import dbapi
    except ImportError:
        return None
    return dbapi


def _sqlite_rows(driver: Any, engine: Engine, run_ids: list[str], key: str | None) -> pa.Table:
    """Return rows without a Python object for any of them."""
    path = f"{Path(str(engine.url.database)).absolute().as_uri()}?mode=ro"
    query = f"{_SELECT} WHERE run_uuid IN (SELECT value FROM json_each(?))"  # noqa: S608
    parameters = [json.dumps(run_ids)]
    if key is not None:
        query += " AND key = ?"
        parameters.append(key)
    with closing(driver.connect(path)) as connection, closing(connection.cursor()) as cursor:
        cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(_FETCH_ROWS)})
        cursor.execute(query, parameters)
        return cursor.fetch_arrow_table()


def _postgres_rows(cursor: Any, run_ids: list[str], key: str | None) -> pa.Table:
    """Return rows as psycopg2 copies them: text with doubles that come back bit by bit."""
    wanted = cursor.mogrify(f"{_SELECT} WHERE run_uuid = ANY(%s)", (run_ids,))
    if key is not None:
        wanted += cursor.mogrify(" AND key = %s", (key,))
    text = io.BytesIO()
    cursor.copy_expert(b"COPY (" + wanted + b") TO STDOUT (FORMAT csv, ENCODING 'UTF8')", text)
    text.seek(0)
    return csv.read_csv(
        text,
        read_options=csv.ReadOptions(column_names=_NAMES),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types={**{field.name: field.type for field in _ROWS}, "is_nan": pa.bool_()},
            true_values=["t"],
            false_values=["f"],
        ),
    )
