"""Workspaces: all of them are packed, by loop, and each goes back into the one of its name."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import copy, diff, open_archive, pack, verify
from mlflow_exim_plugin.errors import EximError, ServerError
from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin.host.open.workspaces import Workspaces
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.objects import Kind
from tests import everything
from tests.compare import as_default, assert_count_law, assert_foreseen
from tests.filled import copy_of_server
from tests.new_ids import unpack
from tests.proxy import FaultyProxy, Request
from tests.servers import Server, start_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration
TEAMS = ("team-a", "team-b")
ENABLED = {"MLFLOW_ENABLE_WORKSPACES": "true"}


@pytest.fixture(autouse=True)
def no_workspace_is_left_active() -> Iterator[None]:
    yield
    assert "MLFLOW_WORKSPACE" not in os.environ


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("workspaces")
    copy_of_server(folder, fill, env=ENABLED)
    with start_server(folder, env=ENABLED) as server:
        yield server


@pytest.fixture(scope="module")
def archive(source: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("packed") / "all.tar.zst")
    report = pack(path, tracking_uri=source.url)
    assert report.ok, report.failures
    assert report.counts[Kind.WORKSPACE].written == len(TEAMS)
    return path


@contextmanager
def as_user_in(workspace: dict[str, Any]) -> Iterator[None]:
    """Enter a workspace as users do: MLflow's own threads, which download files, are in it too."""
    mlflow.set_workspace(workspace["name"])
    try:
        yield
    finally:
        mlflow.set_workspace(None)


def fill(uri: str) -> None:
    """The same names in every workspace, with other content."""
    client = MlflowClient(uri, uri)
    with as_default(uri):
        for name in TEAMS:
            mlflow.create_workspace(name, f"of {name}")
    for name in ("default", *TEAMS):
        with as_user_in({"name": name}):
            experiment = client.create_experiment("shared name", tags={"of": name})
            run = client.create_run(experiment, run_name=name)
            client.log_metric(run.info.run_id, "loss", len(name) / 7)
            client.log_text(run.info.run_id, f"written in {name}", "note.txt")
            client.set_terminated(run.info.run_id)
            client.create_registered_model("shared model", {"of": name})
            source = f"{run.info.artifact_uri}/note.txt"
            client.create_model_version("shared model", source, run.info.run_id)


def fill_others(uri: str) -> None:
    with as_default(uri):
        mlflow.create_workspace("others")


def contents(uri: str) -> dict[str, Any]:
    """What is in each workspace, by the names that are the same everywhere."""
    client = MlflowClient(uri, uri)
    workspaces = Workspaces(Host(uri, create=False))
    found = {}
    for document in workspaces.documents():
        with as_user_in(document):
            if (experiment := client.get_experiment_by_name("shared name")) is None:
                continue
            (run,) = client.search_runs([experiment.experiment_id])
            (version,) = client.search_model_versions("name = 'shared model'")
            with as_default(uri):
                text = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/note.txt")
            found[document["name"]] = {
                "description": document.get("description"),
                "experiment": experiment.tags["of"],
                "run": (run.info.run_name, run.data.metrics, run.info.end_time),
                "text": text,
                "model": client.get_registered_model("shared model").tags["of"],
                "of run": version.run_id == run.info.run_id,
            }
    return found


def test_every_workspace_is_packed(archive: str) -> None:
    assert verify(archive).findings == []
    with open_archive(archive) as opened:
        listed = opened.summary.mlflow.workspaces
        assert [workspace.name for workspace in listed] == list(TEAMS)
        assert all(
            [e.name for e in workspace.experiments] == ["shared name"] for workspace in listed
        )
        names = [e.mlflow.experiment["name"] for e in opened.experiments()]
        assert names.count("shared name") == len(TEAMS) + 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("answer", [b"{}", b"", b'{"workspaces": []}', b"<html>log in</html>", 503])
def test_a_listing_of_workspaces_that_is_none_is_not_believed(
    source: Server, tmp_path: Path, answer: bytes | int
) -> None:
    def rule(request: Request) -> bytes | int | None:
        return answer if request.path.endswith("/workspaces") else None

    with FaultyProxy(source.url, rule) as proxy, pytest.raises(EximError, match="workspaces"):
        pack(str(tmp_path / "all.tar.zst"), tracking_uri=proxy.url)
    assert list(tmp_path.iterdir()) == []


def test_each_goes_back_into_the_one_of_its_name(
    source: Server, archive: str, tmp_path: Path
) -> None:
    with start_server(tmp_path, env=ENABLED) as target:
        before = unpack(archive, tracking_uri=target.url, dry_run=True)
        assert before.counts[Kind.WORKSPACE].written == len(TEAMS)
        report = unpack(archive, tracking_uri=target.url)
        assert report.ok, report.failures
        assert_count_law(report)
        assert_foreseen(before, report)
        assert contents(target.url) == contents(source.url)
        result = diff(source.url, target.url)
        assert result.equal, result.differences
        again = unpack(archive, tracking_uri=target.url)
        assert not any(counts.written for counts in again.counts.values())
        assert_count_law(again)


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_a_dry_run_into_a_new_workspace_says_what_the_run_will_say(tmp_path: Path) -> None:
    """Of every kind, and where the default workspace, which is asked, has the same objects.

    Ids of traces are of all workspaces, so those do not come.
    """
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source, target):
        copy_of_server(folder, everything.fill, env=everything.SERVER_ENV)
    _move_to_workspace("team-a", source / "mlflow.db")
    env = {**everything.SERVER_ENV, **ENABLED}
    with start_server(source, env=env) as one, start_server(target, env=env) as two:
        planned, done = (copy(one.url, two.url, dry_run=dry_run) for dry_run in (True, False))
        assert done.counts[Kind.WORKSPACE].written == 1
        assert done.counts[Kind.RUN].written > 0
        traces = {f.reason for f in done.failures if f.kind is Kind.TRACE}
        assert traces == {"the target has a trace of this id in its workspace default"}
        assert_foreseen(planned, done)


