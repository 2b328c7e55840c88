"""Servers of every generation are packed as they answer, and unpacked into this MLflow.

What they hold is told by their own calls, over plain HTTP; what came, by the new database's tables.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from mlflow_exim_plugin import open_archive, pack, unpack, verify
from mlflow_exim_plugin.schema.objects import Kind, key_values
from mlflow_exim_plugin.schema.provenance import is_provenance
from tests.first_seed import FILES, MODEL, SOURCE, T0, TAGS_OF_SOURCE, fill, register, rows, told
from tests.first_servers import VERSIONS, FirstServer, start_first_server
from tests.proxy import FaultyProxy, Request
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.integration, pytest.mark.compat]

BY_DEFAULT = {"0.1.0", "1.4.0", "1.27.0"}


@pytest.fixture(
    params=[
        pytest.param(v, marks=[] if v in BY_DEFAULT else pytest.mark.generations) for v in VERSIONS
    ]
)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FirstServer]:
    running = start_first_server(request.param, tmp_path / "server")
    yield running
    running.stop()


def test_all_that_it_holds_arrives(server: FirstServer, tmp_path: Path) -> None:
    is_0x, has_registry = server.age < (1, 0), server.age >= (1, 4)
    run_ids = fill(server)
    if has_registry:
        register(server, run_ids[2])
    truth = {run_id: told(server, run_id) for run_id in run_ids}
    histories = {run_id: rows(server, run_id) for run_id in run_ids}
    archive_path = tmp_path / "a.tar.zst"

    report = pack(str(archive_path), tracking_uri=server.url)

    assert report.ok, report.failures
    assert report.losses == []
    assert report.read_as == kind_of(server)
    assert verify(str(archive_path)).findings == []
    assert (Kind.REGISTERED_MODEL in report.counts) is has_registry
    with open_archive(str(archive_path)) as archive:
        assert archive.summary.info.read_as == report.read_as
        for run_id in run_ids if is_0x else ():
            own = archive.run(run_id).mlflow.run["info"]
            assert own.items() >= SOURCE.items()
            assert own.get("name", "") == truth[run_id]["info"]["name"]
    target = tmp_path / "target"
    target.mkdir()
    new_sqlite_database(target / "mlflow.db")
    arrived = unpack(
        str(archive_path),
        tracking_uri=f"sqlite:///{target}/mlflow.db",
        artifact_location=str(target / "files"),
    )
    assert arrived.ok, arrived.failures
    with sqlite3.connect(target / "mlflow.db") as database:
        stages = dict(database.execute("SELECT name, lifecycle_stage FROM experiments"))
        deleted = {"gone": "deleted"} if server.age >= (0, 8) else {}
        assert stages == {"Default": "active", "wine": "active", **deleted}
        for run_id in run_ids:
            compare_run(database, run_id, truth[run_id], histories[run_id], is_0x=is_0x)
        if has_registry:
            compare_models(database, run_ids[2])


def kind_of(server: FirstServer) -> str | None:
    if server.age < (1, 0):
        return f"a server of MLflow {'0.1 to 0.4' if server.age < (0, 5) else '0.5 to 0.9'}"
    return "a server of MLflow 1.0 to 1.27" if server.age < (1, 28) else None


def compare_run(
    database: sqlite3.Connection,
    run_id: str,
    truth: dict[str, Any],
    history: list[tuple[float, int, int]],
    *,
    is_0x: bool,
) -> None:
    info = truth["info"]
    row = "SELECT name, user_id, status, start_time, end_time, lifecycle_stage, artifact_uri"
    (found,) = database.execute(f"{row} FROM runs WHERE run_uuid = ?", [run_id])
    name, *rest, root = found
    times = int(info["start_time"]), int(info["end_time"])
    stage = info.get("lifecycle_stage", "active")
    assert rest == [info["user_id"], "FINISHED", *times, stage]
    given = key_values(truth["data"].get("tags"))
    assert name == (info.get("run_name") or info.get("name") or given["mlflow.runName"])
    tags = dict(database.execute("SELECT key, value FROM tags WHERE run_uuid = ?", [run_id]))
    made = {**TAGS_OF_SOURCE, "mlflow.runName": name} if is_0x else {}
    mine = {key: value for key, value in tags.items() if not is_provenance(key)}
    assert mine == made | given
    params = dict(database.execute("SELECT key, value FROM params WHERE run_uuid = ?", [run_id]))
    assert params == key_values(truth["data"]["params"])
    query = "SELECT value, timestamp, step FROM metrics WHERE run_uuid = ? ORDER BY timestamp"
    in_ms = 1000 if is_0x else 1
    assert list(database.execute(query, [run_id])) == [(v, t * in_ms, s) for v, t, s in history]
    folder = Path(urlsplit(root).path)
    files = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}
    assert {path: file.read_bytes() for path, file in files.items()} == FILES


def compare_models(database: sqlite3.Connection, run_id: str) -> None:
    assert list(database.execute("SELECT name, description FROM registered_models")) == [
        (MODEL, "text")
    ]
    query = "SELECT name, version, current_stage, run_id FROM model_versions ORDER BY version"
    assert list(database.execute(query)) == [
        (MODEL, 1, "None", run_id),
        (MODEL, 2, "Production", run_id),
    ]


@pytest.mark.parametrize(
    "version",
    [
        "0.1.0",
        pytest.param("0.8.2", marks=pytest.mark.generations),
    ],
)
def test_a_run_that_ends_every_search_costs_itself(version: str, tmp_path: Path) -> None:
    server = start_first_server(version, tmp_path / "server", of_files=True)
    try:
        run_ids = fill(server)
        bad = {server.run_id: run_ids[0], "key": "broken", "value": "two\nlines"}
        server.call("runs/log-parameter", bad)
        report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=server.url)
        if server.age >= (0, 8):
            compare_lies_about_deleted_runs(server, run_ids, str(tmp_path / "b.tar.zst"))
    finally:
        server.stop()

    assert [(f.kind, f.id) for f in report.failures] == [(Kind.RUN, run_ids[0])]
    with open_archive(str(tmp_path / "a.tar.zst")) as archive:
        for run_id in run_ids[1:]:
            envelope = archive.run(run_id)
            assert {entry.path for entry in envelope.info.artifacts} == set(FILES)
            assert archive.metric_history(run_id, "loss").num_rows == 3


def compare_lies_about_deleted_runs(server: FirstServer, run_ids: list[str], url: str) -> None:
    """Nothing but a search tells of them: it is believed where it refuses what makes no sense."""
    bad = Kind.RUN, run_ids[0]

    def lies(request: Request) -> bytes | None:
        return b"{}" if request.method == "POST" and request.path.endswith("/runs/search") else None

    with FaultyProxy(server.url, lies) as proxy:
        report = pack(url, tracking_uri=proxy.url)
    lied = [(f.kind, f.reason) for f in report.failures if (f.kind, f.id) != bad]
    assert [kind for kind, reason in lied if "deleted runs" in reason] == [Kind.RUN]
    server.call("runs/restore", {"run_id": run_ids[2]})
    report = pack(url, tracking_uri=server.url, overwrite=True)
    assert [(f.kind, f.id) for f in report.failures] == [bad]


@pytest.mark.generations
@pytest.mark.timeout(900)
@pytest.mark.parametrize("version", ["1.4.0", "1.27.0"])
def test_lists_longer_than_any_page_of_it(version: str, tmp_path: Path) -> None:
    """Runs, experiments, models, versions and rows beyond what one answer tells."""
    server = start_first_server(version, tmp_path / "server")
    try:
        run_ids = fill(server)
        register(server, run_ids[0])
        with sqlite3.connect(server.directory / "mlflow.db") as database:
            experiment = database.execute(
                "SELECT experiment_id FROM runs WHERE run_uuid = ?", [run_ids[0]]
            ).fetchone()[0]
            copied(database, "runs", "run_uuid", run_ids[0], [f"{i:032x}" for i in range(1_300)])
            numbers = [str(i) for i in range(1_000, 2_100)]
            copied(database, "experiments", "experiment_id", experiment, numbers, name=True)
            names = [f"model {i}" for i in range(1_200)]
            copied(database, "registered_models", "name", MODEL, names)
            versions = [str(i) for i in range(10, 1_300)]
            copied(database, "model_versions", "version", "1", versions)
            rows_of_one = [(f"{0:032x}", "loss", i / 7, T0 + i, i) for i in range(30_000)]
            columns = "(run_uuid, key, value, timestamp, step, is_nan)"
            database.executemany(
                f"INSERT INTO metrics {columns} VALUES (?, ?, ?, ?, ?, 0)", rows_of_one
            )
            latest = {row[1] for row in database.execute("PRAGMA table_info(latest_metrics)")}
            if latest:
                database.execute(
                    f"INSERT INTO latest_metrics {columns} VALUES (?, ?, ?, ?, ?, 0)",
                    rows_of_one[-1],
                )
            truth = {
                table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
                for table in ("runs", "experiments", "registered_models", "model_versions")
            }
        report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=server.url)
    finally:
        server.stop()

    assert report.failures == []
    kinds = (Kind.RUN, Kind.EXPERIMENT, Kind.REGISTERED_MODEL, Kind.MODEL_VERSION)
    assert [report.counts[kind].written for kind in kinds] == list(truth.values())
    with open_archive(str(tmp_path / "a.tar.zst")) as archive:
        history = archive.metric_history(f"{0:032x}", "loss")
    assert history.column("step").to_pylist() == list(range(30_000))


def copied(
    database: sqlite3.Connection,
    table: str,
    column: str,
    key: str,
    keys: list[str],
    *,
    name: bool = False,
) -> None:
    """Copy a row under other keys, and, where names are taken, under those names too."""
    there = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
    row = dict(
        zip(
            there,
            database.execute(f"SELECT * FROM {table} WHERE {column} = ?", [key]).fetchone(),
            strict=True,
        )
    )
    database.executemany(
        f"INSERT INTO {table} ({', '.join(there)}) VALUES ({', '.join(f':{c}' for c in there)})",
        [row | {column: other} | ({"name": f"e {other}"} if name else {}) for other in keys],
    )
