"""Which runs and traces of a deployment are as they were earlier, before they are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.host.open.workspaces import DEFAULT
from mlflow_exim_plugin.host.sql.histories import StoredHistories
from mlflow_exim_plugin.schema.objects import Failure, Run, Trace
from mlflow_exim_plugin.stages.marks import mark_of, path_of

if TYPE_CHECKING:
    from concurrent.futures import Future

    from typing_extensions import Self

    from mlflow_exim_plugin.host.api.histories import HistorySource
    from mlflow_exim_plugin.sources.artifacts import ArtifactReader, Listing
    from mlflow_exim_plugin.stages.marks import Marks

__all__ = ["KnownState"]


@dataclass(frozen=True)
class KnownState:
    """What a workspace had at an earlier state.

    Attributes:
        marks: The marks of all that was there.
        tree: The workspace's tree.
    """

    marks: Marks
    tree: str

    @classmethod
    def of(cls, marks: Marks | None, workspace: dict[str, Any] | None) -> Self | None:
        """Return those of a workspace, REST's ``Workspace``; None where nothing is known."""
        if marks is None:
            return None
        if workspace is None or workspace["name"] == DEFAULT:
            return cls(marks, layout.TREE)
        return cls(marks, layout.workspace_tree(workspace["name"]))

    def runs_among(
        self,
        runs: list[Run | Failure],
        listings: dict[str, Future[Listing]],
        files: ArtifactReader,
        histories: HistorySource,
    ) -> set[str]:
        """Give some runs their marks; return the ids of those that are as they were."""
        found = [run for run in runs if isinstance(run, Run)]
        if isinstance(histories, StoredHistories):
            stamps = histories.stamps([run.id for run in found])
            for run in found:
                run.stamp = stamps.get(run.id, "0")
        if self.marks.is_empty:
            return set()
        unchanged = set()
        for run in found:
            listed = files.named(listings[run.id].result())
            mark = mark_of(run, listed)
            if self.marks.same(path_of(run, self.tree), mark):
                run.mark = mark
                run.artifacts = [file for file in listed if isinstance(file, Failure)]
                unchanged.add(run.id)
                del listings[run.id]
        return unchanged

    def has(self, trace: Trace) -> bool:
        """Whether a trace with a stamp is as it was, and had no files: then it gets its mark."""
        if not trace.stamp or self.marks.is_empty:
            return False
        mark = mark_of(trace)
        if self.marks.same(path_of(trace, self.tree), mark):
            trace.mark = mark
        return bool(trace.mark)
