"""Pages of traces without their spans, from whichever search a deployment has.

Over HTTP it is raw JSON: MLflow's Python objects take several times as long as the server itself.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.traces.documents import (
    document_of_entity,
    document_of_v2,
    document_of_v3,
)
from mlflow_exim_plugin.schema.objects import Trace

if TYPE_CHECKING:
    from collections.abc import Iterator

    import requests

    from mlflow_exim_plugin.host.open.host import Host

__all__ = ["Query", "TraceSearch", "content", "json_reply", "location_of"]

_PAGE = 500
_OLDEST_FIRST = "timestamp_ms ASC"
_ABSENT = {404, 405}
"""A server from before an endpoint says this; 501 is said of what should be there and is not."""
_OK = 200
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError)


@dataclass(frozen=True)
class Query:
    """Which traces a search is asked for, oldest first.

    Attributes:
        experiment_ids: Experiments to look in.
        clause: Filter in MLflow's search language, may be empty.
        since_ms: Start time of the oldest, None for no limit.
        until_ms: Start time of the newest, None for no limit.
        most: Size of a page.
        is_patient: Whether a server that is busy is asked again.
    """

    experiment_ids: tuple[str, ...]
    clause: str = ""
    since_ms: int | None = None
    until_ms: int | None = None
    most: int = _PAGE
    is_patient: bool = True

    @property
    def filter(self) -> str:
        """The whole filter in MLflow's search language."""
        clauses = [self.clause] if self.clause else []
        if self.since_ms is not None:
            clauses.append(f"timestamp_ms >= {self.since_ms}")
        if self.until_ms is not None:
            clauses.append(f"timestamp_ms <= {self.until_ms}")
        return " AND ".join(clauses)

    @property
    def doing(self) -> str:
        """What is being done, for messages."""
        return f"listing the traces of experiment {', '.join(self.experiment_ids[:3])}"

    def within(self, since_ms: int | None, until_ms: int | None) -> Query:
        """Return the same query for other times."""
        return replace(self, since_ms=since_ms, until_ms=until_ms)

    def where(self, *clauses: str) -> Query:
        """Return the same query with further filters."""
        return replace(self, clause=" AND ".join(filter(None, (self.clause, *clauses))))


