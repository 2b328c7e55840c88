"""Objects of a catalogue that fulfil conditions: few row groups, each round of them at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.kinds import Kind
from mlflow_exim_plugin.sets.catalogue.conditions import (
    LaterStates,
    SameHashes,
    conditions_of,
)
from mlflow_exim_plugin.sets.catalogue.parts import PartTable
from mlflow_exim_plugin.sets.catalogue.tables import ID, ORIGIN, hash_of, row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from mlflow_exim_plugin.options import Seeking
    from mlflow_exim_plugin.sets.catalogue.conditions import Condition
    from mlflow_exim_plugin.sets.catalogue.parts import Part, RowGroup
    from mlflow_exim_plugin.storage.folders.folder import Folder

__all__ = ["Matches", "Shelf", "search"]

_Job = TypeVar("_Job")
_ROUND_BYTES = 64 << 20
"""What is asked for, and decoded, at once."""
_BEFORE_ALL = -(1 << 63)


@dataclass
class Shelf:
    """Parts that lie in one folder.

    Attributes:
        folder: The folder.
        parts: The parts.
        gone: Archives that are there no more, or are others now, by number of the part: path, and
            when it was packed.
    """

    folder: Folder
    parts: Sequence[Part]
    gone: Mapping[int, Mapping[str, int]] = field(default_factory=dict)


@dataclass
class Matches:
    """What was found.

    Attributes:
        objects: Rows of ``objects`` with the ``files`` that were asked for, the newest first.
        total: How many there are; where not all are shown, those that a later state would hide are
            counted too.
    """

    objects: list[dict[str, Any]]
    total: int


def search(shelves: Sequence[Shelf], seeking: Seeking, identity: str | None = None) -> Matches:
    """Find objects.

    Args:
        shelves: Where to look; all of one place.
        seeking: What is looked for.
        identity: An id that it has or had, of whatever kind.

    Raises:
        NotFoundError: Parts were merged meanwhile: look again.
        InvalidArchiveError: A table is damaged.
        StoreError: The store refused or died.
    """
    conditions = conditions_of(seeking, identity)
    names = ["objects", *(condition.table for condition in conditions)]
    if not seeking.all_states:
        names += ["ids", "hashes"]
    opened = [_Opened(shelf, list(dict.fromkeys(names))) for shelf in shelves]
    waiting = [found for shelf in opened for found in shelf.matching(conditions, seeking)]
    total = sum(found.count for found in waiting)
    objects: list[dict[str, Any]] = []
    certain_from = None
    while waiting and not _is_enough(objects, certain_from, seeking.limit):
        taken, waiting, certain_from = _newest(waiting, seeking.limit)
        for some in _rounds(taken, lambda found: found.opened.bytes_of(found.table, found.group)):
            rows = _rows_of(some)
            kept = [row for row in rows if _is_meant(row, seeking)]
            if not seeking.all_states:
                kept = _latest(opened, kept)
            total -= len(rows) - len(kept)
            objects += kept
    objects.sort(key=lambda row: (-_time_of(row), row["kind"], row["id"], -row["packed_ms"]))
    return Matches(objects[: seeking.limit], total)


@dataclass
class _Waiting:
    """Objects of one row group that fulfil all conditions; None for the whole of it."""

    opened: _Opened
    table: PartTable
    group: RowGroup
    rows: pa.Array | None

    @property
    def count(self) -> int:
        return self.group.rows if self.rows is None else len(self.rows)

    @property
    def times_ms(self) -> tuple[int, int]:
        return self.group.zones["start_time_ms"] or (_BEFORE_ALL, _BEFORE_ALL)


class _Opened:
    """A shelf whose footers were read."""

    def __init__(self, shelf: Shelf, names: Sequence[str]) -> None:
        self.shelf = shelf
        wanted = [(part, name) for part in shelf.parts for name in names]
        self.tables = PartTable.open_all(shelf.folder, wanted)
        self.files: dict[int, list[str]] = {}
        """Paths of the files that were asked for, by object."""

    def bytes_of(self, table: PartTable, group: RowGroup, columns: int | None = None) -> int:
        _, start, end = table.span(group, columns)
        return end - start

    def tables_of(
        self, wanted: Sequence[tuple[PartTable, RowGroup]], columns: int | None
    ) -> Iterator[tuple[tuple[PartTable, RowGroup], pa.Table]]:
        """Yield row groups with their rows, so many at once as may be."""
        for some in _rounds(wanted, lambda job: self.bytes_of(*job, columns)):
            yield from zip(some, self.read(some, columns), strict=True)

    def holding(self, condition: Condition) -> Iterator[tuple[Part, pa.Table]]:
        """Yield the rows of all parts of which a condition holds."""
        wanted = [
            (self.tables[part.number, condition.table], group)
            for part in self.shelf.parts
            for group in self._groups(part.number, condition)
        ]
        for (table, _), rows in self.tables_of(wanted, condition.columns):
            yield table.part, rows.filter(condition.mask(rows))

    def read(
        self, wanted: Sequence[tuple[PartTable, RowGroup]], columns: int | None = None
    ) -> list[pa.Table]:
        """Return the rows of some row groups."""
        spans = [table.span(group, columns) for table, group in wanted]
        return [
            table.rows_of(group, data, start, columns)
            for (table, group), data, (_, start, _) in zip(
                wanted, self.shelf.folder.ranges(spans), spans, strict=True
            )
        ]

    def matching(self, conditions: Sequence[Condition], seeking: Seeking) -> list[_Waiting]:
        """Return the row groups of ``objects`` with those that fulfil all conditions."""
        found = []
        for number, numbers in self._numbers(conditions).items():
            table = self.tables[number, "objects"]
            groups = [group for group in table.groups if _may_be_in_time(group, seeking)]
            if numbers is None:
                found += [_Waiting(self, table, group, None) for group in groups]
                continue
            rows = row_of(numbers)
            for group in groups:
                end = group.first_row + group.rows
                is_in = pc.and_(pc.greater_equal(rows, group.first_row), pc.less(rows, end))
                inner = pc.subtract(rows.filter(is_in), group.first_row)
                if len(inner):
                    found.append(_Waiting(self, table, group, inner))
        return found

    def _numbers(self, conditions: Sequence[Condition]) -> dict[int, pa.Array | None]:
        """Return the objects that fulfil all conditions, by number of the part; None means all."""
        left: dict[int, pa.Array | None] = {part.number: None for part in self.shelf.parts}
        todo = []
        for condition in conditions:
            groups = {n: self._groups(n, condition) for n in left}
            left = {n: None for n in left if groups[n]}
            todo.append((condition, groups))
        sized = sorted(((self._bytes(c, of, left), place) for place, (c, of) in enumerate(todo)))
        for _, place in sized:
            condition, groups = todo[place]
            holding = self._holding(condition, {n: groups[n] for n in left})
            for number, new in holding.items():
                old = left[number]
                both = new if old is None else old.filter(pc.is_in(old, value_set=new))
                left[number] = both
            left = {n: numbers for n, numbers in left.items() if numbers is None or len(numbers)}
        return left

    def _groups(self, number: int, condition: Condition) -> list[RowGroup]:
        table = self.tables[number, condition.table]
        return [group for group in table.groups if condition.may_hold(group)]

    def _bytes(
        self, condition: Condition, groups: Mapping[int, list[RowGroup]], parts: Iterable[int]
    ) -> int:
        return sum(
            self.bytes_of(self.tables[number, condition.table], group, condition.columns)
            for number in parts
            for group in groups[number]
        )

    def _holding(
        self, condition: Condition, groups: Mapping[int, list[RowGroup]]
    ) -> dict[int, pa.Array]:
        """Return the objects of which a condition holds, by number of the part."""
        wanted = [(self.tables[n, condition.table], g) for n, of in groups.items() for g in of]
        found: dict[int, list[Any]] = {number: [] for number in groups}
        for (table, _), rows in self.tables_of(wanted, condition.columns):
            held = rows.filter(condition.mask(rows))
            found[table.part.number] += held.column("object").chunks
            if condition.table == "files":
                for row in held.select(["object", "path"]).to_pylist():
                    self.files.setdefault(row["object"], []).append(row["path"])
        return {
            number: pc.unique(pa.chunked_array(chunks, pa.int64()))
            for number, chunks in found.items()
        }


def _rounds(jobs: Sequence[_Job], bytes_of: Callable[[_Job], int]) -> Iterator[list[_Job]]:
    """Yield jobs, so many at once as may be."""
    some: list[_Job] = []
    size_bytes = 0
    for job in jobs:
        if some and size_bytes + bytes_of(job) > _ROUND_BYTES:
            yield some
            some, size_bytes = [], 0
        some.append(job)
        size_bytes += bytes_of(job)
    if some:
        yield some


def _newest(
    waiting: list[_Waiting], limit: int | None
) -> tuple[list[_Waiting], list[_Waiting], int]:
    """Return which row groups to read next, which later, and from when on all are read then."""
    if limit is None:
        return waiting, [], _BEFORE_ALL
    waiting = sorted(waiting, key=lambda found: found.times_ms[1], reverse=True)
    count = place = 0
    certain_from = waiting[0].times_ms[0]
    while place < len(waiting):
        found = waiting[place]
        if count >= limit and found.times_ms[1] < certain_from:
            break
        if count < limit:
            certain_from = min(certain_from, found.times_ms[0])
        count += found.count
        place += 1
    if place == len(waiting):
        certain_from = _BEFORE_ALL
    return waiting[:place], waiting[place:], certain_from


def _is_enough(objects: list[dict[str, Any]], certain_from: int | None, limit: int | None) -> bool:
    if certain_from is None or limit is None:
        return False
    return sum(1 for row in objects if _time_of(row) >= certain_from) >= limit


def _rows_of(some: Sequence[_Waiting]) -> list[dict[str, Any]]:
    """Return the objects of some row groups, without those whose archive is gone."""
    rows: list[dict[str, Any]] = []
    for opened in {id(found.opened): found.opened for found in some}.values():
        mine = [found for found in some if found.opened is opened]
        tables = opened.read([(found.table, found.group) for found in mine])
        for found, table in zip(mine, tables, strict=True):
            gone = opened.shelf.gone.get(found.table.part.number, {})
            taken = table if found.rows is None else table.take(found.rows)
            for row in taken.to_pylist():
                row["files"] = opened.files.get(row["object"], [])
                row["is_gone"] = row["archive"] in gone
                rows.append(row)
    return rows


def _latest(opened: Sequence[_Opened], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the objects of which no archive has a later state."""
    states = _states(opened, {_identity(row) for row in rows})
    packed_ms: dict[str, int] = {}
    for row in rows:
        identity = _identity(row)
        if states[hash_of(identity)] > 1:
            packed_ms[identity] = min(row["packed_ms"], packed_ms.get(identity, row["packed_ms"]))
    latest_ms = _latest_ms(opened, packed_ms)

    def is_latest(row: dict[str, Any]) -> bool:
        key = (row["id"], ID) if row["origin"] is None else (row["origin"], ORIGIN)
        return latest_ms.get(key, _BEFORE_ALL) <= int(row["packed_ms"])

    return [row for row in rows if is_latest(row)]


