"""Pages of traces without their spans, from whichever search a deployment has.

Over HTTP it is raw JSON: MLflow's Python objects take several times as long as the server itself.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import ParseError

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.answers import (
    NO_ANSWER,
    NO_TOKEN,
    answered,
    doubted,
    object_of,
    require_refusal,
)
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.traces.documents import (
    document_of_entity,
    document_of_v2,
    document_of_v3,
)
from mlflow_exim_plugin.schema.objects import Failure, Kind, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import requests
    from mlflow.store.entities.paged_list import PagedList

    from mlflow_exim_plugin.host.open.host import Host

__all__ = ["SINCE_V3", "Query", "TraceSearch", "content", "json_reply", "location_of"]

_PAGE = 500
_OLDEST_FIRST = "timestamp_ms ASC"
_ABSENT = {404, 405}
"""A server from before an endpoint says this; 501 is said of what should be there and is not."""
SINCE_V3 = "3.2"
"""MLflow whose search of traces has their assessments too."""
_OK = 200
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, ArithmeticError)


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
        is_doubted: Whether an answer of nothing is asked for again; else who asks sees to it.
    """

    experiment_ids: tuple[str, ...]
    clause: str = ""
    since_ms: int | None = None
    until_ms: int | None = None
    most: int = _PAGE
    is_patient: bool = True
    is_doubted: bool = True

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

    def pages(self, query: Query) -> Iterator[list[Trace] | Failure]:
        """Yield the traces of a query without spans, each once, and what is not like a trace.

        Page tokens are offsets, which drift while traces come and go. So each page starts at the
        time of the last trace seen.

        Raises:
            ServerError: The deployment cannot list them.
        """
        if not self.host.may_have("trace_info"):
            return
        token: str | None = None
        seen: set[str] = set()
        while True:
            page = self._page(query, token)
            yield from (item for item in page if isinstance(item, Failure) and item.id not in seen)
            traces = [item for item in page if not isinstance(item, Failure)]
            if new := [trace for trace in traces if trace.id not in seen]:
                yield new
            if not page.token:
                return
            if all(item.id in seen for item in page):
                raise ServerError(f"{query.doing}: its pages go on for ever and bring nothing new")
            last_ms = traces[-1].info["request_time_ms"] if traces else None
            if last_ms is not None and (query.since_ms is None or last_ms > query.since_ms):
                # Only those of the last moment come again.
                seen = {t.id for t in traces if t.info["request_time_ms"] == last_ms}
                query, token = query.within(last_ms, query.until_ms), None
            else:  # one millisecond has more traces than a page
                seen.update(item.id for item in page)
                token = page.token

    def any(self, query: Query) -> bool:
        """Whether there is a trace.

        Raises:
            ServerError: The deployment cannot list it.
        """
        return bool(self._page(replace(query, most=1), None))

    def require_refusal(self, query: Query) -> None:
        """Ask for a page that is not there.

        Raises:
            ServerError: Nobody refused.
        """
        with translated(query.doing):
            if self.host.is_http:
                require_refusal(lambda: self._page_of_server(query, NO_TOKEN))

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
            yield [item for item in found if not isinstance(item, Failure)]
            if not found.token or found.token == token:
                return
            token = found.token

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

    def _page(self, query: Query, token: str | None) -> PagedList[Trace | Failure]:
        """Return one page with the token of the next."""
        from mlflow.store.entities.paged_list import PagedList

        with translated(query.doing):
            if not self.host.is_http:
                return self._page_of_store(query, token)
            found = answered(lambda: self._page_of_server(query, token))
            if found is None:  # from before traces
                self._believe(query, Kind.TRACE)
                return PagedList([], None)
            if not found and query.is_doubted:
                found = doubted(
                    lambda: self._page_of_server(query, token),
                    lambda: self._page_of_server(query, NO_TOKEN),
                )
            return found or PagedList([], None)

    def _page_of_server(self, query: Query, token: str | None) -> PagedList[Trace | Failure] | None:
        if self._has_v3:
            if (found := self._page_v3(query, token)) is not None:
                return found
            self._believe(query, Kind.ASSESSMENT, since=SINCE_V3)
            self._has_v3 = False
        return self._page_v2(query, token)

    def _believe(self, query: Query, kind: Kind, since: str = "") -> None:
        """Take it that the server does not have a search.

        Raises:
            ServerError: Its version has it.
        """
        if failure := self.host.absence(kind, since=since).failure:
            raise ServerError(f"{query.doing}: {failure}")

    def _page_v3(self, query: Query, token: str | None) -> PagedList[Trace | Failure] | None:
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
        return _page_of(reply, _trace_v3)

    def _page_v2(self, query: Query, token: str | None) -> PagedList[Trace | Failure] | None:
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
        return _page_of(reply, lambda t: Trace(document_of_v2(t), str(t["experiment_id"])))

    def _reply(self, query: Query, method: str, endpoint: str, **how: Any) -> dict[str, Any] | None:
        """Return what a server answers, None where it does not know the endpoint."""
        response = self.host.read(
            method, endpoint, doing=query.doing, retries=query.is_patient, **how
        )
        return None if response.status_code in _ABSENT else json_reply(response, query.doing)

    def _page_of_store(
        self, query: Query, token: str | None, *, assessments: bool = True
    ) -> PagedList[Trace | Failure]:
        from mlflow.store.entities.paged_list import PagedList

        search = getattr(self.host.tracking, "search_traces", None)
        if search is None:
            return PagedList([], None)
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
            return PagedList([], None)

        def make(info: Any) -> Trace:
            document = document_of_entity(info, assessments=assessments)
            return Trace(document, str(info.experiment_id))

        return PagedList([_made(make, info) for info in found], following or None)


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
    body = content(response, doing) or b"{}"  # which stand for each other, see ``answers``
    try:
        return object_of(body)
    except NO_ANSWER as error:
        raise ServerError(f"{doing}: the server answered no JSON object") from error


def _page_of(reply: dict[str, Any], make: Callable[[Any], Trace]) -> PagedList[Trace | Failure]:
    from mlflow.store.entities.paged_list import PagedList

    listed, token = reply.get("traces", []), reply.get("next_page_token") or None
    if not isinstance(listed, list) or not isinstance(token, str | None):
        raise ParseError("traces is no list, or next_page_token no text")
    return PagedList([_made(make, trace) for trace in listed], token)


def _made(make: Callable[[Any], Trace], given: Any) -> Trace | Failure:
    """Return a trace, or why what a listing gives is none."""
    try:
        trace = make(given)
        if (
            not isinstance(trace.info["trace_id"], str)
            or type(trace.info["request_time_ms"]) is not int
        ):
            raise TypeError("its id is no text, or its time no number")
    except _MALFORMED as error:
        named = given if isinstance(given, dict) else vars(given)
        name = str(named.get("trace_id") or named.get("request_id") or "one without an id")
        return Failure(Kind.TRACE, name, f"it is malformed: {type(error).__name__} {error}")
    return trace


def _trace_v3(trace: dict[str, Any]) -> Trace:
    experiment = trace["trace_location"]["mlflow_experiment"]["experiment_id"]
    return Trace(document_of_v3(trace), str(experiment))
