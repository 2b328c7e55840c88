"""The spans of traces, from wherever a deployment keeps them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.traces.documents import (
    SPANS_LOCATION,
    TRACKING_STORE,
    document_of_entity,
    document_of_v3,
)
from mlflow_exim_plugin.host.traces.files import (
    ATTACHMENT_URI,
    TraceFiles,
    points,
    spans_of,
    take,
)
from mlflow_exim_plugin.host.traces.search import content, json_reply
from mlflow_exim_plugin.host.traces.spans import from_dict, from_otlp_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.host.traces.files import Convert
    from mlflow_exim_plugin.schema.objects import Trace

__all__ = ["BATCH", "TraceReader"]

BATCH = 50
"""Traces that one call asks spans for: more would not fit the request line of some servers."""
_ABSENT = {404, 405, 501}


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
        readers = (self._spans_of_server, self._spans_of_store, self._spans_of_file)
        for trace in traces:
            if trace.id not in done:
                self._fill_one(trace, pointing, readers)
        return pointing

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
                take(trace, spans, convert)
                done.add(trace.id)
        except ServerError:
            pass  # of one broken trace: those that are left are asked for alone
        return done

    def _batch(
        self, trace_ids: list[str], pointing: set[str]
    ) -> Iterator[tuple[dict[str, Any], Any, Convert]]:
        """Yield document, spans and how to convert these, of the traces that are there."""
        doing = "reading spans"
        with translated(doing):
            if not self.host.is_http:
                get = getattr(self.host.tracking, "batch_get_traces", None)
                for found in get(trace_ids) if get else ():
                    spans = [span.to_dict() for span in found.data.spans]
                    if points(spans):
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
            if ATTACHMENT_URI in response.content:
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
        return spans_of(content(response, doing), trace)

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
