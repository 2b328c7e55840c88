"""Into a database directly: the same ids, numbers, times and deleted objects as at the source."""

from __future__ import annotations

import json
import math
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import threading
from contextlib import closing
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest
import sqlalchemy
from click.testing import CliRunner
from mlflow import MlflowClient
from sqlalchemy.dialects.mssql import pyodbc

from mlflow_exim_plugin import copy, diff, pack, unpack
from mlflow_exim_plugin.cli.main import exim
from mlflow_exim_plugin.errors import (
    ConflictError,
    ServerError,
    ServerLostError,
    UnsupportedFormatError,
    UsageError,
)
from mlflow_exim_plugin.host.api.reading import Reader
from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin.options import Writing
from mlflow_exim_plugin.schema.objects import Artifact, Experiment, Kind, Loss, Run
from mlflow_exim_plugin.schema.report import Report
from mlflow_exim_plugin.sinks.database.sink import DatabaseSink
from tests.answers import answers, without_secrets
from tests.compare import assert_count_law
from tests.everything import SERVER_ENV
from tests.filled import copy_of_server
from tests.integration.conftest import rows_of
from tests.integration.test_workspaces import ENABLED
from tests.integration.test_workspaces import contents as workspace_contents
from tests.integration.test_workspaces import fill as fill_workspaces
from tests.matched import read, unmatched
from tests.processes import new_process
from tests.servers import new_sqlite_database, start_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.comparison.result import Comparison
    from tests.conftest import MakeServer
    from tests.sources import Source

pytestmark = pytest.mark.integration
LOCATIONS = ["*.artifact_*", "*.source", "*.storage_location"]


def assert_equal(result: Comparison) -> None:
    told = [f"{d.kind} {d.id} {d.path}: {d.a!r} / {d.b!r}"[:300] for d in result.differences]
    assert not told, "\n".join(told)
    assert not result.unreadable
    assert result.equal


def assert_nothing_written(report: Report) -> None:
    assert report.ok, report.failures
    assert_count_law(report)
    assert not any(counts.written for counts in report.counts.values()), report


def rows(uri: str, query: str) -> list[tuple[Any, ...]]:
    engine = sqlalchemy.create_engine(uri)
    with engine.connect() as connection:
        found = [tuple(row) for row in connection.execute(sqlalchemy.text(query))]
    engine.dispose()
    return found


def mlflow_cli(arguments: list[str]) -> None:
    from mlflow.cli import cli

    cli(arguments)  # ends the process


@pytest.mark.timeout(900)
def test_the_restored_server_answers_like_the_original(
    everything: tuple[str, str],
    everything_answers: dict[str, Any],
    database_uri: str,
    make_server: MakeServer,
    tmp_path: Path,
) -> None:
    _, archive = everything
    files = tmp_path / "restored" / "artifacts"

    report = unpack(
        archive,
        tracking_uri=database_uri,
        artifact_location="mlflow-artifacts:/",
        artifacts_destination=str(files),
    )

    assert report.failures == []
    assert_count_law(report)
    server = make_server(
        tmp_path / "restored",
        backend_store_uri=database_uri,
        artifacts_destination=str(files),
        env=SERVER_ENV,
    )
    asked, told = everything_answers, answers(server.url)
    assert asked.keys() == told.keys()
    assert sum(status == 200 for status, _ in asked.values()) > 400
    differing = {
        question: (asked[question], told[question])
        for question in asked
        if without_secrets(asked[question]) != without_secrets(told[question])
    }
    assert not differing, list(differing.items())[:3]
    assert unmatched(read(asked), read(told), report) == ([], [])
    secrets = ["model_definition.secret_*", "webhook.status"]
    assert_equal(diff(archive, server.url, rules="exact", ignore=secrets))

    client = MlflowClient(server.url, server.url)
    largest = max(int(e.experiment_id) for e in client.search_experiments())
    experiment_id = client.create_experiment("after the restore")
    assert int(experiment_id) > largest
    run = client.create_run(experiment_id)
    client.log_metric(run.info.run_id, "loss", 0.5)
    client.log_text(run.info.run_id, "hello", "greeting.txt")
    assert client.get_run(run.info.run_id).data.metrics == {"loss": 0.5}
    server.stop()
    upgrade = new_process(mlflow_cli, ["db", "upgrade", database_uri])
    upgrade.start()
    upgrade.join(300)
    assert upgrade.exitcode == 0

    again = unpack(
        archive,
        tracking_uri=database_uri,
        artifact_location="mlflow-artifacts:/",
        artifacts_destination=str(files),
    )
    assert_nothing_written(again)
    assert not [loss for loss in again.losses if "another state" in loss.what]


