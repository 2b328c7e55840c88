"""Rows of MLflow's tables out of a database, those of many objects with each query, as Arrow.

MLflow's own calls build an object for every row. Where a driver can, not even the rows are
Python's: SQLite's by ADBC where there are many, PostgreSQL's by ``COPY``. Both leave the
interpreter to others meanwhile, while Python's own driver for SQLite asks for it back after each
row. ADBC for PostgreSQL takes a quarter less time than ``COPY`` for the rows alone and as much of
this process; it opens a connection of its own, though, which does not see the moment that is being
read.
"""

from __future__ import annotations

import io
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa

from mlflow_exim_plugin.host.errors import translated

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import TypeAlias

    from sqlalchemy import ColumnClause, Connection, Engine, Select
    from sqlalchemy.types import TypeEngine

    Found: TypeAlias = dict[str, Any]

    Value: TypeAlias = str | int
    Where: TypeAlias = dict[str, Value | Sequence[str]]
    """Value of a column, or some of which it has one."""

__all__ = ["POSTGRES_DRIVERS", "TableReader", "rows_seen_by"]

POSTGRES_DRIVERS = ("psycopg2", "psycopg")
"""Those that give and take rows by ``COPY``, each in its own way."""
_FETCH_ROWS = 25_000
_ARROW_FROM_BYTES = 16 << 20
"""Size of a SQLite file from which on its driver for Arrow is worth the time to load it."""


