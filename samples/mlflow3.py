"""What only MLflow 3 stores, as a source would give it, and parts of traces with one fault each."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_exim_plugin.schema.canonical import content_digest
from mlflow_exim_plugin.schema.objects import (
    Artifact,
    Entity,
    Experiment,
    Failure,
    Kind,
    LoggedModel,
    Loss,
    ModelVersion,
    RegisteredModel,
    Run,
    Trace,
)
from mlflow_exim_plugin.schema.traces import TABLES, traces_writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "OTEL_ID",
    "PART",
    "TRACE_ID",
    "everything",
    "logged_model",
    "span",
    "trace",
    "trace_vectors",
    "with_tables",
]

NOW_MS = 1_790_000_000_123
RUN = "5" * 32
MODEL = "m-" + "6" * 32
OTEL_ID = "7" * 32
TRACE_ID = f"tr-{OTEL_ID}"
PART = "data/experiments/1/traces/part-00000.json"


def files(contents: dict[str, bytes]) -> list[Artifact | Failure]:
    """Return artifacts that give these bytes."""
    return [
        Artifact(path, len(data), lambda data=data: io.BytesIO(data))  # type: ignore[misc]
        for path, data in sorted(contents.items())
    ]


def logged_model(model_id: str, name: str, **info: Any) -> LoggedModel:
    """Return a logged model as REST shows it, with two files."""
    document = {
        "info": {
            "model_id": model_id,
            "experiment_id": "1",
            "name": name,
            "creation_timestamp_ms": NOW_MS - 50_000,
            "last_updated_timestamp_ms": NOW_MS - 49_000,
            "artifact_uri": f"/srv/mlruns/1/models/{model_id}/artifacts",
            "status": "LOGGED_MODEL_READY",
            "model_type": "classifier",
            "source_run_id": RUN,
            "tags": [{"key": "team", "value": "iris"}],
            **info,
        },
        "data": {
            "params": [{"key": "depth", "value": "3"}],
            "metrics": [
                {
                    "key": "acc",
                    "value": 0.5,
                    "timestamp": NOW_MS,
                    "step": 0,
                    "run_id": RUN,
                    "model_id": model_id,
                    "dataset_name": "iris",
                    "dataset_digest": "d1",
                }
            ],
        },
    }
    artifacts = files({"MLmodel": b"# by hand\nflavors: {}\n", "model.bin": bytes(range(64))})
    return LoggedModel(document, artifacts, as_of_ms=NOW_MS)


def span(number: int, parent: int | None = None, **more: Any) -> dict[str, Any]:
    """Return a span of one millisecond."""
    start_ns = NOW_MS * 1_000_000 + number
    return {
        "span_id": f"{number:016x}",
        "parent_span_id": None if parent is None else f"{parent:016x}",
        "otel_trace_id": OTEL_ID,
        "name": f"step {number}",
        "start_time_ns": start_ns,
        "end_time_ns": start_ns + 1_000_000,
        "status_code": "OK",
        "attributes": {"mlflow.spanType": "CHAIN"},
        **more,
    }


def trace(trace_id: str, spans: list[dict[str, Any]] | None, **info: Any) -> Trace:
    """Return a trace with an assessment of each sort."""
    document = {
        "info": {
            "trace_id": trace_id,
            "request_time_ms": NOW_MS,
            "execution_duration_ms": 25,
            "state": "OK",
            "request_preview": '{"question": "Ça va ?"}',
            "tags": {"mlflow.traceName": "ask"},
            "trace_metadata": {"mlflow.sourceRun": RUN, "mlflow.trace.session": "s 1"},
            **info,
        },
        "assessments": [
            {
                "assessment_id": f"a-{trace_id[-4:]}1",
                "assessment_name": "correct",
                "source": {"source_type": "HUMAN", "source_id": "alice"},
                "create_time_ms": NOW_MS + 1,
                "last_update_time_ms": NOW_MS + 2,
                "feedback": {"value": True},
                "rationale": "it is",
                "valid": True,
                "metadata": {"round": "1"},
            },
            {
                "assessment_id": f"a-{trace_id[-4:]}2",
                "assessment_name": "expected",
                "source": {"source_type": "LLM_JUDGE", "source_id": "judge"},
                "create_time_ms": NOW_MS + 1,
                "last_update_time_ms": NOW_MS + 1,
                "expectation": {"value": ["oui", 1, None]},
                "x_later": "a field of a later MLflow",
            },
        ],
    }
    return Trace(document, "1", spans, as_of_ms=NOW_MS)


def everything(experiment: Experiment, run: Run) -> list[Any]:
    """One of each kind that only MLflow 3 has, and what is hard in traces."""
    root = span(
        1,
        name="ask",
        attributes={
            "mlflow.spanInputs": {"question": "Ça va ?", "n": 12345678901234567890},
            "ratio": 0.1,
            "nothing": None,
            "not a number": {"doubleValue": "NaN"},
        },
        events=[{"name": "exception", "time_ns": NOW_MS, "attributes": {"a": [1, "b"]}}],
        links=[{"trace_id": "tr-" + "8" * 32, "span_id": "9" * 16, "attributes": {}}],
    )
    failed = span(2, 1, status_code="ERROR", status_message="no", end_time_ns=None)
    whole = trace(TRACE_ID, [root, failed])
    whole.attachments = files({"attachments/0a": b"\x89PNG"})
    foreign = trace("ein eigener Name", [span(3, extra={"kind": "server"})], state="IN_PROGRESS")
    foreign.document["assessments"] = []
    lost = trace("tr-" + "a" * 32, None, state="ERROR", x_later={"more": [1]})
    lost.issues = (Loss(Kind.TRACE, lost.id, "it has no payload"),)
    prompt = RegisteredModel(
        {
            "name": "greeting",
            "creation_timestamp": NOW_MS,
            "last_updated_timestamp": NOW_MS,
            "tags": [{"key": "mlflow.prompt.is_prompt", "value": "true"}],
            "aliases": [{"alias": "production", "version": "2"}],
        },
        Kind.PROMPT,
        as_of_ms=NOW_MS,
    )
    versions = [
        ModelVersion(
            {
                "name": "greeting",
                "version": str(number),
                "description": "shorter",
                "source": "dummy-source",
                "tags": [
                    {"key": "mlflow.prompt.is_prompt", "value": "true"},
                    {"key": "mlflow.prompt.text", "value": "Hello {{name}}"},
                ],
                "aliases": ["production"] if number == 2 else [],
            },
            as_of_ms=NOW_MS,
            kind=Kind.PROMPT_VERSION,
        )
        for number in (1, 2)
    ]
    elsewhere = Experiment({"experiment_id": "7", "name": "iris", "lifecycle_stage": "active"})
    return [
        experiment,
        run,
        logged_model("m-" + "0" * 32, "gone", source_run_id="", lifecycle_stage="deleted"),
        logged_model(MODEL, "tree"),
        Entity(
            Kind.SCORER,
            {
                "scorer_name": "short: yes?",
                "scorer_id": "s1",
                "versions": [{"scorer_version": 1, "serialized_scorer": "{}"}],
            },
            "1",
        ),
        Entity(Kind.LABEL_SCHEMA, {"schema_id": "l1", "name": "mood", "type": "FEEDBACK"}, "1"),
        Entity(Kind.ISSUE, {"issue_id": "i1", "name": "slow", "status": "open"}, "1"),
        whole,
        foreign,
        lost,
        Entity(
            Kind.REVIEW_QUEUE,
            {"queue_id": "q1", "name": "today", "items": [{"item_id": TRACE_ID, "status": "DONE"}]},
            "1",
        ),
        prompt,
        *versions,
        Entity(
            Kind.EVALUATION_DATASET,
            {
                "dataset_id": "d1",
                "name": "questions",
                "experiment_ids": ["1"],
                "records": [{"dataset_record_id": "r1", "inputs": {"question": "Ça va ?"}}],
            },
        ),
        Entity(Kind.MODEL_DEFINITION, {"model_definition_id": "md1", "name": "large"}),
        Entity(Kind.ENDPOINT, {"endpoint_id": "e1", "name": "chat"}),
        Entity(Kind.GUARDRAIL, {"guardrail_id": "g1", "name": "polite"}),
        Entity(Kind.BUDGET_POLICY, {"budget_policy_id": "b1", "budget_amount": 10.5}),
        Entity(Kind.MCP_SERVER, {"name": "com.example/tools", "versions": []}),
        Entity(Kind.WEBHOOK, {"webhook_id": "w1", "url": "https://example.org/hook"}),
        Entity(Kind.WORKSPACE, {"name": "team a", "description": "another workspace"}),
        elsewhere,
        RegisteredModel({"name": "iris", "tags": [], "aliases": []}),
    ]


def with_tables(
    members: dict[str, bytes], change: Callable[[dict[str, list[dict[str, Any]]]], None]
) -> Callable[[dict[str, Any]], None]:
    """Change the rows of the part of traces among an archive's members.

    Args:
        members: Members by path; the tables are replaced.
        change: Gets the rows of each table, to be changed in place.

    Returns:
        A change of the part's envelope that makes it fit again.
    """
    paths = {name: f"data/experiments/1/traces/{name}-00000.parquet" for name in TABLES}
    rows = {name: _rows(members[path]) for name, path in paths.items()}
    change(rows)
    for name, path in paths.items():
        members[path] = _table(name, rows[name])

    def envelope(document: dict[str, Any]) -> None:
        for name, entry in document["info"]["tables"].items():
            entry["rows"] = len(rows[name])
        digests = [(row["trace_id"], row["content_digest"]) for row in rows["traces"]]
        document["info"]["content_digest"] = content_digest(document["mlflow"], traces=digests)

    return envelope


def trace_vectors(members: dict[str, bytes]) -> list[dict[str, Any]]:
    """Rows of the tables as they are stored, attachments, and the digest of each trace.

    Args:
        members: Members by path of the archive whose traces they are.
    """
    info = json.loads(members[PART])["info"]
    rows = {name: _rows(members[of["member"]]) for name, of in info["tables"].items()}
    attachments = info.get("attachments", [])
    vectors = []
    for row in rows["traces"]:
        mine = {
            name: [r for r in rows[name] if r["trace_id"] == row["trace_id"]]
            for name in ("spans", "assessments")
        }
        listed = [e for e in attachments if e["trace_id"] == row["trace_id"]]
        digest = row.pop("content_digest")
        vectors.append({"trace": row, **mine, "attachments": listed, "content_digest": digest})
    return vectors


def _rows(data: bytes) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = pq.read_table(io.BytesIO(data)).to_pylist()
    return listed


def _table(name: str, rows: Iterable[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    with traces_writer(buffer, name) as writer:
        writer.write_table(pa.Table.from_pylist(list(rows), schema=TABLES[name]))
    return buffer.getvalue()
