"""Traces of one deployment: every one listed once, and its spans from wherever they are kept.

Over HTTP it is raw JSON: MLflow's Python objects take several times as long as the server itself.
"""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import EximError, ServerError, ServerLostError
from mlflow_exim_plugin.host.artifacts import ArtifactTree
from mlflow_exim_plugin.host.connection import Host, translated
from mlflow_exim_plugin.host.spans import attachment_ids, from_dict, from_otlp_json, in_order
from mlflow_exim_plugin.host.trace_documents import (
    ARTIFACT_LOCATION,
    SPANS_LOCATION,
    TRACKING_STORE,
    document_of_entity,
    document_of_v2,
    document_of_v3,
)
from mlflow_exim_plugin.schema.objects import SOURCE_RUN, Artifact, Failure, Kind, Loss, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import requests

__all__ = [
    "ATTACHMENTS",
    "BATCH",
    "DATA_FILE",
    "TraceReader",
    "expected_spans",
    "json_reply",
    "run_clause",
]

ATTACHMENTS = "attachments/"
BATCH = 50
"""Traces that one call asks spans for: more would not fit the request line of some servers."""
DATA_FILE = "traces.json"

_PAGE = 500
_LATE_MS = 3_600_000
_SWEEPS = 3
_SIZE_STATS = "mlflow.trace.sizeStats"
_WITH_PAYLOAD = (_SIZE_STATS, "mlflow.trace.sizeBytes", "mlflow.trace_schema.version")
_ATTACHMENT = b"mlflow-attachment:"
_ABSENT = {404, 405, 501}
_OK = 200
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError)


