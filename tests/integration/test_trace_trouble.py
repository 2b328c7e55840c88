"""Traces of servers that fail: one named failure for what cannot be read, all the rest arrives."""

from __future__ import annotations

import sqlite3
import uuid
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient
from mlflow.entities import AssessmentSource, Feedback

from mlflow_exim_plugin import open_archive, pack
from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin.host.traces.listing import TraceListing
from mlflow_exim_plugin.host.traces.search import TraceSearch
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.objects import LINKED_RUNS, Failure, Kind, Trace
from mlflow_exim_plugin.sources.archive.source import ArchiveSource
from mlflow_exim_plugin.sources.server.source import ServerSource
from tests.compare import assert_count_law
from tests.depth import one_of
from tests.filled import copy_of_database, copy_of_server
from tests.proxy import FaultyProxy, Request
from tests.servers import Server, start_server
from tests.trace_seed import SeededTraces, put_trace_file, seed_traces, started_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report
    from tests.conftest import MakeServer

pytestmark = pytest.mark.integration

T0 = 1_700_000_000_000
MANY = "many, some spoilt"
SEARCH, BATCH, ARTIFACT = "/traces/search", "/traces/batchGet", "/get-trace-artifact"
NAN, TORN = "NaN", "{"
"""Values of feedback: MLflow can read the first and not send it, and cannot read the second."""


@dataclass
class Spoilable:
    """A server whose traces can be spoiled in its database."""

    server: Server
    many: tuple[str, set[str]]

    def __post_init__(self) -> None:
        self.client = MlflowClient(self.server.url, self.server.url)
        self.store = self.client._tracking_client.store
        self.spoilt: dict[str, str] = {}

    def trace(self, experiment: str, time_ms: int, trace_id: str | None = None) -> str:
        return started_trace(self.store, experiment, trace_id, request_time=time_ms)

    def spoil(self, trace_id: str, value: str) -> None:
        """Give a trace a feedback and write something else into its row."""
        feedback = Feedback("spoilt", value=1.0, source=AssessmentSource("HUMAN", "eve"))
        feedback.trace_id = trace_id
        made = self.store.create_assessment(feedback)
        self.change(
            "UPDATE assessments SET value = ? WHERE assessment_id = ?", value, made.assessment_id
        )
        self.spoilt[trace_id] = f"{trace_id}/{made.assessment_id}"

    def change(self, statement: str, *values: str) -> None:
        path = self.server.backend_uri.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as database:
            assert database.execute(statement, values).rowcount
            database.commit()


@pytest.fixture(scope="module")
def spoilable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spoilable]:
    folder = tmp_path_factory.mktemp("spoilable")
    # Clients of its database see its files too.
    many = copy_of_database(folder, fill_many)
    with start_server(folder, serve_artifacts=False) as server:
        yield Spoilable(server, many)


def fill_many(uri: str) -> tuple[str, set[str]]:
    """Make an experiment with two pages of traces of some days, and with many of one moment."""
    client = MlflowClient(uri, uri)
    store = client._tracking_client.store
    times = [*(T0 + n * 777_777 for n in range(700)), *[T0 + 777_777 * 350] * 20]
    experiment = client.create_experiment(MANY)
    return experiment, {started_trace(store, experiment, request_time=time) for time in times}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, SeededTraces]]:
    """A server with every kind of trace, and with a run's links."""
    folder = tmp_path_factory.mktemp("traces")
    made = copy_of_server(folder, seed_traces)
    with start_server(folder) as server:
        yield server, made


def packed(
    uri: str, archive: Path, experiment: str | None = None
) -> tuple[Report, dict[str, Trace]]:
    """Pack a deployment; return the report, and what the archive has of each trace."""
    chosen = Selection(experiments=(experiment,)) if experiment else Selection()
    report = pack(str(archive), tracking_uri=uri, selection=chosen)
    assert_count_law(report)
    return report, traces_in(archive)


