"""Traces with every hard case, made through MLflow's own client and REST API."""

from __future__ import annotations

import json
import math
import uuid
from dataclasses import dataclass, field
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import (
    AssessmentError,
    AssessmentSource,
    Expectation,
    Feedback,
    SpanEvent,
    TraceInfo,
    TraceLocation,
    TraceState,
)
from mlflow.entities.assessment import IssueReference
from mlflow.entities.link import Link
from mlflow.tracing.attachments import Attachment

__all__ = ["SeededTraces", "put_trace_file", "seed_traces", "started_trace"]

START_NS = 1_700_000_000_123_456_789


@dataclass
class SeededTraces:
    """What was made.

    Attributes:
        experiment: Id of the experiment that has them.
        runs: Run ids by name.
        traces: Trace ids by name.
    """

    experiment: str
    runs: dict[str, str] = field(default_factory=dict)
    traces: dict[str, str] = field(default_factory=dict)


def seed_traces(uri: str, name: str = "traces") -> SeededTraces:
    """Make traces in every form a server of this MLflow keeps.

    Args:
        uri: An HTTP server or a SQLite store.
        name: Experiment to make.
    """
    client = MlflowClient(uri, uri)
    made = SeededTraces(client.create_experiment(name))
    for run in ("source", "linked", "judge"):
        made.runs[run] = client.create_run(made.experiment).info.run_id
    store = client._tracking_client.store
    traces = made.traces
    traces["full"] = _full(client, made)
    traces["error"] = _spans(store, made.experiment, [_error_span()])
    traces["many"] = _many(store, made.experiment)
    traces["only otlp"] = _only_spans(store, made.experiment)
    traces["running"] = started_trace(store, made.experiment, state=TraceState.IN_PROGRESS)
    traces["no payload"] = started_trace(store, made.experiment)
    traces["other id"] = _as_artifact(
        client, made.experiment, f"other-{uuid.uuid4().hex}", [_span("root", 1)]
    )
    traces["as artifact"] = _as_artifact(
        client, made.experiment, f"tr-{uuid.uuid4().hex}", [_span("root", 1), _span("child", 2, 1)]
    )
    _assess(store, made)
    store.link_traces_to_run([traces["error"], traces["many"]], made.runs["linked"])
    return made


def started_trace(
    store: Any,
    experiment: str,
    trace_id: str | None = None,
    *,
    state: TraceState = TraceState.OK,
    tags: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    request_time: int = START_NS // 1_000_000,
) -> str:
    """Make a trace without spans and return its id."""
    trace_id = trace_id or f"tr-{uuid.uuid4().hex}"
    store.start_trace(
        TraceInfo(
            trace_id=trace_id,
            trace_location=TraceLocation.from_experiment_id(experiment),
            request_time=request_time,
            execution_duration=None if state is TraceState.IN_PROGRESS else 1234,
            state=state,
            request_preview="what?" if state is TraceState.OK else None,
            tags={"mlflow.traceName": "started", **(tags or {})},
            trace_metadata=metadata or {},
        )
    )
    return trace_id


def put_trace_file(
    client: MlflowClient, experiment: str, trace_id: str, attributes: dict[str, Any]
) -> str:
    """Make a trace of one span in ``traces.json`` with these attributes."""
    return _as_artifact(client, experiment, trace_id, [_span("alone", 1, **attributes)])


def _span(
    name: str, number: int, parent: int | None = None, /, **attributes: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "id": number,
        "parent": parent,
        "start": START_NS + number,
        "end": START_NS + 5_000_000_000 + number,
        "status": "OK",
        "message": "",
        "attributes": {"mlflow.spanType": "CHAIN"} | attributes,
        "events": [],
        "links": [],
    }


def _error_span() -> dict[str, Any]:
    span = _span("fails", 1)
    span["status"], span["message"] = "ERROR", "it broke: ü"
    span["events"] = [SpanEvent.from_exception(ValueError("nö 🔥"))]
    return span


