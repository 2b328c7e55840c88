"""A sink that notes what became of each object in the archive of a set."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_exim_plugin.kinds import Kind
from mlflow_exim_plugin.schema.objects import Experiment, RegisteredModel
from mlflow_exim_plugin.sets.state import Row
from mlflow_exim_plugin.stages.marks import path_of

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.objects import StreamObject
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.archive.sink import ArchiveSink
    from mlflow_exim_plugin.stages.changes import Changes

__all__ = ["RecordingSink"]

_COUNTED = (
    Kind.METRIC_HISTORY,
    None,
    Kind.ARTIFACT,
    None,
    Kind.SPAN,
    Kind.ASSESSMENT,
    Kind.DATASET_RECORD,
)
"""The kinds of a row's parts; rows and bytes are no objects."""


class RecordingSink:
    """Writes an archive, and notes its objects.

    Args:
        sink: Writes it.
        changes: The stage before it.
        block: Which block of numbers the tables of the archive have.

    Attributes:
        rows: The objects that are written, by path, without their marks; what lists others has no
            digest yet.
    """

    parallel = 1

    def __init__(self, sink: ArchiveSink, changes: Changes, block: int) -> None:
        self._sink = sink
        self._changes = changes
        self._block = block
        self.capabilities = sink.capabilities
        self.rows: dict[str, Row] = {}

    def write(self, item: StreamObject, report: Report) -> None:
        """Write one object with its parts, see ``ArchiveSink``."""
        before = _counted(report)
        self._sink.write(item, report)
        parts = tuple(now - then for now, then in zip(_counted(report), before, strict=True))
        digest = self._sink.content_root.last
        if isinstance(item, Experiment | RegisteredModel):
            digest = b""
        path = path_of(item, self._changes.tree)
        self.rows[path] = Row(item.kind, digest, parts=parts, block=self._block)

    def finish(self, report: Report) -> None:
        """Write what is still open, and the archive's end."""
        self._sink.finish(report)
        for path, member in self._sink.place.numbered.items():
            if path in self.rows:
                self.rows[path] = replace(self.rows[path], member=member)


def _counted(report: Report) -> tuple[int, ...]:
    counts = [0 if kind is None else report.written_of(kind) for kind in _COUNTED]
    counts[1], counts[3] = report.metric_rows, report.artifact_bytes
    return tuple(counts)
