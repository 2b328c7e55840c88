"""Rows into the tables of a database that has MLflow's schema, many with each statement.

The columns are those that the database really has. Nothing here makes or changes a table.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import csv

from mlflow_exim_plugin.errors import ServerError, ServerLostError
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.open.unmapped import columns_of, unmapped
from mlflow_exim_plugin.host.sql.column_types import ColumnTypes, is_text
from mlflow_exim_plugin.host.sql.histories import metric_rows
from mlflow_exim_plugin.host.sql.text_limits import (
    BYTES_OF_TEXT,
    MAY_BE_CUT,
    TextLimit,
    folded,
)
from mlflow_exim_plugin.host.tables import POSTGRES_DRIVERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    _Take = Callable[[tuple[Any, ...]], tuple[Any, ...]]

    from sqlalchemy import ColumnClause, Connection, Dialect, Engine, Select

__all__ = ["Rows", "TableWriter", "insert_statement"]

Rows = list[tuple[str, dict[str, Any]]]
"""Rows, each with the name of its table."""

_ROWS_HELD = 20_000
_BYTES_HELD = 32 << 20
_SMALLEST_BIG_ID = 2**31
_NUMBERING = {
    "postgresql": (
        "",
        """SELECT setval(pg_get_serial_sequence('experiments', 'experiment_id'),
        (SELECT GREATEST(MAX(experiment_id), 1) FROM experiments))""",
    ),
    "mysql": ("SET SESSION sql_mode=CONCAT(@@SESSION.sql_mode, ',NO_AUTO_VALUE_ON_ZERO')", ""),
    "mssql": ("SET IDENTITY_INSERT experiments ON", "SET IDENTITY_INSERT experiments OFF"),
}
"""What is said before and after an experiment is written with its number."""
_NOTHING = (None, "", 0, "default")
"""What a column that is not there would hold anyway."""
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_LONG = {
    "spans": ("content",),
    "params": ("value",),
    "evaluation_dataset_records": ("inputs", "outputs", "expectations"),
    "model_version_tags": ("value",),
    "scorer_versions": ("serialized_scorer",),
}
"""Columns whose size counts for what waits in memory."""
_COLLATION = {
    "mysql": "SELECT collation_name FROM information_schema.columns "
    "WHERE table_schema = DATABASE() AND table_name = 'params' AND column_name = 'key'",
    "mssql": "SELECT collation_name FROM information_schema.columns "
    "WHERE table_name = 'params' AND column_name = 'key'",
}
"""How to ask a database what it tells apart, where that may be less than all."""
_KEYS = ("key", "tag_key", "param_key")
_NAMES = {("runs", "name"), ("logged_models", "name")}
"""Names by which nothing is known."""


@dataclass
class _RowForm:
    """Rows of a table that have the same columns.

    Attributes:
        waiting: Where their values wait to be written.
        take: Takes those values that have a column; None where all have one.
        long: Places of values whose size counts for what waits in memory.
        unknown: Places of values that have no column.
    """

    waiting: list[tuple[Any, ...]]
    take: _Take | None
    long: list[int]
    unknown: list[int]


class TableWriter:
    """Writes to a database inside of one transaction after the other.

    Args:
        engine: The store's own, with MLflow's schema.
        only_looks: Whether nothing is going to be written.

    Attributes:
        is_broken: Whether a statement failed, so that only ``rollback`` is left to do.
        types: What the columns take.
        left_out: How many values had no column, by table and column.

    Source: ``SqlAlchemyStore.engine``.
    """

    def __init__(self, engine: Engine, *, only_looks: bool = False) -> None:
        from sqlalchemy import MetaData

        self._engine = engine
        self._metadata = MetaData()
        with translated("reading the target's schema"):
            self._metadata.reflect(engine)
        self.types = ColumnTypes(self._metadata, self.backend)
        self._connection: Connection | None = None
        self._pending: dict[tuple[str, tuple[str, ...]], list[tuple[Any, ...]]] = {}
        self._waiting_rows = self._waiting_bytes = 0
        self.left_out: Counter[tuple[str, str]] = Counter()
        self._forms: dict[tuple[str, ...], _RowForm] = {}
        self._was_empty: dict[str, bool] = {}
        self._only_looks = only_looks
        self.is_broken = False

    @property
    def backend(self) -> str:
        """SQLAlchemy's name of the kind of database."""
        return str(self._engine.dialect.name)

    def has(self, table: str, column: str | None = None) -> bool:
        """Whether the database has a table, or a column of it."""
        there = self._metadata.tables.get(table)
        return there is not None and (column is None or column in there.columns)

    def unmapped(self) -> list[str]:
        """Return the tables and columns that no kind is made of."""
        return unmapped(columns_of(self._metadata))

    @property
    def largest_experiment_id(self) -> int:
        """The largest number that an experiment can have: 32 bits in all but SQLite."""
        return 2**63 - 1 if self.backend == "sqlite" else _SMALLEST_BIG_ID - 1

    def begin(self) -> None:
        """Begin a transaction if none is open.

        Raises:
            ServerError: Another process is writing to the file.
        """
        if self._connection is not None:
            return
        with self._doing("opening the target database"):
            connection = self._engine.connect()
        connection.begin()  # else SQLAlchemy's commit knows nothing of what a cursor did
        try:
            # Who only reads goes on, another one who writes has to wait.
            if self.backend == "sqlite" and not self._only_looks:
                with self._doing("the target is in use: stop the server that writes to it"):
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
        except (ServerError, ServerLostError):
            connection.close()
            raise
        self._connection = connection

    def commit(self) -> None:
        """Write what waits and make all of it visible at once."""
        if self._connection is None:
            return
        self.flush()
        with self._doing("committing"):
            self._connection.commit()
        self._close()

    def rollback(self) -> None:
        """Take back all that was written since the last commit."""
        self._forget()
        self._waiting_rows = self._waiting_bytes = 0
        self.is_broken = False
        if self._connection is not None:
            with contextlib.suppress(ServerError), translated("rolling back"):
                self._connection.rollback()
            self._close()

    @contextlib.contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        try:
            with translated(what):
                yield
        except (ServerError, ServerLostError):
            self.is_broken = True
            raise

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def was_there(self, table: str, **key: Any) -> bool:
        """Whether there is a row with these values, not counting rows that wait to be written.

        Of a table that was empty at first nobody asks again.
        """
        if table not in self._was_empty:
            self._was_empty[table] = not self._select(table, {}, limit=1)
        return not self._was_empty[table] and bool(self._select(table, key, limit=1))

    def one(self, table: str, **key: Any) -> dict[str, Any] | None:
        """Return one row with these values."""
        return next(iter(self.select(table, **key)), None)

    def select(self, table: str, **key: Any) -> list[dict[str, Any]]:
        """Return the rows with these values; those that wait to be written are among them.

        Args:
            table: Their table.
            key: A value by column, or a tuple of those of which it has one.
        """
        self.flush()
        return self._select(table, key)

    def _select(
        self, table: str, key: dict[str, Any], *, limit: int | None = None
    ) -> list[dict[str, Any]]:
        from sqlalchemy import column, select

        there = self._metadata.tables[table]
        # Without their types: SQLAlchemy would round the doubles of MySQL to decimals.
        columns: list[ColumnClause[Any]] = [column(c.name) for c in there.columns]
        query: Select[Any] = select(*columns).select_from(there)
        for name, value in key.items():
            there_of = there.columns[name]
            is_one = there_of.in_(value) if isinstance(value, tuple) else there_of == value
            query = query.where(is_one)
        self.begin()
        assert self._connection is not None  # noqa: S101 - begin() opened it
        with self._doing(f"reading {table}"):
            found = self._connection.execute(query.limit(limit))
            return [dict(row) for row in found.mappings()]

    def put_for_all(self, table: str, row: dict[str, Any], **key: Any) -> dict[str, Any]:
        """Write a row at once, in a transaction of its own, unless there is one with its key.

        Two writers that put it into theirs would wait for each other, and one would fail.

        Returns:
            What is there.
        """
        from sqlalchemy import and_, insert, select
        from sqlalchemy.exc import IntegrityError

        there = self._metadata.tables[table]
        columns = {name: value for name, value in row.items() if name in there.columns}
        wanted = and_(*(there.columns[name] == value for name, value in key.items()))
        with self._doing(f"writing {table}"):
            with contextlib.suppress(IntegrityError), self._engine.begin() as connection:
                connection.execute(insert(there).values(columns))
            with self._engine.connect() as connection:
                return dict(connection.execute(select(there).where(wanted)).mappings().one())

    def count(self, table: str, **key: Any) -> int:
        """Return how many rows have these values."""
        from sqlalchemy import func, select

        there = self._metadata.tables[table]
        query = select(func.count()).select_from(there)
        for name, value in key.items():
            query = query.where(there.columns[name] == value)
        self.flush()
        self.begin()
        assert self._connection is not None  # noqa: S101 - begin() opened it
        with self._doing(f"reading {table}"):
            return int(self._connection.execute(query).scalar_one())

    def metric_rows(self, run_id: str, key: str | None = None) -> pa.Table:
        """Return the metric rows of a run, or those of one key, in any order.

        Through this very connection: of a SQLite file no other may read while it writes.
        """
        self.flush()
        self.begin()
        assert self._connection is not None  # noqa: S101 - begin() opened it
        with self._doing("reading metrics"):
            return metric_rows(self._connection, [run_id], key)

    def told_apart(self, key: Any) -> Any:
        """Return a key as the database tells it from others."""
        return folded(key) if self._folds and isinstance(key, str) else key

    def problem_of(self, rows: Rows) -> str:
        """Return what of an object's rows the database cannot hold, empty where it can hold all.

        SQLite holds text of any length and tells all of it apart, the others do not.
        """
        if self.backend == "sqlite":
            return ""
        keys: dict[tuple[str, str], str] = {}
        for table, row in rows:
            for name, limit in self._limits.get(table, {}).items():
                if isinstance(value := row.get(name), str) and (problem := limit.problem_of(value)):
                    return f"{table}.{name} {problem}: {_shown(row, name)}"
            key = next((row[name] for name in _KEYS if name in row), None)
            if key is not None and self._folds:
                other = keys.setdefault((table, folded(key)), key)
                if other != key:
                    return f"to it {other!r} and {key!r} are the same key of {table}"
        return ""

    def fitted(self, rows: Rows) -> tuple[Rows, list[str]]:
        """Return an object's rows as the database can hold them, and what was done for that.

        Long texts are cut; a row whose key is too long, or the same as another's to the database,
        is left out. What is an object's own otherwise stays as it is, for ``problem_of`` to name.
        """
        if self.backend == "sqlite":
            return rows, []
        kept: Rows = []
        notes: list[str] = []
        keys: set[tuple[str, str]] = set()
        for number, (table, row) in enumerate(rows):
            fitting, is_left = row, False
            for name, limit in self._limits.get(table, {}).items():
                value = row.get(name)
                if not isinstance(value, str) or not (problem := limit.problem_of(value)):
                    continue
                if limit.problem_of(limit.cut(value)):
                    continue  # no matter of its length
                what = f"{table}.{name} {problem}: {_shown(row, name)}"
                if name in MAY_BE_CUT or (table, name) in _NAMES:
                    fitting = fitting | {name: limit.cut(value)}
                    notes.append(f"cut, {what}")
                elif number:
                    is_left = True
                    notes.append(f"left out, {what}")
            key = next((row[name] for name in _KEYS if name in row), None)
            if key is not None and self._folds and not is_left:
                told = (table, folded(key))
                if is_left := told in keys:
                    notes.append(f"left out, another key of {table} is the same to it: {key!r}")
                keys.add(told)
            if not is_left:
                kept.append((table, fitting))
        return kept, notes

    @cached_property
    def _folds(self) -> bool:
        """Whether keys that differ in capitals or accents alone are one key."""
        query = _COLLATION.get(self.backend)
        if query is None:
            return False
        with self._doing("reading the target's schema"), self._cursor() as cursor:
            cursor.execute(query)
            (collation,) = cursor.fetchone()
        return not re.search(r"_(bin|bin2|cs|cs_as)(_|$)", str(collation).lower())

    @cached_property
    def _limits(self) -> dict[str, dict[str, TextLimit]]:
        """What each column of text can hold."""
        return {
            name: {
                column.name: TextLimit(
                    getattr(column.type, "length", None) or 0,
                    BYTES_OF_TEXT.get(type(column.type).__name__, 0)
                    if self.backend == "mysql"
                    else 0,
                    takes_zero=self.backend != "postgresql",
                )
                for column in table.columns
                if is_text(column)
            }
            for name, table in self._metadata.tables.items()
        }

    def add(self, rows: Iterable[tuple[str, dict[str, Any]]]) -> None:
        """Write rows, at the latest with the transaction's end; unknown columns are left out."""
        self.begin()
        forms = self._forms
        for table, row in rows:
            names = (table, *row)
            form = forms.get(names)
            if form is None:
                form = forms[names] = self._form(table, tuple(row))
            values = tuple(row.values())
            for place in form.unknown:
                if values[place] not in _NOTHING:
                    self.left_out[table, names[place + 1]] += 1
            for place in form.long:
                self._waiting_bytes += len(values[place] or "")
            form.waiting.append(values if form.take is None else form.take(values))
            self._waiting_rows += 1
        if self._waiting_rows >= _ROWS_HELD or self._waiting_bytes >= _BYTES_HELD:
            self.flush()

    def _form(self, table: str, names: tuple[str, ...]) -> _RowForm:
        there = self._metadata.tables[table].columns
        known = [place for place, name in enumerate(names) if name in there]
        take: _Take | None = None
        if len(known) == 1:
            take = lambda row: (row[known[0]],)  # noqa: E731 - itemgetter gives no tuple for one
        elif len(known) < len(names):
            take = itemgetter(*known)
        into = (table, tuple(names[place] for place in known))
        return _RowForm(
            waiting=self._pending.setdefault(into, []),
            take=take,
            long=[place for place, name in enumerate(names) if name in _LONG.get(table, ())],
            unknown=[place for place, name in enumerate(names) if name not in there],
        )

    def flush(self) -> None:
        """Write all rows that wait, those first that others refer to."""
        if not self._waiting_rows:
            return
        self._waiting_rows = self._waiting_bytes = 0
        in_order = sorted(self._pending.items(), key=lambda entry: self._order[entry[0][0]])
        waiting = [(table, columns, rows.copy()) for (table, columns), rows in in_order if rows]
        self._forget()
        for table, columns, rows in waiting:
            self._insert(table, columns, rows)

    def _forget(self) -> None:
        for rows in self._pending.values():
            rows.clear()

    @cached_property
    def _order(self) -> dict[str, int]:
        return {table.name: place for place, table in enumerate(self._metadata.sorted_tables)}

    def _insert(self, table: str, columns: Sequence[str], rows: list[tuple[Any, ...]]) -> None:
        if self._copies:
            text = "".join(
                "\t".join(["\\N" if v is None else _as_copied(v) for v in row]) + "\n"
                for row in rows
            )
            self._copy_in(table, columns, io.BytesIO(text.encode()), "FORMAT text")
            return
        self._execute(table, columns, rows)

    def _execute(self, table: str, columns: Sequence[str], rows: list[tuple[Any, ...]]) -> None:
        statement = insert_statement(self._engine.dialect, table, columns)
        with self._doing(f"writing {table}"), self._cursor() as cursor:
            cursor.executemany(statement, rows)

    @contextlib.contextmanager
    def _cursor(self) -> Iterator[Any]:
        self.begin()
        assert self._connection is not None  # noqa: S101 - begin() opened it
        cursor = self._connection.connection.cursor()
        try:
            yield cursor
        finally:
            cursor.close()

    @cached_property
    def _copies(self) -> bool:
        """Whether rows go in by PostgreSQL's ``COPY``."""
        return self._engine.dialect.driver in POSTGRES_DRIVERS

    def _copy_in(self, table: str, columns: Sequence[str], data: io.BytesIO, form: str) -> None:
        quote = self._engine.dialect.identifier_preparer.quote
        into = f"{quote(table)} ({', '.join(map(quote, columns))})"
        statement = f"COPY {into} FROM STDIN ({form}, ENCODING 'UTF8')"
        with self._doing(f"writing {table}"), self._cursor() as cursor:
            if hasattr(cursor, "copy_expert"):
                cursor.copy_expert(statement, data)
                return
            with cursor.copy(statement) as copying:
                while chunk := data.read(1 << 20):
                    copying.write(chunk)

    def add_table(self, table: str, rows: pa.Table) -> None:
        """Write an Arrow table without nulls, whose columns are those of a table, at once."""
        self.flush()
        if self._copies:
            text = io.BytesIO()
            options = csv.WriteOptions(include_header=False, quoting_style="needed")
            csv.write_csv(rows, text, options)
            text.seek(0)
            self._copy_in(table, rows.column_names, text, "FORMAT csv")
            return
        for some in rows.to_batches(max_chunksize=_ROWS_HELD):
            columns = [column.to_pylist() for column in some.columns]
            self._execute(table, rows.column_names, list(zip(*columns, strict=True)))

    def add_experiment(self, row: dict[str, Any]) -> None:
        """Write an experiment with its number, and let the next ones be counted on from there.

        Source: ``SqlAlchemyStore`` does so for number 0.
        """
        before, after = _NUMBERING.get(self.backend, ("", ""))
        self.flush()
        self._say(before)
        self.add([("experiments", row)])
        self.flush()
        self._say(after)

    def _say(self, statement: str) -> None:
        if statement:
            with self._doing("numbering experiments"), self._cursor() as cursor:
                cursor.execute(statement)

    def update(self, table: str, values: dict[str, Any], **key: Any) -> None:
        """Change the rows that have the values of a key, or one of those in a tuple."""
        from sqlalchemy import update

        there = self._metadata.tables[table]
        statement = update(there).values({k: v for k, v in values.items() if k in there.columns})
        for name, value in key.items():
            there_of = there.columns[name]
            is_one = there_of.in_(value) if isinstance(value, tuple) else there_of == value
            statement = statement.where(is_one)
        self.flush()
        self.begin()
        assert self._connection is not None  # noqa: S101 - begin() opened it
        with self._doing(f"writing {table}"):
            self._connection.execute(statement)


def insert_statement(dialect: Dialect, table: str, columns: Sequence[str]) -> str:
    """Return the statement that writes rows given in the order of the columns."""
    quote = dialect.identifier_preparer.quote
    mark = "?" if dialect.paramstyle == "qmark" else "%s"
    into = f"{quote(table)} ({', '.join(map(quote, columns))})"
    return f"INSERT INTO {into} VALUES ({', '.join([mark] * len(columns))})"  # noqa: S608 - names of columns, quoted


def _as_copied(value: Any) -> str:
    if isinstance(value, str):
        return value.translate(_ESCAPES)
    if isinstance(value, bool):
        return "t" if value else "f"
    return str(value)


def _shown(row: dict[str, Any], column: str) -> str:
    key = row.get("key") or row.get("param_key") or row.get("tag_key")
    shown = str(key if key is not None and column == "value" else row[column])
    return repr(shown[:60])
