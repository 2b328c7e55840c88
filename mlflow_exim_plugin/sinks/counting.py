"""Sink that writes nothing: what a dry run would find."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import ServerError, StoreError
from mlflow_exim_plugin.schema.objects import (
    ENTITY_KINDS,
    Artifact,
    Entity,
    Experiment,
    Failure,
    Kind,
    LoggedModel,
    ModelVersion,
    Run,
    Trace,
)
from mlflow_exim_plugin.sinks.sink import Capabilities

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlflow_exim_plugin.schema.objects import StreamObject
    from mlflow_exim_plugin.schema.report import Report

__all__ = [
    "CountingSink",
    "count_artifacts",
    "count_parts",
    "count_run",
    "count_trace",
    "parts_of",
    "read_through",
    "skip_whole",
]


_CHUNK_BYTES = 1 << 20


class CountingSink:
    """Counts objects as if they had been written; reads no artifact bytes."""

    parallel = 1
    capabilities = Capabilities()

    def write(self, item: StreamObject, report: Report) -> None:
        """Count one object."""
        for issue in item.issues:
            report.issue(issue)
        if isinstance(item, Run):
            count_run(item, report)
            return
        report.written(item.kind)
        if isinstance(item, ModelVersion | LoggedModel):
            count_artifacts(item.artifacts, report)
        elif isinstance(item, Trace):
            count_trace(item, report)
        elif isinstance(item, Entity):
            count_parts(item, report)
            count_artifacts(item.artifacts, report)

    def finish(self, report: Report) -> None:
        """Nothing waits for the end."""


def count_run(run: Run, report: Report) -> None:
    """Count a run and its parts, with its metric rows where they came along."""
    report.written(Kind.RUN)
    came, keys = False, set[str]()
    for part in run.histories:
        came = True
        if isinstance(part, Failure):
            report.failed(part)
        else:
            keys.update(part.keys)
            report.add_rows(part.num_rows)
    if count := len(keys) if came else len(run.metric_keys):
        report.written(Kind.METRIC_HISTORY, count)
    count_artifacts(run.artifacts, report)


def count_trace(trace: Trace, report: Report) -> None:
    """Count the parts of a trace."""
    count_parts(trace, report)
    count_artifacts(trace.attachments, report)


def parts_of(item: StreamObject) -> Iterator[tuple[Kind, int]]:
    """Yield the kind of the parts that are objects of their own, and how many there are."""
    found: list[tuple[Kind, int]] = []
    if isinstance(item, Trace):
        found = [(Kind.SPAN, len(item.spans or ())), (Kind.ASSESSMENT, len(item.assessments))]
    elif isinstance(item, Entity) and (parts := ENTITY_KINDS[item.kind].parts):
        field, kind = parts
        found = [(kind, len(item.document.get(field) or ()))]
    yield from ((kind, count) for kind, count in found if count)


def count_parts(item: StreamObject, report: Report) -> None:
    """Count the parts of an object that are objects of their own."""
    for kind, count in parts_of(item):
        report.written(kind, count)


def skip_whole(item: StreamObject, reason: str, report: Report) -> None:
    """Skip an object with its parts."""
    name = item.name if isinstance(item, Experiment) else item.id
    report.skipped(item.kind, name, reason)
    for kind, count in parts_of(item):
        report.skipped(kind, name, reason, count)


def read_through(artifacts: Iterable[Artifact | Failure]) -> Iterator[Artifact | Failure]:
    """Yield artifacts whose bytes have gone by: their digest tells whether they are others."""
    for artifact in artifacts:
        if isinstance(artifact, Artifact):
            # One that cannot be read has no digest: then the object counts as changed.
            with suppress(ServerError, StoreError), artifact.open() as stream:
                while stream.read(_CHUNK_BYTES):
                    pass
        yield artifact


def count_artifacts(artifacts: Iterable[Artifact | Failure], report: Report) -> None:
    """Count artifacts and their bytes."""
    for artifact in artifacts:
        if isinstance(artifact, Failure):
            report.failed(artifact)
        else:
            report.written(Kind.ARTIFACT)
            report.add_bytes(artifact.size_bytes)
