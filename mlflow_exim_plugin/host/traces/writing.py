"""Single writes of traces to one deployment, by whichever calls it has.

Servers since 3.2 keep the ids of traces, since 3.4 they take spans by OTLP; the ones before make
their own ids and keep spans in a file. What a server has is tried once and remembered.
"""

from __future__ import annotations

import inspect
import io
import json
from enum import Enum
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.files.tree import ArtifactTree
from mlflow_exim_plugin.host.open.workspaces import Workspaces, active, entered
from mlflow_exim_plugin.host.traces.documents import (
    ARTIFACT_LOCATION,
    assessment_for_rest,
    document_of_entity,
    document_of_v2,
    document_of_v3,
    info_for_rest,
)
from mlflow_exim_plugin.host.traces.files import DATA_FILE
from mlflow_exim_plugin.host.traces.search import SINCE_V3, json_reply, location_of
from mlflow_exim_plugin.host.traces.spans import as_dict_v3, as_otlp, data_file_v2
from mlflow_exim_plugin.schema.objects import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    import requests

    from mlflow_exim_plugin.host.open.host import Host

__all__ = ["MAX_LINKS", "TraceCalls", "TraceIntake", "unknown_assessment"]

MAX_LINKS = 100
"""Traces that one call links to a run."""
_ABSENT = {404, 405, 501}
_MLFLOWS_WORD = {501}
_NOT_FOUND = "RESOURCE_DOES_NOT_EXIST"
_UNKNOWN_VALUE = "Unknown assessment type"
"""Of a server to which what an assessment says is none of what it reads."""


class TraceIntake(Enum):
    """How a deployment takes traces."""

    WITH_ID = "with id"
    WITHOUT_ID = "without id"
    NONE = "none"