def _full(client: MlflowClient, made: SeededTraces) -> str:
    store = client._tracking_client.store
    root = _span(
        "root ü 🚀",
        1,
        **{
            "mlflow.spanInputs": {"question": "größe?", "n": 1, "f": 1.5, "none": None},
            "mlflow.spanOutputs": ["a", {"b": [True, False, None]}, ""],
            "nan": math.nan,
            "deep": {"inf": [math.inf, -math.inf], "doubleValue": 3},
            "looks marked": {"doubleValue": "NaN"},
            "large": 2**62,
            "text of a number": "42",
            "empty": {},
            "empty text": "",
            "mlflow.chat.tokenUsage": {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12},
            "mlflow.modelId": "m-" + "0" * 32,
        },
    )
    child = _span("child", 2, 1)
    child["events"] = [
        SpanEvent("tokens", START_NS + 17, {"i": 3, "f": 0.25, "s": "x", "b": True, "l": [1, 2]})
    ]
    child["links"] = [Link(f"tr-{'ab' * 16}", "cd" * 8, {"why": "same", "n": 3})]
    attachment = Attachment(content_type="image/png", content_bytes=b"\x89PNG" + bytes(range(256)))
    trace_id = f"tr-{uuid.uuid4().hex}"
    child["attributes"]["picture"] = attachment.ref(trace_id)
    _spans(store, made.experiment, [root, child, _span("grand", 3, 2)], trace_id, running=[3])
    info = TraceInfo(
        trace_id=trace_id,
        trace_location=TraceLocation.from_experiment_id(made.experiment),
        request_time=START_NS // 1_000_000 - 3,
        execution_duration=7_654,
        state=TraceState.OK,
        client_request_id="client-1",
        request_preview="größe?",
        response_preview="a",
        tags={"mlflow.traceName": "root ü 🚀", "colour": "grün", "long": "x" * 3000},
        trace_metadata={
            "mlflow.sourceRun": made.runs["source"],
            "mlflow.modelId": "m-" + "0" * 32,
            "mlflow.trace.session": "session-1",
            "mlflow.trace.user": "user-1",
            "mlflow.trace.tokenUsage": json.dumps(
                {"input_tokens": 50, "output_tokens": 7, "total_tokens": 57}
            ),
            "mlflow.trace.cost": json.dumps(
                {"input_cost": 0.1, "output_cost": 0.25, "total_cost": 0.35}
            ),
            "own": "ö",
        },
    )
    started = store.start_trace(info)
    _upload(started.tags["mlflow.artifactLocation"], attachment, client.tracking_uri)
    return trace_id


def _many(store: Any, experiment: str) -> str:
    return _spans(
        store,
        experiment,
        [_span("root", 1), *(_span(f"s{n}", n, 1, n=n) for n in range(2, 2001))],
    )


def _only_spans(store: Any, experiment: str) -> str:
    return _spans(store, experiment, [_span("alone", 1, **{"mlflow.spanInputs": "hello"})], info={})


def _spans(
    store: Any,
    experiment: str,
    spans: list[dict[str, Any]],
    trace_id: str | None = None,
    *,
    running: list[int] | None = None,
    info: dict[str, Any] | None = None,
) -> str:
    """Log spans as a client does, and then the trace's info unless ``info`` says not to."""
    trace_id = trace_id or f"tr-{uuid.uuid4().hex}"
    logged = [_entity(span, trace_id) for span in spans]
    for span in logged:
        if running and span._span.context.span_id in running:
            span._span._end_time = None
    store.log_spans(experiment, logged)
    if info is None and running is None:
        started_trace(
            store,
            experiment,
            trace_id,
            state=TraceState(spans[0]["status"]),
            metadata={
                "mlflow.trace_schema.version": "3",
                "mlflow.trace.sizeStats": json.dumps({"num_spans": len(spans)}),
            },
        )
    return trace_id