def traces_in(archive: Path) -> dict[str, Trace]:
    """Return what an archive has of each trace."""
    with open_archive(str(archive)) as opened:
        stream = ArchiveSource(opened).stream(Selection())
        traces = [item for item in stream if isinstance(item, Trace)]
    assert max(Counter(trace.id for trace in traces).values(), default=1) == 1
    return {trace.id: trace for trace in traces}


@pytest.fixture(scope="module")
def whole(source: tuple[Server, SeededTraces], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of the server, nothing being in the way."""
    archive = tmp_path_factory.mktemp("whole") / "a.tar.zst"
    assert pack(str(archive), tracking_uri=source[0].url).ok
    return archive


def failed(report: Report) -> list[tuple[Kind, str]]:
    return sorted((failure.kind, failure.id) for failure in report.failures)


def test_one_bad_trace_takes_no_other_with_it(spoilable: Spoilable, tmp_path: Path) -> None:
    experiment, there = spoilable.many
    first, newest = spoilable.trace(experiment, -5), spoilable.trace(experiment, T0 * 2)
    among = spoilable.trace(experiment, T0 + 777_777 * 350)
    among_too = spoilable.trace(experiment, T0 + 777_777 * 350, uuid.uuid4().hex)
    unsendable = spoilable.trace(experiment, T0 + 777_777 * 350)
    alone = spoilable.trace(experiment, T0 + 1)
    for bad in (first, newest, among, among_too):
        spoilable.spoil(bad, TORN)
    for bad in (unsendable, alone):
        spoilable.spoil(bad, NAN)
    unread, unsent = {first, newest, among, among_too}, {alone, unsendable}

    for uri in (spoilable.server.url, spoilable.server.backend_uri):
        report, traces = packed(uri, tmp_path / "a.tar.zst", MANY)

        if uri == spoilable.server.url:
            assert set(traces) == there | unsent
            named = {(Kind.TRACE, bad) for bad in unread}
            named |= {(Kind.ASSESSMENT, bad) for bad in unsent}
        else:  # out of its tables an assessment costs itself
            assert set(traces) == there | unsent | unread
            named = {(Kind.ASSESSMENT, spoilable.spoilt[bad]) for bad in unread | unsent}
        assert set(failed(report)) == named
        assert len(report.failures) == len(named)
        assert traces[alone].info["request_time_ms"] == T0 + 1
        assert traces[alone].info["state"] == "OK"
        assert traces[alone].info["tags"]["mlflow.traceName"] == "started"
        (tmp_path / "a.tar.zst").unlink()


def test_spans_and_links_of_a_trace_whose_assessments_cannot_be_sent(
    spoilable: Spoilable, tmp_path: Path
) -> None:
    server = spoilable.server
    made = seed_traces(server.url, "unsendable")
    before = packed(server.url, tmp_path / "before.tar.zst", "unsendable")[1]
    bad = made.traces["error"]
    spoilable.spoil(bad, NAN)

    for uri, said in ((server.url, bad), (server.backend_uri, spoilable.spoilt[bad])):
        report, traces = packed(uri, tmp_path / "a.tar.zst", "unsendable")

        assert failed(report) == [(Kind.ASSESSMENT, said)]
        assert set(traces) == set(before)
        assert traces[bad].spans == before[bad].spans
        assert traces[bad].info[LINKED_RUNS] == before[bad].info[LINKED_RUNS]
        assert traces[bad].info["trace_metadata"] == before[bad].info["trace_metadata"]
        for trace_id in set(traces) - {bad}:
            assert traces[trace_id].document == before[trace_id].document
            assert traces[trace_id].spans == before[trace_id].spans
        (tmp_path / "a.tar.zst").unlink()


def test_what_fails_everywhere_is_not_searched_for_one_by_one(spoilable: Spoilable) -> None:
    experiment = spoilable.client.create_experiment("all spoilt")
    for n in range(10):
        spoilable.spoil(spoilable.trace(experiment, T0 + n * 60_000), TORN)
    last = spoilable.trace(experiment, T0 + 3_600_000)
    host = Host(spoilable.server.url, create=False)

    found = list(TraceListing(TraceSearch(host), most_named=2).traces(experiment))

    failures = [item for item in found if isinstance(item, Failure)]
    assert [trace.id for page in found if not isinstance(page, Failure) for trace in page] in (
        [last],
        [],
    )
    assert 3 <= len(failures) < 10
    assert all(failure.kind is Kind.TRACE for failure in failures)
    assert any(" from 2023-11-14 " in failure.id for failure in failures)


def spoils(
    part: str, status: int, *, only: str = "", times: int | None = None
) -> Callable[[Request], int | None]:
    """Return a rule that answers calls of one endpoint, perhaps just the first ones."""
    left = [times]

    def rule(request: Request) -> int | None:
        if part not in request.path or only not in request.body.decode():
            return None
        if left[0] is None:
            return status
        left[0] -= 1
        return status if left[0] >= 0 else None

    return rule


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("status", one_of(503, 501))
@pytest.mark.parametrize(
    ("part", "only", "expected", "lost"),
    [
        pytest.param(SEARCH, "", ["experiment"], "all", id="search"),
        pytest.param(BATCH, "", [], "", id="batch"),
        pytest.param(ARTIFACT, "", ["other id", "as artifact"], "spans", id="artifact"),
        pytest.param(SEARCH, "sourceRun", ["source", "linked", "judge"], "links", id="links"),
    ],
)
def test_an_endpoint_that_is_not_there_today(
    source: tuple[Server, SeededTraces],
    tmp_path: Path,
    status: int,
    part: str,
    only: str,
    expected: list[str],
    lost: str,
    whole: Path,
) -> None:
    server, made = source
    before = traces_in(whole)
    with FaultyProxy(server.url, spoils(part, status, only=only)) as proxy:
        report, traces = packed(proxy.url, tmp_path / "a.tar.zst")
    assert report.ok == (not expected)

    names = {
        "all": {"experiment": f"experiment {made.experiment}"},
        "spans": made.traces,
        "links": {name: f"links to run {run}" for name, run in made.runs.items()},
    }.get(lost, {})
    kind = Kind.SPAN if lost == "spans" else Kind.TRACE
    named = sorted((kind, names[name]) for name in expected)
    # The default experiment is listed like any other.
    assert [f for f in failed(report) if f[1] != "experiment 0"] == named
    assert set(traces) == (set() if lost == "all" else set(before))
    for trace_id, trace in traces.items():
        if lost == "links":
            before[trace_id].info.pop(LINKED_RUNS, None)
        if lost == "spans" and trace_id in {made.traces[name] for name in expected}:
            assert trace.spans is None
        else:
            assert trace.spans == before[trace_id].spans
        assert trace.document == before[trace_id].document


def test_a_server_that_is_busy_for_a_moment(
    source: tuple[Server, SeededTraces],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Path,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    server, _ = source
    parts = [(SEARCH, "sourceRun"), (SEARCH, ""), (BATCH, ""), (ARTIFACT, "")]
    rules = [spoils(part, 503, only=only, times=3) for part, only in parts]

    def busy(request: Request) -> int | None:
        return next((answer for rule in rules if (answer := rule(request)) is not None), None)

    with FaultyProxy(server.url, busy) as proxy:
        report, traces = packed(proxy.url, tmp_path / "a.tar.zst")
        asked = Counter(part for seen in proxy.seen for part, _ in parts if part in seen.path)

    assert report.ok
    assert all(asked[part] > 3 for part, _ in parts)
    assert {id_: (trace.document, trace.spans) for id_, trace in traces.items()} == {
        id_: (trace.document, trace.spans) for id_, trace in traces_in(whole).items()
    }


@pytest.mark.usefixtures("impatient")
def test_an_endpoint_that_stays_busy_is_not_waited_for_each_time(
    make_server: MakeServer, tmp_path: Path
) -> None:
    server = make_server()
    client = MlflowClient(server.url, server.url)
    experiment = client.create_experiment("files")
    made = [put_trace_file(client, experiment, f"tr-{uuid.uuid4().hex}", {}) for _ in range(9)]
    with FaultyProxy(server.url, spoils(ARTIFACT, 503)) as proxy:
        report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=proxy.url, jobs=1)
        asked = sum(ARTIFACT in seen.path for seen in proxy.seen)

    assert failed(report) == sorted((Kind.SPAN, trace_id) for trace_id in made)
    assert asked == len(made) + 1  # one retry, of the first


PLACES = ["tracking store", "traces.json", "traces.pb"]


@pytest.mark.parametrize("is_gone", [True, False])
@pytest.mark.parametrize("place", one_of(*PLACES))
def test_spans_that_are_gone_or_malformed(
    spoilable: Spoilable, tmp_path: Path, place: str, *, is_gone: bool
) -> None:
    server = spoilable.server
    name = f"{place} {is_gone}"
    made = seed_traces(server.url, name)
    before = packed(server.url, tmp_path / "before.tar.zst", name)[1]
    bad = made.traces["as artifact" if place == "traces.json" else "error"]
    if place == "tracking store":
        if is_gone:
            spoilable.change("DELETE FROM spans WHERE trace_id = ?", bad)
        else:
            spoilable.change("UPDATE spans SET content = '{' WHERE trace_id = ?", bad)
    elif place == "traces.json":
        (file,) = server.directory.glob(f"artifacts/**/{bad}/artifacts/traces.json")
        if is_gone:
            file.unlink()
        else:
            file.write_text('{"spans": [{"name": 3}]}')
    else:
        folder = server.directory / "archive" / bad
        folder.mkdir(parents=True)
        if not is_gone:
            (folder / "traces.pb").write_bytes(b"\xff\xff no protobuf")
        spoilable.change("UPDATE spans SET content = '' WHERE trace_id = ?", bad)
        spoilable.change(
            "UPDATE trace_tags SET value = 'ARCHIVE_REPO' WHERE request_id = ? AND key = ?",
            bad,
            "mlflow.trace.spansLocation",
        )
        spoilable.change(
            "INSERT INTO trace_tags (request_id, key, value) VALUES (?, ?, ?)",
            bad,
            "mlflow.trace.archiveLocation",
            folder.as_uri(),
        )

    for uri in (server.url, server.backend_uri):
        report, traces = packed(uri, tmp_path / f"{len(uri)}.tar.zst", name)

        assert failed(report) == [(Kind.SPAN, bad)]
        assert set(traces) == set(before)
        assert traces[bad].spans is None
        assert traces[bad].info["request_time_ms"] == before[bad].info["request_time_ms"]
        assert traces[bad].info["trace_metadata"] == before[bad].info["trace_metadata"]
        assert traces[bad].assessments == before[bad].assessments
        for trace_id in set(traces) - {bad}:
            assert traces[trace_id].spans == before[trace_id].spans


def test_the_stream_names_what_a_bad_page_hides(spoilable: Spoilable) -> None:
    """A trace whose id no search can find is named by its experiment and moment."""
    experiment = spoilable.client.create_experiment("odd")
    good = spoilable.trace(experiment, T0)
    spoilable.spoil(spoilable.trace(experiment, T0 + 1, "öd_id"), TORN)

    source = ServerSource(Host(spoilable.server.url, create=False))
    stream = source.stream(Selection(experiments=("odd",)))
    items = [item for item in stream if isinstance(item, Trace | Failure)]

    assert [item.id for item in items if isinstance(item, Trace)] == [good]
    assert [(item.kind, item.id) for item in items if isinstance(item, Failure)] == [
        (Kind.TRACE, f"experiment {experiment} at 2023-11-14 22:13:20.001+00:00")
    ]