class TraceCalls:
    """Writes traces to a ``Host``; each method is one call, or one for each of some objects.

    Attributes:
        takes_otlp: Whether it takes spans by OTLP, as far as is known.
        tells_of_spans: Whether it says in a tag of a trace that spans arrived, None while that is
            not known.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._has_infos = True
        self._form: TraceIntake | None = None
        self.takes_otlp = True
        self.tells_of_spans: bool | None = None
        self._others: list[dict[str, Any]] | None = None

    def form(self, experiment_id: str) -> TraceIntake:
        """Return how the deployment takes traces."""
        if self._form is None:
            self._form = self._probe(experiment_id)
        return self._form

    def existing(self, trace_ids: list[str]) -> dict[str, tuple[str, dict[str, Any]]]:
        """Return experiment id and document of those traces that are there, wherever."""
        if not self.host.is_http:
            return self._existing_in_store(trace_ids)
        doing = "looking for traces"
        if self._has_infos:
            response = self.host.call(
                "POST",
                "/api/3.0/mlflow/traces/batchGetInfos",
                doing=doing,
                body={"trace_ids": trace_ids},
            )
            if response.status_code not in _ABSENT:
                infos = json_reply(response, doing).get("trace_infos", ())
                return dict(map(_located, infos))
            self._has_infos = False
        found = {}
        for trace_id in trace_ids:
            endpoint = f"/api/3.0/mlflow/traces/{quote(trace_id, safe='')}"
            response = self.host.call("GET", endpoint, doing=doing)
            if response.status_code not in _ABSENT:
                trace = json_reply(response, doing)["trace"]
                found[trace_id] = _located(trace["trace_info"])[1]
        return found

    def elsewhere(self, trace_ids: list[str]) -> dict[str, str]:
        """Return by id the other workspaces that have traces: no two have one of the same id."""
        if self._others is None:
            with entered(None):  # the active one may be only planned
                listed = Workspaces(self.host).documents()
            self._others = [document for document in listed if document["name"] != active()]
        found: dict[str, str] = {}
        for document in self._others:
            with entered(document):
                found |= dict.fromkeys(self.existing(trace_ids), str(document["name"]))
        return found

    def log_spans(self, experiment_id: str, spans: Iterable[dict[str, Any]]) -> bool:
        """Send spans of any traces by OTLP, all or none.

        Args:
            experiment_id: Where they go.
            spans: The spans, those of one trace together.

        Returns:
            False when the deployment, or this client, does not have it.

        Raises:
            ServerError: The deployment refused them.
        """
        doing = "writing spans"
        try:
            from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
                ExportTraceServiceRequest,
            )
        except ImportError:
            self.takes_otlp = False
            return False
        request = ExportTraceServiceRequest()
        request.resource_spans.add().scope_spans.add().spans.extend(map(as_otlp, spans))
        if not self.host.is_http:
            return self._log_spans_to_store(experiment_id, request)
        response = self.host.call(
            "POST",
            "/v1/traces",
            doing=doing,
            data=request.SerializeToString(),
            headers={
                "Content-Type": "application/x-protobuf",
                "x-mlflow-experiment-id": experiment_id,
            },
        )
        if response.status_code in _ABSENT:
            self.takes_otlp = False
            return False
        _check(response, doing)
        return True

    def start(
        self, info: dict[str, Any], experiment_id: str, assessments: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Write a trace's info under its own id and return the document the target made of it.

        A trace that is there takes what is given; what is not given stays.
        """
        trace = info_for_rest(info, experiment_id, assessments)
        doing = f"writing trace {info['trace_id']}"
        if self.host.is_http:
            body = {"trace": {"trace_info": trace}}
            response = self.host.call("POST", "/api/3.0/mlflow/traces", doing=doing, body=body)
            return document_of_v3(json_reply(response, doing)["trace"]["trace_info"])
        with translated(doing):
            from google.protobuf.json_format import ParseDict
            from mlflow.entities import TraceInfo
            from mlflow.protos.service_pb2 import TraceInfoV3

            proto = ParseDict(trace, TraceInfoV3(), ignore_unknown_fields=True)
            return document_of_entity(self.host.tracking.start_trace(TraceInfo.from_proto(proto)))

    def start_without_id(self, info: dict[str, Any], experiment_id: str) -> dict[str, Any]:
        """Write a trace's info under an id that the target makes; it is still in progress."""
        doing = f"writing trace {info['trace_id']}"
        if self.host.is_http:
            body = {
                "experiment_id": experiment_id,
                "timestamp_ms": info.get("request_time_ms", 0),
                "request_metadata": _entries(info["trace_metadata"]),
                "tags": _entries(info["tags"]),
            }
            response = self.host.call("POST", "/api/2.0/mlflow/traces", doing=doing, body=body)
            return document_of_v2(json_reply(response, doing)["trace_info"])
        with translated(doing):
            store = self.host.tracking
            start = getattr(store, "deprecated_start_trace_v2", None) or store.start_trace
            started = start(
                experiment_id=experiment_id,
                timestamp_ms=info.get("request_time_ms", 0),
                request_metadata=info["trace_metadata"],
                tags=info["tags"],
            )
            return document_of_entity(started)

    def end_without_id(self, trace_id: str, info: dict[str, Any]) -> None:
        """Set end and state of a trace that ``start_without_id`` made."""
        doing = f"writing trace {info['trace_id']}"
        end_ms = info.get("request_time_ms", 0) + info.get("execution_duration_ms", 0)
        if self.host.is_http:
            endpoint = f"/api/2.0/mlflow/traces/{quote(trace_id, safe='')}"
            self._send("PATCH", endpoint, doing, {"timestamp_ms": end_ms, "status": info["state"]})
            return
        with translated(doing):
            from mlflow.entities.trace_status import TraceStatus

            store = self.host.tracking
            end = getattr(store, "deprecated_end_trace_v2", None) or store.end_trace
            end(
                request_id=trace_id,
                timestamp_ms=end_ms,
                status=TraceStatus(info["state"]),
                request_metadata={},
                tags={},
            )

    def put_spans(
        self, document: dict[str, Any], spans: list[dict[str, Any]], form: TraceIntake
    ) -> None:
        """Write ``traces.json`` to where the target keeps files of a trace."""
        trace_id = document["info"]["trace_id"]
        payload = data_file_v2(spans, trace_id)
        if form is TraceIntake.WITH_ID:
            payload = {"spans": [as_dict_v3(span, trace_id) for span in spans]}
        data = json.dumps(payload, ensure_ascii=False).encode("utf-8")
        tree = ArtifactTree(self.host, document["info"]["tags"][ARTIFACT_LOCATION])
        tree.put(DATA_FILE, io.BytesIO(data), len(data))

    def set_tag(self, trace_id: str, key: str, value: str) -> None:
        """Set one tag of a trace."""
        doing = f"tagging trace {trace_id}"
        if self.host.is_http:
            with_id = self._form is TraceIntake.WITH_ID
            version, field = ("3.0", "trace_id") if with_id else ("2.0", "request_id")
            endpoint = f"/api/{version}/mlflow/traces/{quote(trace_id, safe='')}/tags"
            self._send("PATCH", endpoint, doing, {field: trace_id, "key": key, "value": value})
            return
        with translated(doing):
            self.host.tracking.set_trace_tag(trace_id, key, value)

    def add_assessment(self, trace_id: str, assessment: dict[str, Any]) -> None:
        """Add an assessment; the one that it overrides becomes invalid."""
        sent = assessment_for_rest(assessment, trace_id)
        doing = f"writing assessment {assessment.get('assessment_id')}"
        if self.host.is_http:
            endpoint = f"/api/3.0/mlflow/traces/{quote(trace_id, safe='')}/assessments"
            self._send("POST", endpoint, doing, {"assessment": sent})
            return
        with translated(doing):
            from google.protobuf.json_format import ParseDict
            from mlflow.entities.assessment import Assessment
            from mlflow.protos.assessments_pb2 import Assessment as ProtoAssessment

            proto = ParseDict(sent, ProtoAssessment(), ignore_unknown_fields=True)
            self.host.tracking.create_assessment(Assessment.from_proto(proto))

    def link_to_run(self, run_id: str, trace_ids: list[str]) -> None:
        """Link at most ``MAX_LINKS`` traces to a run."""
        doing = f"linking traces to run {run_id}"
        if self.host.is_http:
            body = {"trace_ids": trace_ids, "run_id": run_id}
            self._send("POST", "/api/2.0/mlflow/traces/link-to-run", doing, body)
            return
        with translated(doing):
            self.host.tracking.link_traces_to_run(trace_ids, run_id)

    def link_prompts(self, trace_id: str, versions: list[tuple[str, str]]) -> None:
        """Link versions of prompts, name and number, to a trace."""
        doing = f"linking prompts to trace {trace_id}"
        if self.host.is_http:
            body = {
                "trace_id": trace_id,
                "prompt_versions": [{"name": name, "version": number} for name, number in versions],
            }
            self._send("POST", "/api/2.0/mlflow/traces/link-prompts", doing, body)
            return
        with translated(doing):
            from mlflow.entities.model_registry import PromptVersion

            self.host.tracking.link_prompts_to_trace(
                trace_id,
                [PromptVersion(name=n, version=int(v), template="") for n, v in versions],
            )

    def _send(self, method: str, endpoint: str, doing: str, body: dict[str, Any]) -> None:
        _check(self.host.call(method, endpoint, doing=doing, body=body), doing)

    def _probe(self, experiment_id: str) -> TraceIntake:
        doing = "looking how the target takes traces"
        if self.host.is_http:
            body = {"locations": [location_of(experiment_id)], "max_results": 1}
            search = "/api/3.0/mlflow/traces/search"
            status = self.host.call("POST", search, doing=doing, body=body).status_code
            if status not in _ABSENT:
                return TraceIntake.WITH_ID
            absence = self.host.absence(Kind.ASSESSMENT, since=SINCE_V3)
            if absence.failure and status not in _MLFLOWS_WORD:
                raise ServerError(f"{doing}: {absence.failure}")
            params = [("experiment_ids", experiment_id), ("max_results", "1")]
            old = self.host.call("GET", "/api/2.0/mlflow/traces", doing=doing, params=params)
            return TraceIntake.NONE if old.status_code in _ABSENT else TraceIntake.WITHOUT_ID
        start = getattr(self.host.tracking, "start_trace", None)
        if start is None:
            return TraceIntake.NONE
        takes_info = "trace_info" in inspect.signature(start).parameters
        return TraceIntake.WITH_ID if takes_info else TraceIntake.WITHOUT_ID

    def _existing_in_store(self, trace_ids: list[str]) -> dict[str, tuple[str, dict[str, Any]]]:
        found = {}
        for trace_id in trace_ids:
            try:
                with translated("looking for traces"):
                    info = self.host.tracking.get_trace_info(trace_id)
            except ServerError as error:
                if getattr(error.__cause__, "error_code", "") != _NOT_FOUND:
                    raise
                continue
            found[trace_id] = (str(info.experiment_id), document_of_entity(info))
        return found

    def _log_spans_to_store(self, experiment_id: str, request: Any) -> bool:
        log = getattr(self.host.tracking, "log_spans", None)
        if log is None:
            self.takes_otlp = False
            return False
        from mlflow.entities import Span

        try:
            with translated("writing spans"):
                sent = request.resource_spans[0].scope_spans[0].spans
                log(experiment_id, [Span.from_otel_proto(span) for span in sent])
        except ServerError as error:
            if not isinstance(error.__cause__, NotImplementedError):
                raise
            self.takes_otlp = False
            return False
        return True


def _located(trace_info: dict[str, Any]) -> tuple[str, tuple[str, dict[str, Any]]]:
    experiment = trace_info["trace_location"]["mlflow_experiment"]["experiment_id"]
    return trace_info["trace_id"], (str(experiment), document_of_v3(trace_info))


def _entries(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _check(response: requests.Response, doing: str) -> None:
    if response.status_code != 200:
        json_reply(response, doing)  # raises with the server's reason


def unknown_assessment(error: ServerError, assessment: dict[str, Any]) -> str:
    """Return why a deployment has no such assessments, empty where it refused another thing."""
    is_unknown = _UNKNOWN_VALUE in error.message and "issue" in assessment
    return "the target's MLflow has no assessments that name an issue" if is_unknown else ""
