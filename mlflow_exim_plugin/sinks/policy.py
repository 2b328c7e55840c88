"""What becomes of an object whose name is taken at the target: one policy for every sink."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mlflow_exim_plugin.errors import ConflictError
from mlflow_exim_plugin.options import OnConflict, Writing
from mlflow_exim_plugin.schema.objects import Kind, Loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mlflow_exim_plugin.schema.objects import Entity, RegisteredModel
    from mlflow_exim_plugin.schema.report import Report

__all__ = [
    "TargetName",
    "differing",
    "find_name",
    "leave_to_namesake",
    "numbered",
    "say_renamed",
    "taken",
]

_T = TypeVar("_T")


@dataclass(frozen=True)
class TargetName(Generic[_T]):
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
    def is_namesake(self) -> bool:
        """Whether something else has the name."""
        return self.there is not None and not self.is_ours


def find_name(
    entity: Entity,
    name: str,
    there: Mapping[str, _T],
    is_same: Callable[[_T], bool],
    options: Writing,
    *,
    numbered: str = "{} ({})",
) -> TargetName[_T]:
    """Find where an object without tags of ours belongs.

    Args:
        entity: The object.
        name: Its name at the source.
        there: What the target has by name.
        is_same: Whether something at the target came from the object.
        options: What to do with a namesake.
        numbered: How another name is made of the name and a number.

    Raises:
        ConflictError: A namesake has the name and the policy is ``fail``.
    """
    candidate, number = name, 1
    while (found := there.get(candidate)) is not None:
        if is_same(found):
            return TargetName(candidate, found, is_ours=True)
        number += 1
        candidate = numbered.format(name, number)
    namesake = there.get(name)
    if namesake is None or options.on_conflict is OnConflict.RENAME:
        return TargetName(candidate)
    if options.on_conflict is OnConflict.FAIL:
        kind = str(entity.kind).replace("_", " ")
        raise taken(f"{kind} named {name!r}")
    return TargetName(name, namesake)


def taken(what: str) -> ConflictError:
    """Return the error that says of what the target has another, under the policy ``fail``."""
    return ConflictError(
        f"the target has another {what}", "choose --on-conflict merge, skip or rename"
    )


def say_renamed(entity: Entity, name: str, named: TargetName[Any], report: Report) -> None:
    """Name an object that got another name at the target."""
    if named.name != name and not named.is_ours:
        report.lost(Loss(entity.kind, entity.id, f"{name!r} is named {named.name!r} at the target"))


def leave_to_namesake(entity: Entity, name: str, fields: Iterable[str], report: Report) -> None:
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
