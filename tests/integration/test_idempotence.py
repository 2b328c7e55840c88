"""Unpacking again, after an interruption, or from a later or an older archive."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, ViewType

from mlflow_exim_plugin import pack
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.objects import Kind
from tests.compare import ARTIFACT_RUNS, assert_count_law, assert_same, snapshot
from tests.integration.conftest import rows_of
from tests.new_ids import unpack
from tests.processes import new_process
from tests.proxy import FaultyProxy, Request
from tests.seed import T0, Seeded, log_files, log_metrics, new_run
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report
    from tests.conftest import MakeServer
    from tests.sources import Source

pytestmark = pytest.mark.integration

POLICIES = ["merge", "skip", "rename", "fail"]


def assert_nothing_written(report: Report) -> None:
    assert report.ok, report.failures
    assert_count_law(report)
    assert {kind: c.written for kind, c in report.counts.items() if c.written} == {}
    assert report.metric_rows == report.artifact_bytes == 0


@pytest.fixture
def filled(sqlite_source: Source, sqlite_uri: str) -> str:
    """A target that has everything already."""
    assert unpack(sqlite_source.archive, tracking_uri=sqlite_uri).ok
    return sqlite_uri


@pytest.mark.parametrize("policy", POLICIES)
def test_again_changes_nothing(sqlite_source: Source, filled: str, policy: str) -> None:
    before = rows_of(filled)

    report = unpack(sqlite_source.archive, tracking_uri=filled, on_conflict=policy)

    assert rows_of(filled) == before
    assert_nothing_written(report)
    assert {kind: c.skipped for kind, c in report.counts.items()} == {
        Kind.EXPERIMENT: len(sqlite_source.snapshot.experiments),
        Kind.RUN: len(sqlite_source.snapshot.runs),
        Kind.REGISTERED_MODEL: len(sqlite_source.snapshot.models),
        Kind.MODEL_VERSION: len(sqlite_source.snapshot.versions),
    }


@pytest.mark.parametrize("by_ids", [False, True], ids=["by API", "by ids"])
def test_marks_of_earlier_versions_are_known(
    sqlite_source: Source, filled: str, by_ids: bool
) -> None:
    with sqlite3.connect(filled.removeprefix("sqlite:///")) as database:
        for table in ("tags", "experiment_tags", "registered_model_tags", "model_version_tags"):
            database.execute(
                f"UPDATE {table} SET key = 'mlflow_exim.' || substr(key, 13)"
                " WHERE key LIKE 'mlflow.exim.%'"
            )
        changed = database.total_changes
    assert changed > 20
    before = rows_of(filled)

    report = unpack(sqlite_source.archive, tracking_uri=filled, preserve_ids=by_ids)

    assert_nothing_written(report)
    assert rows_of(filled) == before


def test_another_archive_of_the_same_state_changes_nothing(
    sqlite_source: Source, filled: str, tmp_path: Path
) -> None:
    archive = str(tmp_path / "again.tar.zst")
    pack(archive, tracking_uri=sqlite_source.uri)
    before = rows_of(filled)

    report = unpack(archive, tracking_uri=filled)

    assert rows_of(filled) == before
    assert_nothing_written(report)


def test_the_rest_after_a_part(sqlite_source: Source, sqlite_uri: str) -> None:
    parts = [
        Selection(experiments=("artifacts",)),
        Selection(models=("churn*",), artifacts=False),
        Selection(experiments=("plain",), artifacts=False),
        Selection(exclude=("*.txt",)),
        Selection(),
    ]
    for selection in parts:
        report = unpack(sqlite_source.archive, tracking_uri=sqlite_uri, selection=selection)
        assert report.ok
        assert_count_law(report)

    assert_same(sqlite_source.snapshot, snapshot(sqlite_uri), report)


def is_write(request: Request) -> bool:
    if request.method in {"PUT", "PATCH", "DELETE"}:
        return True
    return request.method == "POST" and "search" not in request.path


def is_call_of(path: str, request: Request) -> bool:
    return path in request.path


def unpack_until_killed(
    archive: str, server_url: str, ends: Callable[[Request], bool]
) -> list[Request]:
    """Unpack in a process that is killed once the server has done a write of which it is true."""
    killed = threading.Event()
    with FaultyProxy(server_url) as proxy:
        # What makes a run's order depend on threads is not under test here.
        process = new_process(unpack, archive, tracking_uri=proxy.url, jobs=1)

        def kill(request: Request) -> None:
            if is_write(request) and ends(request) and not killed.is_set():
                killed.set()
                os.kill(process.pid or 0, signal.SIGKILL)

        process.start()
        proxy.after = kill
        process.join(200)
        assert process.exitcode == (-signal.SIGKILL if killed.is_set() else 0)
        return [request for request in proxy.seen if is_write(request)]


def unpack_killed_at(archive: str, server_url: str, calls: Iterable[tuple[str, str, int]]) -> None:
    """Unpack in processes that are killed one after the other, each after another call.

    Args:
        archive: What is unpacked.
        server_url: Where to.
        calls: The method, what its path contains, and how many of them all processes have made.
    """
    left = {(method, path): times for method, path, times in calls}

    def ends(request: Request) -> bool:
        for method, path in left:
            is_it = request.method == method and path in request.path
            left[method, path] -= is_it and not request.path.endswith("search")
        due = [call for call, times in left.items() if times <= 0]
        for call in due[:1]:
            del left[call]
        return bool(due)

    while left:
        waiting = len(left)
        seen = unpack_until_killed(archive, server_url, ends)
        assert len(left) < waiting, (left, sorted({(r.method, r.path) for r in seen}))


@pytest.mark.exhaustive
def test_killed_at_random_moments(server_source: Source, make_server: MakeServer) -> None:
    server = make_server()
    chance = random.Random(20_26)
    writes: list[int] = []
    # Each attempt gets some way further, as the writes of the earlier ones are there.
    for _ in range(6):
        left = [chance.randint(10, 70)]

        def ends(_: Request, left: list[int] = left) -> bool:
            left[0] -= 1
            return left[0] == 0

        writes.append(len(unpack_until_killed(server_source.archive, server.url, ends)))
    assert min(writes) >= 10

    report = unpack(server_source.archive, tracking_uri=server.url)

    assert report.failures == []
    assert_count_law(report)
    assert_same(server_source.snapshot, snapshot(server.url), report)
    before = rows_of(server.backend_uri)
    assert_nothing_written(unpack(server_source.archive, tracking_uri=server.url))
    assert rows_of(server.backend_uri) == before


@pytest.fixture(scope="module")
def small_source(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """URI and archive of a source that has one of everything that takes several calls."""
    folder = tmp_path_factory.mktemp("small")
    new_sqlite_database(folder / "mlflow.db")
    source = Living(f"sqlite:///{folder}/mlflow.db")
    source.go_on()
    source.version("training")
    source.client.delete_model_version("net", "1")
    store = source.client._get_registry_client().store
    store.transition_model_version_stage("net", "2", "Staging", archive_existing_versions=False)
    archive = str(folder / "a.tar.zst")
    assert pack(archive, tracking_uri=source.uri).ok
    return source.uri, archive


def test_killed_between_two_calls(small_source: tuple[str, str], make_server: MakeServer) -> None:
    """The server has done a call and the client never hears of it: again and again, further on."""
    source_uri, archive = small_source
    server = make_server()
    calls = {
        "experiments/create": 1,
        "runs/create": 3,
        "runs/log-batch": 5,
        "runs/delete": 1,
        "registered-models/create": 1,
        "model-versions/create": 1,  # a placeholder
        "/create": 8,  # a version
        "registered-models/alias": 1,
        "transition-stage": 1,
    }
    posted = [("POST", path, times) for path, times in calls.items()]
    others = [("PUT", "/artifacts/", 3), ("DELETE", "model-versions/delete", 1)]
    unpack_killed_at(archive, server.url, [*posted, *others])

    report = unpack(archive, tracking_uri=server.url)

    assert report.failures == []
    assert_count_law(report)
    assert_same(snapshot(source_uri), snapshot(server.url), report)


def test_killed_while_a_version_gets_its_files(
    sqlite_uri: str, make_server: MakeServer, tmp_path: Path
) -> None:
    """The run that is made to hold the files of a version without a run is not made twice."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors: {}")
    client = MlflowClient(sqlite_uri, sqlite_uri)
    client.create_registered_model("net")
    client.create_model_version("net", str(folder))
    archive = str(tmp_path / "a.tar.zst")
    pack(archive, tracking_uri=sqlite_uri)
    server = make_server()
    for path in ("runs/create", "runs/update", "/artifacts/"):
        unpack_until_killed(archive, server.url, partial(is_call_of, path))

    report = unpack(archive, tracking_uri=server.url)

    assert report.ok
    target = MlflowClient(server.url)
    artifact_runs = target.get_experiment_by_name(ARTIFACT_RUNS)
    assert len(target.search_runs([artifact_runs.experiment_id], run_view_type=ViewType.ALL)) == 1
    assert_same(snapshot(sqlite_uri), snapshot(server.url), report)


