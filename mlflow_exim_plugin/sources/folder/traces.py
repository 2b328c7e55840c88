"""The traces of an ``mlruns`` folder, each by itself; their spans lie in files beside them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.traces.documents import document_of_v3
from mlflow_exim_plugin.schema.objects import Failure, Kind, Loss, Trace
from mlflow_exim_plugin.sources.folder.fields import Fields
from mlflow_exim_plugin.sources.folder.files import UnreadableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.sources.folder.files import StoreFiles

__all__ = ["TracesFolder"]

_INFO = "trace_info.yaml"
_PARTS = frozenset({_INFO, "artifacts", "assessments", "request_metadata", "tags"})
_NOT_OF_INFO = {"execution_duration_ms", "trace_metadata", "tags", "assessments"}
_TEXTS = frozenset({"state", "client_request_id", "request_preview", "response_preview"})
_V2_STATES = {"OK", "ERROR", "IN_PROGRESS"}
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError)


class TracesFolder:
    """Reads the infos and assessments of traces.

    Args:
        files: The folder.
    """

    def __init__(self, files: StoreFiles) -> None:
        self._files = files

    def of_experiment(self, experiment_id: str, path: str) -> Iterator[Trace | Failure]:
        """Yield the traces of an experiment, oldest first, without their spans.

        Args:
            experiment_id: The experiment.
            path: Its folder.
        """
        folder = f"{path}/traces"
        try:
            ids = self._files.folders(folder) or []
        except UnreadableError as error:
            yield Failure(Kind.TRACE, f"experiment {experiment_id}", error.message)
            return
        started: list[tuple[int, str]] = []
        for trace_id in ids:
            of_trace = f"{folder}/{trace_id}"
            try:
                names = self._files.names(of_trace)
                if _INFO in names:
                    self._files.leave_alone(of_trace, names, _PARTS)
                    started.append((self._info(of_trace)["request_time_ms"], trace_id))
                elif self._files.holds_files(of_trace):
                    reason = f"{self._files.place(of_trace)} has lost its {_INFO}"
                    yield Failure(Kind.TRACE, trace_id, reason)
            except UnreadableError as error:
                yield Failure(Kind.TRACE, trace_id, error.message)
        for _, trace_id in sorted(started):
            yield self._trace(experiment_id, trace_id, f"{folder}/{trace_id}")

    def _trace(self, experiment_id: str, trace_id: str, path: str) -> Trace | Failure:
        issues: list[Failure | Loss] = []
        try:
            info = self._info(path)
            self._files.require_place(path, "trace", trace_id, info["trace_id"])
        except UnreadableError as error:
            return Failure(Kind.TRACE, trace_id, error.message)
        info["trace_metadata"] = self._files.texts(
            Kind.TAG, trace_id, f"{path}/request_metadata", issues
        )
        info["tags"] = self._files.texts(Kind.TAG, trace_id, f"{path}/tags", issues)
        assessments = sorted(
            self._assessments(trace_id, f"{path}/assessments", issues),
            key=lambda assessment: str(assessment.get("assessment_id", "")),
        )
        document = {"info": info, "assessments": assessments}
        as_of_ms = time.time_ns() // 1_000_000
        return Trace(document, experiment_id, as_of_ms=as_of_ms, issues=tuple(issues))

    def _info(self, path: str) -> dict[str, Any]:
        """Return REST's info of a trace, with times in ms."""
        found = self._files.meta(path, _INFO)
        place = self._files.place(f"{path}/{_INFO}")
        fields = Fields(place, found)
        if "request_id" in found:  # MLflow 2
            status = fields.text("status")
            info: dict[str, Any] = {
                "trace_id": fields.text("request_id"),
                "request_time_ms": fields.number("timestamp_ms"),
                "execution_duration_ms": fields.number("execution_time_ms"),
                "state": status if status in _V2_STATES else "STATE_UNSPECIFIED",
            }
        else:
            lasted = fields.number("execution_duration_ms")
            of_rest = {k: v for k, v in found.items() if k not in _NOT_OF_INFO and v is not None}
            try:
                info = document_of_v3(of_rest)["info"]
            except _MALFORMED as error:
                raise UnreadableError(f"{place} is damaged: {error}") from error
            if lasted is not None:
                info["execution_duration_ms"] = lasted
            fields.text("trace_id")
            for name in _TEXTS & info.keys():
                info[name] = fields.maybe_text(name)
        info = {name: value for name, value in info.items() if value is not None}
        if not isinstance(info.get("request_time_ms"), int):
            raise UnreadableError(f"{place} is damaged: it does not say when the trace began")
        return info

    def _assessments(
        self, trace_id: str, path: str, issues: list[Failure | Loss]
    ) -> Iterator[dict[str, Any]]:
        for name in self._files.keys(Kind.ASSESSMENT, trace_id, path, issues):
            try:
                found = self._files.meta(path, name)
                place = self._files.place(f"{path}/{name}")
                fields = Fields(place, found)
                fields.text("assessment_id"), fields.text("assessment_name")
                found = {name: value for name, value in found.items() if value is not None}
                try:
                    yield document_of_v3({"assessments": [found]})["assessments"][0]
                except _MALFORMED as error:
                    raise UnreadableError(f"{place} is damaged: {error}") from error
            except UnreadableError as error:
                issues.append(Failure(Kind.ASSESSMENT, f"{trace_id}/{name}", error.message))
