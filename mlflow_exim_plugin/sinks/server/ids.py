"""Which object at the target came from which source object, for every kind."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.schema.provenance import AS_OF_MS, CONTENT, ORIGIN, origins, told
from mlflow_exim_plugin.sinks.left_out import LeftOut

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

__all__ = ["IdMap", "KnownModel", "KnownRun", "Planned"]


class Planned(str):
    """Id of an object that a dry run would make: nothing at the target has it.

    Args:
        source_id: The object's id at the source.
    """

    __slots__ = ()

    def __new__(cls, source_id: str) -> Self:
        """Make the id."""
        return super().__new__(cls, f"(new id of {source_id})")


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
        is_copy: Whether an unpack made it, when this one began.
        fingerprint: Of a run's state, when this unpack began.
    """

    id: str
    artifact_uri: str
    content: str = ""
    as_of_ms: int = 0
    is_deleted: bool = False
    old_artifact_uri: str = ""
    is_copy: bool = False
    fingerprint: int = 0

    @classmethod
    def of_tags(
        cls, target_id: str, artifact_uri: str | None, tags: Mapping[str, str], **more: Any
    ) -> Self:
        """Recognise what has these tags."""
        as_of_ms = int(told(tags, AS_OF_MS) or 0)
        content, is_copy = told(tags, CONTENT), bool(told(tags, ORIGIN))
        return cls(target_id, artifact_uri or "", content, as_of_ms, is_copy=is_copy, **more)


@dataclass
class KnownModel(KnownRun):
    """A logged model that an unpack wrote; its id is empty where the target has no logged models.

    Attributes:
        holder: Run that holds its files in ``folder`` where the target has no logged models.
        folder: Empty, or ends with a slash.
        notes_versions: Whether the source model names the versions that were made of it.
        metric_count: How many metrics it has at the target, where that was looked up.
        refused: Params and tags that the target does not take.
    """

    holder: str = ""
    folder: str = ""
    notes_versions: bool = False
    metric_count: int | None = None
    refused: set[tuple[Kind, str]] = field(default_factory=set)


class IdMap:
    """Source ids to target ids; safe to use from several threads.

    Attributes:
        runs: What is known of the runs that came from source runs, by source id.
        logged_models: The same of logged models.
        relatives: Runs and logged models of each experiment at the target, by all ids that they
            have and had.
        refused: Logged models that came and that the target did not take, and runs that may still
            come: they were not refused for what they are.
        left: Runs and logged models that were left out.
        refusals: Name of other objects that it did not take, and why, by kind and source id.
    """

    def __init__(self) -> None:
        self.runs: dict[str, KnownRun] = {}
        self.logged_models: dict[str, KnownModel] = {}
        self.relatives: dict[str, dict[str, KnownRun]] = {}
        self.refused: set[str] = set()
        self.left = LeftOut()
        self.refusals: dict[tuple[Kind, str], tuple[str, str]] = {}
        self._ids: dict[Kind, dict[str, str]] = {kind: {} for kind in Kind}

    def meet(self, experiment_id: str, own: str, tags: Mapping[str, str], known: KnownRun) -> None:
        """Remember a run or logged model of an experiment at the target by what it is and was."""
        relatives = self.relatives.setdefault(experiment_id, {})
        for identity in origins(own, tags):
            relatives.setdefault(identity, known)
        relatives[own] = known

    def relative(self, experiment_id: str, wanted: list[str]) -> KnownRun | None:
        """Return what an experiment at the target has of an object, by all that this is and was.

        That is the object itself, one that it was made of, or one that was made of it.
        """
        relatives = self.relatives.get(experiment_id, {})
        for identity in wanted:
            known = relatives.get(identity)
            if known is not None and (known.id == identity or identity == wanted[0]):
                return known
        return None

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