def _entity(span: dict[str, Any], trace_id: str) -> mlflow.entities.Span:
    from mlflow.entities import Span

    return Span.from_dict(_dict(span, trace_id))


def _dict(span: dict[str, Any], trace_id: str) -> dict[str, Any]:
    """Return what ``Span.to_dict`` of this MLflow gives."""
    import base64

    def encoded(number: int, size: int) -> str:
        return base64.b64encode(number.to_bytes(size, "big")).decode()

    digits = trace_id.removeprefix("tr-")
    otel = int(digits, 16) if trace_id.startswith("tr-") else 0xABCDEF
    attributes = {"mlflow.traceRequestId": trace_id} | span["attributes"]
    return {
        "trace_id": encoded(otel, 16),
        "span_id": encoded(span["id"], 8),
        "parent_span_id": encoded(span["parent"], 8) if span["parent"] else None,
        "name": span["name"],
        "start_time_unix_nano": span["start"],
        "end_time_unix_nano": span["end"],
        "status": {"code": f"STATUS_CODE_{span['status']}", "message": span["message"]},
        "attributes": {k: json.dumps(v, ensure_ascii=False) for k, v in attributes.items()},
        "events": [
            {"name": e.name, "time_unix_nano": e.timestamp, "attributes": e.attributes}
            for e in span["events"]
        ],
        "links": [link.to_dict() for link in span["links"]],
    }


def _as_artifact(
    client: MlflowClient, experiment: str, trace_id: str, spans: list[dict[str, Any]]
) -> str:
    """Keep the spans in ``traces.json``, as MLflow 3.0 to 3.3 did and as other ids need."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    store = client._tracking_client.store
    started = store.start_trace(
        TraceInfo(
            trace_id=trace_id,
            trace_location=TraceLocation.from_experiment_id(experiment),
            request_time=START_NS // 1_000_000,
            execution_duration=10,
            state=TraceState.OK,
            trace_metadata={"mlflow.trace_schema.version": "3"},
        )
    )
    payload = {"spans": [_dict(span, trace_id) for span in spans]}
    location = started.tags["mlflow.artifactLocation"]
    repository = get_artifact_repository(location, tracking_uri=client.tracking_uri)
    repository.upload_trace_data(json.dumps(payload))
    return trace_id


def _upload(location: str, attachment: Attachment, uri: str) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(location, tracking_uri=uri).upload_attachment(
        attachment.id, attachment.content_bytes
    )


def _assess(store: Any, made: SeededTraces) -> None:
    trace_id = made.traces["full"]
    human = AssessmentSource("HUMAN", "anna@example.org")
    judge = AssessmentSource("LLM_JUDGE", "gpt")

    def add(assessment: Any) -> Any:
        assessment.trace_id = trace_id
        return store.create_assessment(assessment)

    first = add(Feedback("correct", value=False, source=judge, rationale="warum nicht"))
    second = add(Feedback("correct", value=True, source=human, overrides=first.assessment_id))
    add(Feedback("correct", value="maybe", source=human, overrides=second.assessment_id))
    add(Feedback("score", value=0.25, source=judge, span_id=f"{2:016x}", metadata={"k": "v"}))
    add(Feedback("broken", error=AssessmentError("E1", "no answer"), source=judge))
    add(Feedback("nothing", value={"a": [1, 2, {"b": None}]}, source=human))
    add(Expectation("facts", value={"must": ["a", "b"], "n": 3}, source=human))
    add(Expectation("answer", value="42", source=human, create_time_ms=1, last_update_time_ms=2))
    add(
        Feedback(
            "by run",
            value=3,
            source=judge,
            metadata={"mlflow.assessment.sourceRunId": made.runs["judge"]},
        )
    )
    add(IssueReference("iss-1", "it stutters", source=human, run_id=made.runs["judge"]))
