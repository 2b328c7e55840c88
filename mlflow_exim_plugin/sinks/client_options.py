"""How a deployment is written to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["OnConflict", "UnpackOptions"]


class OnConflict(str, Enum):
    """What to do with a stranger under the same name."""

    MERGE = "merge"
    SKIP = "skip"
    RENAME = "rename"
    FAIL = "fail"


@dataclass(frozen=True)
class UnpackOptions:
    """How to write to a deployment.

    Attributes:
        on_conflict: What to do with a stranger under the same name.
        user: ``source`` keeps the users, ``importer`` writes one's own.
        importer: User name for ``importer``.
        artifact_location: Root for the artifacts of new experiments, None for the target's own.
        marks_content: False when artifacts are left out, so that a later unpack adds them.
        dry_run: Look, but write nothing.
    """

    on_conflict: OnConflict = OnConflict.MERGE
    importer: str | None = None
    artifact_location: str | None = None
    marks_content: bool = True
    dry_run: bool = False
