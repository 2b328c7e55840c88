"""Sink that writes nothing: what a dry run would find."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.schema.objects import Artifact, Failure, Kind, ModelVersion, Run

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow_exim_plugin.schema.objects import StreamObject
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["CountingSink", "count_artifacts", "count_run"]


class CountingSink:
    """Counts objects as if they had been written; reads no metric rows and no artifact bytes."""

    parallel = 1

    def write(self, item: StreamObject, report: Report) -> None:
        """Count one object."""
        if isinstance(item, Run):
            count_run(item, report)
            return
        if isinstance(item, ModelVersion):
            count_artifacts(item.artifacts, report)
        report.written(item.kind)

    def finish(self, report: Report) -> None:
        """Nothing waits for the end."""


def count_run(run: Run, report: Report) -> None:
    """Count a run and its parts."""
    report.written(Kind.RUN)
    if run.metric_keys:
        report.written(Kind.METRIC_HISTORY, len(run.metric_keys))
    count_artifacts(run.artifacts, report)


def count_artifacts(artifacts: Iterable[Artifact | Failure], report: Report) -> None:
    """Count artifacts and their bytes."""
    for artifact in artifacts:
        if isinstance(artifact, Failure):
            report.failed(artifact)
        else:
            report.written(Kind.ARTIFACT)
            report.add_bytes(artifact.size_bytes)