def test_a_database_gives_the_same_archive(
    sqlite_source: Source, postgres_uri: str, tmp_path: Path
) -> None:
    unpack(
        sqlite_source.archive, tracking_uri=postgres_uri, artifact_location=str(tmp_path / "files")
    )
    archive = str(tmp_path / "again.tar.zst")

    packed = pack(archive, tracking_uri=postgres_uri)

    assert packed.failures == []
    assert_equal(diff(sqlite_source.archive, archive, rules="exact", ignore=LOCATIONS))


def test_back_where_it_came_from_all_is_there(sqlite_source: Source, tmp_path: Path) -> None:
    there = f"sqlite:///{shutil.copy(sqlite_source.database, tmp_path / 'copy.db')}"
    before = rows_of(there)

    report = unpack(sqlite_source.archive, tracking_uri=there)

    assert_nothing_written(report)
    assert not [loss for loss in report.losses if "another state" in loss.what]
    assert rows_of(there) == before


def test_infinities_that_a_database_cannot_keep_are_named(
    sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = str(tmp_path / "mlruns")
    client = MlflowClient(folder, folder)
    run_id = client.create_run(client.create_experiment("e")).info.run_id
    for step, value in enumerate([0.5, math.inf, -math.inf]):
        client.log_metric(run_id, "diverges", value, step=step)
        client.log_metric(run_id, "stays", 0.5, step=step)

    report = copy(folder, sqlite_uri, artifact_location=str(tmp_path / "files"))

    assert report.ok
    what = "infinities are kept as the largest double"
    assert [loss for loss in report.losses if loss.kind is Kind.METRIC_HISTORY] == [
        Loss(Kind.METRIC_HISTORY, f"{run_id}/diverges", what)
    ]


def test_locations_can_stay(sqlite_source: Source, make_sqlite: Callable[[], str]) -> None:
    target = make_sqlite()

    report = copy(sqlite_source.uri, target, artifact_location="source")

    assert report.failures == []
    assert_count_law(report, sqlite_source.snapshot)
    assert report.counts[Kind.ARTIFACT].written == 0
    assert report.counts[Kind.ARTIFACT].skipped > 0
    assert_equal(diff(sqlite_source.uri, target, rules="exact"))


def test_a_file_that_lies_where_it_goes_stays_whole(
    make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    source, target = make_sqlite(), make_sqlite()
    client = MlflowClient(source, source)
    experiment_id = client.create_experiment("a", str(tmp_path / "a"))
    assert copy(source, target, artifact_location="source").ok
    run_id = client.create_run(experiment_id).info.run_id
    client.log_text(run_id, "hello", "greeting.txt")

    report = copy(source, target)  # into the experiment that is there, whose files the source has

    assert report.failures == []
    folder = tmp_path / "a" / run_id / "artifacts"
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [
        ("greeting.txt", "hello")
    ]


def test_what_is_there_stays_as_it_is(
    sqlite_source: Source, database_uri: str, tmp_path: Path
) -> None:
    client = MlflowClient(database_uri, database_uri)
    mine = [client.create_experiment(f"mine {n}", str(tmp_path / f"mine {n}")) for n in range(3)]
    run = client.create_run(mine[0], run_name="mine")
    client.log_metric(run.info.run_id, "loss", 1.0)
    client.create_registered_model("mine")
    before = pack(str(tmp_path / "before.tar.zst"), tracking_uri=database_uri)
    assert before.ok

    report = unpack(
        sqlite_source.archive, tracking_uri=database_uri, artifact_location=str(tmp_path / "files")
    )

    assert report.failures == []
    assert_count_law(report, sqlite_source.snapshot)
    taken = {loss.id: loss.what for loss in report.losses if "experiment_id is" in loss.what}
    assert len(taken) == 3
    source = MlflowClient(sqlite_source.uri, sqlite_source.uri)
    for name in taken:
        new = client.get_experiment_by_name(name)
        assert int(new.experiment_id) > max(int(i) for i in mine)
        assert new.creation_time == source.get_experiment_by_name(name).creation_time
    ids = {row[0] for row in rows(sqlite_source.uri, "SELECT run_uuid FROM runs")}
    assert ids | {run.info.run_id} == {
        row[0] for row in rows(database_uri, "SELECT run_uuid FROM runs")
    }
    mine_only = diff(str(tmp_path / "before.tar.zst"), database_uri, rules="exact")
    assert not [d for d in mine_only.differences if "mine" in str(d.id)]
    assert_nothing_written(
        unpack(
            sqlite_source.archive,
            tracking_uri=database_uri,
            artifact_location=str(tmp_path / "files"),
        )
    )


def test_taken_names_follow_the_policy(tmp_path: Path, make_sqlite: Callable[[], str]) -> None:
    source, target = make_sqlite(), make_sqlite()
    archive = str(tmp_path / "one.tar.zst")
    for name in ("else", "here"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "MLmodel").write_text(name)
    there = MlflowClient(source, source)
    experiment_id = there.create_experiment("training", str(tmp_path / "a"), {"side": "source"})
    run_id = there.create_run(experiment_id).info.run_id
    there.create_registered_model("churn")
    there.create_model_version("churn", str(tmp_path / "else"), description="of the source")
    assert pack(archive, tracking_uri=source).ok
    client = MlflowClient(target, target)
    client.create_experiment("another")
    client.create_experiment("training", str(tmp_path / "b"), {"side": "target"})
    client.create_registered_model("churn")
    client.create_model_version("churn", str(tmp_path / "here"), description="of the target")
    untouched = rows_of(target)

    with pytest.raises(ConflictError, match="another experiment named 'training'"):
        unpack(archive, tracking_uri=target, on_conflict="fail")
    assert rows_of(target) == untouched
    skipped = unpack(archive, tracking_uri=target, on_conflict="skip")
    assert_count_law(skipped)
    # Nobody had used the experiment that MLflow makes by itself.
    changed = set(rows_of(target)) ^ set(untouched)
    assert all("'Default'" in row for row in changed), changed
    assert skipped.counts[Kind.RUN].skipped == 1

    merged = unpack(archive, tracking_uri=target)
    assert merged.ok
    assert client.get_run(run_id).info.experiment_id == "2"
    assert client.get_experiment("2").tags == {"side": "target"}
    versions = {v.version: v.description for v in client.search_model_versions("name = 'churn'")}
    assert versions == {1: "of the target", 2: "of the source"}
    assert_nothing_written(unpack(archive, tracking_uri=target))

    other = make_sqlite()
    beside = MlflowClient(other, other)
    beside.create_experiment("training", str(tmp_path / "b"))
    beside.create_registered_model("churn")
    renamed = unpack(archive, tracking_uri=other, on_conflict="rename")
    assert renamed.ok
    new = beside.get_experiment_by_name("training (2)")
    assert beside.get_run(run_id).info.experiment_id == new.experiment_id
    assert beside.get_model_version("churn (2)", "1").description == "of the source"
    assert_nothing_written(unpack(archive, tracking_uri=other, on_conflict="rename"))


def test_another_state_of_a_run_is_named_and_stays(
    tmp_path: Path, make_sqlite: Callable[[], str]
) -> None:
    source, target = make_sqlite(), make_sqlite()
    client = MlflowClient(source, source)
    run_id = client.create_run(client.create_experiment("a", str(tmp_path / "a"))).info.run_id
    client.log_metric(run_id, "loss", 1.0, step=1)
    client.set_terminated(run_id)
    assert copy(source, target).ok
    client.log_metric(run_id, "loss", 0.5, step=2)
    client.set_tag(run_id, "late", "yes")
    before = rows_of(target)

    report = copy(source, target)

    what = "the target has another state of it, which stays: tags, latest_metrics"
    assert Loss(Kind.RUN, run_id, what) in report.losses
    assert rows_of(target) == before


def test_versions_find_their_files_where_experiments_shared_a_root(
    make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    source, target = make_sqlite(), make_sqlite()
    client = MlflowClient(source, source)
    client.create_registered_model("net")
    for name in ("first", "second"):
        experiment_id = client.create_experiment(name, str(tmp_path / "shared"))
        run = client.create_run(experiment_id)
        client.log_text(run.info.run_id, name, "model/note.txt")
        client.create_model_version("net", f"{run.info.artifact_uri}/model", run.info.run_id)

    for _ in range(2):
        report = copy(source, target, artifact_location=str(tmp_path / "files"))

        assert report.failures == []
        found = rows(target, "SELECT source FROM model_versions ORDER BY version")
        assert [Path(place, "note.txt").read_text() for (place,) in found] == ["first", "second"]
        assert all(str(tmp_path / "files") in place for (place,) in found)
    client.create_model_version("net", f"{run.info.artifact_uri}/model", run.info.run_id)
    copy(source, target, artifact_location=str(tmp_path / "files"))
    *_, last = rows(target, "SELECT source FROM model_versions ORDER BY version")
    assert last == found[-1]


def test_a_number_that_a_column_cannot_hold_costs_its_version_alone(
    postgres_uri: str, make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    source = make_sqlite()
    client = MlflowClient(source, source)
    client.create_registered_model("net")
    for _ in range(2):
        client.create_model_version("net", str(tmp_path))
    with closing(sqlite3.connect(source.removeprefix("sqlite:///"))) as connection:
        connection.execute("UPDATE model_versions SET version = 1 << 40 WHERE version = 2")
        connection.commit()

    planned, report = (
        copy(source, postgres_uri, artifact_location=str(tmp_path), dry_run=dry_run)
        for dry_run in (True, False)
    )

    assert_count_law(report)
    for said in (planned, report):
        failures = {f.id: f.reason for f in said.failures if f.kind is Kind.MODEL_VERSION}
        assert failures.keys() == {f"net/{1 << 40}"}
        assert "model_versions.version holds whole numbers below" in failures[f"net/{1 << 40}"]
    assert rows(postgres_uri, "SELECT version FROM model_versions") == [(1,)]


def test_what_a_column_cannot_hold_is_named_before_it_is_written(
    postgres_uri: str, make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    source = make_sqlite()
    client = MlflowClient(source, source)
    experiment_id = client.create_experiment("a", str(tmp_path / "a"))
    good, long, zero = (client.create_run(experiment_id).info.run_id for _ in range(3))
    with closing(sqlite3.connect(source.removeprefix("sqlite:///"))) as connection:
        connection.execute("UPDATE runs SET name = ? WHERE run_uuid = ?", ("n" * 300, long))
        connection.execute(
            "INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)", ("p", "a\0b", zero)
        )
        connection.commit()

    report = copy(source, postgres_uri, artifact_location=str(tmp_path))

    assert_count_law(report)
    reasons = {failure.id: failure.reason for failure in report.failures}
    assert set(reasons) == {zero}
    assert "params.value cannot hold a zero byte: 'p'" in reasons[zero]
    (cut,) = (loss.what for loss in report.losses if loss.id == long)
    assert "cut, runs.name holds 250 characters, it has 300" in cut
    names = dict(rows(postgres_uri, "SELECT run_uuid, name FROM runs"))
    assert names.keys() == {good, long}
    assert names[long] == "n" * 250
    again = copy(source, postgres_uri, artifact_location=str(tmp_path))
    assert again.counts[Kind.RUN].written == 0

    strict = MlflowClient(postgres_uri, postgres_uri)
    with pytest.raises(Exception, match="stopped at run"):
        copy(
            source,
            postgres_uri,
            artifact_location=str(tmp_path),
            experiment_name="strictly",
            strict=True,
        )
    assert strict.get_experiment_by_name("strictly") is None


def test_numbers_of_folders_do_not_fit_everywhere(
    tmp_path: Path, postgres_uri: str, make_sqlite: Callable[[], str]
) -> None:
    source = make_sqlite()
    number = 123_456_789_012_345_678
    client = MlflowClient(source, source)
    client.create_experiment("small", str(tmp_path / "small"))
    with closing(sqlite3.connect(source.removeprefix("sqlite:///"))) as connection:
        connection.execute(
            "INSERT INTO experiments SELECT ?, 'from a folder', artifact_location, lifecycle_stage,"
            " creation_time, last_update_time, workspace FROM experiments WHERE experiment_id = 1",
            (number,),
        )
        connection.commit()
    run_id = client.create_run(str(number)).info.run_id

    fits = make_sqlite()
    assert copy(source, fits).ok
    assert rows(fits, "SELECT experiment_id FROM runs") == [(number,)]
    report = copy(source, postgres_uri, artifact_location=str(tmp_path))

    assert report.ok
    what = "its experiment_id is 2 at the target: the target's numbers end at 2147483647"
    assert Loss(Kind.EXPERIMENT, "from a folder", what) in report.losses
    assert rows(postgres_uri, "SELECT run_uuid, experiment_id FROM runs") == [(run_id, 2)]
    assert_nothing_written(copy(source, postgres_uri, artifact_location=str(tmp_path)))


def kill_soon(kind: Kind, objects: int, seconds: float, report: Report) -> None:
    """Kill this process some time after so many objects were found."""
    if report.counts[kind].found >= objects:
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()


@pytest.mark.timeout(900)
def test_killed_and_finished(sqlite_source: Source, database_uri: str, tmp_path: Path) -> None:
    """Kill it at any moment: each experiment is whole or not there, and the next run goes on."""
    root = str(tmp_path / "files")
    whole = dict(
        rows(sqlite_source.uri, "SELECT experiment_id, count(*) FROM runs GROUP BY experiment_id")
    )
    MlflowClient(database_uri, database_uri)  # MLflow's own tables are not ours to roll back
    chance, killed = random.Random(4), 0
    query = "SELECT experiment_id, count(*) FROM runs GROUP BY experiment_id"
    # When the fourth experiment is begun, the one that has most runs has ended.
    for kind, objects in (
        (Kind.RUN, 0),
        (Kind.RUN, 3),
        (Kind.RUN, 25),
        (Kind.EXPERIMENT, 4),
    ):
        process = new_process(
            unpack,
            sqlite_source.archive,
            tracking_uri=database_uri,
            artifact_location=root,
            progress=partial(kill_soon, kind, objects, chance.random() / 50),
        )
        process.start()
        process.join(120)
        killed += process.exitcode == -signal.SIGKILL
        there = rows(database_uri, query)
        assert all(whole[number] == count for number, count in there), there
    assert killed > 1

    report = unpack(sqlite_source.archive, tracking_uri=database_uri, artifact_location=root)

    assert report.failures == []
    assert_count_law(report)
    assert report.counts[Kind.RUN].skipped  # what was there already
    assert_equal(diff(sqlite_source.archive, database_uri, rules="exact", ignore=LOCATIONS))


def test_a_broken_statement_takes_its_experiment_back(
    sqlite_source: Source, postgres_uri: str, tmp_path: Path
) -> None:
    MlflowClient(postgres_uri, postgres_uri)
    run_id = min(row[0] for row in rows(sqlite_source.uri, "SELECT run_uuid FROM tags"))
    refusal = f"ALTER TABLE tags ADD CONSTRAINT broken CHECK (run_uuid <> '{run_id}')"
    engine = sqlalchemy.create_engine(postgres_uri)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(refusal))

    first = unpack(
        sqlite_source.archive, tracking_uri=postgres_uri, artifact_location=str(tmp_path / "f")
    )

    assert_count_law(first)
    assert not first.ok
    assert any("taken back" in failure.reason for failure in first.failures)
    owner = rows(sqlite_source.uri, f"SELECT experiment_id FROM runs WHERE run_uuid = '{run_id}'")
    there = {row[0] for row in rows(postgres_uri, "SELECT experiment_id FROM experiments")}
    assert owner[0][0] not in there
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("ALTER TABLE tags DROP CONSTRAINT broken"))
    engine.dispose()
    second = unpack(
        sqlite_source.archive, tracking_uri=postgres_uri, artifact_location=str(tmp_path / "f")
    )
    assert second.failures == []
    assert_equal(diff(sqlite_source.archive, postgres_uri, rules="exact", ignore=LOCATIONS))


def test_a_run_that_is_taken_back_meanwhile_is_not_counted(
    postgres_uri: str, tmp_path: Path
) -> None:
    """While its files are sent, another one breaks the transaction that both of them share."""
    client = MlflowClient(postgres_uri, postgres_uri)
    experiment_id = client.create_experiment("a", str(tmp_path / "a"))
    run_id = client.create_run(experiment_id).info.run_id
    client.set_terminated(run_id)
    engine = sqlalchemy.create_engine(postgres_uri)
    with engine.begin() as connection:
        refusal = "ALTER TABLE tags ADD CONSTRAINT broken CHECK (key <> 'broken')"
        connection.execute(sqlalchemy.text(refusal))
    engine.dispose()
    with Host(postgres_uri, create=True) as host:
        assert host.engine is not None
        sink = DatabaseSink(host.engine, Writing(), source_ids=list, host=host)
        experiment, document = Reader(host).experiments()[1], Reader(host).run(run_id)
        report = Report()

        def run(number: int, *artifacts: Artifact, **more: Any) -> Run:
            info = document["info"] | {"run_id": f"{number:032x}"}
            return Run({"info": info} | more, artifacts=artifacts)

        def break_it() -> BinaryIO:
            sink.write(run(2, data={"tags": [{"key": "broken", "value": "x"}]}), report)
            dataset = {"dataset": {"name": "looked for", "digest": "behind what waits"}}
            with pytest.raises(ServerError):
                sink.write(run(3, inputs={"dataset_inputs": [dataset]}), report)
            return BytesIO(b"x")

        sink.write(Experiment(experiment), report)
        with pytest.raises(ServerError, match="taken back"):
            sink.write(run(1, Artifact("x", 1, break_it)), report)
        sink.write(run(4), report)
        sink.finish(report)
        sink.close()

    assert_count_law(report)
    assert report.counts[Kind.RUN].written == 1
    found = {row[0] for row in rows(postgres_uri, "SELECT run_uuid FROM runs")}
    assert found == {run_id, f"{4:032x}"}


@pytest.mark.exhaustive
def test_a_file_that_someone_writes_to_is_refused(sqlite_source: Source, sqlite_uri: str) -> None:
    MlflowClient(sqlite_uri, sqlite_uri)
    before = rows_of(sqlite_uri)
    with closing(sqlite3.connect(sqlite_uri.removeprefix("sqlite:///"))) as server:
        server.execute("BEGIN IMMEDIATE")
        with pytest.raises(ServerError, match="stop the server that writes to it"):
            unpack(sqlite_source.archive, tracking_uri=sqlite_uri)
    assert rows_of(sqlite_uri) == before


def test_a_server_may_run_on_the_target(
    sqlite_source: Source, postgres_uri: str, make_server: MakeServer, tmp_path: Path
) -> None:
    server = make_server(backend_store_uri=postgres_uri)

    report = unpack(
        sqlite_source.archive, tracking_uri=postgres_uri, artifact_location=str(tmp_path / "files")
    )

    assert report.failures == []
    assert_equal(diff(sqlite_source.archive, postgres_uri, rules="exact", ignore=LOCATIONS))
    experiment_id = MlflowClient(server.url, server.url).create_experiment("after")
    assert int(experiment_id) > max(
        row[0] for row in rows(sqlite_source.uri, "SELECT experiment_id FROM experiments")
    )


def test_only_databases_keep_ids(sqlite_source: Source, make_server: MakeServer) -> None:
    with pytest.raises(UsageError, match="cannot keep ids"):
        unpack(sqlite_source.archive, tracking_uri=make_server().url, preserve_ids=True)


def test_files_behind_a_server_need_its_option(
    server_source: Source, sqlite_uri: str, make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    """A database knows its server's files by ``mlflow-artifacts:`` alone."""
    database = f"sqlite:///{server_source.database}"
    archive = str(tmp_path / "of the database.tar.zst")

    unknown = pack(archive, tracking_uri=database)
    reasons = {failure.reason for failure in unknown.failures}
    assert reasons
    assert all("only the server knows where" in reason for reason in reasons), reasons

    files = str(server_source.database.parent / "artifacts")
    packed = pack(archive, tracking_uri=database, artifacts_destination=files, overwrite=True)
    assert packed.failures == []
    assert_equal(diff(server_source.archive, archive, rules="exact"))

    found = unpack(archive, tracking_uri=sqlite_uri, artifact_location="mlflow-artifacts:/")
    assert not found.ok
    new, place = make_sqlite(), tmp_path / "place"
    arguments = ["unpack", archive, "--tracking-uri", new, "--artifact-location"]
    arguments += ["mlflow-artifacts:/", "--artifacts-destination", str(place), "--preserve-ids"]
    done = CliRunner().invoke(exim, arguments)
    assert done.exit_code == 0, done.output
    here, there = files, str(place)
    compared = diff(
        database, new, rules="exact", a_artifacts_destination=here, b_artifacts_destination=there
    )
    assert_equal(compared)
    assert diff(database, new, a_artifacts_destination=here).unreadable
    both = ["diff", archive, new, "--rules", "exact", "--artifacts-destination", there]
    assert CliRunner().invoke(exim, both).exit_code == 0
    with start_server(
        tmp_path / "server", backend_store_uri=new, artifacts_destination=str(place)
    ) as server:
        assert_equal(diff(server_source.archive, server.url, rules="exact"))


def test_the_old_name_of_an_option_of_copy_still_works(
    server_source: Source, make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    """``--artifacts-destination`` was the target's in copy, and is the source's in pack."""
    database, files = f"sqlite:///{server_source.database}", tmp_path / "files"
    arguments = ["copy", database, make_sqlite(), "--source-artifacts-destination"]
    arguments += [str(server_source.database.parent / "artifacts"), "--artifact-location"]
    arguments += ["mlflow-artifacts:/", "--artifacts-destination", str(files)]

    done = CliRunner().invoke(exim, arguments)

    assert done.exit_code == 0, done.output
    assert "is called --target-artifacts-destination" in done.stderr
    assert any(path.is_file() for path in files.rglob("*"))


def test_what_an_unpack_by_the_api_wrote_is_not_doubled(
    sqlite_source: Source, sqlite_uri: str, tmp_path: Path
) -> None:
    by_api = unpack(
        sqlite_source.archive,
        tracking_uri=sqlite_uri,
        preserve_ids=False,
        artifact_location=str(tmp_path / "f"),
    )
    assert by_api.ok
    counts = (
        rows(sqlite_uri, "SELECT count(*) FROM runs"),
        rows(sqlite_uri, "SELECT count(*) FROM experiments"),
    )

    direct = unpack(sqlite_source.archive, tracking_uri=sqlite_uri)

    assert direct.ok
    assert counts == (
        rows(sqlite_uri, "SELECT count(*) FROM runs"),
        rows(sqlite_uri, "SELECT count(*) FROM experiments"),
    )


def test_other_databases_are_written_in_their_own_words() -> None:
    from mlflow_exim_plugin.host.sql.writer import insert_statement

    dialect: Any = pyodbc.dialect  # SQLAlchemy's has no types

    statement = insert_statement(
        dialect(paramstyle="qmark"), "latest_metrics", ["key", "value", "run_uuid"]
    )

    assert statement == "INSERT INTO latest_metrics ([key], value, run_uuid) VALUES (?, ?, ?)"


def test_an_empty_database_is_initialised_by_mlflow(sqlite_source: Source, tmp_path: Path) -> None:
    target = f"sqlite:///{tmp_path}/new.db"
    expected = tmp_path / "expected.db"
    new_sqlite_database(expected)

    assert unpack(
        sqlite_source.archive, tracking_uri=target, artifact_location=str(tmp_path / "f")
    ).ok

    def schema(uri: str) -> set[str]:
        made = (line for line in rows_of(uri) if line.startswith("CREATE"))
        # MLflow lists the values that a column may have in any order.
        return {" ".join(sorted(re.findall(r"\w+", line))) for line in made}

    assert schema(target) == schema(str(expected))


@pytest.mark.timeout(600)
def test_every_workspace_keeps_its_own(
    make_server: MakeServer, sqlite_uri: str, postgres_uri: str, tmp_path: Path
) -> None:
    copy_of_server(tmp_path / "original", fill_workspaces, env=ENABLED)
    original = make_server(tmp_path / "original", env=ENABLED)
    archive, files = str(tmp_path / "all.tar.zst"), tmp_path / "restored" / "artifacts"
    assert pack(archive, tracking_uri=original.url).ok
    where: dict[str, Any] = {
        "artifact_location": "mlflow-artifacts:/",
        "artifacts_destination": str(files),
    }

    report = unpack(archive, tracking_uri=postgres_uri, **where)

    assert report.failures == []
    assert_count_law(report)
    restored = make_server(
        tmp_path / "restored",
        backend_store_uri=postgres_uri,
        artifacts_destination=str(files),
        env=ENABLED,
    )
    assert workspace_contents(restored.url) == workspace_contents(original.url)
    assert_equal(diff(original.url, restored.url, rules="exact"))
    assert_nothing_written(unpack(archive, tracking_uri=postgres_uri, **where))

    # The server of this one would not start again.
    MlflowClient(sqlite_uri, sqlite_uri).create_experiment("in use")
    refused = unpack(archive, tracking_uri=sqlite_uri, **where)
    assert_count_law(refused)
    assert {failure.kind for failure in refused.failures} == {Kind.WORKSPACE}
    assert rows(sqlite_uri, "SELECT DISTINCT workspace FROM experiments") == [("default",)]
    assert rows(sqlite_uri, "SELECT count(*) FROM registered_models") == [(1,)]


def unpack_small(archive: str, uri: str, files: str, size_bytes: int, told: Path) -> None:
    """Unpack where no file may be larger, and write the report to a file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, size_bytes))
    report = unpack(archive, tracking_uri=uri, artifact_location=files)
    told.write_text(json.dumps(report.to_dict()))


def test_a_full_disk_leaves_nothing_half(
    sqlite_source: Source, sqlite_uri: str, tmp_path: Path
) -> None:
    MlflowClient(sqlite_uri, sqlite_uri)
    path = tmp_path / "report.json"
    size_bytes = Path(sqlite_uri.removeprefix("sqlite:///")).stat().st_size + (80 << 10)
    files = str(tmp_path / "f")
    process = new_process(unpack_small, sqlite_source.archive, sqlite_uri, files, size_bytes, path)
    process.start()
    process.join(120)
    assert process.exitcode == 0
    first = json.loads(path.read_text())

    assert not first["ok"]
    assert any("taken back" in failure["reason"] for failure in first["failures"])
    for counts in first["counts"].values():
        assert counts["found"] == counts["written"] + counts["skipped"] + counts["failed"]
    query = "SELECT experiment_id, count(*) FROM runs GROUP BY experiment_id"
    whole = dict(rows(sqlite_source.uri, query))
    assert all(whole[number] == count for number, count in rows(sqlite_uri, query))
    second = unpack(
        sqlite_source.archive, tracking_uri=sqlite_uri, artifact_location=str(tmp_path / "f")
    )
    assert second.failures == []
    assert_equal(diff(sqlite_source.archive, sqlite_uri, rules="exact", ignore=LOCATIONS))


def test_what_a_database_does_not_tell_apart_is_named(
    mariadb_uri: str, make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    source = make_sqlite()
    client = MlflowClient(source, source)
    experiment_id = client.create_experiment("a", str(tmp_path / "a"))
    good, twice, long = (client.create_run(experiment_id).info.run_id for _ in range(3))
    client.log_param(twice, "Größe", "1")
    client.log_param(twice, "größe", "2")
    client.log_metric(good, "loss", 0.5)
    client.log_metric(good, "LOSS", 0.25)
    with closing(sqlite3.connect(source.removeprefix("sqlite:///"))) as connection:
        connection.execute("UPDATE experiments SET name = 'b' WHERE experiment_id = 1")
        connection.execute(
            "INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)", ("k", "ü" * 9000, long)
        )
        connection.commit()

    report = copy(source, mariadb_uri, artifact_location=str(tmp_path))

    assert_count_law(report)
    assert report.failures == []
    named = {loss.id: loss.what for loss in report.losses}
    assert "left out, another key of params is the same to it: 'größe'" in named[twice]
    assert "cut, tags.value holds 8000 characters, it has 9000: 'k'" in named[long]
    assert "left out, another key of latest_metrics is the same to it: 'loss'" in named[good]
    assert {run_id for (run_id,) in rows(mariadb_uri, "SELECT run_uuid FROM runs")} == {
        good,
        twice,
        long,
    }
    params = rows(mariadb_uri, "SELECT value FROM params")
    assert params == [("1",)]
    for table in ("latest_metrics", "metrics"):
        kept = rows(mariadb_uri, f"SELECT run_uuid, value FROM {table}")
        assert len(kept) == 1
        assert kept[0][0] == good
    again = copy(source, mariadb_uri, artifact_location=str(tmp_path))
    assert again.failures == []
    assert again.counts[Kind.RUN].written == 0


def test_no_file_leaves_the_folder_of_its_experiment(
    make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    source, target = make_sqlite(), make_sqlite()
    client = MlflowClient(source, source)
    experiment_id = client.create_experiment("a", str(tmp_path / "a"))
    run_id = client.create_run(experiment_id).info.run_id
    client.log_text(run_id, "hello", "greeting.txt")
    with closing(sqlite3.connect(source.removeprefix("sqlite:///"))) as connection:
        roundabout = f"{tmp_path}/a/../a/{run_id}/artifacts"
        connection.execute("UPDATE runs SET artifact_uri = ?", (roundabout,))
        connection.execute(
            "INSERT INTO trace_info (request_id, experiment_id, timestamp_ms, status)"
            " VALUES ('../../evil', 1, 0, 'OK')"
        )
        connection.commit()

    report = copy(source, target, artifact_location=str(tmp_path / "new"))

    assert [(f.kind, f.id) for f in report.failures] == [(Kind.TRACE, "../../evil")]
    assert "would leave the folder" in report.failures[0].reason
    uri = f"{tmp_path}/new/1/{run_id}/artifacts"
    assert rows(target, "SELECT artifact_uri FROM runs") == [(uri,)]
    assert (Path(uri) / "greeting.txt").read_text() == "hello"
    assert rows(target, "SELECT count(*) FROM trace_info") == [(0,)]


def test_a_database_that_dies_loses_nothing_unsaid(
    sqlite_source: Source, postgres_uri: str, tmp_path: Path
) -> None:
    """It stops, or where the database is back at once, takes back what was under way."""
    name = postgres_uri.rpartition("/")[2]
    administration = sqlalchemy.create_engine(postgres_uri.replace(name, "postgres"))
    query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    where = str(tmp_path / "files")

    def die(report: Report) -> None:
        counts = report.counts.get(Kind.RUN)
        if counts and counts.written == 5:
            with administration.connect() as connection:
                connection.execute(sqlalchemy.text(query))

    try:
        first = unpack(
            sqlite_source.archive,
            tracking_uri=postgres_uri,
            artifact_location=where,
            progress=die,
        )
    except ServerLostError:
        pass  # nobody is told of a report then
    else:
        assert_count_law(first)
        assert any("taken back" in failure.reason for failure in first.failures)
    administration.dispose()

    report = unpack(sqlite_source.archive, tracking_uri=postgres_uri, artifact_location=where)
    assert report.failures == []
    assert_equal(diff(sqlite_source.archive, postgres_uri, rules="exact", ignore=LOCATIONS))


@pytest.mark.parametrize("bad", ["password", "database", "host", "schema"])
def test_a_database_that_cannot_be_written_is_one_line(
    sqlite_source: Source, postgres_uri: str, bad: str
) -> None:
    uri = {
        "password": postgres_uri.replace("postgres@", "nobody:secret@"),
        "database": postgres_uri + "_not_there",
        "host": postgres_uri.replace(":5432", ":1"),
        "schema": postgres_uri,
    }[bad]
    if bad == "schema":
        MlflowClient(uri, uri)
        engine = sqlalchemy.create_engine(uri)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("UPDATE alembic_version SET version_num = 'ffff'"))
        engine.dispose()
    with pytest.raises((ServerError, UnsupportedFormatError)) as raised:
        unpack(sqlite_source.archive, tracking_uri=uri, artifact_location="/files")
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)