class Living:
    """A source that goes on between two packs."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.client = MlflowClient(uri, uri)
        self.made = Seeded(experiments={"live": self.client.create_experiment("live")})
        self.run("done")
        self.run("training", finish=False)
        self.run("to be deleted")
        log_metrics(self.client, self.made.runs["training"], {"loss": [(1.0, T0, 0)]})
        log_files(self.client, self.made.runs["training"], {"log.txt": b"epoch 1\n", "m/a": b"1"})
        self.client.log_param(self.made.runs["training"], "lr", "0.1")
        self.client.create_registered_model("net", {"team": "a"})
        self.version("done")
        self.client.set_registered_model_alias("net", "best", "1")

    def run(self, role: str, **more: Any) -> None:
        new_run(self.client, self.made, role, self.made.experiments["live"], **more)

    def version(self, role: str) -> None:
        run_id = self.made.runs[role]
        log_files(self.client, run_id, {"model/MLmodel": role.encode()})
        self.client.create_model_version("net", f"runs:/{run_id}/model", run_id)

    def go_on(self) -> None:
        run_id = self.made.runs["training"]
        log_metrics(
            self.client,
            run_id,
            {"loss": [(0.5, T0 + 1, 1), (0.5, T0 + 1, 1)], "accuracy": [(0.9, T0, 0)]},
        )
        self.client.log_param(run_id, "depth", "3")
        self.client.set_tag(run_id, "note", "now with depth")
        self.client.set_tag(run_id, "role", "trained")
        log_files(self.client, run_id, {"log.txt": b"epoch 1\nepoch 2\n", "m/b": b"2"})
        self.client.set_terminated(run_id, "FINISHED", end_time=T0 + 99_000)
        self.client.update_run(run_id, name="another name")
        self.client.delete_run(self.made.runs["to be deleted"])
        self.run("new", parent=run_id)
        self.version("new")
        self.client.set_registered_model_alias("net", "best", "2")
        self.client.set_experiment_tag(self.made.experiments["live"], "phase", "2")


def test_a_later_archive_adds_and_completes(
    sqlite_uri: str, make_server: MakeServer, tmp_path: Path
) -> None:
    source = Living(sqlite_uri)
    first, second = str(tmp_path / "1.tar.zst"), str(tmp_path / "2.tar.zst")
    server = make_server()
    pack(first, tracking_uri=source.uri)
    assert_same(
        snapshot(source.uri),
        snapshot_after(first, server.url),
        unpack(first, tracking_uri=server.url),
    )
    source.go_on()
    pack(second, tracking_uri=source.uri)

    report = unpack(second, tracking_uri=server.url)

    assert report.ok
    assert_count_law(report)
    assert report.counts[Kind.RUN].written == 3  # the new, the trained and the deleted one
    assert report.counts[Kind.MODEL_VERSION].written == 1
    assert_same(snapshot(source.uri), snapshot(server.url), report)
    # The first archive knows less: it takes nothing back.
    before = rows_of(server.backend_uri)
    assert_nothing_written(unpack(first, tracking_uri=server.url))
    assert rows_of(server.backend_uri) == before
    assert_nothing_written(unpack(second, tracking_uri=server.url))
    assert rows_of(server.backend_uri) == before


def snapshot_after(archive: str, target_uri: str) -> Any:
    assert unpack(archive, tracking_uri=target_uri).ok
    return snapshot(target_uri)


def test_a_later_archive_alone_equals_both(
    sqlite_uri: str, make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    source = Living(sqlite_uri)
    first, second = str(tmp_path / "1.tar.zst"), str(tmp_path / "2.tar.zst")
    pack(first, tracking_uri=source.uri)
    source.go_on()
    pack(second, tracking_uri=source.uri)
    newest_first = make_sqlite()

    reports = [unpack(archive, tracking_uri=newest_first) for archive in (second, first)]

    assert all(report.ok for report in reports)
    assert_nothing_written(reports[1])
    assert_same(snapshot(source.uri), snapshot(newest_first), *reports)


def test_what_the_user_deleted_stays_deleted(sqlite_source: Source, filled: str) -> None:
    client = MlflowClient(filled, filled)
    experiment = client.get_experiment_by_name("plain")
    (run,) = client.search_runs([experiment.experiment_id], "tags.role = 'metrics'")
    client.delete_run(run.info.run_id)
    client.delete_experiment(client.get_experiment_by_name("artifacts").experiment_id)
    client.delete_model_version("churn ✓ model", "12")
    before = rows_of(filled)

    report = unpack(sqlite_source.archive, tracking_uri=filled)

    assert_count_law(report)
    reasons = {skip.id: skip.reason for skip in report.skips}
    assert "deleted" in reasons["artifacts"]
    runs_after = [row for row in rows_of(filled) if 'INTO "runs"' in row]
    assert runs_after == [row for row in before if 'INTO "runs"' in row]


def test_what_the_user_added_at_the_target_stays(sqlite_source: Source, filled: str) -> None:
    client = MlflowClient(filled, filled)
    experiment = client.get_experiment_by_name("plain")
    (run,) = client.search_runs([experiment.experiment_id], "tags.role = 'metrics'")
    client.set_tag(run.info.run_id, "reviewed", "yes")
    client.log_batch(run.info.run_id, metrics=[Metric("extra", 1.0, T0, 0)])
    client.set_experiment_tag(experiment.experiment_id, "team", "b")
    client.set_registered_model_alias("churn ✓ model", "champion", "4")
    client.delete_registered_model_alias("churn ✓ model", "challenger")
    client.update_model_version("churn ✓ model", "5", "another text")
    before = rows_of(filled)

    report = unpack(sqlite_source.archive, tracking_uri=filled)

    assert report.ok
    assert rows_of(filled) == before
    reasons = {skip.id: skip.reason for skip in report.skips}
    assert reasons["plain"] == "it is there already and keeps its own tags team"
    assert reasons["churn ✓ model/5"] == "it is there already and keeps its own description"
    assert sum("alias" in loss.what for loss in report.losses) == 2
