"""Traces out of a database, some with each query, read without MLflow.

An assessment that cannot be read costs itself, and a row of a wrong type its trace.
"""

from __future__ import annotations

import json
import math
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.sql.trace_columns import INFO, NAME, PROMOTED, promoted_metadata
from mlflow_exim_plugin.host.traces.documents import (
    ARTIFACT_LOCATION,
    SPANS_LOCATION,
    TRACKING_STORE,
    trace_document,
    trace_state,
)
from mlflow_exim_plugin.host.traces.files import ARCHIVED
from mlflow_exim_plugin.host.traces.reading import TraceReader
from mlflow_exim_plugin.host.traces.spans import SPAN_TYPE
from mlflow_exim_plugin.schema.documents import present
from mlflow_exim_plugin.schema.objects import SOURCE_RUN, Failure, Kind, Trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.host.tables import TableReader

__all__ = ["StoredTraceReader", "StoredTraces"]

_PAGE = 500
_DOING = "reading traces"
_TEXT, _NUMBER, _DOUBLE = pa.string(), pa.int64(), pa.float64()
_LISTED = pa.schema({"request_id": _TEXT, "timestamp_ms": _NUMBER})
_INFO = pa.schema(
    {name: _NUMBER if name.endswith("_ms") else _TEXT for name in INFO}
    | {"experiment_id": _NUMBER, "trace_name": _TEXT, "session_id": _TEXT}
    | {
        name: _DOUBLE if name.endswith("_cost") else _NUMBER
        for columns in PROMOTED.values()
        for name in columns
        if name != "session_id"
    }
)
_PAIRS = pa.schema({"request_id": _TEXT, "key": _TEXT, "value": _TEXT})
_ASSESSMENT = pa.schema(
    dict.fromkeys(
        (
            "assessment_id",
            "trace_id",
            "name",
            "assessment_type",
            "value",
            "error",
            "source_type",
            "source_id",
            "span_id",
            "rationale",
            "overrides",
            "assessment_metadata",
        ),
        _TEXT,
    )
    | {"created_timestamp": _NUMBER, "last_updated_timestamp": _NUMBER, "valid": pa.bool_()}
)
_SPAN = pa.schema({"trace_id": _TEXT, "content": _TEXT})
_LINK = pa.schema({"destination_id": _TEXT, "source_id": _TEXT})
_SOURCES = {name: name for name in ("SOURCE_TYPE_UNSPECIFIED", "LLM_JUDGE", "HUMAN", "CODE")} | {
    "AI_JUDGE": "LLM_JUDGE"
}
"""What MLflow makes of the sources of assessments."""
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError)
_STACK_TRACE, _CUT = 10_000, "[Stack trace is truncated]\n...\n"
"""How long a stack trace may be in MLflow's API, and what stands for its beginning then."""


