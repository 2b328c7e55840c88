"""How what a database has of an object stands to what comes of it, told by the rows of both.

What is there stays, unless it is an earlier state of the same object: one that goes on, and of
which nothing contradicts what comes. Which of two states is the earlier one, only such rows tell
as are added and neither change nor go: a tag that is missing may have been taken away.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.traces.documents import ARTIFACT_LOCATION
from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.kinds.description import GrowingRows, Growth
from mlflow_exim_plugin.schema.lineage import is_source_tag
from mlflow_exim_plugin.schema.provenance import is_provenance

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow_exim_plugin.host.sql.writer import Rows, TableWriter
    from mlflow_exim_plugin.schema.objects import Kind

__all__ = ["RowComparison", "State", "comparable", "compare_rows"]

_END = "end_time_unix_nano"
_NEW_EACH_TIME = {"association_id", "input_uuid", "dataset_uuid", "online_scoring_config_id"}
_NOT_COMPARED = {
    table: columns.split() for of in KINDS.values() for table, columns in of.unlike.items()
}


class State(Enum):
    """What the target has of an object."""

    SAME = auto()
    EARLIER = auto()
    LATER = auto()
    OTHER = auto()


@dataclass
class RowComparison:
    """How what the target has of an object stands to what comes.

    Attributes:
        own_table: The table with the object's own row.
        own_key: Columns that say which row that is.
        there: That row at the target.
        differing: Columns of its own, and tables of its parts, that have something else there.
        update: Columns of its own that are others in what comes.
        missing: Rows that the target lacks.
        changed: Rows that the target has otherwise, as they come, and the key of each.
        kept: What stays otherwise at the target though the rest follows.
        grows: Whether the target may have an earlier or a later state of it at all.
        lacks: Whether something proves that what comes is ahead of the target.
        leads: Whether something proves that the target is ahead of what comes.
        contradicts: Whether one of the two cannot have become the other.
        was_open: Whether it goes on, to the target.
        comes_open: Whether it goes on, to the source.
        goes_on: Whether rows are added to it after its end too.
        takes_edits: Whether what is set at the source is taken for the later one.
    """

    own_table: str
    own_key: dict[str, Any]
    there: dict[str, Any]
    differing: list[str] = field(default_factory=list)
    update: dict[str, Any] = field(default_factory=dict)
    missing: Rows = field(default_factory=list)
    changed: list[tuple[str, dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    grows: bool = False
    lacks: bool = False
    leads: bool = False
    contradicts: bool = False
    was_open: bool = False
    comes_open: bool = False
    goes_on: bool = False
    takes_edits: bool = False

    @property
    def may_grow(self) -> bool:
        """Whether rows that are not among an object's own can still tell what its state is."""
        return self.grows and not self.contradicts and not (self.lacks and self.leads)

    @property
    def is_finished(self) -> bool:
        """Whether it goes on nowhere, and ended as it did: its files are what they were."""
        return not (self.was_open or self.comes_open or self.contradicts or self.update)

    @property
    def state(self) -> State:
        """What the target has of the object."""
        if not (self.differing or self.lacks or self.leads):
            return State.SAME
        if not self.may_grow:
            return State.OTHER
        if self.leads:
            return State.LATER if self.comes_open or self.goes_on else State.OTHER
        is_deleted_here = self.update.get("lifecycle_stage") == "active"
        if self.takes_edits and not is_deleted_here:
            has_more = self.update or self.changed or self.missing or self.lacks
            return State.EARLIER if has_more else State.OTHER
        if is_deleted_here or not (self.was_open or self.goes_on):
            return State.OTHER
        if self.lacks:
            return State.EARLIER
        # What is set proves nothing, but where it is only more, more of it does no harm.
        only_more = self.missing and not (self.changed or self.update)
        return State.EARLIER if only_more and self.was_open else State.OTHER

    def see(self, table: str, *, lacks: bool, leads: bool) -> None:
        """Take note of rows that were compared elsewhere.

        Args:
            table: Their table.
            lacks: Whether the target lacks some.
            leads: Whether it has others.
        """
        if lacks or leads:
            self.differing.append(table)
        self.lacks |= lacks
        self.leads |= leads

    def count(self, table: str) -> int:
        """Return how many rows of a table are to be written."""
        return sum(its == table for its, *_ in (*self.missing, *self.changed))


_OF_EDITS = Growth(lambda _: 0, end=0, fixed=frozenset(), parts={})
"""Of a kind that does not grow: all of it can be edited."""
_SET = GrowingRows(("key",), is_set=True)


def compare_rows(
    tables: TableWriter,
    kind: Kind,
    rows: Rows,
    key: dict[str, Any],
    *,
    takes_edits: bool = False,
) -> RowComparison:
    """Compare an object that is there with what comes of it.

    Args:
        tables: The database.
        kind: The object's kind.
        rows: Its rows, its own first.
        key: Columns that say in its tables which rows are its.
        takes_edits: Whether what was set at the source, also after its end, is taken for the later
            one.
    """
    growth = KINDS[kind].growth or (_OF_EDITS if takes_edits else None)
    wanted: dict[str, list[dict[str, Any]]] = {}
    for table, row in rows:
        wanted.setdefault(table, []).append(row)
    own_table, own = rows[0]
    own_key = {name: value for name, value in key.items() if name in own}
    (there,) = tables.select(own_table, **own_key)
    compared = RowComparison(own_table, own_key, there, takes_edits=takes_edits)
    for column in own:
        if _is_compared(tables, own_table, column) and comparable(own[column]) != comparable(
            there[column]
        ):
            _note_own(compared, growth, column, own[column])
    parts: dict[str, GrowingRows] = {}
    if growth is not None:
        _note_stages(compared, growth, own)
        if compared.grows:
            parts = {name: part for name, part in growth.parts.items() if tables.has(name)}
        if growth is _OF_EDITS:
            parts = {table: _SET for table, part in wanted.items() if "key" in part[0]}
    for table in dict.fromkeys([*wanted, *parts]):
        coming, part = wanted.get(table, []), parts.get(table)
        owners = _owners(tables, table, part, coming, key)
        if table == own_table or not owners:
            continue
        found = [row for owner in owners for row in tables.select(table, **owner)]
        columns = [c for c in (coming or found or [{}])[0] if _is_compared(tables, table, c)]
        if part is not None and growth is not None:
            its = _PartRows(table, part, coming, found, columns, owners[0])
            _compare_part(compared, growth, tables, its)
        elif _contents(coming, columns) != _contents(found, columns):
            compared.differing.append(table)
    return compared


