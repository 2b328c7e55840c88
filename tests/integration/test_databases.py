"""Databases as sources: only read, one moment of them, whatever their schema."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from mlflow import MlflowClient

from mlflow_exim_plugin import diff, open_archive, pack
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import (
    NotFoundError,
    ServerError,
    ServerLostError,
    StoreError,
    UnsupportedFormatError,
    UsageError,
)
from mlflow_exim_plugin.host import tables
from mlflow_exim_plugin.host.api.reading import Reader
from mlflow_exim_plugin.host.open import read_only
from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin.host.open.schema_revisions import at_revision, latest_revision, revision_of
from mlflow_exim_plugin.host.sql.reading import reader_of
from mlflow_exim_plugin.host.sql.runs import RowsOfRuns, StoredRuns
from mlflow_exim_plugin.operations.ends import open_source
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.objects import Experiment, Kind, RegisteredModel, Run
from mlflow_exim_plugin.sources.server import source as client_source
from mlflow_exim_plugin.sources.server.source import ServerSource
from tests.compare import assert_count_law
from tests.databases import rows_of_tables
from tests.depth import first_of, one_of
from tests.filled import copy_of_server
from tests.integration.test_workspaces import ENABLED
from tests.integration.test_workspaces import fill as fill_workspaces
from tests.new_ids import copy, unpack
from tests.seed import seed
from tests.servers import new_sqlite_database
from tests.sources import seed_old_server

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin import Report
    from tests.conftest import MakeServer
    from tests.sources import Source

pytestmark = pytest.mark.integration
READ_ONLY = re.compile("read.?only", re.IGNORECASE)
OF_2_22 = "0584bdc529eb"
SERVERS = ["postgres_uri", "psycopg_uri", "mariadb_uri"]
DATABASES = ["sqlite_uri", *SERVERS]


def digests(archive: str) -> dict[str, str]:
    """Content digest of every object of an archive, by its member's path."""
    found: dict[str, str] = {}
    with ArchiveReader.open(archive) as reader:
        for member in reader.members():
            if member.path.startswith("data/") and member.path.endswith(".json"):
                info = json.loads(reader.read(member.path)).get("info", {})
                if isinstance(info, dict) and "content_digest" in info:
                    found[member.path] = info["content_digest"]
    return found


def engine_of(host: Host) -> sqlalchemy.Engine:
    assert host.engine is not None
    return host.engine