class TableReader:
    """Reads tables of a database of any of MLflow's schemas, for several threads in turn.

    A table that is not there has no rows. A column that is not there holds nothing, and zero where
    it may not hold nothing.

    Args:
        engine: The database's.
        by_arrow: Whether many rows of SQLite may come by a connection of their own.
    """

    def __init__(self, engine: Engine, *, by_arrow: bool = True) -> None:
        self._engine = engine
        self._by_arrow = by_arrow
        self._arrow: Any = None
        self._there: dict[str, dict[str, pa.DataType]] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def close(self) -> None:
        """Close what was opened beside the engine; what is read later opens it for that alone."""
        with self._lock:
            self._is_closed = True
            self._let_go()

    def _let_go(self) -> None:
        arrow, self._arrow = self._arrow, None
        if arrow is not None:
            arrow.close()

    def rows(
        self,
        table: str,
        columns: pa.Schema,
        doing: str,
        *,
        limit: int | None = None,
        **where: Value | Sequence[str],
    ) -> pa.Table:
        """Return rows in any order.

        Args:
            table: Name of the table.
            columns: Names and types of the columns.
            doing: What is being done, for messages.
            limit: How many rows at most.
            where: Value of a column, or some of which it has one.

        Raises:
            ServerError: The database refused, or a value is not of its column's type.
            ServerLostError: The database is gone.
        """
        with translated(doing):
            there = self._columns_of(table)
            if not there.keys() >= where.keys():
                return columns.empty_table()
            known = pa.schema([field for field in columns if field.name in there])
            if not known.names:
                return columns.empty_table()
            found = self._rows(table, known, where, limit)
            return found if known.names == columns.names else _completed(found, columns)

    def found(
        self, table: str, names: Iterable[str], doing: str, **where: Value | Sequence[str]
    ) -> list[Found]:
        """Return rows in any order, with those of some columns that are there, of their own types.

        JSON is text.

        Args:
            table: Name of the table.
            names: Names of the columns.
            doing: What is being done, for messages.
            where: Value of a column, or some of which it has one.

        Raises:
            ServerError: The database refused, or a value is not of its column's type.
        """
        with translated(doing):
            there = self._columns_of(table)
        columns = pa.schema({name: there[name] for name in names if name in there})
        found: list[Found] = self.rows(table, columns, doing, limit=None, **where).to_pylist()
        return found

    def has_rows(self, table: str) -> bool:
        """Whether a table is there and has any row.

        Raises:
            ServerError: The database refused.
        """
        from sqlalchemy import literal, select
        from sqlalchemy import table as table_of

        query = select(literal(1)).select_from(table_of(table)).limit(1)
        with translated(f"looking into table {table}"):
            if not self._columns_of(table):
                return False
            with self._engine.connect() as connection:
                return connection.execute(query).first() is not None

    def values(self, table: str, column: str, **where: Value) -> list[Any]:
        """Return what a column holds, each value once, in order.

        Raises:
            ServerError: The database refused.
        """
        from sqlalchemy import column as column_of
        from sqlalchemy import select
        from sqlalchemy import table as table_of

        wanted: ColumnClause[Any] = column_of(column)
        query = select(wanted).select_from(table_of(table)).distinct().order_by(wanted)
        for name, value in where.items():
            query = query.where(column_of(name) == value)
        with translated(f"reading the table {table}"):
            if not self._columns_of(table).keys() >= {column, *where}:
                return []
            with self._engine.connect() as connection:
                return list(connection.execute(query).scalars())

    def sizes(
        self, table: str, owner: str, text: str, time: str, owners: Sequence[str]
    ) -> dict[str, tuple[int, int, int]]:
        """Return how many rows owners have, the length of their texts, and their latest time.

        Args:
            table: Name of the table.
            owner: Its column that says whose a row is.
            text: Its column of texts.
            time: Its column of times.
            owners: Those who are asked about; who has no rows is left out.

        Raises:
            ServerError: The database refused.
        """
        from sqlalchemy import column, func, select
        from sqlalchemy import table as table_of

        whose: ColumnClause[str] = column(owner)
        bytes_of = func.octet_length if self._engine.dialect.name == "postgresql" else func.length
        length = func.coalesce(func.sum(bytes_of(column(text))), 0)
        query = select(whose, func.count(), length, func.coalesce(func.max(column(time)), 0))
        query = query.select_from(table_of(table)).where(whose.in_(owners)).group_by(whose)
        with translated(f"counting what is in {table}"):
            if not self._columns_of(table).keys() >= {owner, text, time}:
                return {}
            with self._engine.connect() as connection:
                found = connection.execute(query).all()
        return {key: (int(rows), int(size), int(last)) for key, rows, size, last in found}

    def has(self, table: str, column: str) -> bool:
        """Whether a table is there and has a column.

        Raises:
            ServerError: The database refused.
        """
        with translated(f"looking at table {table}"):
            return column in self._columns_of(table)

    def _columns_of(self, table: str) -> dict[str, pa.DataType]:
        """Return the columns of a table with their types, none where it is not there."""
        if table not in self._there:
            from sqlalchemy import inspect
            from sqlalchemy.exc import NoSuchTableError

            try:
                columns = inspect(self._engine).get_columns(table)
            except NoSuchTableError:
                columns = []
            self._there[table] = {column["name"]: _type_of(column["type"]) for column in columns}
        return self._there[table]

    def _rows(self, table: str, columns: pa.Schema, where: Where, limit: int | None) -> pa.Table:
        if self._engine.dialect.name == "sqlite" and (driver := self._arrow_driver()):
            with self._lock:
                try:
                    return self._fetched_by(driver, table, columns, where, limit)
                finally:
                    if self._is_closed:
                        self._let_go()
        # Whoever else uses this very connection waits, see ``Lent``.
        turn = getattr(self._engine.dialect, "exim_turn", self._lock)
        with self._engine.connect() as connection, turn:
            return rows_seen_by(connection, table, columns, where, limit)

    def _arrow_driver(self) -> Any:
        """Return the driver that gives SQLite's rows as Arrow, None where none is wanted or there.

        A few rows are read before it is loaded.
        """
        path = Path(str(self._engine.url.database))
        if not self._by_arrow or not path.exists() or path.stat().st_size < _ARROW_FROM_BYTES:
            return None
        try:
            from adbc_driver_sqlite import dbapi
        except ImportError:
            return None
        return dbapi

    def _fetched_by(
        self, driver: Any, table: str, columns: pa.Schema, where: Where, limit: int | None
    ) -> pa.Table:
        if self._arrow is None:
            path = Path(str(self._engine.url.database)).absolute().as_uri()
            self._arrow = driver.connect(f"{path}?mode=ro")
        parameters = [v if isinstance(v, str | int) else _json(v) for v in where.values()]
        tests = _tests(where, "= ?", "IN (SELECT value FROM json_each(?))")
        with self._arrow.cursor() as cursor:
            cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(_FETCH_ROWS)})
            cursor.execute(_select(table, columns, tests, limit), parameters)
            found: pa.Table = cursor.fetch_arrow_table()
        found = found.cast(columns)
        for name in columns.names:
            if columns.field(name).type == pa.string():
                found.column(name).validate(full=True)  # SQLite keeps any bytes as text
        return found


