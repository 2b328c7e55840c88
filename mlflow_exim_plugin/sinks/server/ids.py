"""Which object at the target came from which source object, for every kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.schema.provenance import AS_OF_MS, CONTENT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

__all__ = ["IdMap", "KnownModel", "KnownRun"]


@dataclass
class KnownRun:
    """A run that an unpack wrote.

    Attributes:
        id: Its id at the target.
        artifact_uri: Root of its files there.
        content: Value of the tag ``CONTENT``, empty while it is unfinished.
        as_of_ms: When its source was read.
        is_deleted: Whether it is deleted at the target.
        old_artifact_uri: Root of its files at the source, once it came by.
    """

    id: str
    artifact_uri: str
    content: str = ""
    as_of_ms: int = 0
    is_deleted: bool = False
    old_artifact_uri: str = ""

    @classmethod
    def of_tags(
        cls, target_id: str, artifact_uri: str | None, tags: Mapping[str, str], **more: Any
    ) -> Self:
        """Recognise what has these tags."""
        as_of_ms = int(tags.get(AS_OF_MS) or 0)
        return cls(target_id, artifact_uri or "", tags.get(CONTENT, ""), as_of_ms, **more)


@dataclass
class KnownModel(KnownRun):
    """A logged model that an unpack wrote; its id is empty where the target has no logged models.

    Attributes:
        holder: Run that holds its files in ``folder`` where the target has no logged models.
        folder: Empty, or ends with a slash.
        notes_versions: Whether the source model names the versions that were made of it.
        metric_count: How many metrics it has at the target, where that was looked up.
    """

    holder: str = ""
    folder: str = ""
    notes_versions: bool = False
    metric_count: int | None = None


class IdMap:
    """Source ids to target ids; safe to use from several threads.

    Attributes:
        runs: What is known of the runs that came from source runs, by source id.
        logged_models: The same of logged models.
        refused: Logged models that came and that the target did not take.
        refusals: Name of other objects that it did not take, and why, by kind and source id.
    """

    def __init__(self) -> None:
        self.runs: dict[str, KnownRun] = {}
        self.logged_models: dict[str, KnownModel] = {}
        self.refused: set[str] = set()
        self.refusals: dict[tuple[Kind, str], tuple[str, str]] = {}
        self._ids: dict[Kind, dict[str, str]] = {kind: {} for kind in Kind}

    def know(self, kind: Kind, source_id: str, target_id: str) -> None:
        """Remember where an object went."""
        self._ids[kind][source_id] = target_id

    def get(self, kind: Kind, source_id: str) -> str | None:
        """Return the target's id of a source object, None where it is not at the target."""
        if kind is Kind.RUN:
            run = self.runs.get(source_id)
            return run.id if run else None
        if kind is Kind.LOGGED_MODEL:
            model = self.logged_models.get(source_id)
            return model.id or None if model else None
        return self._ids[kind].get(source_id)

    def all(self, kind: Kind) -> Mapping[str, str]:
        """Return every known id of a kind but runs and logged models: source id to target id."""
        return self._ids[kind]
