"""A trace on its way to a deployment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.sinks.server.traces.comparison import compare_assessments, compare_info

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.objects import Trace

__all__ = ["Job"]


@dataclass
class Job:
    """A trace on its way.

    Attributes:
        trace: The trace.
        experiment_id: Where it goes.
        digest: What ``CONTENT`` will say.
        info: Its info with the target's ids.
        spans: Its spans with the target's ids.
        at_start: Assessments that are written with the info.
        afterwards: Assessments that override others, in order.
        later: Assessments that come when their run is deleted.
        whole: Whether everything has arrived so far.
        needs_info: Whether its info is to be written.
        in_file: Whether its spans go into a file.
        spans_last: Whether its spans go by OTLP after its info.
        document: What the target has of it, empty while that is not known.
        marked: Whether ``CONTENT`` is there.
    """

    trace: Trace
    experiment_id: str
    digest: str
    info: dict[str, Any]
    spans: list[dict[str, Any]] | None
    at_start: list[dict[str, Any]] = field(default_factory=list)
    afterwards: list[dict[str, Any]] = field(default_factory=list)
    later: list[dict[str, Any]] = field(default_factory=list)
    whole: bool = True
    needs_info: bool = True
    in_file: bool = False
    spans_last: bool = False
    document: dict[str, Any] = field(default_factory=dict)
    marked: bool = False

    @property
    def has_more(self) -> bool:
        """Whether something follows its info and spans."""
        return bool(self.later or self.afterwards or self.trace.attachments)

    def differences(self) -> list[tuple[Kind, str]]:
        """Return what of its info and first assessments the target has differently."""
        if not self.document:
            return [(Kind.TRACE, "its info cannot be read back")]
        of_trace = compare_info(self.trace, self.info, self.document)
        return [(Kind.TRACE, what) for what in of_trace] + [
            (Kind.ASSESSMENT, what) for what in compare_assessments(self.at_start, self.document)
        ]
