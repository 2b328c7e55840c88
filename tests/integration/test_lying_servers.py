"""Servers that answer what is not true, and databases with rows that are not as they should be."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import open_archive, pack, unpack, verify
from mlflow_exim_plugin.errors import NotFoundError, ServerError
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.objects import Kind
from tests.compare import assert_count_law
from tests.depth import first_of, one_of
from tests.filled import copy_of_server
from tests.proxy import FaultyProxy, Request
from tests.seed import T0, Seeded, log_files, log_metrics, new_run
from tests.servers import start_server
from tests.trace_seed import started_trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("impatient")]

LISTS = {
    "/experiments/search": {
        *("experiment", "run", "metric_history", "logged_model", "trace", "evaluation_dataset"),
        *("scorer", "label_schema", "issue"),
    },
    "/runs/search": {"run", "metric_history"},
    "/registered-models/search": {"registered_model", "model_version"},
    "/model-versions/search": {"model_version"},
    "/logged-models/search": {"logged_model"},
    "/traces/search": {"trace"},
    "/mlflow-artifacts/artifacts": {"artifact"},
    "/metrics/get-history-bulk": {"metric_history"},
    "/datasets/search": {"evaluation_dataset"},
    "/issues/search": {"issue"},
    "/webhooks": {"webhook"},
    "/scorers/list": {"scorer"},
    "/gateway/endpoints/list": {"endpoint"},
    "/gateway/secrets/list": {"model_definition"},
}
WHOLE = {"artifacts", "get-history-bulk", "list"}
PAGED = [end for end in LISTS if end.rpartition("/")[2] not in WHOLE]
KNOWN_OTHERWISE = {
    *("/experiments/search", "/runs/search", "/model-versions/search"),
    *("/mlflow-artifacts/artifacts", "/metrics/get-history-bulk"),
}
UNSEEN = {"/scorers/list", "/gateway/endpoints/list", "/gateway/secrets/list"}
"""What the server has none of, so that nothing but the doubt tells the lie."""
WRONG = {
    "an empty object": b"{}",
    "nothing": b"",
    "a page to log in": b"<html>please log in</html>",
    "half of a page": b'{"runs": [{"info": {"run_id": "4',
    "a page nested deep": b'{"runs":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
}


@dataclass
class Made:
    url: str
    database: Path
    run_ids: list[str]
    whole: dict[str, int]


def fill(uri: str) -> Seeded:
    client, made = MlflowClient(uri, uri), Seeded(experiments={})
    experiment_id = made.experiments["first"] = client.create_experiment("first")
    for number in range(3):
        run_id = new_run(client, made, str(number), experiment_id)
        log_metrics(client, run_id, {"loss": [(1.0, T0, 0), (0.5, T0, 1)]})
        log_files(client, run_id, {"weights.bin": b"0123456789" * 500})
    client.create_registered_model("net")
    for run_id in made.runs.values():
        client.create_model_version("net", client.get_run(run_id).info.artifact_uri, run_id)
    for name in ("a", "b"):
        client.create_logged_model(experiment_id, name)
    for number in range(2):
        started_trace(client._tracking_client.store, experiment_id, f"tr-{number:032x}")
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("made")
    seeded = copy_of_server(folder, fill)
    with start_server(folder) as server:
        report = pack(str(folder / "whole.tar.zst"), tracking_uri=server.url)
        assert report.ok
        yield Made(server.url, folder / "mlflow.db", list(seeded.runs.values()), written(report))


def written(report: Report) -> dict[str, int]:
    return {str(kind): count.written for kind, count in report.counts.items()}


def packed(made: Made, folder: Path, rule: Callable[[Request], int | bytes | None]) -> Report:
    """Return the report of packing through a proxy."""
    with FaultyProxy(made.url, rule) as proxy:
        report = pack(str(folder / "a.tar.zst"), tracking_uri=proxy.url)
    assert_count_law(report)
    assert {f.code for f in verify(str(folder / "a.tar.zst")).findings} <= {"W021"}
    return report


def is_for(request: Request, end: str) -> bool:
    return request.path.partition("?")[0].endswith(end)


@pytest.mark.parametrize(
    ("end", "kind", "answered"),
    [
        ("/registered-models/search", Kind.REGISTERED_MODEL, (0, 1)),
        ("/logged-models/search", Kind.LOGGED_MODEL, (1, 2)),  # after all experiments at once
    ],
)
def test_what_answered_once_is_not_absent(
    made: Made, tmp_path: Path, end: str, kind: Kind, answered: tuple[int, ...]
) -> None:
    asked = itertools.count()  # first for what there is none of, which is asked twice

    def not_found(request: Request) -> int | None:
        return 404 if is_for(request, end) and next(asked) not in answered else None

    report = packed(made, tmp_path, not_found)

    assert report is not None
    assert {f.kind for f in report.failures} == {kind}


ALWAYS = [(end, b"{}") for end in LISTS] + [("/runs/search", body) for body in WRONG.values()][1:]


@pytest.mark.parametrize(("end", "body"), first_of(6, ALWAYS))
def test_a_list_that_lies_always_is_not_believed(
    made: Made, tmp_path: Path, end: str, body: bytes
) -> None:
    report = packed(made, tmp_path, lambda request: body if is_for(request, end) else None)
    lost = {kind for kind, count in made.whole.items() if written(report).get(kind, 0) < count}
    assert lost - {"span", "assessment"} <= LISTS[end], "neighbours are lost"
    if lost or end in UNSEEN:
        assert report.failures, "what is lost is said"


def test_a_part_that_is_not_found_is_doubted(made: Made, tmp_path: Path) -> None:
    """A proxy answers as a server does that is from before all of these; it says what it is."""
    parts = {end: kinds for end, kinds in LISTS.items() if end not in KNOWN_OTHERWISE}

    def not_found(request: Request) -> int | None:
        return 404 if any(is_for(request, end) for end in [*parts, "2.0/mlflow/traces"]) else None

    report = packed(made, tmp_path, not_found)
    lost = {kind for kind, count in made.whole.items() if written(report).get(kind, 0) < count}
    assert lost == {"logged_model", "trace", "registered_model", "model_version"}
    named = {str(failure.kind) for failure in report.failures}
    kinds = set().union(*parts.values()) - {"model_version"}  # nobody names any
    assert named == kinds

    hidden = not_found, lambda request: 404 if request.path == "/version" else None
    (tmp_path / "a.tar.zst").unlink()
    report = packed(made, tmp_path, lambda request: hidden[0](request) or hidden[1](request))
    assert report.ok
    reasons = [line.reason for line in report.unpacked if "it tells no version" in line.reason]
    assert kinds <= set(reasons[0].partition(": ")[2].split(", "))


def test_a_newer_search_of_traces_that_is_not_found_is_doubted(made: Made, tmp_path: Path) -> None:
    """The older one does not know of assessments."""
    end = "3.0/mlflow/traces/search"

    report = packed(made, tmp_path, lambda request: 404 if is_for(request, end) else None)

    assert {failure.kind for failure in report.failures} == {Kind.TRACE}


@pytest.mark.parametrize("body", [b"{}", b"<html>"])
def test_lists_that_lie_once_are_asked_again(made: Made, tmp_path: Path, body: bytes) -> None:
    honest = set[str]()

    def rule(request: Request) -> bytes | None:
        for end in LISTS:
            if is_for(request, end) and end not in honest:
                honest.add(end)
                return body
        return None

    report = packed(made, tmp_path, rule)
    assert report.ok
    assert written(report) == made.whole
    assert honest == {*LISTS}


@pytest.mark.parametrize(
    ("end", "is_new"), first_of(4, [("/runs/search", False), *((end, True) for end in PAGED)])
)
def test_pages_without_end_end(made: Made, tmp_path: Path, end: str, is_new: bool) -> None:
    ticks = itertools.count()
    with FaultyProxy(made.url) as proxy:

        def bend(request: Request, data: bytes) -> bytes:
            if not is_for(request, end):
                return data
            token = f"t{next(ticks)}" if is_new else "t"
            return json.dumps(json.loads(data) | {"next_page_token": token}).encode()

        proxy.bend, proxy.strip = bend, "page_token"
        with contextlib.suppress(ServerError):
            report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=proxy.url)
            assert_count_law(report)
            assert report.failures or not made.whole.get(next(iter(LISTS[end])))
        assert len([request for request in proxy.seen if is_for(request, end)]) < 50


def test_what_is_no_server_of_mlflow_is_not_found(made: Made, tmp_path: Path) -> None:
    with (
        FaultyProxy(made.url, lambda _: WRONG["a page to log in"]) as proxy,
        pytest.raises(NotFoundError, match="no MLflow server") as caught,
    ):
        pack(str(tmp_path / "a.tar.zst"), tracking_uri=proxy.url)
    assert caught.value.exit_code == 4
    assert not list(tmp_path.iterdir())


def test_records_without_end_end(made: Made, tmp_path: Path) -> None:
    """The next page of a dataset is the same one, under the tokens of two in turn."""
    ticks = itertools.count()
    with FaultyProxy(made.url) as proxy:

        def rule(request: Request) -> bytes | None:
            if is_for(request, "/datasets/search") and b"ZXhpbQ" not in request.body:
                return json.dumps({"datasets": [DATASET]}).encode()
            if is_for(request, "/records"):
                page = {"records": json.dumps([RECORD]), "next_page_token": f"t{next(ticks) % 2}"}
                return json.dumps(page).encode()
            return b'{"experiment_ids": ["1"]}' if "/experiment-ids" in request.path else None

        proxy.rule = rule
        report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=proxy.url)
        assert len([request for request in proxy.seen if "/records" in request.path]) < 10
    assert [failure.id for failure in report.failures] == ["d-1"]
    assert "for ever" in report.failures[0].reason


TIMES = {"created_time": 1, "last_update_time": 1}
DATASET = {"dataset_id": "d-1", "name": "d", "digest": "d", "schema": "{}", "profile": "{}"} | TIMES
RECORD = {"dataset_record_id": "r-1", "dataset_id": "d-1", "inputs": {"a": 1}} | TIMES
ELEMENTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "an empty object": lambda _: {},
    "nothing": lambda _: None,
    "a list for info": lambda it: it | {"info": [], "experiment_id": [], "name": []},
    "text for a time": lambda it: (
        it | {"info": it.get("info", {}) | {"start_time": "soon"}, "creation_time": "soon"}
    ),
}


@pytest.mark.parametrize("field", ["runs", "experiments"])
@pytest.mark.parametrize("bend", first_of(2, ELEMENTS.values()), ids=ELEMENTS)
def test_one_malformed_element_of_a_page_costs_itself(
    made: Made, tmp_path: Path, field: str, bend: Callable[[dict[str, Any]], Any]
) -> None:
    """Where it says its id, it is read by itself, and comes."""

    def answer(request: Request, data: bytes) -> bytes:
        document = json.loads(data) if is_for(request, f"/{field}/search") else {}
        if len(document.get(field, ())) < 2:
            return data
        document[field][-1] = bend(document[field][-1])
        return json.dumps(document).encode()

    with FaultyProxy(made.url) as proxy:
        proxy.bend = answer
        report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=proxy.url)
    assert_count_law(report)
    kind = field.removesuffix("s")
    lost = made.whole[kind] - written(report)[kind]
    assert lost == (bend is not ELEMENTS["text for a time"])
    assert [str(failure.kind) for failure in report.failures] == [kind] * lost
    assert written(report)["run"] >= made.whole["run"] - 1


def test_experiments_that_share_an_id_are_named(made: Made, tmp_path: Path) -> None:
    def answer(request: Request, data: bytes) -> bytes:
        if not is_for(request, "/experiments/search"):
            return data
        document = json.loads(data)
        for experiment in document["experiments"]:
            experiment["experiment_id"] = "1"
        return json.dumps(document).encode()

    with FaultyProxy(made.url) as proxy:
        proxy.bend = answer
        report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=proxy.url)
    assert_count_law(report)
    (failure,) = report.failures
    assert (failure.kind, failure.reason[:19]) == (Kind.EXPERIMENT, "it comes with the i")
    assert {failure.id} | {
        e.name for e in open_archive(str(tmp_path / "a.tar.zst")).experiments()
    } == {
        "Default",
        "first",
    }


@pytest.mark.parametrize("field", ["step", "timestamp"])
def test_a_fraction_becomes_no_whole_number(made: Made, tmp_path: Path, field: str) -> None:
    bad = made.run_ids[1]

    def answer(request: Request, data: bytes) -> bytes:
        if "/get-history" not in request.path or bad not in request.path:
            return data
        document = json.loads(data)
        for row in document.get("metrics", ()):
            if row.get("run_id", bad) == bad:
                row[field] = 0.5
        return json.dumps(document).encode()

    with FaultyProxy(made.url) as proxy:
        proxy.bend = answer
        report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=proxy.url)
    assert_count_law(report)
    assert [(f.kind, f.id.partition("/")[0]) for f in report.failures] == [
        (Kind.METRIC_HISTORY, bad)
    ]
    assert written(report)["metric_history"] == made.whole["metric_history"] - 1


BENT: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no run": lambda _: {"other": 1},
    "a list for info": lambda answer: answer["run"].update(info=[]),
    "another run": lambda answer: answer["run"]["info"].update(run_id="0" * 32),
    "text for a time": lambda answer: answer["run"]["info"].update(start_time="soon"),
    "text for a value": lambda answer: answer["run"]["data"]["metrics"][0].update(value="abc"),
}


@pytest.mark.parametrize("bend", first_of(2, BENT.values()), ids=BENT)
def test_one_malformed_run_is_one_failure(
    made: Made, tmp_path: Path, bend: Callable[[dict[str, Any]], Any]
) -> None:
    bad = made.run_ids[1]

    def answer(request: Request, data: bytes) -> bytes:
        if "/runs/get?" not in request.path or bad not in request.path:
            return data
        document = json.loads(data)
        return json.dumps(bend(document) or document).encode()

    with FaultyProxy(made.url) as proxy:
        proxy.bend = answer
        report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=proxy.url)
    assert_count_law(report)
    assert bad in [failure.id for failure in report.failures]
    assert report.counts[Kind.RUN].written == len(made.run_ids) - 1
    assert {f.code for f in verify(str(tmp_path / "a.tar.zst")).findings} == {"W021"}


@pytest.mark.parametrize(
    "cut",
    one_of(lambda data: data[: len(data) // 2], lambda _: b"", lambda _: b"<html>log in</html>"),
)
def test_bytes_that_are_not_as_many_as_listed_are_no_artifact(
    made: Made, tmp_path: Path, cut: Callable[[bytes], bytes]
) -> None:
    bad = made.run_ids[1]

    def answer(request: Request, data: bytes) -> bytes:
        return cut(data) if f"{bad}/artifacts/weights.bin" in request.path else data

    with FaultyProxy(made.url) as proxy:
        proxy.bend = answer
        report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=proxy.url)
    assert [failure.id for failure in report.failures] == [f"{bad}/weights.bin"]
    with open_archive(str(tmp_path / "a.tar.zst")) as archive:
        for run in archive.runs():
            listed = [artifact.size_bytes for artifact in run.info.artifacts]
            assert listed == ([] if run.mlflow.run["info"]["run_id"] == bad else [5000])


OF_RUN = "WHERE run_uuid = ?"
ANY = "WHERE ? != ''"
ROWS = {
    "a run's time is text": (f"UPDATE runs SET start_time = 'x' {OF_RUN}", Kind.RUN),
    "a param is bytes": ("INSERT INTO params VALUES ('k', x'fffe', ?)", Kind.RUN),
    "a place is no URI": (f"UPDATE runs SET artifact_uri = 'z://[b' {OF_RUN}", Kind.ARTIFACT),
    "a metric is text": (
        f"UPDATE metrics SET value = 'x' {OF_RUN} AND step = 1",
        Kind.METRIC_HISTORY,
    ),
    "an experiment is gone": (f"UPDATE runs SET experiment_id = 77 {OF_RUN}", None),
    "latest metrics are gone": (f"DELETE FROM latest_metrics {OF_RUN}", None),
    "an experiment's time is text": (
        f"UPDATE experiments SET creation_time = 'x' {ANY}",
        Kind.EXPERIMENT,
    ),
    "a version's status is none": (
        "UPDATE model_versions SET status = 'x' WHERE run_id = ?",
        Kind.MODEL_VERSION,
    ),
    "a logged model's status is none": (
        f"UPDATE logged_models SET status = 99 {ANY} AND name = 'a'",
        Kind.LOGGED_MODEL,
    ),
    "a trace's time is text": (
        (
            f"UPDATE trace_info SET timestamp_ms = 'x' {ANY} "
            "AND request_id = (SELECT min(request_id) FROM trace_info)"
        ),
        Kind.TRACE,
    ),
}


@pytest.mark.parametrize(("query", "kind"), ROWS.values(), ids=ROWS)
def test_a_broken_row_of_a_database_costs_itself(
    made: Made, tmp_path: Path, query: str, kind: Kind | None
) -> None:
    with (
        closing(sqlite3.connect(made.database)) as database,
        closing(sqlite3.connect(tmp_path / "bent.db")) as bent,
    ):
        database.backup(bent)
        bent.execute(query, [made.run_ids[1]])
        bent.commit()
    report = pack(
        str(tmp_path / "a.tar.zst"),
        tracking_uri=f"sqlite:///{tmp_path}/bent.db",
        artifacts_destination=str(made.database.parent / "artifacts"),
    )
    assert_count_law(report)
    lost = {k for k, count in made.whole.items() if written(report).get(k, 0) < count}
    parts = {"metric_history", "artifact"} if kind is Kind.RUN else {"span"}
    assert lost <= {str(kind), *parts}
    for name in lost:
        assert made.whole[name] - written(report)[name] <= 1
    if kind is None:
        assert not lost
    else:
        assert kind in [failure.kind for failure in report.failures] or report.losses
    assert {f.code for f in verify(str(tmp_path / "a.tar.zst")).findings} <= {"W021"}


@pytest.mark.parametrize("ends", [("-bulk",), ("-bulk", "/get-history")], ids=["bulk", "both"])
def test_a_history_ends_with_its_latest_metric(
    made: Made, tmp_path: Path, ends: tuple[str, ...]
) -> None:
    bad = made.run_ids[1]

    def cut(request: Request, data: bytes) -> bytes:
        path = request.path.partition("?")[0]
        if "/metrics/get-history" not in path or not path.endswith(ends):
            return data
        answer = json.loads(data)
        answer["metrics"] = [
            m
            for m in answer.get("metrics", [])
            if (bad not in (m.get("run_id"), *request.path.split("=")) and "run_id" in m)
            or m["step"] == 0
        ]
        return json.dumps(answer).encode()

    with FaultyProxy(made.url) as proxy:
        proxy.bend = cut
        report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=proxy.url)
    assert [failure.id for failure in report.failures] == [f"{bad}/loss"] * (len(ends) - 1)
    assert report.metric_rows == 2 * len(made.run_ids) - 2 * (len(ends) - 1)


def test_a_server_that_asks_for_an_hour_is_not_waited_for(
    made: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What it refuses so is named, and a shorter wait is said while it lasts."""
    times = itertools.count()

    def busy(request: Request) -> int | None:
        if "/runs/get?" not in request.path or made.run_ids[1] not in request.path:
            return None
        return 503 if proxy.refusal[0][1] == "3600" or next(times) == 0 else None

    with FaultyProxy(made.url, busy) as proxy:
        proxy.refusal = [("Retry-After", "3600")]
        report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=proxy.url)
        assert made.run_ids[1] in [failure.id for failure in report.failures]
        assert "3600 s" in " ".join(failure.reason for failure in report.failures)
        assert report.counts[Kind.RUN].written == 2
        proxy.refusal = [("Retry-After", "5")]
        assert pack(str(tmp_path / "b.tar.zst"), tracking_uri=proxy.url).ok
    assert "waiting 5 s" in caplog.text


