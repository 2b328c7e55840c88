"""What a target made of a trace, beside what was sent: each difference becomes a note."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.traces.documents import (
    OF_THE_TARGET,
    SPANS_LOCATION,
    TRACKING_STORE,
)
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.schema.provenance import (
    AS_OF_MS,
    CONTENT,
    CONTENT_WITH_SPANS,
    is_provenance,
    names_of,
    told,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_exim_plugin.schema.objects import Trace
    from mlflow_exim_plugin.sinks.notes import Notes

__all__ = [
    "compare_assessments",
    "compare_info",
    "compare_span",
    "content_there",
    "is_targets_own",
    "leaves_info",
    "missing_assessments",
    "missing_spans",
    "shortened",
]

_FINALIZED = "mlflow.trace.infoFinalized"
_KEY_CHARACTERS, _VALUE_CHARACTERS, _PREVIEW_CHARACTERS = 250, 8000, 1000
_PREVIEWS = {"request_preview": "mlflow.spanInputs", "response_preview": "mlflow.spanOutputs"}


def leaves_info(info: dict[str, Any], spans: list[dict[str, Any]]) -> bool:
    """Whether a target that has the info most likely leaves it alone when it gets the spans.

    Targets widen a trace's time to that of its spans, end one whose root has ended, and make the
    previews that are not there.
    """
    if info["state"] not in {"OK", "ERROR"} or "execution_duration_ms" not in info:
        return False
    end_ms = info["request_time_ms"] + info["execution_duration_ms"]
    roots = [span["attributes"] for span in spans if span["parent_span_id"] is None]
    return (
        info["request_time_ms"] <= min(span["start_time_ns"] for span in spans) // 1_000_000
        and max(span["end_time_ns"] or 0 for span in spans) // 1_000_000 <= end_ms
        and all(
            preview in info or not any(root.get(source) for root in roots)
            for preview, source in _PREVIEWS.items()
        )
    )


def shortened(info: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return an info as the databases of most servers hold it, and what that takes away."""
    notes = []
    made = dict(info)
    for name in _PREVIEWS.keys() & info.keys():
        if len(info[name]) > _PREVIEW_CHARACTERS:
            made[name] = info[name][:_PREVIEW_CHARACTERS]
            notes.append(f"cut, {name}")
    for part in ("tags", "trace_metadata"):
        made[part] = {}
        for key, value in info[part].items():
            if len(key) > _KEY_CHARACTERS:
                notes.append(f"left out, {part} {key[:20]!r}...")
                continue
            made[part][key] = value[:_VALUE_CHARACTERS]
            if len(value) > _VALUE_CHARACTERS:
                notes.append(f"cut, {part} {key!r}")
    return made, sorted(notes)


def content_there(tags: Mapping[str, str]) -> str:
    """Return the digest of what was written whole of a trace that keeps its id, empty without."""
    if not tags.keys().isdisjoint(names_of(CONTENT)):
        return told(tags, CONTENT)
    has_spans = tags.get(SPANS_LOCATION) == TRACKING_STORE
    return told(tags, CONTENT_WITH_SPANS) if has_spans else ""


def is_targets_own(
    trace: Trace, info: dict[str, Any], document: dict[str, Any], missing_spans: int
) -> bool:
    """Whether no unpack made a trace that is this one: what unpack makes, it marks.

    Of one that has no info yet only that nothing of it is missing can tell.
    """
    there = document["info"]
    if told(there["tags"], AS_OF_MS):
        return False
    return _FINALIZED in there["trace_metadata"] or not (
        missing_spans or missing_assessments(trace, document) or compare_info(trace, info, document)
    )


def missing_spans(trace: Trace, there: Trace) -> int | None:
    """Return how many of its spans a trace at the target lacks, None where that has others."""
    ours = {span["span_id"]: span for span in trace.spans or ()}
    for span in there.spans or ():
        mine = ours.pop(span["span_id"], None)
        if mine is None or any(mine[name] != span[name] for name in ("name", "start_time_ns")):
            return None
    return len(ours)


def missing_assessments(trace: Trace, document: dict[str, Any]) -> set[Any]:
    """Return the ids of the assessments that a trace at the target lacks."""
    there = {assessment.get("assessment_id") for assessment in document["assessments"]}
    return {assessment.get("assessment_id") for assessment in trace.assessments} - there


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
    trace: Trace, info: dict[str, Any], document: dict[str, Any], *, is_started: bool = False
) -> list[str]:
    """Return what of a trace's info reads differently.

    Args:
        trace: The trace as it came.
        info: What was sent.
        document: What the target says.
        is_started: The target made it before the trace's end and state were set.
    """
    found = document["info"]
    differing = []
    are_rows = SPANS_LOCATION in found["tags"]
    if trace.spans and are_rows != (SPANS_LOCATION in trace.info["tags"]):
        places = (
            "rows at the target, were a file" if are_rows else "a file at the target, were rows"
        )
        differing.append(f"{SPANS_LOCATION}: spans are {places}")
    if not is_started:
        for name in info.keys() | found.keys():
            if name in {"tags", "trace_metadata"} or info.get(name) == found.get(name):
                continue
            if name in info:
                differing.append(f"{name} is another at the target")
            else:
                differing.append(f"the target makes {name} from the spans")
    for part in ("tags", "trace_metadata"):
        ours, theirs = info[part], found[part]
        for key in ours.keys() | theirs.keys():
            if part == "tags" and (key in OF_THE_TARGET or is_provenance(key)):
                continue
            if key not in theirs:
                differing.append(f"{part} {key} did not arrive")
            elif key not in ours:
                differing.append(f"the target adds {part} {key}")
            elif ours[key] != theirs[key]:
                differing.append(f"{part} {key} reads differently")
    return differing


def compare_assessments(sent: list[dict[str, Any]], document: dict[str, Any]) -> list[str]:
    """Return what differs in assessments, the effects of later ones aside."""
    there = {a.get("assessment_id"): a for a in document["assessments"]}
    differing = []
    for assessment in sent:
        name = assessment.get("assessment_name")
        other = there.get(assessment.get("assessment_id"))
        if other is None:
            differing.append(f"assessment {name} did not arrive")
            continue
        differing += [
            f"{field} of assessment {name} is another at the target"
            for field in assessment.keys() | other.keys()
            if field != "valid" and assessment.get(field) != other.get(field)
        ]
    return differing
