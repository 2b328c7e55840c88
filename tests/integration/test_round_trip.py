"""Pack, unpack elsewhere, and compare everything the API returns."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import open_archive, pack
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.objects import Kind
from tests.compare import assert_count_law, assert_same, snapshot
from tests.filled import copy_of_server
from tests.new_ids import unpack
from tests.seed import (
    BIG_ROWS,
    MORE_ROWS_THAN_ONE_REPLY,
    NEW_FILES,
    Seeded,
    log_files,
    new_run,
    seed_big,
    seed_of_mlflow_3,
)
from tests.servers import old_versions
from tests.sources import seed_old_server

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Bucket, MakeServer
    from tests.sources import Source

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("name", ["server_source", "sqlite_source"])
def test_the_pack_is_complete(name: str, request: pytest.FixtureRequest) -> None:
    source: Source = request.getfixturevalue(name)

    assert source.report.ok
    assert_count_law(source.report, source.snapshot)
    # What is compared everywhere below would prove nothing if the hard cases were not in it.
    runs = source.snapshot.runs
    metrics = runs[source.made.runs["metrics"]]["histories"]
    assert "nan" in [bits for _, _, bits in metrics["not a number"]]
    assert [step for step, _, _ in metrics["huge step"]] == [2**53, 2**53 + 1, 2**63 - 1]
    assert [timestamp for _, timestamp, _ in metrics["timestamp 0"]] == [0]
    assert len(metrics["same moment"]) == 3
    parent = source.made.runs["parent"]
    children = [i for i, r in runs.items() if r["data"]["tags"].get("mlflow.parentRunId") == parent]
    assert min(children) < parent
    assert len(runs[source.made.runs["artifacts"]]["files"]) >= 12
    assert {r["info"]["status"] for r in runs.values()} == {
        "RUNNING",
        "SCHEDULED",
        "FINISHED",
        "FAILED",
        "KILLED",
    }
    assert {r["info"]["end_time"] is None for r in runs.values()} == {True, False}
    stages = {r["info"]["lifecycle_stage"] for r in runs.values()}
    stages_of_experiments = {e["lifecycle_stage"] for e in source.snapshot.experiments.values()}
    assert stages == stages_of_experiments == {"active", "deleted"}
    versions = [int(i.rpartition("/")[2]) for i in source.snapshot.versions if "churn" in i]
    assert sorted(versions) == [1, 2, 4, 5, 6, 8, 9, 10, 11, 12]


def test_from_postgres_and_mariadb_without_a_server(
    postgres_uri: str, mariadb_uri: str, tmp_path: Path
) -> None:
    root = (tmp_path / "artifacts").as_uri()
    client = MlflowClient(postgres_uri, postgres_uri)
    made = Seeded(experiments={"plain": client.create_experiment("plain", root)})
    run_id = new_run(client, made, "one", made.experiments["plain"])
    for step, value in enumerate([math.nan, math.inf, -0.0, 5e-324]):
        client.log_metric(run_id, "m", value, timestamp=step, step=step)
    log_files(client, run_id, {"a b/ü#.txt": b"x"})
    archive = str(tmp_path / "a.tar.zst")
    source = snapshot(postgres_uri)

    packed = pack(archive, tracking_uri=postgres_uri)
    report = unpack(
        archive, tracking_uri=mariadb_uri, artifact_location=(tmp_path / "there").as_uri()
    )

    assert_count_law(packed, source)
    assert_count_law(report, source)
    assert report.ok
    assert_same(source, snapshot(mariadb_uri), report)


def fill_big(uri: str) -> Seeded:
    made = Seeded()
    seed_big(MlflowClient(uri), made)
    return made


@pytest.mark.exhaustive
def test_large_histories_and_files(make_server: MakeServer, tmp_path: Path) -> None:
    made = copy_of_server(tmp_path / "source", fill_big)
    source, target = make_server(tmp_path / "source"), make_server()
    archive = str(tmp_path / "big.tar.zst")
    before = snapshot(source.url)
    assert len(before.runs[made.runs["long history"]]["histories"]["long"]) == BIG_ROWS

    packed = pack(archive, tracking_uri=source.url)
    report = unpack(archive, tracking_uri=target.url)

    assert packed.metric_rows == report.metric_rows == BIG_ROWS + MORE_ROWS_THAN_ONE_REPLY
    assert_count_law(packed, before)
    assert_count_law(report, before)
    assert report.ok
    assert_same(before, snapshot(target.url), report)


@pytest.mark.parametrize("scheme", ["file", "path with spaces"])
def test_local_artifact_roots(
    scheme: str, sqlite_uri: str, make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    folder = tmp_path / "my artifacts ünd mehr"
    root = folder.as_uri() if scheme == "file" else str(folder)
    client = MlflowClient(sqlite_uri, sqlite_uri)
    made = Seeded(experiments={"plain": client.create_experiment("plain", root)})
    run_id = new_run(client, made, "one", made.experiments["plain"])
    log_files(client, run_id, {"a b.txt": b"1", "100%/#.txt": b"2", "model/MLmodel": b"3"})
    client.create_registered_model("net")
    client.create_model_version("net", f"{root}/{run_id}/artifacts/model", run_id)
    assert len(list(folder.rglob("*.txt"))) == 2

    assert_round_trip(
        sqlite_uri, make_sqlite(), tmp_path, artifact_location=str(tmp_path / "at target")
    )


def test_artifacts_in_a_bucket(
    sqlite_uri: str, s3_bucket: Bucket, make_server: MakeServer, tmp_path: Path
) -> None:
    import boto3

    client = MlflowClient(sqlite_uri, sqlite_uri)
    experiment_id = client.create_experiment("plain", f"{s3_bucket.url}/models")
    made = Seeded(experiments={"plain": experiment_id})
    run_id = new_run(client, made, "one", experiment_id)
    log_files(client, run_id, {"empty": b"", "a b/100% ü.txt": b"1", "model/MLmodel": b"3"})
    s3 = boto3.client("s3")
    s3.put_object(Bucket=s3_bucket.name, Key="trained elsewhere/MLmodel", Body=b"no run")
    client.create_registered_model("net")
    client.create_model_version("net", f"{s3_bucket.url}/models/{run_id}/artifacts/model", run_id)
    client.create_model_version("net", f"{s3_bucket.url}/trained elsewhere")
    source = snapshot(sqlite_uri)
    archive = str(tmp_path / "a.tar.zst")
    target = make_server(artifacts_destination=f"{s3_bucket.url}/target")

    packed = pack(archive, tracking_uri=sqlite_uri)
    # The target must not lean on what lies at the source.
    for item in s3.list_objects_v2(Bucket=s3_bucket.name)["Contents"]:
        s3.delete_object(Bucket=s3_bucket.name, Key=item["Key"])
    report = unpack(archive, tracking_uri=target.url)

    assert packed.ok
    assert report.ok
    assert_count_law(packed)
    assert_count_law(report)
    assert packed.counts[Kind.ARTIFACT].written == 3 + 1
    assert_same(source, snapshot(target.url), report)


def test_versions_without_a_run(
    sqlite_uri: str, make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    folder = tmp_path / "trained elsewhere"
    (folder / "data").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}")
    (folder / "data" / "weights ü.bin").write_bytes(b"\0\1\2")
    client = MlflowClient(sqlite_uri, sqlite_uri)
    client.create_registered_model("net")
    client.create_model_version("net", folder.as_uri(), description="by hand")
    client.create_model_version("net", str(folder), tags={"again": "yes"})
    client.set_registered_model_alias("net", "best", "2")
    source = snapshot(sqlite_uri)
    archive, target_uri = str(tmp_path / "a.tar.zst"), make_sqlite()
    pack(archive, tracking_uri=sqlite_uri)
    for file in [*folder.rglob("*.bin"), folder / "MLmodel"]:
        file.unlink()

    report = unpack(archive, tracking_uri=target_uri)

    assert report.ok
    assert_count_law(report)
    target = snapshot(target_uri)
    assert_same(source, target, report)
    assert set(target.versions["net/1"]["files"]) == {"MLmodel", "data/weights ü.bin"}
    assert sum("its source is" in loss.what for loss in report.losses) == 2


def test_a_version_whose_files_cannot_be_read(sqlite_uri: str, tmp_path: Path) -> None:
    client = MlflowClient(sqlite_uri, sqlite_uri)
    client.create_registered_model("net")
    client.create_model_version("net", str(tmp_path / "gone"))
    archive = str(tmp_path / "a.tar.zst")

    report = pack(archive, tracking_uri=sqlite_uri)

    assert not report.ok
    assert_count_law(report)
    assert [(f.kind, f.id) for f in report.failures] == [(Kind.ARTIFACT, "net/1/")]
    assert report.counts[Kind.MODEL_VERSION].written == 1


@pytest.mark.skipif(mlflow.__version__ < "3", reason="MLflow 2 has none of it")
def test_what_only_mlflow_3_has(make_server: MakeServer, tmp_path: Path) -> None:
    source, target = make_server(), make_server()
    client = MlflowClient(source.url)
    made = Seeded(experiments={"plain": client.create_experiment("plain")})
    seed_of_mlflow_3(client, made)
    archive = str(tmp_path / "a.tar.zst")

    packed = pack(archive, tracking_uri=source.url)
    report = unpack(archive, tracking_uri=target.url)

    assert packed.ok
    not_packed = {entry.kind for entry in packed.unpacked}
    assert not not_packed & {"logged_model", "trace", "prompt"}
    with open_archive(archive) as opened:
        assert {dict(entry)["kind"] for entry in opened.summary.info.not_packed} == not_packed
        run = opened.run(made.runs["with models"]).mlflow.run
    (output,) = run["outputs"]["model_outputs"]
    assert output["step"] == 4
    assert run["inputs"]["model_inputs"] == [{"model_id": output["model_id"]}]
    assert report.failures == []
    assert_count_law(report)
    assert_same(snapshot(source.url), snapshot(target.url), report)


def test_two_hops(sqlite_source: Source, make_sqlite: Callable[[], str], tmp_path: Path) -> None:
    """What was unpacked can be packed again, and each hop's origin stays."""
    first, second = make_sqlite(), make_sqlite()
    archive = str(tmp_path / "again.tar.zst")
    unpack(sqlite_source.archive, tracking_uri=first)

    packed = pack(archive, tracking_uri=first)
    report = unpack(archive, tracking_uri=second)

    middle, end = snapshot(first), snapshot(second)
    assert packed.ok
    assert report.ok
    assert_count_law(report, middle)
    assert_same(middle, end, report)
    for run in end.runs.values():
        one_ago, two_ago = run["data"]["tags"]["mlflow.exim.origin"].split(" ")
        assert one_ago in middle.runs
        assert two_ago in sqlite_source.snapshot.runs