class TraceSearch:
    """Searches a ``Host``; which searches it has is tried once and remembered.

    Attributes:
        host: The deployment.
        bare_lacks: What ``bare_pages`` leaves out.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.bare_lacks = "assessments"
        if host.is_http:
            self.bare_lacks += ", previews and client request id"
        self._has_v3 = True

    def pages(self, query: Query) -> Iterator[list[Trace]]:
        """Yield the traces of a query without spans; those of one moment may come twice.

        Page tokens are offsets, which drift while traces come and go. So each page starts at the
        time of the last trace seen.

        Raises:
            ServerError: The deployment cannot list them.
        """
        if not self.host.may_have("trace_info"):
            return
        token: str | None = None
        while True:
            page, following = self._page(query, token)
            if page:
                yield page
            if not following:
                return
            last_ms = page[-1].info["request_time_ms"]
            if query.since_ms is None or last_ms > query.since_ms:
                query, token = query.within(last_ms, query.until_ms), None
            else:  # one millisecond has more traces than a page
                token = following

    def any(self, query: Query) -> bool:
        """Whether there is a trace.

        Raises:
            ServerError: The deployment cannot list it.
        """
        return bool(self._page(replace(query, most=1), None)[0])

    def bare_pages(self, query: Query) -> Iterator[list[Trace]]:
        """Yield the traces of a query by a search that does not send ``bare_lacks``.

        Raises:
            ServerError: The deployment cannot list them.
        """
        token: str | None = None
        while True:
            with translated(query.doing):
                if self.host.is_http:
                    found = self._page_v2(query, token)
                else:
                    found = self._page_of_store(query, token, assessments=False)
            if found is None:
                raise ServerError(f"{query.doing}: the server has no search without assessments")
            page, token = found
            yield page
            if not token:
                return

    def one(self, trace: Trace) -> Trace:
        """Return one trace with all that is known of it but its spans.

        Raises:
            ServerError: The deployment cannot read it.
        """
        doing = f"reading trace {trace.id}"
        with translated(doing):
            if not self.host.is_http:
                info = self.host.tracking.get_trace_info(trace.id)
                return Trace(document_of_entity(info), trace.experiment_id)
            endpoint = f"/api/3.0/mlflow/traces/{trace.id}"
            reply = json_reply(self.host.read("GET", endpoint, doing=doing), doing)
            return _trace_v3(reply["trace"]["trace_info"])

    def _page(self, query: Query, token: str | None) -> tuple[list[Trace], str | None]:
        """Return one page and the token of the next."""
        with translated(query.doing):
            if not self.host.is_http:
                return self._page_of_store(query, token)
            if self._has_v3 and (found := self._page_v3(query, token)) is not None:
                return found
            self._has_v3 = False
            return self._page_v2(query, token) or ([], None)  # from before traces

    def _page_v3(self, query: Query, token: str | None) -> tuple[list[Trace], str | None] | None:
        body: dict[str, Any] = {
            "locations": list(map(location_of, query.experiment_ids)),
            "filter": query.filter,
            "max_results": query.most,
            "order_by": [_OLDEST_FIRST],
        }
        if token:
            body["page_token"] = token
        reply = self._reply(query, "POST", "/api/3.0/mlflow/traces/search", body=body)
        if reply is None:
            return None
        return [_trace_v3(t) for t in reply.get("traces", ())], reply.get("next_page_token")

    def _page_v2(self, query: Query, token: str | None) -> tuple[list[Trace], str | None] | None:
        params = [
            *(("experiment_ids", e) for e in query.experiment_ids),
            ("filter", query.filter),
            ("max_results", str(query.most)),
            ("order_by", _OLDEST_FIRST),
        ]
        if token:
            params.append(("page_token", token))
        reply = self._reply(query, "GET", "/api/2.0/mlflow/traces", params=params)
        if reply is None:
            return None
        found = [Trace(document_of_v2(t), str(t["experiment_id"])) for t in reply.get("traces", ())]
        return found, reply.get("next_page_token")

    def _reply(self, query: Query, method: str, endpoint: str, **how: Any) -> dict[str, Any] | None:
        """Return what a server answers, None where it does not know the endpoint."""
        response = self.host.read(
            method, endpoint, doing=query.doing, retries=query.is_patient, **how
        )
        return None if response.status_code in _ABSENT else json_reply(response, query.doing)

    def _page_of_store(
        self, query: Query, token: str | None, *, assessments: bool = True
    ) -> tuple[list[Trace], str | None]:
        search = getattr(self.host.tracking, "search_traces", None)
        if search is None:
            return [], None
        known = inspect.signature(search).parameters
        of = "locations" if "locations" in known else "experiment_ids"
        try:
            found, following = search(
                **{of: list(query.experiment_ids)},
                filter_string=query.filter,
                max_results=query.most,
                order_by=[_OLDEST_FIRST],
                page_token=token,
            )
        except NotImplementedError:
            return [], None
        return [
            Trace(document_of_entity(info, assessments=assessments), str(info.experiment_id))
            for info in found
        ], following or None


def location_of(experiment_id: str) -> dict[str, Any]:
    """Return where traces of an experiment are, in REST's words."""
    return {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment_id}}


def content(response: requests.Response, doing: str) -> bytes:
    """Return the body of a reply.

    Raises:
        ServerError: The server did not answer 200.
    """
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
    try:
        reply = json.loads(content(response, doing))
    except ValueError:
        reply = None
    if not isinstance(reply, dict):
        raise ServerError(f"{doing}: the server answered no JSON object")
    return reply


def _trace_v3(trace: dict[str, Any]) -> Trace:
    experiment = trace["trace_location"]["mlflow_experiment"]["experiment_id"]
    return Trace(document_of_v3(trace), str(experiment))