def file_of(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///"))


def fingerprint(uri: str) -> str:
    """What a database holds: the bytes of a file, else its revision and the rows of each table."""
    if uri.startswith("sqlite"):
        folder = file_of(uri).parent
        files = sorted(folder.glob(file_of(uri).name + "*"))
        return " ".join(f"{f.name} {hashlib.sha256(f.read_bytes()).hexdigest()}" for f in files)
    return hashlib.sha256(repr(rows_of_tables(uri)).encode()).hexdigest()


def fill(uri: str, artifacts: Path, *, runs: int = 3) -> str:
    client = MlflowClient(uri, uri)
    experiment = str(client.create_experiment("of a database", artifacts.as_uri()))
    for number in range(runs):
        run_id = client.create_run(experiment, run_name=f"run {number}").info.run_id
        client.log_param(run_id, "number", number)
        for step in range(5):
            client.log_metric(run_id, "loss", 1 / (step + 1), timestamp=step, step=step)
        client.log_text(run_id, f"of run {number}", "note.txt")
        client.set_terminated(run_id)
    client.create_registered_model("model")
    return experiment


def fill_2_22(uri: str) -> None:
    """Rows in the schema of MLflow 2.22, through its own tables."""
    engine = sqlalchemy.create_engine(uri)
    at_revision(engine, OF_2_22)
    tables = sqlalchemy.MetaData()
    tables.reflect(engine)

    def insert(connection: sqlalchemy.Connection, table: str, **values: Any) -> None:
        connection.execute(tables.tables[table].insert().values(**values))

    run_id = "0123456789abcdef0123456789abcdef"
    with engine.begin() as connection:
        for number, name in ((1, "old"), (2, "older")):
            insert(
                connection,
                "experiments",
                experiment_id=number,
                name=name,
                artifact_location=f"file:///nowhere/{number}",
                lifecycle_stage="active",
                creation_time=1_600_000_000_000,
                last_update_time=1_600_000_000_000,
            )
        insert(
            connection,
            "runs",
            run_uuid=run_id,
            name="old run",
            source_type="LOCAL",
            status="FINISHED",
            start_time=1_600_000_000_000,
            end_time=1_600_000_000_500,
            lifecycle_stage="active",
            artifact_uri="file:///nowhere/1/artifacts",
            experiment_id=1,
            user_id="ada",
        )
        metric = {"key": "loss", "value": 0.1 + 0.2, "timestamp": 7, "step": 3, "is_nan": False}
        insert(connection, "metrics", run_uuid=run_id, **metric)
        insert(connection, "latest_metrics", run_uuid=run_id, **metric)
        insert(connection, "params", run_uuid=run_id, key="depth", value="3")
        insert(connection, "tags", run_uuid=run_id, key="of", value="then")
        trace = {"request_id": "tr-0123456789abcdef0123456789abcdef", "experiment_id": 1}
        insert(
            connection,
            "trace_info",
            timestamp_ms=1_600_000_000_000,
            execution_time_ms=5,
            status="OK",
            **trace,
        )
        insert(
            connection,
            "trace_tags",
            request_id=trace["request_id"],
            key="mlflow.traceName",
            value="ask",
        )
        insert(connection, "registered_models", name="model", creation_time=1, description="kept")
    engine.dispose()


@pytest.mark.parametrize("database", first_of(2, DATABASES))
def test_a_database_is_packed_like_its_server(
    request: pytest.FixtureRequest, make_server: MakeServer, tmp_path: Path, database: str
) -> None:
    uri = request.getfixturevalue(database)
    server = make_server(backend_store_uri=uri, serve_artifacts=False)
    seed(MlflowClient(server.url, server.url), local_artifacts=False)
    of_server, of_database = str(tmp_path / "server.tar.zst"), str(tmp_path / "database.tar.zst")
    assert pack(of_server, tracking_uri=server.url).ok
    before = fingerprint(uri)

    report = pack(of_database, tracking_uri=uri)

    assert report.ok, report.failures
    assert_count_law(report)
    assert fingerprint(uri) == before
    assert digests(of_database) == digests(of_server)


@pytest.fixture
def old_uri(untouched_uri: str) -> str:
    """A database in the schema of MLflow 2.22."""
    fill_2_22(untouched_uri)
    return untouched_uri


def test_a_schema_of_2_22_is_read_and_left_as_it_is(
    old_uri: str, sqlite_uri: str, tmp_path: Path
) -> None:
    before = fingerprint(old_uri)
    archive = str(tmp_path / "old.tar.zst")
    roots = {"file:///nowhere/1/artifacts": str(tmp_path / "nothing")}
    (tmp_path / "nothing").mkdir()

    report = pack(archive, tracking_uri=old_uri, artifact_roots=roots)

    assert fingerprint(old_uri) == before
    assert_count_law(report)
    assert [f.kind for f in report.failures] == []
    with open_archive(archive) as opened:
        assert [e.mlflow.experiment["name"] for e in opened.experiments()] == ["old", "older"]
        (run,) = [e.mlflow.run for e in opened.runs()]
        assert run["info"]["user_id"] == "ada"
        assert run["data"]["params"] == [{"key": "depth", "value": "3"}]
        rows = opened.metric_history(run["info"]["run_id"], "loss")
        assert rows.to_pylist()[0]["value"] == 0.1 + 0.2
    assert report.counts[Kind.TRACE].written == 1
    assert unpack(archive, tracking_uri=sqlite_uri).ok
    result = diff(old_uri, sqlite_uri, artifact_roots=roots)
    assert result.equal, (result.unreadable, result.differences)
    assert fingerprint(old_uri) == before


@pytest.mark.exhaustive
def test_what_a_real_server_of_2_22_wrote_is_packed_from_its_database(
    make_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    copy_of_server(tmp_path / "old", seed_old_server, mlflow_version="2.22.5")
    server = make_server(tmp_path / "old", mlflow_version="2.22.5")
    before = fingerprint(server.backend_uri)
    rows = Selection(artifacts=False)

    report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=server.backend_uri, selection=rows)
    result = diff(server.url, server.backend_uri, selection=rows)

    assert fingerprint(server.backend_uri) == before
    assert report.ok, report.failures
    assert result.equal, result.differences[:5]


@pytest.mark.parametrize("database", DATABASES)
def test_an_archive_is_one_moment_of_a_database(
    request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> None:
    """Runs that begin while it is read are not in it, nor a part of them."""
    uri = request.getfixturevalue(database)
    experiment = fill(uri, tmp_path / "files")
    client = MlflowClient(uri, uri)
    with Host(uri, create=False, snapshot=True) as host:
        late = client.create_run(experiment).info.run_id
        client.log_metric(late, "loss", 1.0)
        (old, *_) = client.search_runs([experiment], "attributes.run_name = 'run 0'")
        client.log_metric(old.info.run_id, "loss", 9.0, timestamp=99, step=99)
        client.set_tag(old.info.run_id, "late", "yes")
        client.create_registered_model("late model")
        items = list(ServerSource(host).stream(Selection()))
    runs = {item.id: item for item in items if isinstance(item, Run)}
    assert late not in runs
    assert "late" not in runs[old.info.run_id].tags
    assert max(m["step"] for m in runs[old.info.run_id].document["data"]["metrics"]) == 4
    assert {item.id for item in items if isinstance(item, RegisteredModel)} == {"model"}


@pytest.mark.parametrize("database", one_of("postgres_uri", "sqlite_uri"))
def test_all_workspaces_of_a_database_are_packed_like_those_of_its_server(
    request: pytest.FixtureRequest, make_server: MakeServer, tmp_path: Path, database: str
) -> None:
    uri = request.getfixturevalue(database)
    server = make_server(backend_store_uri=uri, env=ENABLED, serve_artifacts=False)
    fill_workspaces(server.url)
    of_server, of_database = str(tmp_path / "server.tar.zst"), str(tmp_path / "database.tar.zst")
    assert pack(of_server, tracking_uri=server.url).ok
    before = fingerprint(uri)

    report = pack(of_database, tracking_uri=uri)

    assert report.ok, report.failures
    assert_count_law(report)
    assert report.counts[Kind.WORKSPACE].written == 2
    assert fingerprint(uri) == before
    assert digests(of_database) == digests(of_server)
    assert "MLFLOW_ENABLE_WORKSPACES" not in os.environ
    target = make_server(env=ENABLED)
    assert copy(uri, target.url).ok
    assert diff(server.url, target.url).equal


@pytest.mark.parametrize("database", SERVERS)
def test_nothing_can_be_written_through_what_is_read(
    request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> None:
    uri = request.getfixturevalue(database)
    experiment = fill(uri, tmp_path / "files", runs=1)
    before = fingerprint(uri)
    with (
        Host(uri, create=False) as host,
        pytest.raises(Exception, match=READ_ONLY),
        engine_of(host).begin() as connection,
    ):
        connection.execute(sqlalchemy.text("DELETE FROM experiment_tags"))
    with Host(uri, create=False) as host, pytest.raises(Exception, match=READ_ONLY):
        host.tracking.create_run(experiment, "ada", 1, [], "no")
    assert fingerprint(uri) == before


def test_a_file_cannot_be_written_through_what_is_read(sqlite_uri: str, tmp_path: Path) -> None:
    experiment = fill(sqlite_uri, tmp_path / "files", runs=1)
    before = fingerprint(sqlite_uri)
    with Host(sqlite_uri, create=False) as host, pytest.raises(Exception, match="readonly"):
        host.tracking.create_run(experiment, "ada", 1, [], "no")
    file_of(sqlite_uri).chmod(0o400)
    assert pack(str(tmp_path / "a.tar.zst"), tracking_uri=sqlite_uri).ok
    assert fingerprint(sqlite_uri) == before


@pytest.mark.parametrize("driver", ["adbc", "sqlite3"])
def test_runs_from_rows_are_those_of_mlflow(
    sqlite_source: Source, monkeypatch: pytest.MonkeyPatch, driver: str
) -> None:
    monkeypatch.setattr(tables, "_ARROW_FROM_BYTES", 0)
    if driver == "sqlite3":
        monkeypatch.setitem(sys.modules, "adbc_driver_sqlite", None)
    with (
        Host(sqlite_source.uri, create=False) as host,
        closing(StoredRuns(engine_of(host))) as stored,
    ):
        reader = Reader(host)
        for experiment in reader.experiments():
            listed = reader_of(host).runs(experiment["experiment_id"])
            # A filter that all runs match is MLflow's own search.
            assert listed == reader.runs(experiment["experiment_id"], "attributes.run_id != 'x'")
            found = stored.read(list(listed)).runs()
            assert {i: run.document for i, run in found.items()} == {
                run_id: reader.run(run_id) for run_id in listed
            }
            for run in found.values():
                assert run.doubles == doubles_in(run.document)


def doubles_in(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [number for child in inner for number in doubles_in(child)]
    return [value] if isinstance(value, float) else []


def test_runs_that_cannot_be_read_together_are_read_alone(
    sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(sqlite_uri, tmp_path / "files")
    together, alone = str(tmp_path / "together.tar.zst"), str(tmp_path / "alone.tar.zst")
    assert pack(together, tracking_uri=sqlite_uri).ok

    def refuse(_reader: StoredRuns, _run_ids: list[str]) -> RowsOfRuns:
        raise ServerError("a broken row")

    monkeypatch.setattr(StoredRuns, "read", refuse)
    report = pack(alone, tracking_uri=sqlite_uri)
    assert report.ok, report.failures
    assert_count_law(report)
    assert digests(alone) == digests(together)


@pytest.mark.parametrize("value", ["x'00ff41'", "CAST(x'ff41' AS TEXT)"])
def test_a_value_that_is_no_text_costs_its_run_alone(
    sqlite_uri: str, tmp_path: Path, value: str
) -> None:
    client = MlflowClient(sqlite_uri, sqlite_uri)
    experiment_id = client.create_experiment("x", (tmp_path / "files").as_uri())
    run_ids = [client.create_run(experiment_id).info.run_id for _ in range(3)]
    with closing(sqlite3.connect(file_of(sqlite_uri))) as connection, connection:
        insert = f"INSERT INTO tags (key, value, run_uuid) VALUES ('bad', {value}, ?)"
        connection.execute(insert, (run_ids[1],))
    archive = str(tmp_path / "a.tar.zst")
    report = pack(archive, tracking_uri=sqlite_uri)
    assert_count_law(report)
    assert [(failure.kind, failure.id) for failure in report.failures] == [(Kind.RUN, run_ids[1])]
    with open_archive(archive) as opened:
        there = {run.mlflow.run["info"]["run_id"] for run in opened.runs()}
    assert there == {run_ids[0], run_ids[2]}


@pytest.mark.parametrize("database", DATABASES)
def test_a_newer_schema_is_refused_by_its_name(
    request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> None:
    uri = request.getfixturevalue(database)
    fill(uri, tmp_path / "files", runs=1)
    set_revision(uri, "fedcba987654")
    for read in (
        lambda: pack(str(tmp_path / "a.tar.zst"), tracking_uri=uri),
        lambda: diff(uri, uri),
    ):
        with pytest.raises(UnsupportedFormatError, match="fedcba987654"):
            read()
    assert not (tmp_path / "a.tar.zst").exists()


@pytest.mark.parametrize("database", first_of(2, DATABASES))
def test_a_newer_schema_can_be_read_as_far_as_it_is_known(
    request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> None:
    uri = request.getfixturevalue(database)
    fill(uri, tmp_path / "files")
    expected = str(tmp_path / "before.tar.zst")
    assert pack(expected, tracking_uri=uri).ok
    set_revision(uri, "fedcba987654")
    engine = sqlalchemy.create_engine(uri)
    with engine.begin() as connection:
        for statement in (
            "CREATE TABLE dreams (id INTEGER)",
            "ALTER TABLE runs ADD COLUMN mood VARCHAR(20)",
            "DROP TABLE scheduler_leases",
            "DROP TABLE mcp_server_aliases",
        ):
            connection.execute(sqlalchemy.text(statement))
    engine.dispose()
    before = fingerprint(uri)
    archive = str(tmp_path / "after.tar.zst")

    report = pack(archive, tracking_uri=uri, force=True)

    assert report.ok, report.failures
    (left,) = [entry for entry in report.unpacked if "newer schema" in entry.kind]
    assert left.seen == 2
    assert left.reason.endswith(": dreams, runs.mood")
    assert digests(archive) == digests(expected)
    assert fingerprint(uri) == before


def test_half_migrated(old_uri: str, tmp_path: Path) -> None:
    """What MLflow's store is not asked for comes out of the tables as they are."""
    engine = sqlalchemy.create_engine(old_uri)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("ALTER TABLE runs DROP COLUMN deleted_time"))
        count = connection.execute(sqlalchemy.text("SELECT count(*) FROM runs")).scalar()
    engine.dispose()

    without_files = Selection(artifacts=False)
    report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=old_uri, selection=without_files)

    assert report.failures == []
    assert report.counts[Kind.RUN].written == count
    asks_mlflow = Selection(filter="params.lr = '0.1'")
    with pytest.raises(UnsupportedFormatError, match="half-migrated: runs lacks deleted_time"):
        pack(str(tmp_path / "b.tar.zst"), tracking_uri=old_uri, selection=asks_mlflow)


def test_a_target_of_an_older_schema_is_not_migrated(sqlite_source: Source, old_uri: str) -> None:
    before = fingerprint(old_uri)
    writes: list[Callable[[], Report]] = [
        lambda: unpack(sqlite_source.archive, tracking_uri=old_uri, artifact_location="/files"),
        lambda: copy(sqlite_source.uri, old_uri, artifact_location="/files"),
    ]
    for write in writes:
        with pytest.raises(UnsupportedFormatError, match="older than this MLflow's: " + OF_2_22):
            write()
    assert fingerprint(old_uri) == before


def test_an_empty_target_is_initialised_by_mlflow(
    sqlite_source: Source, untouched_uri: str
) -> None:
    report = unpack(
        sqlite_source.archive,
        tracking_uri=untouched_uri,
        selection=Selection(artifacts=False),
        artifact_location="/files",
    )
    assert report.counts[Kind.RUN].written
    engine = sqlalchemy.create_engine(untouched_uri)
    with engine.connect() as connection:
        assert revision_of(connection) == latest_revision()
    engine.dispose()


def test_large_runs_are_read_a_few_at_a_time(
    sqlite_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_source, "_RUNS_AHEAD", 2)
    monkeypatch.setattr(client_source, "_BYTES_AHEAD", 1)
    at_once: list[int] = []
    read = StoredRuns.read

    def watched(stored: StoredRuns, run_ids: list[str]) -> RowsOfRuns:
        at_once.append(len(run_ids))
        return read(stored, run_ids)

    monkeypatch.setattr(StoredRuns, "read", watched)
    archive = str(tmp_path / "a.tar.zst")
    assert pack(archive, tracking_uri=sqlite_source.uri).ok
    assert at_once.count(2) == 1  # the first of all; runs that versions name are read alone
    assert set(at_once) == {1, 2}
    assert digests(archive) == digests(sqlite_source.archive)


def test_no_default_experiment_is_made_up(sqlite_uri: str, tmp_path: Path) -> None:
    fill(sqlite_uri, tmp_path / "files", runs=1)
    with closing(sqlite3.connect(file_of(sqlite_uri))) as connection, connection:
        connection.execute("DELETE FROM experiments WHERE experiment_id = 0")
    archive = str(tmp_path / "a.tar.zst")
    assert pack(archive, tracking_uri=sqlite_uri).ok
    with open_archive(archive) as opened:
        assert [e.mlflow.experiment["name"] for e in opened.experiments()] == ["of a database"]


def test_a_file_that_stays_locked_is_said_to_be(
    sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(sqlite_uri, tmp_path / "files", runs=1)
    monkeypatch.setattr(read_only, "_LOCKED_S", 1)
    with closing(sqlite3.connect(file_of(sqlite_uri), isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ServerError, match="locked"):
            pack(str(tmp_path / "a.tar.zst"), tracking_uri=sqlite_uri)
    assert pack(str(tmp_path / "a.tar.zst"), tracking_uri=sqlite_uri).ok


def test_a_writer_goes_on_while_a_file_is_packed(sqlite_uri: str, tmp_path: Path) -> None:
    experiment = fill(sqlite_uri, tmp_path / "files")
    client = MlflowClient(sqlite_uri, sqlite_uri)
    done = threading.Event()
    written: list[str] = []

    def write() -> None:
        while not done.is_set():
            written.append(client.create_run(experiment).info.run_id)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            report = pack(str(tmp_path / f"{number}.tar.zst"), tracking_uri=sqlite_uri)
            assert report.ok, report.failures
            assert_count_law(report)
    finally:
        done.set()
        writer.join()
    assert len(written) > 3


@pytest.mark.parametrize("bad", ["password", "database", "host", "port"])
def test_a_database_that_cannot_be_read_is_one_line(
    postgres_uri: str, tmp_path: Path, bad: str
) -> None:
    uri = {
        "password": postgres_uri.replace("postgres@", "nobody:secret@"),
        "database": postgres_uri + "_not_there",
        "host": postgres_uri.replace(":5432", ":1"),
        "port": postgres_uri.replace(":5432", ":not-a-number"),
    }[bad]
    with pytest.raises((ServerError, NotFoundError, UsageError)) as raised:
        pack(str(tmp_path / "a.tar.zst"), tracking_uri=uri)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "a.tar.zst").exists()


def test_a_database_without_tables_is_one_line(untouched_uri: str, tmp_path: Path) -> None:
    with pytest.raises((ServerError, NotFoundError)) as raised:
        pack(str(tmp_path / "a.tar.zst"), tracking_uri=untouched_uri)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "a.tar.zst").exists()


def test_a_server_that_dies_stops_the_pack(postgres_uri: str, tmp_path: Path) -> None:
    fill(postgres_uri, tmp_path / "files", runs=250)
    name = postgres_uri.rpartition("/")[2]
    administration = sqlalchemy.create_engine(postgres_uri.replace(name, "postgres"))

    def die(report: Report) -> None:
        if report.counts.get(Kind.RUN):
            with administration.connect() as connection:
                connection.execute(
                    sqlalchemy.text(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        f"WHERE datname = '{name}'"
                    )
                )

    with pytest.raises(ServerLostError) as raised:
        pack(str(tmp_path / "a.tar.zst"), tracking_uri=postgres_uri, progress=die)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "a.tar.zst").exists()
    administration.dispose()


def test_there_is_no_room_for_a_copy(
    sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(sqlite_uri, tmp_path / "files", runs=1)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: usage._replace(free=1000))
    with pytest.raises(StoreError, match=r"needs \d+ MB") as raised:
        pack(str(tmp_path / "a.tar.zst"), tracking_uri=sqlite_uri)
    assert "TMPDIR" in raised.value.hint


def test_no_copy_is_left_behind(
    sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(sqlite_uri, tmp_path / "files", runs=1)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    pack(str(tmp_path / "a.tar.zst"), tracking_uri=sqlite_uri)
    set_revision(sqlite_uri, OF_2_22)  # which its tables belie: its migration fails
    searched = Selection(filter="attributes.status = 'FINISHED'")  # MLflow's own search
    report = pack(str(tmp_path / "b.tar.zst"), tracking_uri=sqlite_uri, selection=searched)
    assert {f.kind for f in report.failures if "migrating a copy" in f.reason} == {Kind.RUN}
    assert list(folder.iterdir()) == []


def set_revision(uri: str, revision: str) -> None:
    engine = sqlalchemy.create_engine(uri)
    with engine.begin() as connection:
        connection.execute(
            sqlalchemy.text(f"UPDATE alembic_version SET version_num = '{revision}'")
        )
    engine.dispose()


@pytest.mark.parametrize("left", [(), ("-wal",), ("-wal", "-shm")], ids=["none", "log", "open"])
def test_no_file_is_made_beside_a_sqlite_file(tmp_path: Path, left: tuple[str, ...]) -> None:
    """One in WAL mode gets a log and its index as soon as SQLite opens it the usual way."""
    file = tmp_path / "store" / "mlflow.db"
    file.parent.mkdir()
    new_sqlite_database(file)
    with closing(sqlite3.connect(file)) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("PRAGMA wal_autocheckpoint=0")
        writer.execute(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage)"
            " VALUES (0, 'late', '/x', 'active')"
        )
        writer.commit()
        as_open = files_in(file.parent)
        if left != ("-wal", "-shm"):
            writer.close()  # which puts the log into the file
        if left == ("-wal",):
            file.write_bytes(as_open["mlflow.db"])
            Path(f"{file}-wal").write_bytes(as_open["mlflow.db-wal"])
        before = files_in(file.parent)
        assert set(before) == {"mlflow.db", *(f"mlflow.db{end}" for end in left)}

        with open_source(f"sqlite:///{file}") as opened:
            found = [e.name for e in opened.stream.stream(Selection()) if isinstance(e, Experiment)]

        after = files_in(file.parent)
    assert found == ["late"]
    # Readers of a log that is open note in its index how far they are.
    assert {k: v for k, v in after.items() if not k.endswith("-shm")} == {
        k: v for k, v in before.items() if not k.endswith("-shm")
    }
    assert after.keys() == before.keys()


def test_what_a_dead_process_left_half_written_does_not_count(tmp_path: Path) -> None:
    """SQLite takes it back when it opens the file to write, which a source is not opened for."""
    file, journal = tmp_path / "mlflow.db", tmp_path / "mlflow.db-journal"
    new_sqlite_database(file)
    with closing(sqlite3.connect(file, isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size=5")  # what does not fit goes into the file
        writer.execute("BEGIN")
        for number in range(300):
            writer.execute(
                "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage)"
                f" VALUES ({number}, 'half {number}', hex(zeroblob(100)), 'active')"
            )
        half = files_in(tmp_path)
    file.write_bytes(half["mlflow.db"])
    journal.write_bytes(half["mlflow.db-journal"])
    assert b"half 1" in half["mlflow.db"]

    with open_source(f"sqlite:///{file}") as opened:
        found = [e.name for e in opened.stream.stream(Selection()) if isinstance(e, Experiment)]

    assert not [name for name in found if name.startswith("half")]
    assert files_in(tmp_path) == half


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
