"""What a database holds besides the tables and columns that the kinds are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.kinds.tables import MAPPED, NOT_CARRIED

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["unmapped"]


def unmapped(connection: Connection, *, held: bool) -> list[str]:
    """Return the tables, and columns of mapped tables, that are not mapped.

    Args:
        connection: To the database.
        held: Whether only those are meant that hold something.
    """
    from sqlalchemy import column, inspect, literal, select, table

    found = []
    for (_, name), columns in sorted(inspect(connection).get_multi_columns().items()):
        if name not in MAPPED and name not in NOT_CARRIED:
            found.append((name, ""))
        known = MAPPED.get(name, frozenset(c["name"] for c in columns))
        found += [(name, c["name"]) for c in columns if c["name"] not in known]
    names = []
    for name, of in found:
        there = table(name, column(of)) if of else table(name)
        query = select(literal(1)).select_from(there).limit(1)
        if of:
            query = query.where(there.c[of].is_not(None))
        if not held or connection.execute(query).first() is not None:
            names.append(f"{name}.{of}" if of else name)
    return names