def _identity(row: dict[str, Any]) -> str:
    return str(row["id"] if row["origin"] is None else row["origin"])


def _states(opened: Sequence[_Opened], identities: set[str]) -> Counter[int]:
    """Return how many states there are of each object, by its hash: perhaps too many."""
    found: Counter[int] = Counter()
    if identities:
        condition = SameHashes(identities)
        for shelf in opened:
            for _, hashes in shelf.holding(condition):
                found.update(hashes.column("hash").to_pylist())
    return found


def _latest_ms(opened: Sequence[_Opened], packed_ms: dict[str, int]) -> dict[tuple[str, str], int]:
    """Return when the last state of each object was packed, by what tells it and how."""
    latest_ms: dict[tuple[str, str], int] = {}
    if not packed_ms:
        return latest_ms
    condition = LaterStates(packed_ms)
    for shelf in opened:
        for part, ids in shelf.holding(condition):
            gone_ms = set(shelf.shelf.gone.get(part.number, {}).values())
            for known in ids.to_pylist():
                if known["packed_ms"] not in gone_ms:
                    key = known["id"], known["how"]
                    latest_ms[key] = max(latest_ms.get(key, _BEFORE_ALL), known["packed_ms"])
    return latest_ms


def _is_meant(row: dict[str, Any], seeking: Seeking) -> bool:
    if row["is_gone"] or (seeking.runs and row["kind"] != str(Kind.RUN)):
        return False
    since_ms, until_ms, time_ms = seeking.since_ms, seeking.until_ms, row["start_time_ms"]
    if time_ms is None:
        return since_ms is None and until_ms is None
    return (since_ms is None or time_ms >= since_ms) and (until_ms is None or time_ms <= until_ms)


def _may_be_in_time(group: RowGroup, seeking: Seeking) -> bool:
    zone = group.zones["start_time_ms"]
    if seeking.since_ms is None and seeking.until_ms is None:
        return True
    if zone is None:
        return False  # nobody knows when any of them began
    return (seeking.since_ms is None or zone[1] >= seeking.since_ms) and (
        seeking.until_ms is None or zone[0] <= seeking.until_ms
    )


def _time_of(row: dict[str, Any]) -> int:
    time_ms = row["start_time_ms"]
    return _BEFORE_ALL if time_ms is None else int(time_ms)
