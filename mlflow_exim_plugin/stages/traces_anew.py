"""Give traces new ids where they go into another experiment of the deployment they are in.

A deployment has each id of a trace and of an assessment once. The new ones follow from the old
ones and the experiment's new name, so that the same copy is recognised the next time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.traces.files import ATTACHMENT_URI
from mlflow_exim_plugin.schema.digests import sha256_of
from mlflow_exim_plugin.schema.objects import Experiment, Trace
from mlflow_exim_plugin.schema.provenance import chained

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.schema.objects import StreamItem

__all__ = ["traces_anew"]

_IDS = ("assessment_id", "overrides")
_LONGEST_START = 17
"""Ids have up to 50 characters."""


def traces_anew(stream: Iterator[StreamItem]) -> Iterator[StreamItem]:
    """Yield a stream in which traces of experiments with another name have other ids.

    It comes after ``Renaming``.
    """
    name = ""
    for item in stream:
        if isinstance(item, Experiment):
            name = item.name if item.is_renamed else ""
        yield _anew(item, name) if isinstance(item, Trace) and name else item


def _anew(trace: Trace, name: str) -> Trace:
    def other(identity: str) -> str:
        """Return an id of the same form."""
        start, dash, _ = identity.rpartition("-")
        digest = sha256_of(f"{identity}\n{name}".encode()).hexdigest()
        return f"{start[-_LONGEST_START:]}{dash}{digest[:32]}"

    new = other(trace.id)
    assessments = [
        assessment | {key: other(assessment[key]) for key in _IDS if assessment.get(key)}
        for assessment in trace.assessments
    ]
    info = {**trace.info, "trace_id": new}
    return replace(
        trace,
        document={**trace.document, "info": info, "assessments": assessments},
        spans=None if trace.spans is None else [_of(span, trace.id, new) for span in trace.spans],
        came_from=chained(trace.id, trace.info["tags"]),
        digest=None,
    )


def _of(span: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """Return a span of the trace of another id, its attachments too."""
    attributes = {
        key: _renamed(value, f"trace_id={old}", f"trace_id={new}")
        for key, value in span["attributes"].items()
    }
    is_named = old == f"tr-{span['otel_trace_id']}"
    named = {"otel_trace_id": new.removeprefix("tr-")} if is_named else {}
    return span | {"attributes": attributes} | named


def _renamed(value: Any, old: str, new: str) -> Any:
    is_attached = isinstance(value, str) and ATTACHMENT_URI.decode() in value
    return value.replace(old, new) if is_attached else value
