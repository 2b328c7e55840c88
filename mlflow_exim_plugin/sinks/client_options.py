"""How a deployment is written to."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["OnConflict", "UnpackOptions"]

_WITHOUT_ARTIFACTS = " without all artifacts"
_WITH_SOURCE_TAGS = " with source tags"


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