def assert_round_trip(source_uri: str, target_uri: str, tmp_path: Path, **options: Any) -> None:
    archive = str(tmp_path / "a.tar.zst")
    source = snapshot(source_uri)

    packed = pack(archive, tracking_uri=source_uri)
    report = unpack(archive, tracking_uri=target_uri, **options)

    assert packed.failures == report.failures == []
    assert_count_law(packed, source)
    assert_count_law(report, source)
    assert_same(source, snapshot(target_uri), report)


@pytest.mark.compat
@pytest.mark.parametrize("mlflow_version", old_versions("2.22.5", "3.1.4"))
def test_from_an_old_server(make_server: MakeServer, tmp_path: Path, mlflow_version: str) -> None:
    copy_of_server(tmp_path / "old", seed_old_server, mlflow_version=mlflow_version)
    old, new = make_server(tmp_path / "old", mlflow_version=mlflow_version), make_server()
    archive = str(tmp_path / "a.tar.zst")
    source = snapshot(old.url)

    packed = pack(archive, tracking_uri=old.url)
    report = unpack(archive, tracking_uri=new.url)

    assert packed.failures == report.failures == []
    assert_count_law(packed, source)
    assert_count_law(report, source)
    assert_same(source, snapshot(new.url), report)


@pytest.mark.compat
@pytest.mark.parametrize("mlflow_version", old_versions("2.22.5", "3.1.4"))
def test_to_an_old_server(
    server_source: Source, make_server: MakeServer, mlflow_version: str
) -> None:
    server = make_server(mlflow_version=mlflow_version)
    selection = Selection(exclude=tuple(NEW_FILES))

    report = unpack(server_source.archive, tracking_uri=server.url, selection=selection)

    assert report.failures == []
    assert_count_law(report)
    expected = copy.deepcopy(server_source.snapshot)
    for path in NEW_FILES:
        del expected.runs[server_source.made.runs["artifacts"]]["files"][path]
    assert_same(expected, snapshot(server.url), report)


@pytest.mark.compat
def test_a_file_that_an_old_server_cannot_send(
    make_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    server = make_server(mlflow_version="2.22.5")
    client = MlflowClient(server.url)
    made = Seeded(experiments={"plain": client.create_experiment("plain")})
    run_id = new_run(client, made, "one", made.experiments["plain"])
    log_files(client, run_id, NEW_FILES | {"fine.txt": b"fine"})

    report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=server.url)

    assert_count_law(report)
    (path,) = NEW_FILES
    assert [(f.kind, f.id) for f in report.failures] == [(Kind.ARTIFACT, f"{run_id}/{path}")]
    assert report.counts[Kind.ARTIFACT].written == 1
