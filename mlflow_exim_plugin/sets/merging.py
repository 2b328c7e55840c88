"""The state after a pack: what it had, what is new or changed, and what is gone from the source."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.container.paths import encode_segment
from mlflow_exim_plugin.kinds import Kind
from mlflow_exim_plugin.sets.state import SetState
from mlflow_exim_plugin.stages.marks import is_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mlflow_exim_plugin.options import Selection
    from mlflow_exim_plugin.schema.objects import Failure
    from mlflow_exim_plugin.sets.state import Row
    from mlflow_exim_plugin.stages.changes import Changes, Seen

__all__ = ["Doubt", "FoundAtSource", "NextState", "found_by", "next_state"]


@dataclass
class NextState:
    """What a snapshot is made of.

    Attributes:
        state: All its objects.
        gone: Paths of what the source has no more, as the archives have them.
        is_sure: Whether the source was listed as a whole: else nothing is taken for gone.
    """

    state: SetState
    gone: set[str]
    is_sure: bool


@dataclass
class FoundAtSource:
    """What a pack, or one of several parts of it, found at the source.

    Attributes:
        rows: Its objects, by path, as they are in the set now.
        unpacked: Paths of objects that it saw and that are not in the set.
        owners: See ``Changes.owners``.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    unpacked: set[str] = field(default_factory=set)
    owners: dict[str, dict[str, Any]] = field(default_factory=dict)

    def take(self, other: FoundAtSource) -> None:
        """Add what another part found, which was packed later."""
        self.rows.update(other.rows)
        self.unpacked |= other.unpacked
        self.owners.update(other.owners)


def found_by(
    before: SetState, changes: Changes, written: Mapping[str, Row], failures: Iterable[Failure]
) -> FoundAtSource:
    """Return what a pack found.

    Args:
        before: The state before it.
        changes: What was seen of the source.
        written: What was packed, by path.
        failures: What could not be read or packed.
    """
    doubt = Doubt(failures, changes.unlisted)
    found = FoundAtSource(owners=changes.owners)
    for path, seen in changes.seen.items():
        row = _row(seen, before.rows.get(path), written.get(path), doubt)
        if row is None:
            found.unpacked.add(path)
        else:
            found.rows[path] = row
    return found


def next_state(
    before: SetState, found: FoundAtSource, failures: Iterable[Failure], selection: Selection
) -> NextState:
    """Return the state after a pack.

    Args:
        before: The state before it.
        found: What is at the source; taken over.
        failures: What could not be read or packed.
        selection: What was asked for: what was not is as it was.
    """
    doubt = Doubt(failures, set())
    rows = found.rows
    is_sure = selection.takes_all_runs and selection.traces and not doubt.of_all
    gone: set[str] = set()
    for path, row in before.rows.items():
        if path in rows:
            continue
        if is_sure and path not in found.unpacked and not doubt.of(path, row.kind):
            gone.add(row.member or path)
        else:
            rows[path] = row
    state = SetState(rows)
    state.settle_owners(found.owners)
    return NextState(state, gone, is_sure)


def _row(seen: Seen, known: Row | None, written: Row | None, doubt: Doubt) -> Row | None:
    if written is not None:
        mark = b"" if seen.id in doubt.cut else seen.mark
        return replace(written, mark=mark, name=seen.name, start_ms=seen.start_ms)
    if known is None or seen.goes_on or not is_whole(seen.mark):
        return known  # it failed, or its files could not be listed
    if (known.mark, known.name) == (seen.mark, seen.name):
        return known
    return replace(known, mark=seen.mark, name=seen.name)


class Doubt:
    """What failures leave open.

    Args:
        failures: They.
        unlisted: Ids of those that were known before anything was read.

    Attributes:
        of_all: Whether it is open what there is.
        cut: Ids of objects of which a part was lost while it was read.
    """

    def __init__(self, failures: Iterable[Failure], unlisted: set[str]) -> None:
        self.of_all = False
        self.cut: set[str] = set()
        self._kinds: set[Kind] = set()
        self._segments: set[str] = set()
        for failure in failures:
            owner, slash, rest = failure.id.partition("/")
            if failure.kind in {Kind.WORKSPACE, Kind.EXPERIMENT}:
                self.of_all = True
            elif failure.count != 1 or failure.id == "all" or (slash and not rest):
                self._kinds.add(failure.kind)
            if failure.id not in unlisted:
                self.cut.update((failure.id, owner))
            names = (*failure.id.split("/"), owner)
            self._segments.update(encode_segment(name) for name in names if name)

    def of(self, path: str, kind: Kind) -> bool:
        """Whether an object that was not seen may be there."""
        segments = path.removesuffix(".json").split("/")
        return kind in self._kinds or not self._segments.isdisjoint(segments)
