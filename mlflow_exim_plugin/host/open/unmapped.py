"""What a database has besides tables and columns that are known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.kinds.tables import MAPPED, NOT_CARRIED

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sqlalchemy import Connection, MetaData

__all__ = ["columns_of", "columns_there", "held_unmapped", "unknown", "unmapped"]


def columns_of(schema: MetaData) -> dict[str, list[str]]:
    """Return the columns of a schema by table."""
    return {name: table.columns.keys() for name, table in schema.tables.items()}


def unknown(
    there: Mapping[str, Collection[str]], known: Mapping[str, Collection[str]]
) -> list[str]:
    """Return the tables, and as ``table.column`` the columns of known tables, that are not known.

    Args:
        there: Columns by table.
        known: Those that are known.
    """
    names = []
    for table, columns in sorted(there.items()):
        if table not in known:
            names.append(table)
        else:
            names += [f"{table}.{column}" for column in columns if column not in known[table]]
    return names


def unmapped(there: Mapping[str, Collection[str]]) -> list[str]:
    """Return the tables and columns that no kind is made of, out of columns by table."""
    carried = {table: columns for table, columns in there.items() if table not in NOT_CARRIED}
    return unknown(carried, MAPPED)


def columns_there(connection: Connection) -> dict[str, list[str]]:
    """Return the columns of a database by table."""
    from sqlalchemy import inspect

    found = inspect(connection).get_multi_columns()
    return {name: [c["name"] for c in columns] for (_, name), columns in found.items()}


def held_unmapped(connection: Connection, there: Mapping[str, Collection[str]]) -> list[str]:
    """Return those that hold something of a database's tables and columns that are not mapped."""
    from sqlalchemy import column, literal, select, table

    held = []
    for name in unmapped(there):
        of_table, _, of = name.partition(".")
        query = select(literal(1)).select_from(table(of_table)).limit(1)
        if of:
            query = query.where(column(of).is_not(None))
        if connection.execute(query).first() is not None:
            held.append(name)
    return held
