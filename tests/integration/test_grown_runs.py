"""Into a database again, while runs go on at the source: what grew is completed, nothing else."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import random
import sqlite3
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    Metric,
    Param,
)

from mlflow_exim_plugin import copy, diff, pack, unpack
from mlflow_exim_plugin.errors import PartialTransferError
from mlflow_exim_plugin.schema.objects import Kind, Loss
from tests.compare import assert_count_law
from tests.integration.conftest import rows_of
from tests.integration.test_same_ids import (
    LOCATIONS,
    assert_equal,
    assert_nothing_written,
    rows,
)
from tests.new_ids import unpack as unpack_by_api
from tests.seed import METRICS, T0, log_files, log_metrics
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report
    from tests.conftest import MakeServer

pytestmark = pytest.mark.integration

HELD_BACK = {"restarted": [(0.5, T0 + 2, 2), (0.75, T0 + 2, 2)]}
LATEST = "SELECT l.run_uuid, l.key, l.value, l.timestamp, l.step, l.is_nan FROM latest_metrics l"


class Training:
    """A run that logs to a deployment.

    Args:
        uri: The deployment.
        experiment_id: The run's.
        run_id: As ``begin`` left it.
    """

    def __init__(self, uri: str, experiment_id: str, run_id: str) -> None:
        self.uri = uri
        self.client = MlflowClient(uri, uri)
        self.experiment_id = experiment_id
        self.run_id = run_id

    @classmethod
    def begin(cls, uri: str, location: Path | None = None) -> Training:
        """Make the run.

        Args:
            uri: The deployment.
            location: Where the experiment's files are; the deployment's own place without it.
        """
        client = MlflowClient(uri, uri)
        experiment_id = client.create_experiment("live", location and str(location))
        tags = {"mlflow.user": "anna", "phase": "1", "stays": "yes"}
        run = client.create_run(experiment_id, T0, tags, "training")
        training = cls(uri, experiment_id, run.info.run_id)
        client.log_param(training.run_id, "lr", "0.1")
        log_metrics(client, training.run_id, {key: points[:1] for key, points in METRICS.items()})
        log_metrics(client, training.run_id, {"restarted": [(1.0, T0, 0), (0.5, T0 + 2, 2)]})
        training.input("first", "train")
        training.files({"log.txt": b"epoch 1\n", "m/a": b"1", "same size": b"1"})
        return training

    def input(self, name: str, context: str) -> None:
        dataset = Dataset(name, f"digest of {name}", "local", "somewhere", "{}", "{}")
        tags = [InputTag("mlflow.data.context", context)]
        self.client.log_inputs(self.run_id, [DatasetInput(dataset, tags)])

    def files(self, files: dict[str, bytes]) -> None:
        log_files(self.client, self.run_id, files)

    def go_on(self) -> None:
        """Log rows of old and new keys, a step once more, and all else that a run can log."""
        log_metrics(self.client, self.run_id, {key: points[1:] for key, points in METRICS.items()})
        log_metrics(self.client, self.run_id, {**HELD_BACK, "new": [(-0.0, T0, 0)]})
        log_metrics(self.client, self.run_id, {"restarted": [(9.0, T0 + 9, 0), (1.0, T0, 0)]})
        self.client.log_param(self.run_id, "depth", "3")
        self.client.set_tag(self.run_id, "note", "now with depth")
        self.client.set_tag(self.run_id, "phase", "2")
        self.input("first", "train")
        self.input("second", "test")
        self.files({"log.txt": b"epoch 1\nepoch 2\n", "m/b": b"2", "same size": b"2"})

    def end(self) -> None:
        self.client.update_run(self.run_id, name="trained")
        self.client.set_terminated(self.run_id, "FINISHED", end_time=T0 + 99_000)

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """Log on and on meanwhile, as a training does."""
        stopped = threading.Event()

        def log() -> None:
            for step in itertools.count():
                if stopped.wait(0.005):
                    return
                metrics = [Metric("loss", 1 / (step + 1), T0 + step, step)]
                params = [Param(f"of step {step}", "x")] if step % 10 == 0 else []
                self.client.log_batch(self.run_id, metrics, params)

        thread = threading.Thread(target=log)
        thread.start()
        try:
            yield
        finally:
            stopped.set()
            thread.join()


@pytest.fixture
def training(tmp_path: Path) -> Training:
    """A run that goes on, in a SQLite file."""
    source = tmp_path / "source"
    source.mkdir()
    new_sqlite_database(source / "mlflow.db")
    # Begun anew each time: MLflow's client remembers for good where the files of a run id are.
    return Training.begin(f"sqlite:///{source}/mlflow.db", source / "files")


@pytest.fixture
def grown(training: Training, tmp_path: Path) -> tuple[Training, str, str]:
    """A run that has ended, with an archive of the time before and one of now."""
    first, second = str(tmp_path / "1.tar.zst"), str(tmp_path / "2.tar.zst")
    assert pack(first, tracking_uri=training.uri).ok
    training.go_on()
    training.end()
    assert pack(second, tracking_uri=training.uri).ok
    return training, first, second


def latest(uri: str) -> set[tuple[Any, ...]]:
    return {(*row[:5], bool(row[5])) for row in rows(uri, LATEST)}


def assert_same(source: str, target: str, database: str | None = None) -> None:
    """Assert that a target equals the source to MLflow, and its tables those of its database."""
    assert_equal(diff(source, target, rules="exact", ignore=LOCATIONS))
    assert_equal(diff(source, target))
    assert latest(database or source) == latest(target)
    for query in (
        "SELECT r.run_uuid, name, status, end_time, lifecycle_stage, user_id FROM runs r",
        "SELECT p.run_uuid, p.key, p.value FROM params p",
        "SELECT t.run_uuid, t.key, t.value FROM tags t",
        "SELECT count(*) FROM metrics",
        "SELECT i.source_type, i.destination_type, i.step FROM inputs i",
        "SELECT t.name, t.value FROM input_tags t",
        "SELECT d.name, d.digest FROM datasets d",
    ):
        assert sorted(rows(database or source, query)) == sorted(rows(target, query)), query


def statement(uri: str, text: str, **values: Any) -> None:
    engine = sqlalchemy.create_engine(uri)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(text), values)
    engine.dispose()


@pytest.mark.timeout(600)
def test_a_run_arrives_while_it_goes_on(
    make_server: MakeServer, database_uri: str, tmp_path: Path
) -> None:
    server = make_server()
    training = Training.begin(server.url)
    archives = [str(tmp_path / f"{number}.tar.zst") for number in range(3)]
    where = str(tmp_path / "files")
    for archive in archives[:2]:
        with training.logging():
            assert pack(archive, tracking_uri=server.url).ok
        report = unpack(archive, tracking_uri=database_uri, artifact_location=where)
        assert report.failures == []
        assert report.counts[Kind.RUN].written == 1
    training.go_on()
    training.end()
    assert pack(archives[2], tracking_uri=server.url).ok
    before = rows(database_uri, "SELECT count(*) FROM metrics")[0][0]

    report = unpack(archives[2], tracking_uri=database_uri, artifact_location=where)

    assert report.failures == []
    assert_count_law(report)
    assert report.counts[Kind.RUN].written == 1
    added = rows(database_uri, "SELECT count(*) FROM metrics")[0][0] - before
    assert report.metric_rows == added > 0
    assert_same(server.url, database_uri, server.backend_uri)
    for archive in reversed(archives):  # the older ones know less: they take nothing back
        again = unpack(archive, tracking_uri=database_uri, artifact_location=where)
        assert_nothing_written(again)
        assert not [loss for loss in again.losses if "another state" in loss.what]
    assert_same(server.url, database_uri, server.backend_uri)


def test_every_part_of_a_run_is_completed_and_counted(
    grown: tuple[Training, str, str], database_uri: str, tmp_path: Path
) -> None:
    training, first, second = grown
    where = str(tmp_path / "files")
    assert unpack(first, tracking_uri=database_uri, artifact_location=where).ok

    planned = unpack(
        second, tracking_uri=database_uri, artifact_location=where, dry_run=True, strict=True
    )
    report = unpack(second, tracking_uri=database_uri, artifact_location=where, strict=True)

    assert report.failures == []
    assert_count_law(report)
    assert_same(training.uri, database_uri)
    assert planned.to_dict()["counts"] == report.to_dict()["counts"]
    counts = report.counts
    assert counts[Kind.RUN].written == 1
    assert report.to_dict()["completed"] == planned.to_dict()["completed"] == {"run": 1}
    assert counts[Kind.ARTIFACT].written == 3  # m/b is new, two became others
    assert counts[Kind.ARTIFACT].skipped == 1
    grew = {key for key, points in METRICS.items() if len(points) > 1} | {"restarted", "new"}
    assert counts[Kind.METRIC_HISTORY].written == len(grew)
    assert counts[Kind.METRIC_HISTORY].skipped == len(METRICS) + 2 - len(grew)
    what = "files became others at the source and are replaced: log.txt, same size"
    assert report.losses.count(Loss(Kind.RUN, training.run_id, what)) == 1
    assert_nothing_written(unpack(second, tracking_uri=database_uri, artifact_location=where))


@pytest.mark.parametrize("policy", ["merge", "skip", "rename", "fail"])
def test_a_policy_is_for_namesakes(
    grown: tuple[Training, str, str], sqlite_uri: str, tmp_path: Path, policy: str
) -> None:
    training, first, second = grown
    where = str(tmp_path / "files")
    assert unpack(first, tracking_uri=sqlite_uri, artifact_location=where).ok

    report = unpack(second, tracking_uri=sqlite_uri, on_conflict=policy)

    assert report.counts[Kind.RUN].written == 1
    assert_same(training.uri, sqlite_uri)


def test_a_copy_completes_too(training: Training, sqlite_uri: str, tmp_path: Path) -> None:
    where = str(tmp_path / "files")
    assert copy(training.uri, sqlite_uri, artifact_location=where).ok
    training.go_on()
    planned = copy(training.uri, sqlite_uri, artifact_location=where, dry_run=True)
    assert planned.counts[Kind.RUN].written == 1
    assert copy(training.uri, sqlite_uri, artifact_location=where).ok  # it still goes on
    assert_same(training.uri, sqlite_uri)
    training.files({"m/c": b"3"})
    training.client.set_tag(training.run_id, "only a tag", "1")
    assert copy(training.uri, sqlite_uri, artifact_location=where).ok
    assert_same(training.uri, sqlite_uri)
    training.files({"m/d": b"4"})
    assert copy(training.uri, sqlite_uri, artifact_location=where).ok
    assert_same(training.uri, sqlite_uri)
    training.end()
    assert copy(training.uri, sqlite_uri, artifact_location=where).ok

    assert_same(training.uri, sqlite_uri)
    assert_nothing_written(copy(training.uri, sqlite_uri, artifact_location=where))


def own_row(client: MlflowClient, run_id: str) -> None:
    client.log_metric(run_id, "mine", 1.0)


def own_row_of_a_key(client: MlflowClient, run_id: str) -> None:
    client.log_metric(run_id, "restarted", 7.5, T0, 1)


def own_nan_beside_a_zero(client: MlflowClient, run_id: str) -> None:
    client.log_metric(run_id, "minus zero", math.nan, T0, 0)


def own_param(client: MlflowClient, run_id: str) -> None:
    client.log_param(run_id, "mine", "1")


def other_param(client: MlflowClient, run_id: str) -> None:
    client.log_param(run_id, "depth", "4")


def own_input(client: MlflowClient, run_id: str) -> None:
    client.log_inputs(run_id, [DatasetInput(Dataset("mine", "d", "local", "s"))])


def own_link(client: MlflowClient, run_id: str) -> None:
    experiment_id = client.get_run(run_id).info.experiment_id
    model = client.create_logged_model(experiment_id, "mine", run_id)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])


def ended(client: MlflowClient, run_id: str) -> None:
    client.set_terminated(run_id, "KILLED")


def deleted(client: MlflowClient, run_id: str) -> None:
    client.delete_run(run_id)


@pytest.mark.parametrize(
    "change",
    [
        own_row,
        own_row_of_a_key,
        own_nan_beside_a_zero,
        own_param,
        other_param,
        own_input,
        own_link,
        ended,
        deleted,
    ],
)
def test_a_run_that_went_its_own_way_stays(
    grown: tuple[Training, str, str],
    sqlite_uri: str,
    tmp_path: Path,
    change: Callable[[MlflowClient, str], None],
) -> None:
    training, first, second = grown
    where = tmp_path / "files"
    assert unpack(first, tracking_uri=sqlite_uri, artifact_location=str(where)).ok
    change(MlflowClient(sqlite_uri, sqlite_uri), training.run_id)
    before, files = rows_of(sqlite_uri), contents(where)

    report = unpack(second, tracking_uri=sqlite_uri, artifact_location=str(where))

    assert_nothing_written(report)
    assert rows_of(sqlite_uri) == before
    assert contents(where) == files
    (named,) = [loss.what for loss in report.losses if loss.id == training.run_id]
    assert named.startswith("the target has another state of it, which stays: ")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_what_was_set_at_the_target_stays_beside_what_comes(
    grown: tuple[Training, str, str], sqlite_uri: str, tmp_path: Path
) -> None:
    training, first, second = grown
    where = tmp_path / "files"
    importer: dict[str, Any] = {"tracking_uri": sqlite_uri, "artifact_location": str(where)}
    assert unpack(first, importer="bob", **importer).ok
    client = MlflowClient(sqlite_uri, sqlite_uri)
    client.set_tag(training.run_id, "reviewed", "yes")
    folder = where / training.experiment_id / training.run_id / "artifacts"
    (folder / "review.txt").write_bytes(b"fine")

    report = unpack(second, **importer)

    assert report.ok
    run = client.get_run(training.run_id)
    tags = {"reviewed": "yes", "mlflow.user": "bob", "phase": "2", "stays": "yes"}
    assert tags.items() <= run.data.tags.items()
    assert run.info.user_id == "bob"
    assert run.info.run_name == "trained"
    assert (folder / "review.txt").read_bytes() == b"fine"
    assert (folder / "log.txt").read_bytes() == b"epoch 1\nepoch 2\n"
    what = "the target keeps its own user_id, tags mlflow.user, tags reviewed"
    assert Loss(Kind.RUN, training.run_id, what) in report.losses


def test_nothing_tells_which_value_of_a_tag_is_the_later_one(
    training: Training, sqlite_uri: str, tmp_path: Path
) -> None:
    """An older archive would take a newer value back: it stays until the run goes on."""
    where = str(tmp_path / "files")
    assert copy(training.uri, sqlite_uri, artifact_location=where).ok
    training.client.set_tag(training.run_id, "phase", "2")
    training.files({"log.txt": b"another"})
    before = rows_of(sqlite_uri)

    report = copy(training.uri, sqlite_uri, artifact_location=where)

    assert_nothing_written(report)
    assert rows_of(sqlite_uri) == before
    what = "the target has another state of it, which stays: tags"
    assert Loss(Kind.RUN, training.run_id, what) in report.losses
    training.client.set_tag(training.run_id, "phase", "1")
    report = copy(training.uri, sqlite_uri, artifact_location=where)
    assert_nothing_written(report)
    what = "the target has other files, which stay: log.txt"
    assert Loss(Kind.RUN, training.run_id, what) in report.losses
    training.client.set_tag(training.run_id, "phase", "2")
    training.client.log_metric(training.run_id, "restarted", 1.0, step=8)
    assert copy(training.uri, sqlite_uri, artifact_location=where).ok
    assert_same(training.uri, sqlite_uri)


def test_a_scheduled_run_begins(training: Training, sqlite_uri: str, tmp_path: Path) -> None:
    where, client = str(tmp_path / "files"), training.client
    client.update_run(training.run_id, "SCHEDULED")
    assert pack(str(tmp_path / "1.tar.zst"), tracking_uri=training.uri).ok
    assert copy(training.uri, sqlite_uri, artifact_location=where).ok
    client.update_run(training.run_id, "RUNNING")
    assert copy(training.uri, sqlite_uri, artifact_location=where).ok
    assert_same(training.uri, sqlite_uri)

    report = unpack(str(tmp_path / "1.tar.zst"), tracking_uri=sqlite_uri)

    assert_nothing_written(report)
    assert {skip.reason for skip in report.skips if skip.kind is Kind.RUN} == {
        "the target has a later state of it"
    }
    assert not report.losses


def test_a_run_that_was_deleted_at_the_source_follows(
    training: Training, sqlite_uri: str, tmp_path: Path
) -> None:
    where = str(tmp_path / "files")
    assert copy(training.uri, sqlite_uri, artifact_location=where).ok
    training.go_on()
    training.client.delete_run(training.run_id)

    report = copy(training.uri, sqlite_uri, artifact_location=where)

    assert report.counts[Kind.RUN].written == 1
    assert_same(training.uri, sqlite_uri)
    assert rows(sqlite_uri, "SELECT count(*) FROM runs WHERE deleted_time IS NULL") == [(0,)]


def test_taken_back_with_its_experiment(
    grown: tuple[Training, str, str], postgres_uri: str, tmp_path: Path
) -> None:
    training, first, second = grown
    where = str(tmp_path / "files")
    assert unpack(first, tracking_uri=postgres_uri, artifact_location=where).ok
    tables = ("runs", "tags", "params", "metrics", "latest_metrics", "inputs", "datasets")
    before = [rows(postgres_uri, f"SELECT * FROM {table}") for table in tables]
    statement(postgres_uri, "ALTER TABLE metrics ADD CONSTRAINT broken CHECK (key <> 'new')")

    broken = unpack(second, tracking_uri=postgres_uri, artifact_location=where)

    assert_count_law(broken)
    assert broken.metric_rows == 0
    assert {f.kind for f in broken.failures} >= {Kind.RUN, Kind.METRIC_HISTORY}
    assert all("taken back" in failure.reason for failure in broken.failures)
    after = [rows(postgres_uri, f"SELECT * FROM {table}") for table in tables]
    assert list(map(sorted, after)) == list(map(sorted, before))
    statement(postgres_uri, "ALTER TABLE metrics DROP CONSTRAINT broken")
    assert unpack(second, tracking_uri=postgres_uri, artifact_location=where).ok
    assert_same(training.uri, postgres_uri)


def test_interrupted_before_it_was_whole(
    grown: tuple[Training, str, str], sqlite_uri: str, tmp_path: Path
) -> None:
    training, first, second = grown
    where = str(tmp_path / "files")
    assert unpack(first, tracking_uri=sqlite_uri, artifact_location=where).ok
    before = rows_of(sqlite_uri)

    def interrupt(report: Report) -> None:
        if (counts := report.counts.get(Kind.RUN)) and counts.written:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(second, tracking_uri=sqlite_uri, artifact_location=where, progress=interrupt)
    assert rows_of(sqlite_uri) == before
    assert unpack(second, tracking_uri=sqlite_uri, artifact_location=where).ok
    assert_same(training.uri, sqlite_uri)


def test_what_a_column_cannot_hold_changes_nothing(
    training: Training, postgres_uri: str, tmp_path: Path
) -> None:
    where = str(tmp_path / "files")
    assert copy(training.uri, postgres_uri, artifact_location=where).ok
    training.go_on()
    with closing(sqlite3.connect(training.uri.removeprefix("sqlite:///"))) as connection:
        connection.execute("UPDATE tags SET value = ? WHERE key = 'phase'", ("x\0",))
        connection.commit()
    before = rows(postgres_uri, LATEST)

    report = copy(training.uri, postgres_uri, artifact_location=where)

    assert_count_law(report)
    (failure,) = report.failures
    assert (failure.kind, failure.id) == (Kind.RUN, training.run_id)
    assert "tags.value cannot hold a zero byte" in failure.reason
    assert rows(postgres_uri, LATEST) == before
    with pytest.raises(PartialTransferError, match="stopped at run"):
        copy(training.uri, postgres_uri, artifact_location=where, strict=True)


def test_a_damaged_file_takes_nobodys_place(
    training: Training, sqlite_uri: str, tmp_path: Path
) -> None:
    where, archive = tmp_path / "files", tmp_path / "1.tar.zst"
    noise = random.Random(1).randbytes(3 << 20)
    training.files({"weights": noise, "better": noise[::-1]})
    assert copy(training.uri, sqlite_uri, artifact_location=str(where)).ok
    training.go_on()
    training.files({"weights": noise[1:], "better": noise[:-1]})
    assert pack(str(archive), tracking_uri=training.uri).ok
    data = bytearray(archive.read_bytes())
    data[data.index(noise[1001:1033])] ^= 1  # random bytes do not compress
    archive.write_bytes(data)

    report = unpack(str(archive), tracking_uri=sqlite_uri)

    assert_count_law(report)
    assert {failure.kind for failure in report.failures} == {Kind.ARTIFACT}
    folder = where / training.experiment_id / training.run_id / "artifacts"
    there = {name: (folder / name).read_bytes() for name in ("weights", "better")}
    damaged = {failure.id.rpartition("/")[2] for failure in report.failures}
    assert damaged
    for name, old, new in (("weights", noise, noise[1:]), ("better", noise[::-1], noise[:-1])):
        assert there[name] == (old if name in damaged else new)
    assert report.counts[Kind.RUN].written == 1


def test_files_that_are_the_sources_own_are_not_replaced(
    training: Training, sqlite_uri: str, tmp_path: Path
) -> None:
    archive = str(tmp_path / "1.tar.zst")
    assert copy(training.uri, sqlite_uri, artifact_location="source").ok
    training.go_on()
    assert pack(archive, tracking_uri=training.uri).ok
    training.files({"log.txt": b"later than the archive"})
    before = contents(tmp_path / "source" / "files")

    report = unpack(archive, tracking_uri=sqlite_uri)

    assert report.ok
    assert contents(tmp_path / "source" / "files") == before
    what = "the target has other files, which stay: log.txt"
    assert Loss(Kind.RUN, training.run_id, what) in report.losses
    training.end()
    stays = copy(training.uri, sqlite_uri, artifact_location="source")
    assert stays.ok
    assert stays.counts[Kind.ARTIFACT].written == 0
    assert contents(tmp_path / "source" / "files") == before


def test_a_copy_by_the_api_is_completed_under_its_id(
    training: Training, sqlite_uri: str, tmp_path: Path
) -> None:
    first, second = str(tmp_path / "1.tar.zst"), str(tmp_path / "2.tar.zst")
    where = str(tmp_path / "files")
    tags = {"mlflow.parentRunId": training.run_id}
    child = training.client.create_run(training.experiment_id, T0, tags, "child").info.run_id
    training.client.log_metric(child, "loss", 1.0, T0, 0)
    history = json.dumps([{"run_id": child, "artifact_path": "model"}])
    training.client.set_tag(child, "mlflow.log-model.history", history)
    assert pack(first, tracking_uri=training.uri).ok
    training.go_on()
    training.end()
    training.client.log_metric(child, "loss", 0.5, T0, 1)
    assert pack(second, tracking_uri=training.uri).ok
    assert unpack_by_api(first, tracking_uri=sqlite_uri, artifact_location=where).ok
    ids = rows(sqlite_uri, "SELECT run_uuid FROM runs")

    report = unpack(second, tracking_uri=sqlite_uri)

    assert report.failures == []
    assert_count_law(report)
    assert report.counts[Kind.RUN].written == 2
    assert rows(sqlite_uri, "SELECT run_uuid FROM runs") == ids
    assert_equal(diff(training.uri, sqlite_uri))
    assert_nothing_written(unpack(second, tracking_uri=sqlite_uri))
    # The API's way takes nothing back and doubles nothing.
    assert unpack_by_api(first, tracking_uri=sqlite_uri).ok
    assert unpack_by_api(second, tracking_uri=sqlite_uri).ok
    assert rows(sqlite_uri, "SELECT run_uuid FROM runs") == ids
    assert_equal(diff(training.uri, sqlite_uri))


def test_long_histories(make_sqlite: Callable[[], str], database_uri: str, tmp_path: Path) -> None:
    """More rows than are compared, held and written at once, of one moment too."""
    source = make_sqlite()
    client = MlflowClient(source, source)
    experiment_id = client.create_experiment("long", str(tmp_path / "a"))
    run_id = client.create_run(experiment_id, T0).info.run_id
    client.log_batch(run_id, [Metric(key, 0.0, T0, 0) for key in ("a", "b", "c")])
    number = 12_000
    insert = (
        "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan)"
        " VALUES (?, ?, ?, ?, ?, 0)"
    )

    def log(first: int, last: int) -> None:
        made = [("a", n / 3, T0 + n, run_id, n) for n in range(first, last)]
        made += [("b", float(n), T0 + n // 4_000, run_id, 7) for n in range(first, last)]
        path = source.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as connection:
            connection.executemany(insert, made)
            connection.commit()
        client.log_metric(run_id, "a", last / 3, T0 + last, last)
        client.log_metric(run_id, "b", float(last), T0 + last // 4_000, 7)

    log(1, number)
    assert copy(source, database_uri, artifact_location=str(tmp_path)).ok
    log(number + 1, 2 * number)
    client.log_metric(run_id, "c", 1.0, T0 - 5, -1)  # earlier than its latest
    client.set_terminated(run_id)

    report = copy(source, database_uri, artifact_location=str(tmp_path))

    assert report.ok
    assert report.metric_rows == 2 * number + 1
    assert_same(source, database_uri)
    assert_nothing_written(copy(source, database_uri, artifact_location=str(tmp_path)))


def test_keys_that_a_database_takes_for_one(
    training: Training, mariadb_uri: str, tmp_path: Path
) -> None:
    where = str(tmp_path / "files")
    assert copy(training.uri, mariadb_uri, artifact_location=where).ok
    training.client.delete_tag(training.run_id, "phase")
    training.client.set_tag(training.run_id, "Phase", "2")
    training.end()

    report = copy(training.uri, mariadb_uri, artifact_location=where)

    assert report.ok
    query = "SELECT t.value FROM tags t WHERE t.key = 'phase'"
    assert rows(mariadb_uri, query) == [("2",)]
