"""The target's ids in place of the source's inside a trace, and the order of its assessments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.traces.documents import OF_THE_TARGET
from mlflow_exim_plugin.schema.objects import LINKED_RUNS, LINKS, SOURCE_RUN, Kind
from mlflow_exim_plugin.schema.provenance import ORIGIN, is_provenance

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.objects import Trace
    from mlflow_exim_plugin.sinks.notes import Notes
    from mlflow_exim_plugin.sinks.server.ids import IdMap

__all__ = ["JUDGE_RUN", "TraceReferences"]

JUDGE_RUN = "mlflow.assessment.sourceRunId"
_MODEL = "mlflow.modelId"


class TraceReferences:
    """Maps what a trace refers to; what is not at the target keeps its id and is noted.

    Args:
        ids: Source ids to target ids.
        notes: Collects what is lost.
    """

    def __init__(self, ids: IdMap, notes: Notes) -> None:
        self._ids = ids
        self._notes = notes

    def is_waiting(self, trace: Trace) -> bool:
        """Say whether it refers to a run or logged model that may still come, another time."""
        metadata = trace.info["trace_metadata"]
        made_by = (metadata.get(SOURCE_RUN), metadata.get(_MODEL))
        refused = self._ids.refused
        return any(id_ in refused for id_ in (*made_by, *trace.info.get(LINKED_RUNS, ())))

    def info(self, trace: Trace) -> dict[str, Any]:
        """Return the info as the target is to have it, without what targets set themselves."""
        info = {name: value for name, value in trace.info.items() if name not in LINKS}
        info["tags"] = {
            key: value
            for key, value in trace.info["tags"].items()
            if not is_provenance(key) and key not in OF_THE_TARGET
        }
        if trace.came_from:
            info["tags"][ORIGIN] = trace.came_from
        metadata = dict(trace.info["trace_metadata"])
        self._map(metadata, SOURCE_RUN, Kind.RUN, trace.id)
        self._map(metadata, _MODEL, Kind.LOGGED_MODEL, trace.id)
        info["trace_metadata"] = metadata
        return info

    def spans(self, trace: Trace) -> list[dict[str, Any]] | None:
        """Return the spans as the target is to have them."""
        if trace.spans is None:
            return None
        return [self._mapped_span(span, trace.id) for span in trace.spans]

    def assessments(self, trace: Trace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the assessments to write with the info, and those that must come after.

        An assessment becomes invalid by one that overrides it being added, and in no other way.
        """
        mapped = [self._mapped_assessment(a, trace.id) for a in trace.assessments]
        by_id = {a.get("assessment_id"): a for a in mapped}
        first, after = [], []
        overridden = set()
        for assessment in mapped:
            older = by_id.get(assessment.get("overrides"))
            if older is not None and older.get("valid") is False:
                after.append(assessment)
                overridden.add(older.get("assessment_id"))
            else:
                first.append(assessment)
        for assessment in mapped:
            if (
                assessment.get("valid") is False
                and assessment.get("assessment_id") not in overridden
            ):
                what = "it becomes valid: what overrode it is gone"
                self._notes.add(
                    Kind.ASSESSMENT, f"{trace.id}/{assessment.get('assessment_id')}", what
                )

        def depth(assessment: dict[str, Any] | None, steps: int = 0) -> int:
            if assessment is None or steps > len(mapped):
                return steps
            return depth(by_id.get(assessment.get("overrides")), steps + 1)

        return first, sorted(after, key=depth)

    def _map(self, values: dict[str, Any], key: str, kind: Kind, trace_id: str) -> None:
        """Put the target's id in the place of the source's."""
        old = values.get(key)
        if not isinstance(old, str) or not old:
            return
        new = self._ids.get(kind, old)
        if new is None:
            what = f"{key} keeps the source's id: no such {str(kind).replace('_', ' ')} is there"
            self._notes.add(Kind.TRACE, trace_id, what)
        else:
            values[key] = new

    def _mapped_span(self, span: dict[str, Any], trace_id: str) -> dict[str, Any]:
        if _MODEL not in span["attributes"]:
            return span
        attributes = dict(span["attributes"])
        self._map(attributes, _MODEL, Kind.LOGGED_MODEL, trace_id)
        return span | {"attributes": attributes}

    def _mapped_assessment(self, assessment: dict[str, Any], trace_id: str) -> dict[str, Any]:
        mapped = dict(assessment)
        mapped["metadata"] = metadata = dict(assessment.get("metadata") or {})
        self._map(metadata, JUDGE_RUN, Kind.RUN, trace_id)
        if "issue" in assessment:
            self._map(mapped, "assessment_name", Kind.ISSUE, trace_id)
        return mapped
