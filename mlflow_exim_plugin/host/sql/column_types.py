"""What the columns of a database take: SQLite takes anything, and MLflow fails over it later."""

from __future__ import annotations

from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Column, MetaData

    from mlflow_exim_plugin.kinds.description import Row

__all__ = ["ColumnTypes", "is_text"]


class ColumnTypes:
    """Holds rows to the tables that they are for.

    Args:
        schema: The tables, as the database has them.
        backend: SQLAlchemy's name of the kind of database.
    """

    def __init__(self, schema: MetaData, backend: str) -> None:
        self._tables = schema.tables
        self._backend = backend
        self._takes: dict[tuple[str, ...], list[Callable[[Any], bool]]] = {}

    def misfit_of(self, rows: list[Row]) -> str:
        """Return what of an object's rows no table can take, empty for none.

        Values of other types than their columns, nothing where there must be something, and rows
        that the same key tells apart from nothing.
        """
        keys: set[tuple[Any, ...]] = set()
        for table, row in rows:
            names = (table, *row)
            if (takes := self._takes.get(names)) is None:
                takes = self._takes[names] = self._takers(table, tuple(row))
            if problem := self.lacking_in([(table, row)]):
                return problem
            for name, value, taken in zip(row, row.values(), takes, strict=True):
                if not taken(value) if value is not None else name in _never_empty(table):
                    return f"{table}.{name} cannot be {value!r:.60}"
            key = (table, *(row.get(name) for name in self._keys[table]))
            if len(key) > 1 and key in keys:
                return f"it has two rows of {table} with the key {key[1:]!r:.60}"
            keys.add(key)
        return ""

    def lacking_in(self, rows: list[Row]) -> str:
        """Return where an object's rows have nothing and there must be something, or nothing."""
        required = self._required
        for table, row in rows:
            # Whoever writes to a table that is not there says so.
            for name in required.get(table, ()):
                if row.get(name) is None:
                    return f"{table}.{name} cannot be nothing"
        return ""

    def too_large_in(self, rows: list[Row]) -> str:
        """Return which number of an object's rows is out of its column's range, empty for none."""
        if self._backend == "sqlite":
            return ""
        for table, row in rows:
            for name, limit in self._limits.get(table, {}).items():
                value = row.get(name)
                if isinstance(value, int) and not -limit <= value < limit:
                    return f"{table}.{name} holds whole numbers below {limit}, it is {value}"
        return ""

    @cached_property
    def _limits(self) -> dict[str, dict[str, int]]:
        """The columns of each table whose numbers have fewer bits than MLflow's documents."""
        found: dict[str, dict[str, int]] = {}
        for name, table in self._tables.items():
            bits = {column.name: _bits_of(column) for column in table.columns}
            found[name] = {key: 2 ** (its - 1) for key, its in bits.items() if its not in {0, 64}}
        return found

    @cached_property
    def _keys(self) -> dict[str, list[str]]:
        """The columns of each table that tell its rows apart."""
        return {
            name: [column.name for column in table.primary_key]
            for name, table in self._tables.items()
        }

    @cached_property
    def _required(self) -> dict[str, list[str]]:
        """The columns of each table that must have a value, and have none by themselves."""
        return {
            name: [
                column.name
                for column in table.columns
                if not column.nullable
                and column.server_default is None
                and column is not table.autoincrement_column
            ]
            for name, table in self._tables.items()
        }

    def _takers(self, table: str, names: tuple[str, ...]) -> list[Callable[[Any], bool]]:
        """Return what tells of each column whether a value is of its type: SQLite takes any."""
        from sqlalchemy import Float

        there = self._tables[table].columns
        takers: list[Callable[[Any], bool]] = []
        for name in names:
            kind = there[name].type if name in there else None
            if bits := _bits_of(there[name]) if kind is not None else 0:
                bits = 64 if self._backend == "sqlite" else bits
                takers.append(partial(_is_whole, 2 ** (bits - 1)))
            elif isinstance(kind, Float):
                takers.append(_is_number)
            elif kind is not None and is_text(there[name]):
                takers.append(_is_a_text)
            else:
                takers.append(_is_anything)
        return takers


def is_text(column: Column[Any]) -> bool:
    """Whether a column holds text."""
    from sqlalchemy import String

    return isinstance(column.type, String)


def _bits_of(column: Column[Any]) -> int:
    """Return how many bits a column of whole numbers has, 0 for others."""
    from sqlalchemy import BigInteger, Integer, SmallInteger

    if not isinstance(column.type, Integer):
        return 0
    if isinstance(column.type, BigInteger):
        return 64
    return 16 if isinstance(column.type, SmallInteger) else 32


@cache
def _never_empty(table: str) -> frozenset[str]:
    """Return the columns of a table that MLflow itself always fills, and cannot read without."""
    from mlflow.store.tracking.dbmodels import models

    there = models.Base.metadata.tables.get(table)
    columns = there.columns if there is not None else ()
    return frozenset(column.name for column in columns if column.default is not None)


def _is_whole(limit: int, value: Any) -> bool:
    return isinstance(value, int) and -limit <= value < limit


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _is_a_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_anything(_: Any) -> bool:
    return True