class StoredTraces:
    """Reads traces without their spans from a database of any of MLflow's schemas.

    Args:
        tables: The database's.
    """

    def __init__(self, tables: TableReader) -> None:
        self._tables = tables

    def pages(
        self, experiment_id: str, run_ids: Iterable[str] | None
    ) -> Iterator[list[Trace] | Failure]:
        """Yield traces of an experiment, oldest first, and what cannot be read.

        Args:
            experiment_id: The experiment.
            run_ids: Those that come from one of these or are linked to it; None takes all.
        """
        try:
            ids = self._ids(experiment_id)
            if run_ids is not None:
                of_runs = self._of_runs(sorted(run_ids))
                ids = [trace_id for trace_id in ids if trace_id in of_runs]
        except ServerError as error:
            yield Failure(Kind.TRACE, f"experiment {experiment_id}", error.message)
            return
        for start in range(0, len(ids), _PAGE):
            read = self.read(ids[start : start + _PAGE])
            yield from (item for item in read if isinstance(item, Failure))
            if traces := [item for item in read if isinstance(item, Trace)]:
                yield traces

    def _ids(self, experiment_id: str) -> list[str]:
        """Return the ids of an experiment's traces, the oldest first."""
        doing, owner = f"listing the traces of experiment {experiment_id}", int(experiment_id)
        try:
            found = self._tables.rows("trace_info", _LISTED, doing, experiment_id=owner)
        except ServerError:  # one without a time, which is named when it is read
            return self._tables.values("trace_info", "request_id", experiment_id=owner)
        found = found.sort_by([("timestamp_ms", "ascending"), ("request_id", "ascending")])
        ids: list[str] = found.column("request_id").to_pylist()
        return ids

    def _of_runs(self, run_ids: list[str]) -> set[str]:
        found: set[str] = set()
        for start in range(0, len(run_ids), _PAGE):
            some = run_ids[start : start + _PAGE]
            own = self._tables.rows(
                "trace_request_metadata", _PAIRS, _DOING, key=SOURCE_RUN, value=some
            )
            found.update(own.column("request_id").to_pylist())
        found.update(trace_id for _, trace_id in self.linked_to_runs(run_ids))
        return found

    def linked_to_runs(self, run_ids: list[str]) -> Iterator[tuple[str, str]]:
        """Yield run and trace of the links between the two.

        Raises:
            ServerError: The database refused.
        """
        yield from self._links("run", "destination_id", run_ids)

    def linked_runs(self, trace_ids: list[str]) -> Iterator[tuple[str, str]]:
        """Yield the same of some traces.

        Raises:
            ServerError: The database refused.
        """
        yield from self._links("run", "source_id", trace_ids)

    def linked_prompts(self, trace_ids: list[str]) -> Iterator[tuple[str, str]]:
        """Yield prompt version and trace of the links between the two.

        Raises:
            ServerError: The database refused.
        """
        yield from self._links("prompt_version", "source_id", trace_ids)

    def _links(self, to: str, end: str, ids: list[str]) -> Iterator[tuple[str, str]]:
        for start in range(0, len(ids), _PAGE):
            links = self._tables.rows(
                "entity_associations",
                _LINK,
                "reading links of traces",
                limit=None,
                source_type="trace",
                destination_type=to,
                **{end: ids[start : start + _PAGE]},
            )
            yield from sorted(zip(*links.to_pydict().values(), strict=True))

    def read(self, trace_ids: list[str]) -> list[Trace | Failure]:
        """Return those traces of some that are there, in their order, or why one cannot be read."""
        try:
            return self._read(trace_ids)
        except ServerError as error:
            if len(trace_ids) == 1:
                return [Failure(Kind.TRACE, trace_ids[0], error.message)]
        return [item for trace_id in trace_ids for item in self.read([trace_id])]

    def _read(self, trace_ids: list[str]) -> list[Trace | Failure]:
        infos = self._tables.rows("trace_info", _INFO, _DOING, request_id=trace_ids)
        tags, metadata = (
            _texts(self._tables.rows(table, _PAIRS, _DOING, request_id=trace_ids))
            for table in ("trace_tags", "trace_request_metadata")
        )
        assessments = _by_trace(
            self._tables.rows("assessments", _ASSESSMENT, _DOING, trace_id=trace_ids)
        )
        has_columns = self._tables.has("trace_info", "input_tokens")
        has_name = self._tables.has("trace_info", "trace_name")
        traces: dict[str, Trace | Failure] = {}
        for row in infos.to_pylist():
            trace_id = row["request_id"]
            its_tags, its_metadata = tags.get(trace_id, {}), metadata.get(trace_id, {})
            if has_name:
                its_tags.pop(NAME, None)
                if row["trace_name"] is not None:
                    its_tags[NAME] = row["trace_name"]
            if has_columns:
                its_metadata = {k: v for k, v in its_metadata.items() if k not in PROMOTED}
                its_metadata |= promoted_metadata(row)
            info = present({field: row[column] for column, field in INFO.items()})
            info["state"] = trace_state(row["status"])
            found, issues = _sound(trace_id, assessments.get(trace_id, ()))
            document = trace_document(info, its_metadata, its_tags, found)
            traces[trace_id] = Trace(document, str(row["experiment_id"]), issues=issues)
        return [traces[trace_id] for trace_id in trace_ids if trace_id in traces]

    def stamps(self, traces: Iterable[Trace]) -> dict[str, str]:
        """Return what is another for each trace when it has more spans, or one has ended since.

        Traces whose spans lie elsewhere have none.

        Raises:
            ServerError: The database refused.
        """
        here = [trace.id for trace in traces if _location(trace) == TRACKING_STORE]
        if not here:
            return {}
        sizes = self._tables.sizes("spans", "trace_id", "content", "end_time_unix_nano", here)
        return {trace_id: " ".join(map(str, size)) for trace_id, size in sizes.items()}

    def spans(self, trace_ids: list[str]) -> dict[str, list[str]]:
        """Return the spans of some traces as they are kept, without those that were cleared.

        Raises:
            ServerError: The database refused, or one is no text.
        """
        found: dict[str, list[str]] = {}
        rows = self._tables.rows("spans", _SPAN, "reading spans", trace_id=trace_ids)
        for trace_id, content in zip(*rows.to_pydict().values(), strict=True):
            if content:
                found.setdefault(trace_id, []).append(content)
        return found


