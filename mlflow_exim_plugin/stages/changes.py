"""Let only what is new or changed since an earlier state go on to the archive of a set."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.kinds import Kind
from mlflow_exim_plugin.schema.objects import (
    Entity,
    Experiment,
    Failure,
    LoggedModel,
    Loss,
    ModelVersion,
    RegisteredModel,
    Run,
    Trace,
    Unpacked,
)
from mlflow_exim_plugin.schema.provenance import HOLLOW
from mlflow_exim_plugin.stages.marks import mark_of, path_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from mlflow_exim_plugin.schema.objects import Artifact, StreamItem, StreamObject
    from mlflow_exim_plugin.stages.marks import Marks

__all__ = ["Changes", "Seen"]


@dataclass(slots=True)
class Seen:
    """What was seen of an object at the source.

    Attributes:
        kind: Its kind.
        id: Its id.
        mark: See ``stages.marks``.
        is_unchanged: Whether it is as it was.
        goes_on: Whether it is packed: because it is not, or something that belongs to it is not.
        start_ms: Of a run, when it began.
        name: Of a workspace, experiment, registered model or prompt.
    """

    kind: Kind
    id: str
    mark: bytes
    is_unchanged: bool
    goes_on: bool = False
    start_ms: int | None = None
    name: str = ""


class Changes:
    """A stage before the archive of a set.

    Args:
        marks: Those of the state before.

    Attributes:
        seen: What the source has, by path; see ``stages.marks.path_of``.
        owners: Documents of experiments, registered models and prompts by path, in order, without
            what they list.
        tree: Tree of the workspace whose objects come.
        unlisted: Ids of failures that were known before anything was read.
    """

    def __init__(self, marks: Marks) -> None:
        self._marks = marks
        self.seen: dict[str, Seen] = {}
        self.owners: dict[str, dict[str, Any]] = {}
        self.unlisted: set[str] = set()
        self.tree = layout.TREE
        self._workspace: StreamObject | None = None
        self._owner: StreamObject | None = None

    def __call__(self, stream: Iterator[StreamItem]) -> Iterator[StreamItem]:
        """Yield what is new or changed, and before it what it belongs to."""
        for item in stream:
            if isinstance(item, Failure | Loss | Unpacked):
                yield item
                continue
            if isinstance(item, Entity) and item.kind is Kind.WORKSPACE:
                self.tree = layout.workspace_tree(item.id)
                self._workspace = self._owner = None
            elif not _has_owner(item):
                self._owner = None
            failures = self._look(item)
            if not self._seen_at(item).is_unchanged:
                for waiting in (self._workspace, self._owner, item):
                    if waiting is not None:
                        self._seen_at(waiting).goes_on = True
                        yield waiting
                self._workspace = self._owner = None
                continue
            yield from failures
            if isinstance(item, Experiment | RegisteredModel):
                self._owner = item
            elif item.kind is Kind.WORKSPACE:
                self._workspace = item

    def unchanged(self) -> Counter[Kind]:
        """Return how many objects of each kind are as they were."""
        return Counter(seen.kind for seen in self.seen.values() if not seen.goes_on)

    def _seen_at(self, item: StreamObject) -> Seen:
        return self.seen[path_of(item, self.tree)]

    def _look(self, item: StreamObject) -> list[Failure]:
        """Note an object; returns what of its files cannot be read."""
        path = path_of(item, self.tree)
        files: list[Artifact | Failure] = []
        if isinstance(item, Run | LoggedModel | ModelVersion | Entity):
            files = [*item.artifacts]
            item.artifacts = files
        elif isinstance(item, Trace):
            files = [*item.attachments]
            item.attachments = files
        known = item.mark if isinstance(item, Run | Trace) else b""
        mark = self._marks.as_known(path, known or mark_of(item, files))
        failures = [file for file in files if isinstance(file, Failure)]
        self.unlisted.update(failure.id for failure in failures)
        same = self._marks.same(path, mark)
        if isinstance(item, Run) and HOLLOW in item.tags and self._marks.knows(path):
            same, mark = True, b""  # what it was before it was hollowed is what is kept of it
        start_ms = item.info.get("start_time") if isinstance(item, Run) else None
        name = item.name if isinstance(item, Experiment | RegisteredModel) else ""
        name = item.id if item.kind is Kind.WORKSPACE else name
        self.seen[path] = Seen(item.kind, item.id, mark, same, start_ms=start_ms, name=name)
        if isinstance(item, Experiment):
            self.owners[path] = {"experiment": item.document}
        elif isinstance(item, RegisteredModel):
            self.owners[path] = {"registered_model": item.document}
        return failures


def _has_owner(item: StreamObject) -> bool:
    return isinstance(item, Run | LoggedModel | Trace | ModelVersion) or (
        isinstance(item, Entity) and bool(item.experiment_id)
    )
