"""A trace as rows of MLflow's tables, with the columns that MLflow derives from its parts."""

from __future__ import annotations

import io
import json
import math
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import mlflow.entities
from google.protobuf.json_format import ParseDict

from mlflow_exim_plugin.host.files.tree import ArtifactTree
from mlflow_exim_plugin.host.sql.trace_columns import INFO, NAME, TOKENS
from mlflow_exim_plugin.host.traces.documents import (
    ARTIFACT_LOCATION,
    OF_THE_TARGET,
    SPANS_LOCATION,
    TRACKING_STORE,
    assessment_for_rest,
)
from mlflow_exim_plugin.host.traces.files import DATA_FILE
from mlflow_exim_plugin.host.traces.spans import SPAN_TYPE, as_dict_v3, data_file_v2

if TYPE_CHECKING:
    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.host.sql.writer import Rows, TableWriter
    from mlflow_exim_plugin.schema.objects import Trace

__all__ = ["TraceForm", "put_span_file", "span_file"]

_UNSPECIFIED = "STATE_UNSPECIFIED"
_OLD_UNSPECIFIED = "TRACE_STATUS_UNSPECIFIED"
_COST = "mlflow.llm.cost"
_MODEL = "mlflow.llm.model"
_PROVIDER = "mlflow.llm.provider"
_MOST_OF_DIMENSION = 500


class TraceForm:
    """Makes rows of traces in the form that the tables of one database have.

    Args:
        tables: The database.

    Source: ``SqlAlchemyStore.start_trace`` and ``log_spans``.
    """

    def __init__(self, tables: TableWriter) -> None:
        self._keeps_spans = tables.has("spans")
        self.keeps_assessments = tables.has("assessments")
        self._has_columns = tables.has("trace_info", "input_tokens")
        self._has_name = tables.has("trace_info", "trace_name")
        self._has_metrics = tables.has("trace_metrics") and not self._has_columns
        self._escapes = tables.backend == "mssql"  # its spans are in no Unicode column

    def rows(
        self, trace: Trace, experiment_id: int, artifact_location: str
    ) -> tuple[Rows, list[str]]:
        """Return the rows of a trace, and which of its metadata come back otherwise.

        Args:
            trace: The trace.
            experiment_id: Its experiment at the target.
            artifact_location: Where its files are there.

        Raises:
            ValueError: An assessment is none that MLflow knows.
        """
        info = trace.info
        tags = {k: v for k, v in info["tags"].items() if k not in OF_THE_TARGET}
        tags[ARTIFACT_LOCATION] = artifact_location
        in_table = self.has_spans_in_table(trace)
        if in_table:
            tags[SPANS_LOCATION] = TRACKING_STORE
        metadata = dict(info["trace_metadata"])
        header: dict[str, Any] = {column: info.get(field) for column, field in INFO.items()}
        header["experiment_id"] = experiment_id
        header["status"] = _state(info.get("state"))
        header["timestamp_ms"] = header["timestamp_ms"] or 0
        if self._has_name:
            header["trace_name"] = tags.pop(NAME, None)
        changed = []
        if self._has_columns:
            columns, promoted = _promoted(metadata)
            header |= columns
            changed = [k for k, v in promoted.items() if metadata.get(k) != v]
            metadata = {k: v for k, v in metadata.items() if k not in promoted}
        rows: Rows = [("trace_info", header)]
        for table, entries in (("trace_tags", tags), ("trace_request_metadata", metadata)):
            rows += [
                (table, {"request_id": trace.id, "key": key, "value": value})
                for key, value in entries.items()
            ]
        if self._has_metrics:
            rows += [
                ("trace_metrics", {"request_id": trace.id, "key": key, "value": value})
                for key, value in _numbers(_object(metadata.get(TOKENS))).items()
            ]
        rows += [
            ("assessments", _assessment(a, trace, experiment_id, header["timestamp_ms"]))
            for a in (trace.assessments if self.keeps_assessments else ())
        ]
        if in_table:
            rows += [("spans", self._span(s, trace.id, experiment_id)) for s in trace.spans or ()]
        return rows, changed

    def has_spans_in_table(self, trace: Trace) -> bool:
        """Whether a trace's spans are rows; those of older MLflow are a file, and stay one."""
        where = trace.info["tags"].get(SPANS_LOCATION)
        return self._keeps_spans and trace.spans is not None and where is not None

    def _span(self, span: dict[str, Any], trace_id: str, experiment_id: int) -> dict[str, Any]:
        attributes = span["attributes"]
        kind = attributes.get(SPAN_TYPE)
        cost = _numbers(_object(attributes.get(_COST)))
        content = json.dumps(as_dict_v3(span, trace_id), ensure_ascii=self._escapes)
        return {
            "trace_id": trace_id,
            "experiment_id": experiment_id,
            "span_id": span["span_id"],
            "parent_span_id": span["parent_span_id"],
            "name": span["name"],
            "type": kind if isinstance(kind, str) else None,
            "status": span["status_code"],
            "start_time_unix_nano": span["start_time_ns"],
            "end_time_unix_nano": span["end_time_ns"],
            "content": content,
            "input_cost": cost.get("input_cost"),
            "output_cost": cost.get("output_cost"),
            "total_cost": cost.get("total_cost"),
            "model_name": _dimension(attributes.get(_MODEL)),
            "model_provider": _dimension(attributes.get(_PROVIDER)),
        }


