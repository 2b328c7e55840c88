"""Traces from a deployment to another: everything its API shows, less a written list."""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin.options import Selection, Writing
from mlflow_exim_plugin.schema.objects import Artifact, Failure, Kind, Loss, Trace
from mlflow_exim_plugin.schema.provenance import AS_OF_MS, CONTENT, names_of
from mlflow_exim_plugin.sinks.server.sink import ServerSink
from mlflow_exim_plugin.sources.server.source import ServerSource
from mlflow_exim_plugin.transfer import transfer
from tests.compare import as_default, assert_count_law
from tests.filled import copy_of_database, copy_of_server
from tests.servers import Server, old_versions, start_server
from tests.trace_seed import SeededTraces, seed_traces, started_trace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report
    from tests.conftest import MakeServer

OF_THE_TARGET = {
    "mlflow.artifactLocation": "the target's own root",
    "mlflow.trace.spansLocation": "where the target keeps the spans",
    "mlflow.trace.infoFinalized": "set by every server that is given an info",
    **dict.fromkeys(names_of(CONTENT), "says that it was written whole"),
    **dict.fromkeys(names_of(AS_OF_MS), "says when the source was read"),
}
"""Tags and metadata that may differ."""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, SeededTraces]]:
    """A server with every kind of trace, its files in a folder that clients see."""
    folder = tmp_path_factory.mktemp("traces")
    made = copy_of_server(folder, seed_traces, serve_artifacts=False)
    with start_server(folder, serve_artifacts=False) as server:
        yield server, made


@pytest.fixture(scope="module")
def copied(
    source: tuple[Server, SeededTraces], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, list[Report]]]:
    """A server with files of its own that took all of ``source`` twice."""
    with start_server(tmp_path_factory.mktemp("copy")) as server:
        yield server, [copy(source[0].url, server.url) for _ in range(2)]


def copy(source: str, target: str, selection: Selection | None = None) -> Report:
    sink = ServerSink(Host(target, create=True), Writing())
    return transfer(ServerSource(Host(source, create=False)), sink, selection or Selection())


def read(uri: str, selection: Selection | None = None) -> dict[str, Trace]:
    """Return every trace that our source gives, each of which must come once."""
    stream = ServerSource(Host(uri, create=False)).stream(selection or Selection())
    traces = [item for item in stream if isinstance(item, Trace)]
    assert max(Counter(trace.id for trace in traces).values(), default=1) == 1
    return {trace.id: trace for trace in traces}


def shown(uri: str, trace_id: str) -> dict[str, Any]:
    """Return what MLflow's own client shows of a trace, less what may differ."""
    client = MlflowClient(uri, uri)
    store = client._tracking_client.store
    info: dict[str, Any] = store.get_trace_info(trace_id).to_dict()
    info.pop("trace_location")
    for part in ("tags", "trace_metadata"):
        info[part] = {k: v for k, v in info.get(part, {}).items() if k not in OF_THE_TARGET}
    info["assessments"] = {a["assessment_id"]: a for a in info.get("assessments", ())}
    if info["tags"].get("mlflow.traceName") == "started":
        return info  # it has no spans
    with as_default(uri):
        spans = client.get_trace(trace_id).data.spans
    return info | {"spans": {span.span_id: span.to_dict() for span in spans}}


def test_same_documents_from_server_and_database(source: tuple[Server, SeededTraces]) -> None:
    server, made = source
    over_http, from_sql = read(server.url), read(server.backend_uri)

    assert set(over_http) == set(from_sql) == set(made.traces.values())
    for trace_id, trace in over_http.items():
        other = from_sql[trace_id]
        assert trace.document == other.document
        assert trace.spans == other.spans
        assert trace.issues == other.issues
        assert files(trace) == files(other)


def files(trace: Trace) -> dict[str, bytes]:
    found = {}
    for item in trace.attachments:
        assert isinstance(item, Artifact)
        with item.open() as stream:
            found[item.path] = stream.read()
        assert len(found[item.path]) == item.size_bytes
    return found


