"""The spans and attachments of traces, from wherever a deployment keeps them."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import EximError, ServerError, ServerLostError
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.files.tree import ArtifactTree
from mlflow_exim_plugin.host.traces.documents import (
    ARTIFACT_LOCATION,
    SPANS_LOCATION,
    TRACKING_STORE,
    document_of_entity,
    document_of_v3,
)
from mlflow_exim_plugin.host.traces.search import content, json_reply
from mlflow_exim_plugin.host.traces.spans import attachment_ids, from_dict, from_otlp_json, in_order
from mlflow_exim_plugin.schema.objects import Artifact, Failure, Kind, Loss, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_exim_plugin.host.files.tree import RootResolver
    from mlflow_exim_plugin.host.open.host import Host

    _Convert = Callable[[dict[str, Any], str], dict[str, Any]]

__all__ = [
    "ATTACHMENTS",
    "BATCH",
    "DATA_FILE",
    "TraceFiles",
    "TraceReader",
    "expected_spans",
]

ATTACHMENTS = "attachments/"
BATCH = 50
"""Traces that one call asks spans for: more would not fit the request line of some servers."""
DATA_FILE = "traces.json"

_SIZE_STATS = "mlflow.trace.sizeStats"
_WITH_PAYLOAD = (_SIZE_STATS, "mlflow.trace.sizeBytes", "mlflow.trace_schema.version")
_ATTACHMENT = b"mlflow-attachment:"
_NO_FILE = {TRACKING_STORE, "ARCHIVE_REPO"}
"""Places of spans that are not ``traces.json``."""
_ABSENT = {404, 405, 501}
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError)


class TraceFiles:
    """Reads the spans and attachments that lie in files beside their traces.

    Args:
        deployment: Knows where artifact roots are to be found.
    """

    def __init__(self, deployment: RootResolver) -> None:
        self._deployment = deployment

    def fill(self, traces: list[Trace]) -> set[str]:
        """Read the spans of some traces into them, and name what cannot be read.

        Returns:
            Ids of those whose spans may point at attachments.
        """
        pointing = self._fill_together(traces)
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
            tree = ArtifactTree(self._deployment, root)
            there = {p: s for p, s in tree.files() if p.startswith(ATTACHMENTS)}
        except ServerLostError:
            raise
        except EximError as error:
            name = f"{trace.id}/{ATTACHMENTS}"
            return [Failure(Kind.ARTIFACT, name, error.message, max(1, len(wanted)))]
        found: list[Artifact | Failure] = [
            Artifact(path, size, partial(tree.open, path, size)) for path, size in there.items()
        ]
        found += [
            Failure(Kind.ARTIFACT, f"{trace.id}/{ATTACHMENTS}{name}", "its file is gone")
            for name in wanted
            if ATTACHMENTS + name not in there
        ]
        return found

    def _fill_together(self, traces: list[Trace]) -> set[str]:
        pointing: set[str] = set()
        for trace in traces:
            self._fill_one(trace, pointing)
        return pointing

    def _readers(self) -> tuple[Callable[[Trace], list[dict[str, Any]] | None], ...]:
        """Return the ways to the spans of one trace, in the order in which they are tried."""
        return (self._spans_of_file,)

    def _fill_one(self, trace: Trace, pointing: set[str]) -> None:
        try:
            reasons: list[str] = []
            for read in self._readers():
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

    def _spans_of_file(self, trace: Trace) -> list[dict[str, Any]] | None:
        tags = trace.info["tags"]
        location = tags.get(ARTIFACT_LOCATION, "mlflow-artifacts:")
        # A server that passes files on has just been asked, and would be asked again and again.
        if tags.get(SPANS_LOCATION) in _NO_FILE or location.startswith("mlflow-artifacts:"):
            return None
        with ArtifactTree(self._deployment, location).open(DATA_FILE) as stream:
            return _spans(b"".join(iter(lambda: stream.read(1 << 20), b"")), trace)


class TraceReader(TraceFiles):
    """Reads spans from a ``Host``; which calls it has is tried once and remembered."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.host = host
        self._has_batches = True

    def _fill_together(self, traces: list[Trace]) -> set[str]:
        pointing: set[str] = set()
        stored = [
            t
            for t in traces
            # One that was trouble to list would take its whole batch with it.
            if t.info["tags"].get(SPANS_LOCATION) == TRACKING_STORE and not t.issues
        ]
        done: set[str] = set()
        if stored and self._has_batches:
            done = self._fill_batch(stored, pointing)
        for trace in traces:
            if trace.id not in done:
                self._fill_one(trace, pointing)
        return pointing

    def _readers(self) -> tuple[Callable[[Trace], list[dict[str, Any]] | None], ...]:
        return (self._spans_of_server, self._spans_of_store, self._spans_of_file)

    def _fill_batch(self, traces: list[Trace], pointing: set[str]) -> set[str]:
        """Fill traces whose spans are in the tracking store; one that is broken may stop all.

        Returns:
            Ids of those that are done.
        """
        by_id = {trace.id: trace for trace in traces}
        done: set[str] = set()
        try:
            for document, spans, convert in self._batch(list(by_id), pointing):
                trace = by_id[document["info"]["trace_id"]]
                # The info of this very moment: a trace may have ended since it was listed.
                trace.document = document
                _take(trace, spans, convert)
                done.add(trace.id)
        except ServerLostError:
            raise
        except ServerError:
            pass  # of one broken trace: those that are left are asked for alone
        return done

    def _batch(
        self, trace_ids: list[str], pointing: set[str]
    ) -> Iterator[tuple[dict[str, Any], Any, _Convert]]:
        """Yield document, spans and how to convert these, of the traces that are there."""
        doing = "reading spans"
        with translated(doing):
            if not self.host.is_http:
                get = getattr(self.host.tracking, "batch_get_traces", None)
                for found in get(trace_ids) if get else ():
                    spans = [span.to_dict() for span in found.data.spans]
                    if _points(spans):
                        pointing.add(found.info.trace_id)
                    yield document_of_entity(found.info), spans, from_dict
                return
            response = self.host.read(
                "GET",
                "/api/3.0/mlflow/traces/batchGet",
                doing=doing,
                params=[("trace_ids", trace_id) for trace_id in trace_ids],
            )
            if response.status_code in _ABSENT:
                self._has_batches = False
                return
            if _ATTACHMENT in response.content:
                pointing.update(trace_ids)
            for found in json_reply(response, doing).get("traces", ()):
                yield document_of_v3(found["trace_info"]), found.get("spans", ()), from_otlp_json

    def _spans_of_server(self, trace: Trace) -> list[dict[str, Any]] | None:
        """Let the server read them, which knows every place: tables, files and archives."""
        if not self.host.is_http:
            return None
        doing = f"reading the spans of trace {trace.id}"
        response = self.host.read(
            "GET",
            "/ajax-api/2.0/mlflow/get-trace-artifact",
            doing=doing,
            params=[("request_id", trace.id)],
        )
        return _spans(content(response, doing), trace)

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


def expected_spans(info: dict[str, Any]) -> int:
    """Return how many spans a trace says to have, 0 when it does not say."""
    try:
        return int(json.loads(info["trace_metadata"].get(_SIZE_STATS, "{}"))["num_spans"])
    except _MALFORMED:
        return 0


def _take(
    trace: Trace,
    spans: Any,
    convert: _Convert,
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
    """Return the spans of a ``traces.json``; for other places "none" says "not there"."""
    spans: list[dict[str, Any]] = json.loads(payload)["spans"]
    if not spans and trace.info["tags"].get(SPANS_LOCATION) in _NO_FILE:
        return None
    return spans


def _expects_payload(info: dict[str, Any]) -> bool:
    """Whether there must have been spans: a finished trace that says where or how many."""
    if info["state"] not in {"OK", "ERROR"}:
        return False
    return SPANS_LOCATION in info["tags"] or any(
        key in info["trace_metadata"] for key in _WITH_PAYLOAD
    )
