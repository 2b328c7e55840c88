"""What has the name of an object, told by the rows of both: what joins it, and what it keeps."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.sinks.database.states import comparable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mlflow_exim_plugin.host.sql.writer import Rows, TableWriter
    from mlflow_exim_plugin.kinds import Description
    from mlflow_exim_plugin.kinds.description import TableRows

__all__ = ["Found", "compare_parts"]

_OF_EACH = ("_by", "_at", "_time", "_time_ms")
_OWN = {"id", "mapping_id", "online_scoring_config_id", "experiment_id", "workspace", "name"}
"""Columns, by their ends and by their names, that differ between objects of the same content."""


@dataclass
class Found:
    """What has the name of an object.

    Attributes:
        row: Its own row.
        keeps: In what else than the parts that join it differs.
        missing: Rows of such parts that it lacks.
        kept: Those that it has: which, and the fields that differ.
        has_more: Whether it has some that the object has not.
        numbers: What numbers the versions of a scorer have in it.
    """

    row: dict[str, Any]
    keeps: list[str]
    numbers: list[int]
    missing: Rows = field(default_factory=list)
    kept: list[tuple[str, list[str]]] = field(default_factory=list)
    has_more: bool = False

    @property
    def is_copy(self) -> bool:
        """Whether all it has is the object's, as that of a copy made by MLflow's API is."""
        return not (self.keeps or self.has_more or any(fields for _, fields in self.kept))


def compare_parts(
    row: dict[str, Any],
    rows: Rows,
    described: Description,
    tables: TableWriter,
    numbers: list[int],
) -> Found:
    """Compare what has the name of an object with it.

    Args:
        row: Its own row.
        rows: Rows of the object as if it had the same id, its own first.
        described: The kind of both.
        tables: The database.
        numbers: What numbers the versions of a scorer have there.
    """
    own = rows[0][1]
    fields = [_field(column, described) for column in _differing(own, row)]
    found = Found(row, [*dict.fromkeys(fields)], numbers)

    def compare(part: TableRows, path: str, owner: Mapping[str, Any], *, joins: bool) -> None:
        key = part.key_below(owner)
        key = {column: value for column, value in key.items() if tables.has(part.table, column)}
        there = tables.select(part.table, **key) if tables.has(part.table) else []
        coming = [r for table, r in rows if table == part.table and key.items() <= r.items()]
        if not joins:
            columns = [c for c in _compared((coming or [{}])[0]) if tables.has(part.table, c)]
            ours, theirs = (Counter(_values(r, columns) for r in some) for some in (coming, there))
            if ours != theirs:
                found.keeps.append(part.at)
            return
        identity = described.lists.get(path, ())
        left: defaultdict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
        for its in there:
            left[_values(its, identity)].append(its)
        for its in coming:
            alike = left[_values(its, identity)]
            # What has an id of its own may stand beside another of the same content.
            same = (r for r in alike if "id" not in its or not _differing(its, r))
            if (match := next(same, None)) is None:
                found.missing.append((part.table, its))
            else:
                alike.remove(match)
                which = " ".join(repr(its[column]) for column in identity)
                called = f"{_SINGULAR.get(part.at, part.at[:-1])} {which}" if which else "it"
                found.kept.append((called, _differing(its, match)))
            for below in part.parts:
                compare(below, f"{path}[].{below.at}", its, joins=True)
        found.has_more |= any(left.values())

    for part in described.rows.parts if described.rows else ():
        compare(part, part.at, own, joins=part.at in described.joins)
    return found


_SINGULAR = {"aliases": "alias"}


def _field(column: str, described: Description) -> str:
    """Return the field that a column is of."""
    return next((f for f in described.same if column.startswith(f"{f}_")), column).removesuffix(
        "_json"
    )


def _differing(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    return [
        column
        for column in _compared(wanted)
        if column in there and comparable(wanted[column]) != comparable(there[column])
    ]


def _compared(row: Mapping[str, Any]) -> list[str]:
    return [column for column in row if column not in _OWN and not column.endswith(_OF_EACH)]


def _values(row: Mapping[str, Any], columns: Iterable[str]) -> tuple[Any, ...]:
    return tuple(comparable(row[column]) for column in columns)
