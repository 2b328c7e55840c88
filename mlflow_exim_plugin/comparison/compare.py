"""Two sources, object by object and field by field."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.comparison.index import SIDES, A, B, ComparisonIndex
from mlflow_exim_plugin.comparison.pairing import pair
from mlflow_exim_plugin.comparison.result import Comparison, Difference
from mlflow_exim_plugin.comparison.shapes import (
    ABSENT,
    ByKey,
    Entries,
    drop_later_hops,
    hops_of,
    place_in_runs,
    shaped,
)
from mlflow_exim_plugin.comparison.unread import Unread
from mlflow_exim_plugin.schema.objects import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_exim_plugin.comparison.rules import RuleSet
    from mlflow_exim_plugin.options import Selection
    from mlflow_exim_plugin.sources.source import Source

__all__ = ["compare"]

_FOLDER_OF_OURS = "mlflow_exim/"
"""Begins the paths of files that an unpack put into runs for other objects."""
_DEFAULT_EXPERIMENT = "0"
_CARRIED = "carried files"
_SOURCE_TAGS = "source tags"
_STORED = "infinities and zeros"
_OBJECTS = """
SELECT kind, label, number, partner FROM object
WHERE side = ? AND NOT is_ours {and_more} ORDER BY number
"""


def compare(
    a: Source,
    b: Source,
    result: Comparison,
    selection: Selection,
    *,
    limit: int | None = None,
    found: Callable[[Difference], None] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> None:
    """Compare two sources.

    Args:
        a: One source.
        b: The other source.
        result: Filled.
        selection: What to take of both.
        limit: How many differences to keep; None keeps all.
        found: Called with each difference that is kept.
        progress: Called with the side that is read and the objects so far.

    Raises:
        NotFoundError: A name or id that was asked for is not on a side.
        ServerError: A side cannot be listed at all.
        ServerLostError: A side does not answer any more.
    """
    with tempfile.TemporaryDirectory(prefix="exim-diff-") as folder:
        index = ComparisonIndex(Path(folder) / "index.db")
        try:
            for side, source in ((A, a), (B, b)):
                index.read(
                    side,
                    source.stream(selection),
                    result,
                    hides_marks=result.rules.maps_ids,
                    progress=progress,
                )
            if result.rules.is_open:
                result.rules.settle(ids_kept=index.keeps_ids())
                if not result.rules.maps_ids:
                    index.show_marks()
                    result.left_out.clear()
            for difference in _Comparer(index, result).differences():
                result.total += 1
                if limit is None or result.total <= limit:
                    result.differences.append(difference)
                    if found:
                        found(difference)
        finally:
            index.close()


class _Comparer:
    def __init__(self, index: ComparisonIndex, result: Comparison) -> None:
        self._index = index
        self._result = result
        self._rules: RuleSet = result.rules
        self._unread = [
            Unread(failure for of_side, failure in result.unreadable if of_side == side)
            for side in SIDES
        ]
        self._unknown: set[int] = set()

    def differences(self) -> Iterator[Difference]:
        """Yield what differs, in the order of A; what only B has comes last."""
        pair(self._index, self._distance)
        for name, identity, one, other in self._index.query(_OBJECTS.format(and_more=""), A):
            kind = Kind(name)
            if other is None:
                yield from self._alone(kind, identity, A, one)
            else:
                yield from self._of_pair(kind, identity, one, other)
        alone = _OBJECTS.format(and_more="AND partner IS NULL")
        for name, identity, number, _ in self._index.query(alone, B):
            yield from self._alone(Kind(name), identity, B, number)

    def _alone(self, kind: Kind, identity: str, side: int, number: int) -> Iterator[Difference]:
        if self._is_default_experiment(kind, identity, number):
            return
        if self._may_be_at(1 - side, kind, number):
            self._unknown.add(number)
            self._result.of(kind).unreadable += 1
            return
        document = self._index.document(number)
        label = str(document.get("name") or identity)
        values = (label, ABSENT) if side == A else (ABSENT, label)
        if not self._rules.counts(kind.value, *values):
            return
        counts = self._result.of(kind)
        if side == A:
            counts.only_in_a += 1
        else:
            counts.only_in_b += 1
        yield Difference(kind, identity, kind.value, *values)

    def _may_be_at(self, side: int, kind: Kind, number: int) -> bool:
        """Whether an object that was not read at a side may be there all the same."""
        if not any(of_side == SIDES[side] for of_side, _ in self._result.unreadable):
            return False
        ((*names, owner),) = self._index.query(
            "SELECT id, label, own, oldest, owner FROM object WHERE number = ?", number
        )
        if owner in self._unknown:
            return True
        owners = [
            name
            for row in self._index.query(
                "SELECT one.id, one.label, other.id, other.label FROM object one "
                "LEFT JOIN object other ON other.number = one.partner WHERE one.number = ?",
                owner,
            )
            for name in row
            if name is not None
        ]
        return self._unread[side].has(kind, names, owners)

    def _is_default_experiment(self, kind: Kind, identity: str, number: int) -> bool:
        """Whether it is the experiment that MLflow makes by itself, and nobody used it."""
        rule = "untouched default"
        if (
            kind is not Kind.EXPERIMENT
            or identity != _DEFAULT_EXPERIMENT
            or not self._rules.has(rule)
            or self._index.document(number).get("tags")
            or any(self._index.query("SELECT 1 FROM object WHERE owner = ? LIMIT 1", number))
        ):
            return False
        self._rules.note(rule)
        return True

    def _of_pair(self, kind: Kind, identity: str, one: int, other: int) -> Iterator[Difference]:
        counts = self._result.of(kind)
        counts.compared += 1
        ((id_b,),) = self._index.query("SELECT label FROM object WHERE number = ?", other)
        differs = False
        ids = identity, id_b
        fields = (
            *self._fields(kind, one, other),
            *self._histories(kind, ids, one, other),
            *self._files(kind, ids, one, other),
        )
        for path, a, b in fields:
            steps = path.split(".")
            names = (".".join(steps[depth:]) for depth in range(1, len(steps)))
            if any(self._is_unread(ids, name, a, b) for name in names):
                continue
            differs = True
            yield Difference(kind, identity, path, a, b, id_b if id_b != identity else "")
        if differs:
            counts.different += 1
        else:
            counts.equal += 1

    def _fields(
        self, kind: Kind, one: int, other: int, *, silent: bool = False
    ) -> Iterator[tuple[str, Any, Any]]:
        of_a, of_b = self._index.document(one), self._index.document(other)
        a, b = self._shaped(kind, A, of_a), self._shaped(kind, B, of_b)
        if json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True):
            return
        if self._rules.has(_SOURCE_TAGS):
            dropped = drop_later_hops(a, b, hops_of(of_a) - hops_of(of_b))
            if dropped and not silent:
                self._rules.note(_SOURCE_TAGS)
        for path, left, right in _differing(a, b, kind.value):
            if self._rules.counts(path, left, right, silent=silent):
                yield path, left, right

    def _shaped(self, kind: Kind, side: int, document: dict[str, Any]) -> dict[str, Any]:
        def meaning(of_kind: Kind, identity: str) -> str | None:
            return self._index.meaning(side, of_kind, identity)

        ids = meaning if self._rules.maps_ids else None
        return shaped(kind, document, ids)

    def _distance(self, kind: Kind, one: int, other: int) -> int:
        return sum(1 for _ in self._fields(kind, one, other, silent=True))

    def _is_unread(self, ids: tuple[str, str], name: str, a: Any, b: Any) -> bool:
        """Whether a part that one side lacks is one that could not be read there."""
        lacking = A if a is ABSENT else B if b is ABSENT else None
        return lacking is not None and self._unread[lacking].has_part(ids[lacking], name)

    def _histories(
        self, kind: Kind, ids: tuple[str, str], one: int, other: int
    ) -> Iterator[tuple[str, Any, Any]]:
        if kind is not Kind.RUN:
            return
        left, right = (self._index.parts(number, Kind.METRIC_HISTORY) for number in (one, other))

        def is_same(a: dict[str, Any], b: dict[str, Any]) -> bool:
            if a["digest"] == b["digest"]:
                return True
            if a["stored"] == b["stored"] and self._rules.has(_STORED):
                self._rules.note(_STORED)
                return True
            return False

        path = "run.histories"
        for key, a, b in self._parts(Kind.METRIC_HISTORY, ids, path, left, right, is_same):
            yield key, _rows(a), _rows(b)

    def _files(
        self, kind: Kind, ids: tuple[str, str], one: int, other: int
    ) -> Iterator[tuple[str, Any, Any]]:
        path = f"{kind}.{'attachments' if kind is Kind.TRACE else 'artifacts'}"
        left, right = self._files_of(kind, A, one), self._files_of(kind, B, other)
        yield from self._parts(Kind.ARTIFACT, ids, path, left, right, lambda a, b: a == b)

    def _files_of(self, kind: Kind, side: int, number: int) -> dict[str, dict[str, Any]]:
        files = self._index.parts(number, Kind.ARTIFACT)
        if not self._rules.has(_CARRIED):
            return files
        if kind is Kind.RUN:
            return {p: f for p, f in files.items() if not p.startswith(_FOLDER_OF_OURS)}
        if kind is Kind.MODEL_VERSION and not files:
            return self._carried_files(side, number)
        return files

    def _carried_files(self, side: int, number: int) -> dict[str, dict[str, Any]]:
        """Return the files of a version that an unpack has put into a run for it."""
        place = place_in_runs(str(self._index.document(number).get("source") or ""))
        if place is None or not place[1].startswith(_FOLDER_OF_OURS):
            return {}
        for run in self._index.find(side, Kind.RUN, place[0]):
            return self._index.parts(run, Kind.ARTIFACT, place[1] + "/")
        return {}

    def _parts(
        self,
        kind: Kind,
        ids: tuple[str, str],
        path: str,
        a: dict[str, dict[str, Any]],
        b: dict[str, dict[str, Any]],
        is_same: Callable[[dict[str, Any], dict[str, Any]], bool],
    ) -> Iterator[tuple[str, Any, Any]]:
        if not a and not b:
            return
        counts = self._result.of(kind)
        for name in sorted({*a, *b}):
            left, right = a.get(name, ABSENT), b.get(name, ABSENT)
            if self._is_unread(ids, name, left, right):
                counts.unreadable += 1
                continue
            both = left is not ABSENT and right is not ABSENT
            same = both and is_same(left, right)
            differs = not same and self._rules.counts(f"{path}.{name}", left, right)
            if both:
                counts.compared += 1
                counts.equal += not differs
                counts.different += differs
            elif differs:
                counts.only_in_a += right is ABSENT
                counts.only_in_b += left is ABSENT
            if differs:
                yield f"{path}.{name}", left, right


def _rows(history: Any) -> Any:
    """Return what is told of a history."""
    return history and {"rows": history["rows"], "digest": history["digest"]}


def _is_nothing(value: Any) -> bool:
    return value is None or value is ABSENT or value in ([], {})


def _differing(a: Any, b: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield where two shaped values differ; what is null or empty is the same as none."""
    if _is_nothing(a) and isinstance(b, Entries):
        a = type(b)()
    elif _is_nothing(b) and isinstance(a, Entries):
        b = type(a)()
    if isinstance(a, Entries) and isinstance(b, Entries):
        for key in sorted({*a, *b}):
            inner = f"{path}[{key}]" if isinstance(a, ByKey) else f"{path}.{key}"
            yield from _differing(a.get(key, ABSENT), b.get(key, ABSENT), inner)
    elif _is_nothing(a) or _is_nothing(b):
        if not (_is_nothing(a) and _is_nothing(b)):
            yield path, ABSENT if _is_nothing(a) else a, ABSENT if _is_nothing(b) else b
    elif isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            yield from _differing(a.get(key, ABSENT), b.get(key, ABSENT), f"{path}.{key}")
    elif isinstance(a, list) and isinstance(b, list):
        for number in range(max(len(a), len(b))):
            left = a[number] if number < len(a) else ABSENT
            right = b[number] if number < len(b) else ABSENT
            yield from _differing(left, right, f"{path}[{number}]")
    elif (a != b and repr(a) != repr(b)) or isinstance(a, bool) != isinstance(b, bool):
        yield path, a, b