class TraceReader:
    """Reads traces from a ``Host``; which calls it has is tried once and remembered."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._has_v3 = True
        self._has_batches = True

    def pages(self, experiment_id: str, clause: str = "") -> Iterator[list[Trace]]:
        """Yield the traces of an experiment without their spans, each once, oldest first.

        Page tokens are offsets, which drift while traces come and go. So each page starts at the
        time of the last trace seen, and what came late is asked for again at the end.

        Args:
            experiment_id: The experiment.
            clause: Further filter in MLflow's search language.

        Raises:
            ServerError: The deployment cannot list them.
        """
        newest = self._search(experiment_id, clause, None, "timestamp_ms DESC", 1, None)[0]
        if not newest:
            return
        # Ids are kept as hashes: a million of them fit into some tens of megabytes.
        seen: set[int] = set()
        yield from self._since(experiment_id, clause, None, seen)
        late_ms = newest[0].info["request_time_ms"] - _LATE_MS
        for _ in range(_SWEEPS):
            some = False
            for page in self._since(experiment_id, clause, late_ms, seen):
                some = True
                yield page
            if not some:
                return

    def any(self, experiment_id: str) -> bool:
        """Whether an experiment has a trace."""
        return bool(self._search(experiment_id, "", None, "timestamp_ms DESC", 1, None)[0])

    def linked_to(self, experiment_ids: list[str], run_id: str) -> list[str]:
        """Return the traces that someone linked to a run which is not where they come from.

        Servers answer a filter for a trace's own run with the linked ones too.
        """
        clause = run_clause(run_id)
        found: list[str] = []
        token: str | None = None
        while True:
            page, token = self._search(
                experiment_ids, clause, None, "timestamp_ms ASC", _PAGE, token
            )
            found += [t.id for t in page if t.info["trace_metadata"].get(SOURCE_RUN) != run_id]
            if not token:
                return found

    def fill(self, traces: list[Trace]) -> set[str]:
        """Read the spans of some traces into them, and name what cannot be read.

        Returns:
            Ids of those whose spans may point at attachments.
        """
        pointing: set[str] = set()
        stored = [t for t in traces if t.info["tags"].get(SPANS_LOCATION) == TRACKING_STORE]
        done: set[str] = set()
        if stored and self._has_batches:
            done = self._fill_batch(stored, pointing)
        for trace in traces:
            if trace.id not in done:
                self._fill_one(trace, pointing)
        for trace in traces:
            expected = expected_spans(trace.info)
            if trace.spans is not None and len(trace.spans) < expected:
                what = f"the source has {len(trace.spans)} of its {expected} spans"
                trace.issues += (Loss(Kind.SPAN, trace.id, what),)
        return pointing

    def attachments(self, trace: Trace) -> list[Artifact | Failure]:
        """Return the files beside a trace whose spans point at some.

        A trace that came to its server under a new id still points by the old one.
        """
        wanted = attachment_ids(trace.spans or (), trace.id)
        root = trace.info["tags"].get(ARTIFACT_LOCATION)
        if not root:
            return []
        try:
            tree = ArtifactTree(self.host, root)
            there = {p: s for p, s in tree.files() if p.startswith(ATTACHMENTS)}
        except ServerLostError:
            raise
        except EximError as error:
            name = f"{trace.id}/{ATTACHMENTS}"
            return [Failure(Kind.ARTIFACT, name, error.message, max(1, len(wanted)))]
        found: list[Artifact | Failure] = [
            Artifact(path, size, lambda path=path: tree.open(path))  # type: ignore[misc]
            for path, size in there.items()
        ]
        found += [
            Failure(Kind.ARTIFACT, f"{trace.id}/{ATTACHMENTS}{name}", "its file is gone")
            for name in wanted
            if ATTACHMENTS + name not in there
        ]
        return found

    def _since(
        self, experiment_id: str, clause: str, since_ms: int | None, seen: set[int]
    ) -> Iterator[list[Trace]]:
        """Yield pages of traces that started then or later and were not seen before."""
        token: str | None = None
        while True:
            page, following = self._search(
                experiment_id, clause, since_ms, "timestamp_ms ASC", _PAGE, token
            )
            new = [trace for trace in page if hash(trace.id) not in seen]
            seen.update(hash(trace.id) for trace in new)
            if new:
                yield new
            if not following:
                return
            last_ms = page[-1].info["request_time_ms"]
            if since_ms is None or last_ms > since_ms:
                since_ms, token = last_ms, None
            else:  # one millisecond has more traces than a page
                token = following

    def _search(
        self,
        experiment_ids: str | list[str],
        clause: str,
        since_ms: int | None,
        order: str,
        most: int,
        token: str | None,
    ) -> tuple[list[Trace], str | None]:
        """Return one page of traces without spans and the token of the next."""
        clauses = [clause] if clause else []
        if since_ms is not None:
            clauses.append(f"timestamp_ms >= {since_ms}")
        listed = [experiment_ids] if isinstance(experiment_ids, str) else experiment_ids
        arguments = (listed, " AND ".join(clauses), order, most, token)
        doing = f"listing the traces of experiment {', '.join(listed[:3])}"
        with translated(doing):
            if not self.host.is_http:
                return self._search_store(*arguments)
            if self._has_v3 and (found := self._search_v3(doing, *arguments)) is not None:
                return found
            self._has_v3 = False
            return self._search_v2(doing, *arguments)

    def _search_v3(
        self,
        doing: str,
        experiment_ids: list[str],
        clause: str,
        order: str,
        most: int,
        token: str | None,
    ) -> tuple[list[Trace], str | None] | None:
        body: dict[str, Any] = {
            "locations": [
                {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": e}}
                for e in experiment_ids
            ],
            "filter": clause,
            "max_results": most,
            "order_by": [order],
        }
        if token:
            body["page_token"] = token
        response = self.host.call("POST", "/api/3.0/mlflow/traces/search", doing=doing, body=body)
        if response.status_code in _ABSENT:
            return None
        reply = json_reply(response, doing)
        return [_trace_v3(t) for t in reply.get("traces", ())], reply.get("next_page_token")

    def _search_v2(
        self,
        doing: str,
        experiment_ids: list[str],
        clause: str,
        order: str,
        most: int,
        token: str | None,
    ) -> tuple[list[Trace], str | None]:
        params = [
            *(("experiment_ids", e) for e in experiment_ids),
            ("filter", clause),
            ("max_results", str(most)),
            ("order_by", order),
        ]
        if token:
            params.append(("page_token", token))
        response = self.host.call("GET", "/api/2.0/mlflow/traces", doing=doing, params=params)
        if response.status_code in _ABSENT:
            return [], None  # a server from before traces
        reply = json_reply(response, doing)
        found = [Trace(document_of_v2(t), str(t["experiment_id"])) for t in reply.get("traces", ())]
        return found, reply.get("next_page_token")

    def _search_store(
        self,
        experiment_ids: list[str],
        clause: str,
        order: str,
        most: int,
        token: str | None,
    ) -> tuple[list[Trace], str | None]:
        search = getattr(self.host.tracking, "search_traces", None)
        if search is None:
            return [], None
        known = inspect.signature(search).parameters
        of = "locations" if "locations" in known else "experiment_ids"
        try:
            found, following = search(
                **{of: experiment_ids},
                filter_string=clause,
                max_results=most,
                order_by=[order],
                page_token=token,
            )
        except NotImplementedError:
            return [], None
        return [
            Trace(document_of_entity(info), str(info.experiment_id)) for info in found
        ], following or None

    def _fill_batch(self, traces: list[Trace], pointing: set[str]) -> set[str]:
        """Fill traces whose spans are in the tracking store; one that is broken may stop all.

        Returns:
            Ids of those that are done.
        """
        by_id = {trace.id: trace for trace in traces}
        if not self.host.is_http:
            return self._fill_batch_of_store(by_id, pointing)
        response = self.host.call(
            "GET",
            "/api/3.0/mlflow/traces/batchGet",
            doing="reading spans",
            params=[("trace_ids", trace_id) for trace_id in by_id],
        )
        if response.status_code in _ABSENT:
            self._has_batches = False
        if response.status_code != _OK:
            return set()
        if _ATTACHMENT in response.content:
            pointing.update(by_id)
        done: set[str] = set()
        for found in json.loads(response.content).get("traces", ()):
            trace = by_id[found["trace_info"]["trace_id"]]
            # The info of this very moment: a trace may have ended since it was listed.
            trace.document = document_of_v3(found["trace_info"])
            _take(trace, found.get("spans", ()), from_otlp_json)
            done.add(trace.id)
        return done

    def _fill_batch_of_store(self, by_id: dict[str, Trace], pointing: set[str]) -> set[str]:
        get = getattr(self.host.tracking, "batch_get_traces", None)
        if get is None:
            return set()
        try:
            with translated("reading spans"):
                found = get(list(by_id))
        except ServerLostError:
            raise
        except ServerError:
            return set()  # of one broken trace: each is asked for alone
        for entity in found:
            trace = by_id[entity.info.trace_id]
            trace.document = document_of_entity(entity.info)
            spans = [span.to_dict() for span in entity.data.spans]
            _take(trace, spans, from_dict)
            if _points(spans):
                pointing.add(trace.id)
        return {entity.info.trace_id for entity in found}

    def _fill_one(self, trace: Trace, pointing: set[str]) -> None:
        try:
            reasons: list[str] = []
            for read in (self._spans_of_server, self._spans_of_store, self._spans_of_file):
                try:
                    spans = read(trace)
                except ServerLostError:
                    raise
                except EximError as error:
                    reasons.append(error.message)
                    continue
                if spans is not None:
                    _take(trace, spans, from_dict)
                    if _points(spans):
                        pointing.add(trace.id)
                    return
        except _MALFORMED as error:
            trace.issues += (_malformed(trace, error),)
            return
        if _expects_payload(trace.info):
            reason = "; ".join(dict.fromkeys(reasons)) or "its spans are gone"
            trace.issues += (Failure(Kind.SPAN, trace.id, reason),)
        else:
            trace.issues += (Loss(Kind.TRACE, trace.id, "the source has no spans of it"),)

    def _spans_of_server(self, trace: Trace) -> list[dict[str, Any]] | None:
        """Let the server read them, which knows every place: tables, files and archives."""
        if not self.host.is_http:
            return None
        doing = f"reading the spans of trace {trace.id}"
        response = self.host.call(
            "GET",
            "/ajax-api/2.0/mlflow/get-trace-artifact",
            doing=doing,
            params=[("request_id", trace.id)],
        )
        return _spans(_content(response, doing), trace)

    def _spans_of_store(self, trace: Trace) -> list[dict[str, Any]] | None:
        if self.host.is_http or SPANS_LOCATION not in trace.info["tags"]:
            return None
        get = getattr(self.host.tracking, "get_trace", None)
        if get is None:
            return None
        with translated(f"reading the spans of trace {trace.id}"):
            found = get(trace.id, allow_partial=True)
            spans = [span.to_dict() for span in found.data.spans]
        return spans or None

    def _spans_of_file(self, trace: Trace) -> list[dict[str, Any]] | None:
        tags = trace.info["tags"]
        location = tags.get(ARTIFACT_LOCATION, "mlflow-artifacts:")
        # A server that passes files on has just been asked, and would be asked again and again.
        if tags.get(SPANS_LOCATION) == TRACKING_STORE or location.startswith("mlflow-artifacts:"):
            return None
        with ArtifactTree(self.host, location).open(DATA_FILE) as stream:
            return _spans(b"".join(iter(lambda: stream.read(1 << 20), b"")), trace)


def run_clause(run_id: str) -> str:
    """Return the filter for the traces of a run, linked ones included."""
    return f"request_metadata.`{SOURCE_RUN}` = '{run_id}'"


def expected_spans(info: dict[str, Any]) -> int:
    """Return how many spans a trace says to have, 0 when it does not say."""
    try:
        return int(json.loads(info["trace_metadata"].get(_SIZE_STATS, "{}"))["num_spans"])
    except _MALFORMED:
        return 0


def _trace_v3(trace: dict[str, Any]) -> Trace:
    experiment = trace["trace_location"]["mlflow_experiment"]["experiment_id"]
    return Trace(document_of_v3(trace), str(experiment))


def _take(
    trace: Trace,
    spans: Any,
    convert: Callable[[dict[str, Any], str], dict[str, Any]],
) -> None:
    try:
        trace.spans = in_order(convert(span, trace.id) for span in spans)
    except _MALFORMED as error:
        trace.issues += (_malformed(trace, error),)


def _points(spans: Any) -> bool:
    return _ATTACHMENT.decode() in str(spans)


def _malformed(trace: Trace, error: Exception) -> Failure:
    what = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
    return Failure(Kind.SPAN, trace.id, f"its spans are malformed: {what}")


def _spans(payload: bytes, trace: Trace) -> list[dict[str, Any]] | None:
    """Return the spans of a ``traces.json``; a tracking store says "none" for "not there"."""
    spans: list[dict[str, Any]] = json.loads(payload)["spans"]
    if not spans and trace.info["tags"].get(SPANS_LOCATION) == TRACKING_STORE:
        return None
    return spans


def _expects_payload(info: dict[str, Any]) -> bool:
    """Whether there must have been spans: a finished trace that says where or how many."""
    if info["state"] not in {"OK", "ERROR"}:
        return False
    return SPANS_LOCATION in info["tags"] or any(
        key in info["trace_metadata"] for key in _WITH_PAYLOAD
    )


def _content(response: requests.Response, doing: str) -> bytes:
    if response.status_code != _OK:
        try:
            reason = str(json.loads(response.content)["message"])
        except _MALFORMED:
            reason = f"the server answered {response.status_code}"
        raise ServerError(f"{doing}: {' '.join(reason.split())[:400]}")
    return bytes(response.content)


def json_reply(response: requests.Response, doing: str) -> dict[str, Any]:
    """Return the JSON object that a server answered.

    Raises:
        ServerError: It answered something else.
    """
    reply = json.loads(_content(response, doing))
    if not isinstance(reply, dict):
        raise ServerError(f"{doing}: the server answered no JSON object")
    return reply