class StoredTraceReader(TraceReader):
    """Reads the spans of traces from a database.

    MLflow is asked for two kinds of them alone: those that it keeps in its own archive, of which it
    alone knows the form, and those without a type that came by another's conventions. It makes up a
    type for these when it reads them, by rules that every release changes.

    Args:
        host: The deployment.
        stored: Its traces.
    """

    def __init__(self, host: Host, stored: StoredTraces) -> None:
        super().__init__(host)
        self._stored = stored

    def _fill_together(self, traces: list[Trace]) -> set[str]:
        # The info of this very moment: a trace may have ended since it was listed.
        for found in self._stored.read([trace.id for trace in traces]):
            if isinstance(found, Trace):
                trace = next(trace for trace in traces if trace.id == found.id)
                trace.document, trace.issues = found.document, found.issues
        pointing: set[str] = set()
        contents = self._contents([t.id for t in traces if _location(t) == TRACKING_STORE])
        for trace in traces:
            location = _location(trace)
            readers = (self._spans_of_file,)
            if location == TRACKING_STORE:
                readers = (partial(self._spans_of_rows, contents),)
            elif location == ARCHIVED:
                self.host.ask_mlflow("the spans of old traces are in MLflow's own archive")
                readers = (self._spans_of_store,)
            self._fill_one(trace, pointing, readers)
        return pointing

    def _spans_of_file(self, trace: Trace) -> list[dict[str, Any]] | None:
        location = trace.info["tags"].get(ARTIFACT_LOCATION)
        return None if location is None else self._spans_in(location, trace)

    def _contents(self, trace_ids: list[str]) -> dict[str, list[str] | ServerError]:
        if not trace_ids:
            return {}
        try:
            return dict(self._stored.spans(trace_ids))
        except ServerError as error:
            if len(trace_ids) == 1:
                return {trace_ids[0]: error}
        return {k: v for trace_id in trace_ids for k, v in self._contents([trace_id]).items()}

    def _spans_of_rows(
        self, contents: dict[str, list[str] | ServerError], trace: Trace
    ) -> list[dict[str, Any]] | None:
        found = contents.get(trace.id)
        if isinstance(found, ServerError):
            raise found
        spans = [json.loads(content) for content in found or ()]
        if any(map(_is_told_otherwise, spans)):
            self.host.ask_mlflow("it makes up a type for spans that came without one")
            return self._spans_of_store(trace)
        return spans or None