def test_hard_values_are_exact(source: tuple[Server, SeededTraces]) -> None:
    server, made = source
    trace = read(server.url)[made.traces["full"]]
    assert trace.spans is not None
    root, child, grand = trace.spans

    assert root["start_time_ns"] == 1_700_000_000_123_456_790
    assert root["attributes"]["nan"] == {"doubleValue": "NaN"}
    assert root["attributes"]["deep"]["inf"] == [
        {"doubleValue": "Infinity"},
        {"doubleValue": "-Infinity"},
    ]
    assert root["attributes"]["looks marked"] == {"kvlistValue": {"doubleValue": "NaN"}}
    assert root["attributes"]["text of a number"] == "42"
    assert list(root["attributes"]) == sorted(root["attributes"])
    assert child["links"] == [
        {"trace_id": "ab" * 16, "span_id": "cd" * 8, "attributes": {"why": "same", "n": 3}}
    ]
    assert child["events"][0]["time_ns"] == 1_700_000_000_123_456_806
    assert grand["end_time_ns"] is None
    assert files(trace).popitem()[1] == b"\x89PNG" + bytes(range(256))


def test_target_shows_the_same(
    source: tuple[Server, SeededTraces], copied: tuple[Server, list[Report]]
) -> None:
    server, made = source
    target, (report, _) = copied
    runs = {
        run.data.tags["mlflow.exim.origin"]: run.info.run_id
        for run in MlflowClient(target.url).search_runs(
            [MlflowClient(target.url).get_experiment_by_name("traces").experiment_id]
        )
    }

    assert report.ok
    assert_count_law(report)
    assert report.counts[Kind.TRACE].written == len(made.traces)
    assert report.counts[Kind.SPAN].written == 2008
    assert report.counts[Kind.ASSESSMENT].written == 10
    for trace_id in made.traces.values():
        before, after = shown(server.url, trace_id), shown(target.url, trace_id)
        text = json.dumps(before, sort_keys=True)
        for old, new in runs.items():
            text = text.replace(old, new)
        assert json.loads(text) == json.loads(json.dumps(after))


def test_attachments_and_links_arrive(
    source: tuple[Server, SeededTraces], copied: tuple[Server, list[Report]]
) -> None:
    _, made = source
    target, _ = copied
    there = read(target.url)
    linked = {name for name, id_ in made.traces.items() if "linked_runs" in there[id_].info}

    assert files(there[made.traces["full"]]).popitem()[1] == b"\x89PNG" + bytes(range(256))
    assert linked == {"error", "many"}


def test_second_time_writes_nothing(copied: tuple[Server, list[Report]]) -> None:
    target, (first, second) = copied

    assert Kind.SPAN not in second.counts
    assert Kind.ASSESSMENT not in second.counts
    assert second.counts[Kind.TRACE].skipped == first.counts[Kind.TRACE].written
    assert len(read(target.url)) == first.counts[Kind.TRACE].written


def test_what_is_lost_is_named(copied: tuple[Server, list[Report]]) -> None:
    _, (report, _) = copied
    named = {(loss.kind, loss.what.partition(" (")[0]) for loss in report.losses}

    assert (Kind.TRACE, "the source has no spans of it") in named
    assert (Kind.TRACE, "mlflow.modelId keeps the source's id: no such logged model is there") in (
        named
    )


def test_interrupted_copy_is_completed(
    source: tuple[Server, SeededTraces], make_server: MakeServer
) -> None:
    server, made = source
    target = make_server()
    copy(server.url, target.url)
    trace_id = made.traces["full"]
    with closing(sqlite3.connect(target.backend_uri.removeprefix("sqlite:///"))) as database:
        # As if killed between the spans and the info, with one assessment and a span missing.
        database.execute("DELETE FROM assessments WHERE name = 'score'")
        database.execute("DELETE FROM spans WHERE trace_id = ? AND name = 'grand'", [trace_id])
        database.execute(
            "DELETE FROM trace_tags WHERE request_id = ? AND key IN (?, ?)",
            [trace_id, *names_of(CONTENT)],
        )
        database.commit()

    report = copy(server.url, target.url)

    assert report.ok
    assert report.counts[Kind.TRACE].written == 1
    assert report.counts[Kind.ASSESSMENT].written == 1
    before, after = shown(server.url, trace_id), shown(target.url, trace_id)
    assert before["spans"] == after["spans"]
    assert {id_: a.get("valid") for id_, a in before["assessments"].items()} == {
        id_: a.get("valid") for id_, a in after["assessments"].items()
    }