def _owners(
    tables: TableWriter,
    table: str,
    part: GrowingRows | None,
    coming: list[dict[str, Any]],
    key: dict[str, Any],
) -> list[dict[str, Any]]:
    """Return what says which rows of a table are an object's, each way of it."""
    if part is not None and part.ends:
        (identity,) = key.values()
        return [{f"{end}_type": kind, f"{end}_id": identity} for end, kind in part.ends]
    names = coming[0] if coming else [name for name in key if tables.has(table, name)]
    named = {name: value for name, value in key.items() if name in names}
    return [named] if named else []


def _note_own(compared: RowComparison, growth: Growth | None, column: str, value: Any) -> None:
    """Take note of a column of an object's own that is another at the target."""
    compared.differing.append(column)
    if growth is None:
        return
    if column in growth.keeps:
        compared.kept.append(column)
    elif column in growth.fixed:
        compared.contradicts = True
    elif value is not None or compared.takes_edits:
        compared.update[column] = value


def _note_stages(compared: RowComparison, growth: Growth, own: dict[str, Any]) -> None:
    here, coming = growth.stage(compared.there), growth.stage(own)
    compared.was_open, compared.comes_open = here < growth.end, coming < growth.end
    compared.goes_on = growth.goes_on
    compared.grows = (
        compared.was_open or compared.comes_open or growth.goes_on or compared.takes_edits
    )
    compared.lacks, compared.leads = here < coming, here > coming


@dataclass(frozen=True)
class _PartRows:
    """Rows of one part.

    Attributes:
        coming: Those that come.
        found: Those that the target has.
        columns: What is compared of them.
        owner: Columns that say whose they are.
    """

    table: str
    part: GrowingRows
    coming: list[dict[str, Any]]
    found: list[dict[str, Any]]
    columns: list[str]
    owner: dict[str, Any]


def _compare_part(
    compared: RowComparison, growth: Growth, tables: TableWriter, rows: _PartRows
) -> None:
    """Compare the rows of one part, one by one."""
    table, part = rows.table, rows.part

    def identity(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(tables.told_apart(row[column]) for column in part.key)

    there = {identity(row): row for row in rows.found}
    has_place = there.pop((tables.told_apart(ARTIFACT_LOCATION),), None) is not None
    differs = False
    for row in rows.coming:
        name = _name(part, row)
        if name == ARTIFACT_LOCATION:  # where its files are is the target's own business
            if not has_place:
                compared.missing.append((table, row))
            continue
        other = there.pop(identity(row), None)
        if other is None:
            compared.missing.append((table, row))
            compared.lacks |= not part.is_set
            if part.is_set and is_provenance(name):
                continue  # where it came from is nothing of its own
            # What was there when the target got its state, and is not any more, was deleted here.
            if part.since and row[part.since] <= growth.stage(compared.there):
                compared.contradicts = True
        elif all(comparable(row[c]) == comparable(other[c]) for c in rows.columns):
            continue
        elif name in growth.keeps or (
            part.is_set and not (compared.was_open or compared.takes_edits)
        ):
            compared.kept.append(f"{table} {name}")
        elif part.is_set or (part.until and not (row[part.until] and other[part.until])):
            key = rows.owner | {column: other[column] for column in part.key}
            compared.changed.append((table, row, key))
            if part.until:
                compared.lacks |= bool(row[part.until])
                compared.leads |= bool(other[part.until])
        else:
            compared.contradicts = True
        differs = True
    own = [name for row in there.values() if not is_provenance(name := _name(part, row))]
    if part.is_set:
        compared.kept += [f"{table} {name}" for name in own if not is_source_tag(name)]
    elif own:
        compared.leads = True
    if own or differs:
        compared.differing.append(table)


def _name(part: GrowingRows, row: dict[str, Any]) -> str:
    return " ".join(str(row[column]) for column in part.key)


def _is_compared(tables: TableWriter, table: str, column: str) -> bool:
    unlike = _NEW_EACH_TIME | {*_NOT_COMPARED.get(table, ())}
    return column not in unlike and tables.has(table, column)


def _contents(rows: Iterable[dict[str, Any]], columns: list[str]) -> Counter[tuple[Any, ...]]:
    return Counter(
        tuple(comparable(row.get(c)) for c in columns)
        for row in rows
        if row.get("key") != ARTIFACT_LOCATION and not is_provenance(str(row.get("key")))
    )


def comparable(value: Any) -> Any:
    """Return a value as it compares, whatever a driver makes of it; empty text is none."""
    if isinstance(value, str) and value[:1] in {"{", "[", "n"}:
        try:
            value = json.loads(value)
        except ValueError:
            return value
    if isinstance(value, dict) and value.get(_END) == 0:
        value = value | {_END: None}  # MLflow has both for a span that runs
    if isinstance(value, dict | list):
        return json.dumps(value, sort_keys=True)
    return "null" if value is None or value == "" else value
