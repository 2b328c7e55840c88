"""What becomes of an object whose name is taken at the target: one policy for every sink.

A namesake is an object at the target that has the name and did not come from the source object.
What each policy does with an object that has one:

===========  ======================================================================================
``merge``    The parts that ``joins`` of its kind names join the namesake, which keeps all it has:
             what it has otherwise is named. An object of a kind without such parts is left out,
             and what refers to it refers to the namesake.
``skip``     It is left out with all its parts.
``rename``   It is written under the next free name, which is named.
``fail``     Nothing is written.
===========  ======================================================================================

The default experiment, which MLflow makes at every server, has no namesake as long as nobody used
it. Objects of one transfer that are given one name are no namesakes either: whoever names them so
wants them together, so they meet as with ``merge`` under any policy.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mlflow_exim_plugin.errors import ConflictError, ServerError
from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.options import OnConflict
from mlflow_exim_plugin.schema.objects import Entity, Experiment, Kind, Loss, key_values
from mlflow_exim_plugin.schema.provenance import is_provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from mlflow_exim_plugin.schema.objects import RegisteredModel
    from mlflow_exim_plugin.schema.report import Report

__all__ = [
    "LONGEST_NAME",
    "NOT_DELETED",
    "Meetings",
    "TargetName",
    "TargetNames",
    "differing",
    "experiment_keeps",
    "find_name",
    "is_numbered",
    "names_of",
    "say_kept",
    "taken",
]

_T = TypeVar("_T")
LONGEST_NAME = 256
"""So many characters of the name of an experiment or registered model MLflow's databases hold."""
_DIGEST = 8
_NUMBER = 8
"""Room for the number that a name may get."""
NOT_DELETED = "its lifecycle_stage is active, it is deleted at the source"
"""What is said of an object that is not deleted though it should be."""


class Meetings:
    """Under which names the objects of one transfer went: those of one name meet."""

    def __init__(self) -> None:
        self._names: dict[tuple[Kind, str], str] = {}

    def at(self, kind: Kind, name: str) -> str:
        """Return where the first object of a name went, empty where none came yet."""
        return self._names.get((kind, name), "")

    def went(self, kind: Kind, name: str, target: str) -> None:
        """Remember the first object of a name; one that has another name there is not met."""
        if is_numbered(kind, name, target):
            self._names.setdefault((kind, name), target)


@dataclass(frozen=True)
class TargetNames(Generic[_T]):
    """What a target has under the names of a kind.

    Attributes:
        find: Gives what has a name.
        meetings: Where the objects of the same transfer went, if some may be given one name.
        is_same: Whether it came from the object.
        keeps: In what else than the parts that join it differs from the object.
        kind_of: Its kind, where two kinds share their names.
        is_deleted: Whether it is deleted, so that nothing can join it.
        longest: How many characters of a name it holds, 0 for any number.
    """

    find: Callable[[str], _T | None]
    meetings: Meetings | None = None
    is_same: Callable[[_T], bool] = lambda _: False
    keeps: Callable[[_T], Iterable[str]] = lambda _: ()
    kind_of: Callable[[_T], Kind] | None = None
    is_deleted: Callable[[_T], bool] = lambda _: False
    longest: int = 0


@dataclass(frozen=True)
class TargetName(Generic[_T]):
    """The name of an object at the target.

    Attributes:
        name: The name.
        there: What has it and is used instead, None where the object is to be made.
        is_ours: Whether that came from the object.
        is_left: Whether the object is left out with all its parts.
        reason: Why it is not made.
    """

    name: str
    there: _T | None = None
    is_ours: bool = False
    is_left: bool = False
    reason: str = ""

    def count(self, kind: Kind, identity: str, report: Report, *, changed: bool) -> None:
        """Count an object that was made, or something of it was; else it is there already."""
        if changed or self.there is None:
            report.written(kind)
        else:
            report.skipped(kind, identity, self.reason)


def find_name(
    item: Experiment | RegisteredModel | Entity,
    name: str,
    names: TargetNames[_T],
    policy: OnConflict,
    report: Report,
) -> TargetName[_T]:
    """Find the name of an object at the target, and say so if it is not its own alone.

    Args:
        item: The object.
        name: Its name at the source.
        names: What the target has.
        policy: What to do with a namesake.
        report: Names what becomes of the object; only what is left out is counted.

    Raises:
        ConflictError: A namesake has the name and the policy is ``fail``.
        ServerError: It has to join what takes nothing.
    """
    kind, described = item.kind, KINDS[item.kind]
    identity = item.id if isinstance(item, Entity) else name
    met = names.meetings.at(kind, name) if names.meetings else ""
    if met and (there := names.find(met)) is not None:
        return _joined(item, identity, TargetName(met, there), names, report)
    subject = "it" if identity == name else repr(name)
    if names.longest < len(name) and names.longest:
        name = cut_name(name)
        what = f"{subject} is too long for a name at the target, where it is {name!r}"
        report.lost(Loss(kind, identity, what))
    free, number = name, 1
    while (found := names.find(free)) is not None:
        if names.is_same(found):
            return TargetName(free, found, is_ours=True, reason="it is there already")
        number += 1
        free = described.numbered.format(name, number)
    namesake = names.find(name)
    if namesake is None:
        return TargetName(name)
    if isinstance(item, Experiment) and item.is_unused_default:
        return TargetName(name, namesake, reason="nobody used it, and the target has its own")
    if policy is OnConflict.RENAME:
        report.lost(Loss(kind, identity, f"{subject} is named {free!r} at the target"))
        return TargetName(free)
    its_kind = names.kind_of(namesake) if names.kind_of else kind
    called = f"{its_kind.words} named {name!r}"
    if reason := taken(kind, identity, called, policy, report):
        return TargetName(name, namesake, is_left=True, reason=reason)
    if its_kind is not kind:
        raise ServerError(f"the target has a {called}", "choose --on-conflict rename")
    return _joined(item, identity, TargetName(name, namesake), names, report)