def _type_of(column: TypeEngine[Any]) -> pa.DataType:
    from sqlalchemy import Boolean, Float, Integer, Numeric

    if isinstance(column, Boolean):
        return pa.bool_()
    if isinstance(column, Integer):
        return pa.int64()
    return pa.float64() if isinstance(column, Float | Numeric) else pa.string()


def rows_seen_by(
    connection: Connection,
    table: str,
    columns: pa.Schema,
    where: Where,
    limit: int | None = None,
) -> pa.Table:
    """Return rows in any order as an open connection sees them, see ``TableReader.rows``."""
    if connection.dialect.driver in POSTGRES_DRIVERS:
        return _copied(connection, table, columns, where, limit)
    query = _query(table, columns, where).limit(limit)
    fetched = list(_fetched(connection.execute(query).cursor, columns))
    return pa.concat_tables(fetched) if fetched else columns.empty_table()


def _completed(found: pa.Table, columns: pa.Schema) -> pa.Table:
    """Return rows with the columns that their table does not have."""
    arrays = [
        found.column(field.name)
        if field.name in found.column_names
        else pa.nulls(found.num_rows, field.type)
        if field.nullable
        else pa.repeat(pa.scalar(0).cast(field.type), found.num_rows)
        for field in columns
    ]
    return pa.Table.from_arrays(arrays, schema=columns)


def _json(values: Sequence[str]) -> str:
    return orjson.dumps(list(values)).decode()


def _select(table: str, columns: pa.Schema, tests: list[str], limit: int | None) -> str:
    names = ", ".join(f'"{name}"' for name in columns.names)
    those = f" WHERE {' AND '.join(tests)}" if tests else ""
    at_most = f" LIMIT {limit}" if limit is not None else ""
    return f'SELECT {names} FROM "{table}"{those}{at_most}'  # noqa: S608 - MLflow's


def _tests(where: Where, is_equal: str, is_one_of: str) -> list[str]:
    return [
        f'"{name}" {is_equal if isinstance(value, str | int) else is_one_of}'
        for name, value in where.items()
    ]


def _query(table: str, columns: pa.Schema, where: Where) -> Select[Any]:
    """Return a query without the columns' types: SQLAlchemy would make objects of their values."""
    from sqlalchemy import column, select
    from sqlalchemy import table as table_of

    wanted: list[ColumnClause[Any]] = [column(name) for name in columns.names]
    query: Select[Any] = select(*wanted).select_from(table_of(table))
    for name, value in where.items():
        those: ColumnClause[Any] = column(name)
        test = those == value if isinstance(value, str | int) else those.in_(value)
        query = query.where(test)
    return query


def _fetched(cursor: Any, columns: pa.Schema) -> Iterator[pa.Table]:
    """Yield rows as the driver's own tuples, which cost less than SQLAlchemy's."""
    while rows := cursor.fetchmany(_FETCH_ROWS):
        arrays = [
            pa.array(column).cast(field.type)
            for column, field in zip(zip(*rows, strict=True), columns, strict=True)
        ]
        yield pa.Table.from_arrays(arrays, schema=columns)


def _copied(
    connection: Connection, table: str, columns: pa.Schema, where: Where, limit: int | None
) -> pa.Table:
    """Return rows as PostgreSQL copies them: text with doubles that come back bit by bit."""
    from pyarrow import csv

    tests = _tests(where, "= %s", "= ANY(%s)")
    values = tuple(v if isinstance(v, str | int) else list(v) for v in where.values())
    statement = (
        f"COPY ({_select(table, columns, tests, limit)}) TO STDOUT (FORMAT csv, ENCODING 'UTF8')"
    )
    text = io.BytesIO()
    with closing(connection.connection.cursor()) as cursor:
        if hasattr(cursor, "copy_expert"):
            cursor.copy_expert(cursor.mogrify(statement, values), text)
        else:
            with cursor.copy(statement, values) as copying:
                text.writelines(copying)
    if not text.tell():
        return columns.empty_table()
    text.seek(0)
    return csv.read_csv(
        text,
        # In one block: a value may have new lines, and none may be longer than a block.
        read_options=csv.ReadOptions(column_names=columns.names, block_size=len(text.getbuffer())),
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types={field.name: field.type for field in columns},
            true_values=["t"],
            false_values=["f"],
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    ).cast(columns)