def put_span_file(host: Host, trace: Trace, location: str) -> None:
    """Write the file that MLflow keeps the spans of a trace in that has no rows for them.

    Raises:
        ServerError: The artifact store refused.
        StoreError: It could not be written.
    """
    data = span_file(trace)
    ArtifactTree(host, location).put(DATA_FILE, io.BytesIO(data), len(data))


def span_file(trace: Trace) -> bytes:
    """Return the file that MLflow keeps the spans of a trace in that has no rows for them."""
    spans = trace.spans or ()
    payload: dict[str, Any] = {"spans": [as_dict_v3(span, trace.id) for span in spans]}
    if not hasattr(mlflow.entities, "TraceState"):
        payload = data_file_v2(spans, trace.id)
    return json.dumps(payload, ensure_ascii=False).encode("utf-8")


def _state(state: str | None) -> str:
    """Return how this MLflow keeps a state; before 3 it calls one of them otherwise."""
    if state and state != _UNSPECIFIED:
        return state
    return _UNSPECIFIED if hasattr(mlflow.entities, "TraceState") else _OLD_UNSPECIFIED


def _promoted(metadata: dict[str, str]) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Return the columns that MLflow makes of metadata, and how it gives those back."""
    from mlflow.store.tracking.utils import trace_analytics

    columns = trace_analytics.analytics_columns_from_metadata(dict(metadata))
    names = [
        *trace_analytics.TOKEN_COLUMN_BY_KEY.values(),
        *trace_analytics.COST_COLUMN_BY_KEY.values(),
        "session_id",
    ]
    row = {name: columns.get(name) for name in names}
    given = trace_analytics.compatibility_metadata_from_columns(SimpleNamespace(**row))
    keys = trace_analytics.PROMOTED_TRACE_METADATA_KEYS & metadata.keys()
    return row, {key: given.get(key) for key in keys}


def _assessment(
    document: dict[str, Any], trace: Trace, experiment_id: int, timestamp_ms: int
) -> dict[str, Any]:
    from mlflow.entities.assessment import Assessment
    from mlflow.protos.assessments_pb2 import Assessment as ProtoAssessment
    from mlflow.store.tracking.dbmodels.models import SqlAssessments

    sent = assessment_for_rest(document, trace.id)
    proto = ParseDict(sent, ProtoAssessment(), ignore_unknown_fields=True)
    made = SqlAssessments.from_mlflow_entity(Assessment.from_proto(proto))
    row = {column.name: getattr(made, column.name) for column in SqlAssessments.__table__.columns}
    return row | {
        "trace_id": trace.id,
        "experiment_id": experiment_id,
        "trace_timestamp_ms": timestamp_ms,
        "valid": document.get("valid", True),
    }


def _object(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, dict) else {}


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)
    }


def _dimension(value: Any) -> str | None:
    return value[:_MOST_OF_DIMENSION] if isinstance(value, str) else None