def _move_to_workspace(name: str, database: Path) -> None:
    """Move all that a database has into a workspace of its own."""
    with closing(sqlite3.connect(database)) as connection, connection:
        tables = "SELECT name FROM sqlite_master WHERE type = 'table'"
        for (table,) in connection.execute(tables).fetchall():
            columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
            if "workspace" in {column for _, column, *_ in columns}:
                connection.execute(f"UPDATE {table} SET workspace = ?", (name,))
        connection.execute("INSERT INTO workspaces (name) VALUES (?)", (name,))


@pytest.mark.parametrize("preserve_ids", [True, False])
def test_into_a_database_that_has_workspaces(tmp_path: Path, *, preserve_ids: bool) -> None:
    """A place that its server could take for its own disk comes from nobody else."""
    source, target = tmp_path / "source", tmp_path / "target"
    copy_of_server(source, fill, env=ENABLED)
    copy_of_server(target, fill_others, env=ENABLED)
    settings = "default_artifact_root, trace_archival_location, trace_archival_retention"
    with closing(sqlite3.connect(source / "mlflow.db")) as connection, connection:
        values = "('file:///etc', 's3://cold', '30d')"
        connection.execute(f"UPDATE workspaces SET ({settings}) = {values}")
    uris = [f"sqlite:///{folder}/mlflow.db" for folder in (source, target)]
    how: dict[str, Any] = {
        "source_artifacts_destination": str(source / "artifacts"),
        "artifact_location": str(tmp_path / "files"),
        "preserve_ids": preserve_ids,
    }

    planned, report = (copy(*uris, **how, dry_run=dry_run) for dry_run in (True, False))

    assert report.failures == []
    assert_count_law(report)
    assert_foreseen(planned, report)
    assert report.counts[Kind.WORKSPACE].written == len(TEAMS)
    left = [loss.what for loss in report.losses if loss.kind is Kind.WORKSPACE]
    assert [what.partition(" is left out")[0] for what in left] == [
        "its default_artifact_root 'file:///etc'"
    ] * len(TEAMS)
    with closing(sqlite3.connect(target / "mlflow.db")) as connection:
        rows = connection.execute(f"SELECT {settings} FROM workspaces WHERE name LIKE 'team%'")
        assert rows.fetchall() == [(None, "s3://cold", "30d")] * len(TEAMS)
    with start_server(target, env=ENABLED) as two, start_server(source, env=ENABLED) as one:
        assert contents(two.url) == contents(one.url)
    again = copy(*uris, **how)
    assert not any(again.counts[kind].written for kind in (Kind.WORKSPACE, Kind.RUN))
    if not preserve_ids:
        with closing(sqlite3.connect(target / "mlflow.db")) as connection, connection:
            connection.execute("UPDATE experiments SET experiment_id = 99 WHERE experiment_id = 0")
        with pytest.raises(ServerError, match="never started"):
            copy(*uris, **how)


def test_a_target_without_workspaces_takes_the_default_one_and_names_the_others(
    archive: str, tmp_path: Path
) -> None:
    with start_server(tmp_path) as target:
        report = unpack(archive, tracking_uri=target.url)
        assert_count_law(report)
        assert sorted(f.id for f in report.failures) == list(TEAMS)
        assert report.counts[Kind.RUN].written == 1
        assert report.counts[Kind.RUN].skipped == len(TEAMS)
        client = MlflowClient(target.url, target.url)
        assert client.get_experiment_by_name("shared name").tags["of"] == "default"


def test_names_are_looked_for_in_every_workspace(source: Server, tmp_path: Path) -> None:
    both = Selection(experiments=("nowhere", "shared name"))
    report = pack(str(tmp_path / "both.tar.zst"), tracking_uri=source.url, selection=both)
    assert [failure.id for failure in report.failures] == ["nowhere"]
    assert report.counts[Kind.EXPERIMENT].written > 1
    workspaces = Workspaces(Host(source.url, create=False))
    (team,) = (w for w in workspaces.documents() if w["name"] == "team-b")
    with as_user_in(team):
        experiment = MlflowClient(source.url).get_experiment_by_name("shared name")
    path = str(tmp_path / "one.tar.zst")
    selection = Selection(experiments=(experiment.experiment_id,))
    assert pack(path, tracking_uri=source.url, selection=selection).ok
    with open_archive(path) as opened:
        assert [e.mlflow.experiment["name"] for e in opened.experiments()] == ["shared name"]
        listed = opened.summary.mlflow.workspaces
        assert [workspace.name for workspace in listed] == ["team-b"]


def test_the_workspace_that_the_user_chose_is_the_only_one(
    source: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as chosen:
        chosen.setenv("MLFLOW_WORKSPACE", "team-a")
        path = str(tmp_path / "chosen.tar.zst")
        assert pack(path, tracking_uri=source.url).ok
        assert os.environ["MLFLOW_WORKSPACE"] == "team-a"
        mlflow.set_workspace(None)
    with open_archive(path) as opened:
        (experiment, *_) = opened.experiments()
        assert experiment.mlflow.experiment["workspace"] == "team-a"
        assert not opened.summary.mlflow.experiments
