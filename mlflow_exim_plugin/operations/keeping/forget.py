"""``forget`` and ``hold``: which snapshots of a set stay, and why."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ArchiveExistsError, ConflictError, NotFoundError, UsageError
from mlflow_exim_plugin.options import Forgetting, Opening, flat
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.schema.canonical import document_bytes
from mlflow_exim_plugin.schema.envelope import System
from mlflow_exim_plugin.sources.archive.snapshot.documents import Hold
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import (
    SetFolder,
    as_set,
    hold_path,
    snapshot_path,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlflow_exim_plugin.sources.archive.snapshot.set_folder import StoredSnapshot

__all__ = ["Forgotten", "Judged", "forget", "hold", "release", "require_set"]

_SPANS: dict[str, Callable[[datetime], object]] = {
    "daily": lambda day: day.date(),
    "weekly": lambda day: day.isocalendar()[:2],
    "monthly": lambda day: (day.year, day.month),
    "yearly": lambda day: day.year,
}


@dataclass
class Judged:
    """A snapshot, and why it stays.

    Attributes:
        number: Its number.
        taken: When its source was read, ISO 8601 in UTC.
        reasons: Why it stays; nothing keeps what has none.
        removed: Whether it was removed.
    """

    number: int
    taken: str
    reasons: list[str] = field(default_factory=list)
    removed: bool = False


@dataclass
class Forgotten:
    """What became of the snapshots of a set.

    Attributes:
        snapshots: All of them, the oldest first.
    """

    snapshots: list[Judged]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {"ok": True, "snapshots": [asdict(one) for one in self.snapshots]}


@flat()
def forget(
    location: str, *, opening: Opening = Opening(), forgetting: Forgetting = Forgetting()
) -> Forgotten:
    """Remove the snapshots of a set that no rule keeps; archives stay until ``prune``.

    A snapshot that is held, or to be kept until a later day, and the newest one stay in any case.

    Args:
        location: Path or fsspec URL of the set.
        opening: How it is opened; each option is a keyword of its own too, here and below.
        forgetting: What is kept, and whether anything is removed.

    Raises:
        NotFoundError: There is no such set.
        UsageError: Nothing says what is kept.
        InvalidArchiveError: A snapshot is damaged: then none is removed.
        StoreError: The store refused or died.
    """
    forgetting.require_rule()
    folder = require_set(location, opening)
    judged = _judge(list(folder.each()), folder.holds(), forgetting)
    if forgetting.apply:
        _remove(folder, [one for one in judged if not one.reasons])
    return Forgotten(judged)


def _remove(folder: SetFolder, judged: list[Judged]) -> None:
    """Remove snapshots with their signatures, but for those that are held by now."""
    place = snapshot_path(0).rpartition("/")[0]
    paths = [f"{place}/{name}" for name in folder.names(place)] if judged else []
    for one in judged:
        if folder.has(hold_path(one.number)):
            one.reasons.append("held")
            continue
        path = snapshot_path(one.number)
        folder.remove(path)
        one.removed = True
        for signature in [beside for beside in paths if beside.startswith(f"{path}.")]:
            folder.remove(signature)


def _judge(
    snapshots: list[StoredSnapshot], holds: dict[int, Hold], forgetting: Forgetting
) -> list[Judged]:
    found: dict[int, Judged] = {}
    days: dict[int, datetime] = {}
    now_ms = time.time_ns() // 1_000_000
    for snapshot in snapshots:
        day = datetime.fromtimestamp(snapshot.document.system.export_time_ms / 1000, timezone.utc)
        days[snapshot.number] = day
        one = Judged(snapshot.number, day.strftime("%Y-%m-%dT%H:%M:%SZ"))
        if snapshot.number in holds:
            one.reasons.append(f"held: {holds[snapshot.number].reason}")
        until_ms = snapshot.document.info.kept_until_ms
        if until_ms is not None and until_ms > now_ms:
            until = datetime.fromtimestamp(until_ms / 1000, timezone.utc)
            one.reasons.append(f"kept until {until:%Y-%m-%d}")
        found[snapshot.number] = one
    newest_first = sorted(found, reverse=True)
    for number in newest_first[:1]:
        found[number].reasons.append("newest")
    for number in newest_first[: forgetting.keep_last]:
        found[number].reasons.append("last")
    for name, span_of in _SPANS.items():
        for number in _lasts(newest_first, days, span_of)[: getattr(forgetting, f"keep_{name}")]:
            found[number].reasons.append(name)
    return list(found.values())


def _lasts(
    newest_first: Iterable[int], days: dict[int, datetime], span_of: Callable[[datetime], object]
) -> list[int]:
    """Return the last snapshot of each span, the newest first."""
    lasts: dict[object, int] = {}
    for number in newest_first:
        lasts.setdefault(span_of(days[number]), number)
    return list(lasts.values())


@flat()
def hold(location: str, reason: str, *, opening: Opening = Opening()) -> int:
    """Hold a snapshot of a set: ``forget`` leaves it until ``release``.

    Args:
        location: Path or fsspec URL of the set, or of the snapshot.
        reason: Why, for whoever reads it.
        opening: How it is opened, and which snapshot; the newest without it.

    Returns:
        Its number.

    Raises:
        ConflictError: It is held already.
        NotFoundError: There is no such set or snapshot.
        StoreError: The store refused or died.
    """
    if not reason.strip():
        raise UsageError("a hold has a reason", "say why it is held")
    folder, number = _asked(location, opening)
    system = System.now("mlflow_exim_plugin.hold", "", str(folder))
    document = Hold(system=system, reason=reason)
    try:
        folder.put(hold_path(number), document_bytes(document.to_json()))
    except ArchiveExistsError as error:
        raise ConflictError(f"snapshot {number} of {folder} is held already") from error
    return number


@flat()
def release(location: str, *, opening: Opening = Opening()) -> int:
    """Let go of a snapshot that was held.

    Args:
        location: Path or fsspec URL of the set, or of the snapshot.
        opening: How it is opened, and which snapshot; the newest without it.

    Returns:
        Its number.

    Raises:
        NotFoundError: There is no such set or snapshot, or it is not held.
        StoreError: The store refused or died.
    """
    folder, number = _asked(location, opening)
    if not folder.remove(hold_path(number)):
        raise NotFoundError(f"snapshot {number} of {folder} is not held")
    return number


def _asked(location: str, opening: Opening) -> tuple[SetFolder, int]:
    found = as_set(location, opening.storage_options)
    if found is None:
        raise _no_set(location)
    folder, number = found
    return folder, folder.asked(number, opening.snapshot).number


def require_set(location: str, opening: Opening) -> SetFolder:
    """Return the set at a location.

    Raises:
        NotFoundError: There is none.
        UsageError: It is one of its snapshots.
        StoreError: The store refused or died.
    """
    found = as_set(location, opening.storage_options)
    if found is None:
        raise _no_set(location)
    if found[1] is not None or opening.snapshot is not None:
        raise UsageError("this is done with a whole set, and not with a snapshot")
    return found[0]


def _no_set(location: str) -> NotFoundError:
    return NotFoundError(f"{redact_url(location)} is no set", "pack --set makes one")
