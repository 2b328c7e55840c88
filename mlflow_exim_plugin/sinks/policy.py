"""How a deployment is written to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mlflow_exim_plugin.errors import ConflictError
from mlflow_exim_plugin.schema.objects import Kind, Loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mlflow_exim_plugin.schema.objects import Entity, RegisteredModel
    from mlflow_exim_plugin.schema.report import Report

__all__ = [
    "OnConflict",
    "TargetName",
    "UnpackOptions",
    "differing",
    "find_name",
    "leave_to_namesake",
    "numbered",
    "say_renamed",
    "taken",
]

_T = TypeVar("_T")

_WITHOUT_ARTIFACTS = " without all artifacts"
_WITH_SOURCE_TAGS = " with source tags"


class OnConflict(str, Enum):
    """What to do with a namesake under the same name."""

    MERGE = "merge"
    SKIP = "skip"
    RENAME = "rename"
    FAIL = "fail"


@dataclass(frozen=True)
class UnpackOptions:
    """How to write to a deployment.

    Attributes:
        on_conflict: What to do with a namesake under the same name.
        importer: User that becomes the owner of runs; None keeps the source's.
        artifact_location: Root for the artifacts of new experiments, None for the target's own.
            In a database each has a folder of its number there, and ``source`` leaves all files
            where the source has them.
        marks_content: False when artifacts are left out, so that a later unpack adds them.
        source_tags: True when copies are given source tags, so that a later unpack adds them.
        dry_run: Look, but write nothing.
    """

    on_conflict: OnConflict = OnConflict.MERGE
    importer: str | None = None
    artifact_location: str | None = None
    marks_content: bool = True
    source_tags: bool = False
    dry_run: bool = False

    def mark(self, digest: str | None) -> str:
        """Return what a copy of an object with this digest is marked with once it is whole."""
        whole = "" if self.marks_content else _WITHOUT_ARTIFACTS
        return (digest or "") + whole + (_WITH_SOURCE_TAGS if self.source_tags else "")

    def is_whole(self, mark: str, digest: str | None) -> bool:
        """Whether a copy with this mark has all but, perhaps, source tags."""
        return mark.removesuffix(_WITH_SOURCE_TAGS) == self.mark(digest).removesuffix(
            _WITH_SOURCE_TAGS
        )

    def lacks_source_tags(self, mark: str) -> bool:
        """Whether a whole copy with this mark is still to be given source tags."""
        return self.source_tags and not mark.endswith(_WITH_SOURCE_TAGS)


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
    options: UnpackOptions,
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
