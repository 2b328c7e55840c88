"""Infos before spans, where the server tells of spans that arrived."""

from __future__ import annotations

import base64
import sqlite3
import uuid
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Span

from mlflow_exim_plugin.errors import ServerLostError
from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin.options import Selection, Writing
from mlflow_exim_plugin.schema.objects import Kind, Trace
from mlflow_exim_plugin.schema.provenance import is_provenance
from mlflow_exim_plugin.sinks.server.sink import ServerSink
from mlflow_exim_plugin.sinks.server.traces.comparison import content_there
from mlflow_exim_plugin.sources.server.source import ServerSource
from mlflow_exim_plugin.transfer import transfer
from tests.proxy import CUT, FaultyProxy, Request
from tests.servers import new_sqlite_database
from tests.trace_seed import started_trace

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report
    from tests.conftest import MakeServer
    from tests.servers import Server

TRACES = 120
"""So many that the last come after the server has shown what it does."""
START_NS = 1_700_000_000_000_000_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of traces that last longer than their spans, and one that lasts less long."""
    path = tmp_path_factory.mktemp("source") / "mlflow.db"
    new_sqlite_database(path)
    uri = f"sqlite:///{path}"
    client = MlflowClient(uri, uri)
    store = client._tracking_client.store
    experiment = client.create_experiment("traces")
    for number in range(TRACES):
        trace_id = f"tr-{uuid.UUID(int=number + 1).hex}"
        started_trace(store, experiment, trace_id, request_time=START_NS // 1_000_000 + number)
        ends_ms = 9_999 if number == TRACES - 1 else 1_000
        spans = [entity(trace_id, n, number, ends_ms) for n in (1, 2)]
        store.log_spans(experiment, spans)
    with closing(sqlite3.connect(path)) as database:
        # The store lets no span last longer than its trace, MLflow's clients round up to a ms.
        database.execute("UPDATE trace_info SET execution_time_ms = 1234")
        database.commit()
    return uri


def entity(trace_id: str, span_number: int, number: int, ends_ms: int) -> Span:
    def encoded(value: int, size: int) -> str:
        return base64.b64encode(value.to_bytes(size, "big")).decode()

    start_ns = START_NS + number * 1_000_000 + span_number
    return Span.from_dict(
        {
            "trace_id": encoded(int(trace_id.removeprefix("tr-"), 16), 16),
            "span_id": encoded(span_number, 8),
            "parent_span_id": encoded(1, 8) if span_number > 1 else None,
            "name": f"span {span_number}",
            "start_time_unix_nano": start_ns,
            "end_time_unix_nano": start_ns + ends_ms * 1_000_000,
            "status": {"code": "STATUS_CODE_OK", "message": ""},
            "attributes": {"mlflow.traceRequestId": f'"{trace_id}"', "n": str(number)},
            "events": [],
            "links": [],
        }
    )


def copy(source: str, target: str) -> Report:
    sink = ServerSink(Host(target, create=True), Writing(), jobs=1)
    return transfer(ServerSource(Host(source, create=False)), sink, Selection())


def read(uri: str) -> dict[str, Trace]:
    stream = ServerSource(Host(uri, create=False)).stream(Selection())
    return {item.id: item for item in stream if isinstance(item, Trace)}


def assert_same(source: str, target: Server) -> None:
    before, after = read(source), read(target.url)
    assert list(before) == list(after)
    fields = ("request_time_ms", "execution_duration_ms", "state", "request_preview")
    for trace_id, trace in before.items():
        there = after[trace_id]
        assert there.spans == trace.spans
        assert [there.info.get(f) for f in fields] == [trace.info.get(f) for f in fields]
        assert all(key.startswith("mlflow.") for key in filter(is_provenance, there.info["tags"]))
        assert content_there(there.info["tags"]).startswith("sha256:")


def spoiled(server: Server, trigger: str) -> None:
    """Have the database of a server do something of its own."""
    with closing(sqlite3.connect(server.backend_uri.removeprefix("sqlite:///"))) as database:
        database.execute(trigger)
        database.commit()


def kinds(requests: list[Request]) -> list[str]:
    """Return what was asked of traces, in order."""
    names = {
        "/v1/traces": "spans",
        "/api/3.0/mlflow/traces": "info",
        "/api/3.0/mlflow/traces/batchGet": "read back",
        "/api/3.0/mlflow/traces/batchGetInfos": "look",
    }
    paths = [request.path.partition("?")[0] for request in requests]
    return [names.get(path, path) for path in paths if "/traces" in path]


@pytest.mark.exhaustive
def test_infos_go_first_where_arrived_spans_are_told(source: str, make_server: MakeServer) -> None:
    target = make_server()
    with FaultyProxy(target.url) as proxy:
        report = copy(source, proxy.url)
    asked = kinds(proxy.seen)

    assert report.ok
    assert {loss.kind for loss in report.losses} == {Kind.EXPERIMENT}
    assert report.counts[Kind.TRACE].written == TRACES
    assert report.counts[Kind.SPAN].written == 2 * TRACES
    assert_same(source, target)
    # The last trace lasts less long than its spans: its info goes after them.
    assert asked[1:] == [
        *("look", "spans", "read back", *["info"] * 50),
        *("look", *["info"] * 50, "spans", "read back"),
        *("look", "spans", "read back", *["info"] * 20, "spans", "read back"),
    ]


def test_second_time_writes_nothing(source: str, make_server: MakeServer) -> None:
    target = make_server()
    copy(source, target.url)

    again = copy(source, target.url)

    assert again.counts[Kind.TRACE].skipped == TRACES
    assert Kind.SPAN not in again.counts


def test_cut_between_info_and_spans_is_completed(
    source: str, make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    target = make_server()

    def cut(request: Request) -> int | None:
        begun = sum(r.path == "/v1/traces" for r in proxy.seen)
        return CUT if request.path == "/v1/traces" and begun > 1 else None

    with FaultyProxy(target.url, cut) as proxy, pytest.raises(ServerLostError):
        copy(source, proxy.url)
    begun = read(target.url)
    assert any(trace.spans is None for trace in begun.values())

    report = copy(source, target.url)

    assert report.ok
    assert_same(source, target)


@pytest.mark.exhaustive
def test_info_that_spans_change_is_put_right(source: str, make_server: MakeServer) -> None:
    target = make_server()
    spoiled(
        target,
        "CREATE TRIGGER spoil AFTER INSERT ON spans BEGIN UPDATE trace_info "
        "SET execution_time_ms = 1, request_preview = 'x' WHERE request_id = NEW.trace_id; END",
    )

    report = copy(source, target.url)

    assert report.ok
    assert {loss.kind for loss in report.losses} == {Kind.EXPERIMENT}
    assert_same(source, target)


def test_spans_that_do_not_arrive_take_the_mark_away(source: str, make_server: MakeServer) -> None:
    target = make_server()
    spoiled(
        target,
        "CREATE TRIGGER spoil BEFORE INSERT ON spans WHEN NEW.name = 'span 2' "
        "BEGIN SELECT RAISE(IGNORE); END",
    )
    report = copy(source, target.url)
    assert report.counts[Kind.SPAN].failed == TRACES
    marks = [content_there(trace.info["tags"]) for trace in read(target.url).values()]
    assert marks == [""] * TRACES
    spoiled(target, "DROP TRIGGER spoil")

    again = copy(source, target.url)

    assert again.ok
    assert_same(source, target)


def test_straight_into_a_database(source: str, tmp_path: Path) -> None:
    target: Any = f"sqlite:///{tmp_path / 'target.db'}"

    report = copy(source, target)

    assert report.ok
    before, after = read(source), read(target)
    for trace_id, trace in before.items():
        assert after[trace_id].spans == trace.spans
        assert after[trace_id].info["execution_duration_ms"] == 1234
        assert content_there(after[trace_id].info["tags"]).startswith("sha256:")