def _is_told_otherwise(span: dict[str, Any]) -> bool:
    """Whether MLflow may make up a type of a span: it has none, and what is not MLflow's own."""
    attributes = span.get("attributes") or {}
    return attributes.get(SPAN_TYPE) in {None, "", '"UNKNOWN"', "UNKNOWN", "null"} and any(
        not name.startswith("mlflow.") for name in attributes
    )


def _location(trace: Trace) -> str | None:
    location: str | None = trace.info["tags"].get(SPANS_LOCATION)
    return location


def _texts(rows: pa.Table) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for owner, key, value in zip(*rows.to_pydict().values(), strict=True):
        found.setdefault(owner, {})[key] = value
    return found


def _by_trace(rows: pa.Table) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        found.setdefault(row["trace_id"], []).append(row)
    return found


def _sound(
    trace_id: str, rows: Iterable[dict[str, Any]]
) -> tuple[list[dict[str, Any]], tuple[Failure, ...]]:
    """Return REST's ``Assessment`` of each that MLflow could send, and why the others are none."""
    found, issues = [], []
    for row in rows:
        try:
            found.append(_assessment(row))
        except _MALFORMED as error:
            what = f"it is malformed: {type(error).__name__} {error}"
            issues.append(Failure(Kind.ASSESSMENT, f"{trace_id}/{row['assessment_id']}", what))
    return found, tuple(issues)


def _assessment(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as REST's ``Assessment``, with its times as numbers.

    Source: MLflow's ``SqlAssessments.to_mlflow_entity`` and ``Assessment.to_proto``.
    """
    source = {
        "source_type": _SOURCES[row["source_type"].upper()],
        "source_id": row["source_id"],
    }
    metadata = json.loads(row["assessment_metadata"] or "null") or {}
    fields = {
        "assessment_id": row["assessment_id"],
        "assessment_name": row["name"],
        "span_id": row["span_id"],
        "source": present(source),
        row["assessment_type"]: _VALUES[row["assessment_type"]](
            json.loads(row["value"]), json.loads(row["error"] or "null")
        ),
        "rationale": row["rationale"],
        "metadata": {key: str(value) for key, value in metadata.items()},
        "overrides": row["overrides"] or None,
        "valid": row["valid"],
        "create_time_ms": row["created_timestamp"],
        "last_update_time_ms": row["last_updated_timestamp"],
    }
    return present(fields)


def _feedback(value: Any, error: dict[str, Any] | None) -> dict[str, Any]:
    feedback: dict[str, Any] = {"value": _plain(value)}
    if error is not None:
        error = {name: error.get(name) for name in ("error_code", "error_message", "stack_trace")}
        if not isinstance(error["error_code"], str):
            raise ValueError("its error has no code")
        trace = error["stack_trace"]
        if trace and len(trace) > _STACK_TRACE:
            error["stack_trace"] = _CUT + trace[len(_CUT) - _STACK_TRACE :]
        feedback["error"] = present({k: v for k, v in error.items() if v or k == "error_code"})
    return feedback


def _expectation(value: Any, _error: Any) -> dict[str, Any]:
    if value is None:
        raise ValueError("it has no value")
    if isinstance(value, dict | list):
        text = json.dumps(value)
        return {"serialized_value": {"serialization_format": "JSON_FORMAT", "value": text}}
    return {"value": _plain(value)}


def _issue(value: Any, _error: Any) -> dict[str, Any]:
    name = value["issue_name"]
    if not isinstance(name, str):
        raise TypeError("its issue has no name")
    return {"issue_name": name}


_VALUES = {"feedback": _feedback, "expectation": _expectation, "issue": _issue}


def _plain(value: Any) -> Any:
    """Return a value as protobuf's JSON has it, which knows doubles alone.

    Raises:
        ValueError: It has no such form.
        OverflowError: A number is too large for it.
    """
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(f"{value} is no number that JSON has")
        return number
    return value
