"""Where an object goes at the target: to its name, to its copy, or beside a stranger."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from mlflow_exim_plugin.errors import ConflictError, ServerError, ServerLostError
from mlflow_exim_plugin.host.reading import Reader
from mlflow_exim_plugin.host.writing import HostWriter
from mlflow_exim_plugin.schema.objects import Kind, Loss
from mlflow_exim_plugin.sinks.client_options import OnConflict, UnpackOptions
from mlflow_exim_plugin.sinks.client_source_tags import SourceTagWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mlflow_exim_plugin.host.connection import Host
    from mlflow_exim_plugin.schema.objects import Entity, RegisteredModel
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.client_ids import IdMap

__all__ = [
    "Destination",
    "FamilyWriter",
    "Place",
    "Target",
    "attempt",
    "differing",
    "find_place",
    "leave_to_stranger",
    "numbered",
    "say_renamed",
    "taken",
]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Target:
    """What the writer of every kind works with.

    Attributes:
        host: The deployment.
        options: How to write.
        ids: Source ids to target ids.
        writer: Single writes to it.
        reader: Reads from it.
        source_tags: Writes source tags.
    """

    host: Host
    options: UnpackOptions
    ids: IdMap
    writer: HostWriter
    reader: Reader
    source_tags: SourceTagWriter

    @classmethod
    def of(cls, host: Host, options: UnpackOptions, ids: IdMap) -> Target:
        """Make the parts that belong to a deployment."""
        return cls(host, options, ids, HostWriter(host), Reader(host), SourceTagWriter())


@dataclass(frozen=True)
class Destination:
    """Where the objects of one source experiment go.

    Attributes:
        experiment_id: Id at the target; empty for what belongs to no experiment, and in a dry run
            of a new one.
        restore: Restores the experiment if it is deleted: then it takes nothing.
    """

    experiment_id: str
    restore: Callable[[], None]


class FamilyWriter(Protocol):
    """Writes the objects of one kind."""

    def write(self, entity: Entity, to: Destination, report: Report) -> None:
        """Write one object and count it.

        Raises:
            ServerError: The target refused it, or lacks what it needs; nothing was counted.
        """

    def finish(self, report: Report) -> None:
        """Write what had to wait for objects of other kinds."""


@dataclass(frozen=True)
class Place(Generic[_T]):
    """A name at the target and what is there.

    Attributes:
        name: The name to use.
        there: What has that name, None where it is free.
        is_ours: Whether what is there came from the same source object.
    """

    name: str
    there: _T | None = None
    is_ours: bool = False

    @property
    def is_strange(self) -> bool:
        """Whether something else has the name."""
        return self.there is not None and not self.is_ours


def find_place(
    entity: Entity,
    name: str,
    there: Mapping[str, _T],
    is_same: Callable[[_T], bool],
    options: UnpackOptions,
    *,
    numbered: str = "{} ({})",
) -> Place[_T]:
    """Find where an object without tags of ours belongs.

    Args:
        entity: The object.
        name: Its name at the source.
        there: What the target has by name.
        is_same: Whether something at the target came from the object.
        options: What to do with a stranger.
        numbered: How another name is made of the name and a number.

    Raises:
        ConflictError: A stranger has the name and the policy is ``fail``.
    """
    candidate, number = name, 1
    while (found := there.get(candidate)) is not None:
        if is_same(found):
            return Place(candidate, found, is_ours=True)
        number += 1
        candidate = numbered.format(name, number)
    stranger = there.get(name)
    if stranger is None or options.on_conflict is OnConflict.RENAME:
        return Place(candidate)
    if options.on_conflict is OnConflict.FAIL:
        kind = str(entity.kind).replace("_", " ")
        raise taken(f"{kind} named {name!r}")
    return Place(name, stranger)


def taken(what: str) -> ConflictError:
    """Return the error that says of what the target has another, under the policy ``fail``."""
    return ConflictError(
        f"the target has another {what}", "choose --on-conflict merge, skip or rename"
    )


def attempt(call: Callable[[], object], otherwise: Loss, report: Report) -> bool:
    """Make a call whose refusal costs a detail alone, and name the detail.

    Args:
        call: The call.
        otherwise: What is lost then; the reason follows what it says.
        report: Names the loss.

    Returns:
        Whether the target took it.
    """
    try:
        call()
    except ServerLostError:
        raise
    except ServerError as error:
        what = f"{otherwise.what}: {error.message}" if otherwise.what else error.message
        report.lost(Loss(otherwise.kind, otherwise.id, what))
        return False
    return True


def say_renamed(entity: Entity, name: str, place: Place[Any], report: Report) -> None:
    """Name an object that got another name at the target."""
    if place.name != name and not place.is_ours:
        report.lost(Loss(entity.kind, entity.id, f"{name!r} is named {place.name!r} at the target"))


def leave_to_stranger(entity: Entity, name: str, fields: Iterable[str], report: Report) -> None:
    """Skip an object for one of the same name that stays as it is, and say what differs."""
    what = ", ".join(fields) or "nothing that can be compared"
    reason = f"the target has another one named {name!r}, which stays as it is (differing: {what})"
    report.lost(Loss(entity.kind, entity.id, reason))
    report.skipped(entity.kind, entity.id, reason)


def numbered(item: RegisteredModel, number: int) -> str:
    """Return another name; MLflow's client takes no spaces and brackets in those of prompts."""
    return f"{item.name}.{number}" if item.kind is Kind.PROMPT else f"{item.name} ({number})"


def differing(wanted: Mapping[str, Any], there: Mapping[str, Any], *fields: str) -> list[str]:
    """Return which fields of two documents differ; an absent field is an empty one."""
    return [f for f in fields if (wanted.get(f) or None) != (there.get(f) or None)]