def test_same_id_elsewhere_is_refused(
    source: tuple[Server, SeededTraces], make_server: MakeServer
) -> None:
    server, made = source
    target = make_server()
    client = MlflowClient(target.url, target.url)
    elsewhere = client.create_experiment("elsewhere")
    taken = made.traces["no payload"]
    started_trace(client._tracking_client.store, elsewhere, taken, request_time=1)

    report = copy(server.url, target.url)

    assert [(f.kind, f.id) for f in report.failures] == [(Kind.TRACE, taken)]
    assert_count_law(report)
    assert client._tracking_client.store.get_trace_info(taken).experiment_id == elsewhere


def test_broken_payloads_are_one_failure_each(make_server: MakeServer) -> None:
    server = make_server()
    client = MlflowClient(server.url, server.url)
    store = client._tracking_client.store
    experiment = client.create_experiment("broken")
    whole = seed_traces(server.url, "whole").traces["full"]
    gone = started_trace(store, experiment, metadata={"mlflow.trace_schema.version": "3"})
    malformed = started_trace(store, experiment, metadata={"mlflow.trace_schema.version": "3"})
    folder = server.directory / "artifacts" / experiment / "traces" / malformed / "artifacts"
    folder.mkdir(parents=True)
    (folder / "traces.json").write_text('{"spans": [{"name": 3}]}')
    broken_row = seed_traces(server.url, "third").traces["error"]
    with closing(sqlite3.connect(server.directory / "mlflow.db")) as database:
        database.execute("UPDATE spans SET content = '{' WHERE trace_id = ?", [broken_row])
        database.commit()

    traces = read(server.url)

    failed = {trace.id for trace in traces.values() for i in trace.issues if isinstance(i, Failure)}
    assert failed == {gone, malformed, broken_row}
    assert all(
        issue.kind is Kind.SPAN
        for trace in traces.values()
        for issue in trace.issues
        if isinstance(issue, Failure)
    )
    assert len(traces[whole].spans or ()) == 3
    assert sum(isinstance(i, Loss) for t in traces.values() for i in t.issues) == 4


def test_archived_spans_are_read(make_server: MakeServer, tmp_path: Path) -> None:
    from mlflow.tracing.otel.otel_archival import spans_to_traces_data_pb

    made = copy_of_server(tmp_path / "server", seed_traces)
    server = make_server(tmp_path / "server")
    trace_id = made.traces["error"]
    before = read(server.url)[trace_id]
    spans = MlflowClient(server.url, server.url).get_trace(trace_id).data.spans
    place = server.directory / "archive" / trace_id
    place.mkdir(parents=True)
    (place / "traces.pb").write_bytes(spans_to_traces_data_pb(spans))
    with closing(sqlite3.connect(server.directory / "mlflow.db")) as database:
        database.execute("UPDATE spans SET content = '' WHERE trace_id = ?", [trace_id])
        database.execute(
            "UPDATE trace_tags SET value = 'ARCHIVE_REPO' WHERE request_id = ? AND key = ?",
            [trace_id, "mlflow.trace.spansLocation"],
        )
        database.execute(
            "INSERT INTO trace_tags (request_id, key, value) VALUES (?, ?, ?)",
            [trace_id, "mlflow.trace.archiveLocation", place.as_uri()],
        )
        database.commit()

    after = read(server.url)[trace_id]

    assert after.spans == before.spans
    assert not after.issues


