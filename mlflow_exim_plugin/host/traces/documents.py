"""Trace infos and assessments as the stream carries them, from MLflow's forms and back.

The form of the stream is REST's ``TraceInfoV3`` and ``Assessment`` with times as whole numbers of
milliseconds, without what stands elsewhere: the experiment, the trace id of an assessment.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ARTIFACT_LOCATION",
    "OF_THE_TARGET",
    "SPANS_LOCATION",
    "TRACKING_STORE",
    "assessment_for_rest",
    "document_of_entity",
    "document_of_v2",
    "document_of_v3",
    "info_for_rest",
    "trace_document",
    "trace_state",
]

ARTIFACT_LOCATION = "mlflow.artifactLocation"
SPANS_LOCATION = "mlflow.trace.spansLocation"
TRACKING_STORE = "TRACKING_STORE"
OF_THE_TARGET = frozenset(
    {
        ARTIFACT_LOCATION,
        SPANS_LOCATION,
        "mlflow.trace.archiveLocation",
        "mlflow.trace.archivalFailure",
    }
)
"""Tags that say where a deployment keeps a trace: each sets its own."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MILLISECOND = timedelta(milliseconds=1)
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")
_TIMES = ("create_time", "last_update_time")


def document_of_v3(trace: dict[str, Any]) -> dict[str, Any]:
    """Return the document of a trace for REST's ``TraceInfoV3``."""
    info = dict(trace)
    info.pop("trace_location", None)
    assessments = info.pop("assessments", None) or ()
    if (started := info.pop("request_time", None)) is not None:
        info["request_time_ms"] = _time_ms(started)
    if (lasted := info.pop("execution_duration", None)) is not None:
        info["execution_duration_ms"] = _duration_ms(lasted)
    info.setdefault("state", "STATE_UNSPECIFIED")
    return _document(info, info.get("trace_metadata"), info.get("tags"), assessments)


def document_of_v2(trace: dict[str, Any]) -> dict[str, Any]:
    """Return the document of a trace for REST's ``TraceInfo`` of servers before 3.2."""
    known = {
        "request_id": "trace_id",
        "timestamp_ms": "request_time_ms",
        "execution_time_ms": "execution_duration_ms",
        "status": "state",
    }
    info = {known.get(key, key): value for key, value in trace.items() if key != "experiment_id"}
    metadata = {e["key"]: e.get("value", "") for e in info.pop("request_metadata", ())}
    tags = {e["key"]: e.get("value", "") for e in info.pop("tags", ())}
    for name in ("request_time_ms", "execution_duration_ms"):
        if name in info:
            info[name] = int(info[name])
    info["state"] = trace_state(info.get("state"))
    return _document(info, metadata, tags, ())


def document_of_entity(entity: Any, *, assessments: bool = True) -> dict[str, Any]:
    """Return the document of a trace for ``mlflow.entities.TraceInfo``, of MLflow 2 too.

    Args:
        entity: The trace's info.
        assessments: Whether to take them; some hold what cannot be sent.
    """
    from google.protobuf.json_format import MessageToDict

    if hasattr(entity, "request_time"):
        fields = {
            "trace_id": entity.trace_id,
            "client_request_id": entity.client_request_id,
            "request_preview": entity.request_preview,
            "response_preview": entity.response_preview,
            "request_time_ms": entity.request_time,
            "execution_duration_ms": entity.execution_duration,
            "state": entity.state.value,
        }
        metadata, given = entity.trace_metadata, entity.assessments if assessments else ()
    else:
        fields = {
            "trace_id": entity.request_id,
            "request_time_ms": entity.timestamp_ms,
            "execution_duration_ms": entity.execution_time_ms,
            "state": trace_state(entity.status.value),
        }
        metadata, given = entity.request_metadata, ()
    return _document(
        {name: value for name, value in fields.items() if value is not None},
        metadata,
        entity.tags,
        [MessageToDict(a.to_proto(), preserving_proto_field_name=True) for a in given or ()],
    )


def info_for_rest(
    info: dict[str, Any], experiment_id: str, assessments: Iterable[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Return REST's ``TraceInfoV3`` for a document's info and assessments."""
    trace = {k: v for k, v in info.items() if k not in {"request_time_ms", "execution_duration_ms"}}
    trace["trace_location"] = {
        "type": "MLFLOW_EXPERIMENT",
        "mlflow_experiment": {"experiment_id": experiment_id},
    }
    trace["request_time"] = _time_text(info.get("request_time_ms", 0))
    if (lasted := info.get("execution_duration_ms")) is not None:
        trace["execution_duration"] = f"{Decimal(lasted).scaleb(-3):f}s"
    trace["assessments"] = [assessment_for_rest(a, info["trace_id"]) for a in assessments]
    return trace


def assessment_for_rest(assessment: dict[str, Any], trace_id: str) -> dict[str, Any]:
    """Return REST's ``Assessment`` for a document's assessment."""
    times = {f"{name}_ms" for name in _TIMES}
    sent = {k: v for k, v in assessment.items() if k not in times and k != "valid"}
    for name in _TIMES:
        if (moment := assessment.get(f"{name}_ms")) is not None:
            sent[name] = _time_text(moment)
    return sent | {"trace_id": trace_id}


def _document(
    info: dict[str, Any],
    metadata: dict[str, str] | None,
    tags: dict[str, str] | None,
    assessments: Iterable[dict[str, Any]],
) -> dict[str, Any]:
    return trace_document(info, metadata, tags, [_assessment(a) for a in assessments])


def trace_document(
    info: dict[str, Any],
    metadata: dict[str, str] | None,
    tags: dict[str, str] | None,
    assessments: Iterable[dict[str, Any]],
) -> dict[str, Any]:
    """Return the document of a trace for its parts, with the times as numbers already."""
    info["trace_metadata"] = dict(metadata or {})
    info["tags"] = dict(tags or {})
    listed = [{"metadata": {}} | assessment for assessment in assessments]
    listed.sort(key=lambda assessment: str(assessment.get("assessment_id", "")))
    return {"info": info, "assessments": listed}


def _assessment(assessment: dict[str, Any]) -> dict[str, Any]:
    document = {k: v for k, v in assessment.items() if k not in _TIMES and k != "trace_id"}
    for name in _TIMES:
        if name in assessment:
            document[f"{name}_ms"] = _time_ms(assessment[name])
    document["metadata"] = dict(document.get("metadata") or {})
    document.setdefault("valid", True)  # a store of files does not say it of all
    return document


def trace_state(status: str | None) -> str:
    """Return REST's state of a trace for one that any MLflow keeps."""
    return status if status in {"OK", "ERROR", "IN_PROGRESS"} else "STATE_UNSPECIFIED"


def _time_ms(text: str) -> int:
    match = _TIME.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is no time")
    moment = datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00"))
    return (moment - _EPOCH) // _MILLISECOND + int((match[2] or "0").ljust(3, "0")[:3])


def _time_text(time_ms: int) -> str:
    seconds, rest_ms = divmod(time_ms, 1000)
    moment = _EPOCH + timedelta(seconds=seconds)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest_ms:03}Z"


def _duration_ms(text: str) -> int:
    return int(Decimal(text.removesuffix("s")).scaleb(3))
