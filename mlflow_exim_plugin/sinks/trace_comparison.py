"""What a target made of a trace, beside what was sent: each difference becomes a note."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.trace_documents import OF_THE_TARGET
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.schema.provenance import TAGS

if TYPE_CHECKING:
    from mlflow_exim_plugin.sinks.notes import Notes

__all__ = ["compare_assessments", "compare_info", "compare_span"]

_FINALIZED = "mlflow.trace.infoFinalized"


def compare_span(notes: Notes, trace_id: str, span: dict[str, Any], there: dict[str, Any]) -> None:
    """Note what differs between a span that was sent and the one that is there."""
    if span == there:
        return
    for name in span.keys() | there.keys():
        if name != "attributes" and span.get(name) != there.get(name):
            notes.add(Kind.SPAN, trace_id, f"{name} of spans is another at the target")
    ours, found = span["attributes"], there["attributes"]
    for key in ours.keys() | found.keys():
        if key not in ours:
            notes.add(Kind.SPAN, trace_id, f"the target adds the attribute {key} to spans")
        elif ours[key] != found.get(key):
            notes.add(Kind.SPAN, trace_id, f"attribute {key} is another at the target")


def compare_info(
    notes: Notes,
    trace_id: str,
    info: dict[str, Any],
    document: dict[str, Any],
    *,
    sure: bool = True,
) -> None:
    """Note what reads differently; unless ``sure``, only what was given at the start."""
    found = document["info"]
    if sure:
        for name in info.keys() | found.keys():
            if name in {"tags", "trace_metadata"} or info.get(name) == found.get(name):
                continue
            what = f"{name} is another at the target"
            if name not in info:
                what = f"the target makes {name} from the spans"
            notes.add(Kind.TRACE, trace_id, what)
    for part, ignored in (("tags", TAGS | OF_THE_TARGET), ("trace_metadata", {_FINALIZED})):
        ours, theirs = info[part], found[part]
        for key in (ours.keys() | theirs.keys()) - ignored:
            if key not in theirs:
                notes.add(Kind.TRACE, trace_id, f"{part} {key} did not arrive")
            elif key not in ours:
                notes.add(Kind.TRACE, trace_id, f"the target adds {part} {key}")
            elif ours[key] != theirs[key]:
                notes.add(Kind.TRACE, trace_id, f"{part} {key} reads differently")


def compare_assessments(
    notes: Notes, trace_id: str, sent: list[dict[str, Any]], found: list[dict[str, Any]]
) -> None:
    """Note what differs in the assessments that were sent with a trace's info."""
    there = {a.get("assessment_id"): a for a in found}
    for assessment in sent:
        name = f"{trace_id}/{assessment.get('assessment_id')}"
        other = there.get(assessment.get("assessment_id"))
        if other is None:
            notes.add(Kind.ASSESSMENT, name, "it did not arrive")
            continue
        for field_name in assessment.keys() | other.keys():
            if field_name != "valid" and assessment.get(field_name) != other.get(field_name):
                notes.add(Kind.ASSESSMENT, name, f"{field_name} is another at the target")