def fill_busy(uri: str) -> tuple[str, set[str]]:
    client = MlflowClient(uri, uri)
    experiment = client.create_experiment("busy")
    store = client._tracking_client.store
    return experiment, {started_trace(store, experiment, request_time=n // 3) for n in range(700)}


@pytest.mark.exhaustive
def test_each_trace_once_while_others_write(make_server: MakeServer, tmp_path: Path) -> None:
    experiment, there = copy_of_database(tmp_path / "server", fill_busy)
    server = make_server(tmp_path / "server")
    store = MlflowClient(server.url, server.url)._tracking_client.store
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            started_trace(store, experiment, request_time=0)  # moves every offset

    writer = threading.Thread(target=write)
    writer.start()
    try:
        found = read(server.url)
    finally:
        stop.set()
        writer.join()

    assert there <= set(found)


def test_only_the_traces_of_chosen_runs(source: tuple[Server, SeededTraces]) -> None:
    server, made = source

    of_source = read(server.url, Selection(runs=(made.runs["source"],)))
    linked = read(server.url, Selection(runs=(made.runs["linked"],)))
    without = read(server.url, Selection(traces=False))

    assert set(of_source) == {made.traces["full"]}
    assert set(linked) == {made.traces["error"], made.traces["many"]}
    assert not without


@pytest.mark.exhaustive
@pytest.mark.parametrize("version", old_versions("2.22.5", "3.1.4"))
def test_old_server_keeps_what_it_can(
    source: tuple[Server, SeededTraces], make_server: MakeServer, version: str
) -> None:
    server, made = source
    target = make_server(mlflow_version=version)

    report = copy(server.url, target.url)
    again = copy(server.url, target.url)

    origins = {
        trace.info["tags"]["mlflow.exim.origin"]: trace for trace in read(target.url).values()
    }
    full, many = (origins[made.traces[name]] for name in ("full", "many"))
    before = read(server.url)[made.traces["full"]]
    assert set(origins) == set(made.traces.values())
    assert [(s["span_id"], s["attributes"], s["events"]) for s in full.spans or ()] == [
        (s["span_id"], s["attributes"], s["events"]) for s in before.spans or ()
    ]
    assert len(many.spans or ()) == 2000
    assert full.info["execution_duration_ms"] == before.info["execution_duration_ms"]
    assert full.info["state"] == "OK"
    assert files(full) == files(before)
    assert any("its id is new" in loss.what for loss in report.losses)
    assert any(loss.kind is Kind.ASSESSMENT for loss in report.losses)
    assert again.counts[Kind.TRACE].skipped == len(made.traces)


def test_database_to_server(make_server: MakeServer, tmp_path: Path) -> None:
    made = copy_of_database(tmp_path, seed_traces)
    source, target = f"sqlite:///{tmp_path}/mlflow.db", make_server()

    report = copy(source, target.url)

    assert report.ok
    before, after = read(source), read(target.url)
    assert set(before) == set(after) == set(made.traces.values())
    for trace_id, trace in before.items():
        assert after[trace_id].spans == trace.spans


def test_text_that_holds_json_stays_text(make_server: MakeServer) -> None:
    """Servers take a layer of JSON off attributes that come by OTLP."""
    from tests.trace_seed import put_trace_file

    source, target = make_server(), make_server()
    client = MlflowClient(source.url, source.url)
    experiment = client.create_experiment("texts")
    attributes = {
        "object": '{"a": 1}',
        "list": "[1, 2]",
        "text": '"quoted"',
        "number": "1",
        "large": 2**80,
    }
    plain = put_trace_file(client, experiment, f"tr-{uuid.uuid4().hex}", attributes)
    del attributes["large"]
    by_otlp = put_trace_file(client, experiment, f"tr-{uuid.uuid4().hex}", attributes)

    report = copy(source.url, target.url)

    before, after = read(source.url), read(target.url)
    assert report.ok
    for trace_id in (plain, by_otlp):
        assert after[trace_id].spans == before[trace_id].spans
    assert after[by_otlp].info["tags"]["mlflow.trace.spansLocation"] == "TRACKING_STORE"
    assert "mlflow.trace.spansLocation" not in after[plain].info["tags"]