def _joined(
    item: Experiment | RegisteredModel | Entity,
    identity: str,
    to: TargetName[_T],
    names: TargetNames[_T],
    report: Report,
) -> TargetName[_T]:
    """Let an object join what is there, or leave it out where nothing of it can."""
    kind, namesake = item.kind, to.there
    assert namesake is not None  # noqa: S101 - it was found
    called = f"{kind.words} named {to.name!r}"
    joins = " and ".join(", ".join(KINDS[kind].joins).replace("_", " ").rsplit(", ", 1))
    if names.is_deleted(namesake):
        raise ServerError(
            f"the target has a deleted {called}, which takes no {joins}",
            "choose --on-conflict rename, or restore or purge it at the target",
        )
    keeps = ", ".join(sorted(names.keeps(namesake)))
    if joins:
        which = f", which keeps its own {keeps}" if keeps else ""
        report.lost(Loss(kind, identity, f"its {joins} joined the {called}{which}"))
        return replace(to, reason=f"its {joins} join the {called}")
    what = keeps or "nothing that can be compared"
    reason = f"the target has another {called}, which stays as it is (differing: {what})"
    report.lost(Loss(kind, identity, reason))
    report.skipped(kind, identity, reason)
    return replace(to, is_left=True, reason=reason)


def taken(kind: Kind, identity: str, called: str, policy: OnConflict, report: Report) -> str:
    """Return why an object is left out under ``skip``, empty where it may come.

    Args:
        kind: Its kind.
        identity: What the report calls it.
        called: What of its own another object has at the target.
        policy: What to do.
        report: Counts what is left out.

    Raises:
        ConflictError: The policy is ``fail``.
    """
    reason = f"the target has another {called}"
    if policy is OnConflict.FAIL:
        more = ", or give --experiment-name" if kind is Kind.EXPERIMENT else ""
        raise ConflictError(reason, f"choose --on-conflict merge, skip or rename{more}")
    if policy is not OnConflict.SKIP:
        return ""
    report.skipped(kind, identity, reason)
    return reason


def say_kept(entity: Entity, part: str, fields: Iterable[str], report: Report) -> None:
    """Name what differs between an object and what it joined, if anything."""
    if what := ", ".join(fields):
        report.lost(Loss(entity.kind, entity.id, f"{part} keeps its own {what}"))


def say_moved(entity: Entity, numbers: Iterable[tuple[int, int]], report: Report) -> None:
    """Name the versions that have other numbers at the target; numbers are old and new ones."""
    if moved := [f"{old} is {new}" for old, new in numbers if old != new]:
        what = f"versions are renumbered: version {', '.join(moved)}"
        report.lost(Loss(entity.kind, entity.id, what))


def experiment_keeps(
    experiment: Experiment, tags: Mapping[str, str], *, is_deleted: bool
) -> Iterator[str]:
    """Yield what an experiment keeps of its own where another one joins it.

    Args:
        experiment: The other one.
        tags: The tags that it has.
        is_deleted: Whether it is deleted.
    """
    if experiment.is_deleted and not is_deleted:
        yield "lifecycle_stage"
    wanted = key_values(experiment.document.get("tags"))
    keys = [k for k, v in wanted.items() if not is_provenance(k) and tags.get(k) != v]
    if keys:
        yield f"tags (not set: {', '.join(sorted(keys))})"


def is_numbered(kind: Kind, name: str, found: str) -> bool:
    """Whether a name is another one, be it cut, or that with the number that ``rename`` gives."""
    numbered = KINDS[kind].numbered
    return any(
        found == own or found.startswith(numbered.format(own, 2).rpartition("2")[0])
        for own in {name, cut_name(name)}
    )


def cut_name(name: str) -> str:
    """Return what a name is called where it is too long: no other name is called so."""
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return f"{name[: LONGEST_NAME - _NUMBER - _DIGEST - 1]}~{digest}"


def names_of(
    kind: Kind, wanted: Mapping[str, Any], find: Callable[[str], dict[str, Any] | None]
) -> TargetNames[dict[str, Any]]:
    """Return what a target has by name of a kind whose fields tell a copy from a namesake."""
    same = KINDS[kind].same
    return TargetNames(
        find,
        is_same=lambda there: not differing(wanted, there, *same),
        keeps=lambda there: differing(wanted, there, *same),
    )


def differing(wanted: Mapping[str, Any], there: Mapping[str, Any], *fields: str) -> list[str]:
    """Return which fields of two documents differ; an absent field is an empty one."""
    return [f for f in fields if (wanted.get(f) or None) != (there.get(f) or None)]