def test_a_server_that_asks_for_an_hour_is_not_waited_for_where_it_is_asked_just_once(
    made: Made, tmp_path: Path
) -> None:
    def busy(request: Request) -> int | None:
        return 503 if request.path.endswith("/workspaces") else None

    with FaultyProxy(made.url, busy) as proxy:
        proxy.refusal = [("Retry-After", "3600")]
        with pytest.raises(ServerError, match="3600 s"):
            pack(str(tmp_path / "a.tar.zst"), tracking_uri=proxy.url)


def test_files_on_the_disk_of_a_server_come_through_it(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Its folder has another name here, as on another machine; nothing is put there from here."""
    folder = tmp_path_factory.mktemp("disk")
    copy_of_server(folder, fill, serve_artifacts=False)
    here, there = str(folder).encode(), str(tmp_path / "elsewhere").encode()
    with start_server(folder, serve_artifacts=False) as server, FaultyProxy(server.url) as proxy:
        proxy.bend = lambda _, data: data.replace(here, there)
        report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=proxy.url)
        assert report.ok
        assert report.counts[Kind.ARTIFACT].written == 3
        assert report.artifact_bytes == 3 * 5000
        with pytest.raises(ServerError, match="a folder of the server's machine"):
            unpack(str(tmp_path / "a.tar.zst"), tracking_uri=proxy.url)
        assert [r for r in proxy.seen if "/create" in r.path] == []
        unpack(str(tmp_path / "a.tar.zst"), tracking_uri=proxy.url, artifacts=False)
    assert not (tmp_path / "elsewhere").exists()


def test_a_server_on_a_folder_lacks_kinds_and_fails_at_none(tmp_path: Path) -> None:
    with start_server(
        tmp_path / "server",
        backend_store_uri=str(tmp_path / "mlruns"),
        env={"MLFLOW_ALLOW_FILE_STORE": "true"},
    ) as server:
        client = MlflowClient(server.url, server.url)
        made = Seeded(experiments={"first": client.create_experiment("first")})
        run_id = new_run(client, made, "0", made.experiments["first"])
        log_metrics(client, run_id, {"loss": [(1.0, T0, 0)]})
        log_files(client, run_id, {"a.txt": b"a"})
        client.create_registered_model("net")
        report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=server.url)
    assert report.ok
    assert_count_law(report)
    assert written(report) == {
        "experiment": 2,
        "run": 1,
        "metric_history": 1,
        "artifact": 1,
        "registered_model": 1,
    }
    (said,) = [u for u in report.unpacked if "folder of files" in u.reason]
    assert "scorer" in said.reason


@pytest.mark.skipif(os.name != "posix", reason="sends a signal")
def test_ctrl_c_ends_a_command_while_its_server_hangs(made: Made, tmp_path: Path) -> None:
    asked, let_go = threading.Event(), threading.Event()

    def hang(request: Request) -> None:
        if "/runs/get?" in request.path:
            asked.set()
            let_go.wait(60)

    with FaultyProxy(made.url) as proxy:
        proxy.after = hang
        command = [sys.executable, "-m", "mlflow_exim_plugin", "pack", "a.tar.zst"]
        process = subprocess.Popen([*command, "--tracking-uri", proxy.url], cwd=tmp_path)
        assert asked.wait(60)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert time.monotonic() - began < 4  # two seconds, on a machine that is not busy
        let_go.set()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_cannot_be_read_is_not_taken_for_one_that_is_gone(
    made: Made, tmp_path: Path
) -> None:
    """It is asked for by its id, or is the parent of one, or the one behind a version."""
    client = MlflowClient(made.url, made.url)
    bad, child = made.run_ids[1], made.run_ids[2]
    client.set_tag(child, "mlflow.parentRunId", bad)

    def fails(request: Request) -> int | None:
        return 500 if "/runs/get?" in request.path and bad in request.path else None

    try:
        with FaultyProxy(made.url, fails) as proxy:
            for number, asked in enumerate(
                (Selection(runs=(bad,)), Selection(runs=(child,)), Selection(models=("net",)))
            ):
                archive = str(tmp_path / f"{number}.tar.zst")
                report = pack(archive, tracking_uri=proxy.url, selection=asked)
                assert_count_law(report)
                assert [f.id for f in report.failures if f.kind is Kind.RUN] == [bad], asked
                assert "gone" not in " ".join(loss.what for loss in report.losses)
                with open_archive(archive) as opened:
                    assert bad not in [run.mlflow.run["info"]["run_id"] for run in opened.runs()]
        with pytest.raises(NotFoundError, match="f" * 32):
            pack(str(tmp_path / "none.tar.zst"), tracking_uri=made.url, runs=("f" * 32,))
    finally:
        client.delete_tag(child, "mlflow.parentRunId")
