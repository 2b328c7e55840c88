"""The servers, databases and bucket that the other tests stand on: each kind works."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from tests.servers import Server, start_server

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Bucket, MakeServer

pytestmark = pytest.mark.integration


def assert_keeps_a_run_with_an_artifact(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Old MLflow (2.22, 3.1) sends artifacts to this one, whatever its client was given.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    client = MlflowClient(server.url)
    experiment_id = client.create_experiment(f"smoke of {tmp_path.name}")
    run_id = client.create_run(experiment_id).info.run_id
    client.log_metric(run_id, "loss", 0.5, timestamp=1_700_000_000_000, step=7)
    file = tmp_path / "note.txt"
    file.write_text("naïve ✓")
    client.log_artifact(run_id, str(file))

    (metric,) = client.get_metric_history(run_id, "loss")
    assert (metric.value, metric.timestamp, metric.step) == (0.5, 1_700_000_000_000, 7)
    assert [found.path for found in client.list_artifacts(run_id)] == ["note.txt"]
    back = client.download_artifacts(run_id, "note.txt", str(tmp_path))
    with open(back, encoding="utf-8") as stream:  # noqa: PTH123 - MLflow gives a string
        assert stream.read() == "naïve ✓"


def test_shared_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_keeps_a_run_with_an_artifact(server, tmp_path, monkeypatch)


def test_artifacts_go_straight_to_a_folder(
    make_server: MakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = tmp_path / "shared folder"

    server = make_server(serve_artifacts=False, artifacts_destination=str(destination))

    assert_keeps_a_run_with_an_artifact(server, tmp_path, monkeypatch)
    assert [path.name for path in destination.rglob("note.txt")] == ["note.txt"]


def test_postgres(
    make_server: MakeServer, tmp_path: Path, postgres_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(backend_store_uri=postgres_uri)

    assert_keeps_a_run_with_an_artifact(server, tmp_path, monkeypatch)


def test_mariadb(
    make_server: MakeServer, tmp_path: Path, mariadb_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(backend_store_uri=mariadb_uri)

    assert_keeps_a_run_with_an_artifact(server, tmp_path, monkeypatch)


def test_artifacts_in_a_bucket(
    make_server: MakeServer, tmp_path: Path, s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    server = make_server(artifacts_destination=f"{s3_bucket.url}/artifacts")

    assert_keeps_a_run_with_an_artifact(server, tmp_path, monkeypatch)
    stored = boto3.client("s3").list_objects_v2(Bucket=s3_bucket.name)["Contents"]
    assert [os.path.basename(item["Key"]) for item in stored] == ["note.txt"]  # noqa: PTH119


@pytest.mark.exhaustive
def test_a_second_server_continues_and_the_first_is_gone(tmp_path: Path) -> None:
    with start_server(tmp_path / "data", workers=2) as first:
        experiment_id = MlflowClient(first.url).create_experiment("kept")
    # Both workers held the listening socket: while one of them lives, this connects.
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{first.url}/health", timeout=5)

    with start_server(tmp_path / "data") as second:
        found = MlflowClient(second.url).get_experiment_by_name("kept")
    assert found is not None
    assert found.experiment_id == experiment_id


def test_a_failed_start_shows_the_log(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="nosuchdriver"):
        start_server(tmp_path, backend_store_uri="mysql+nosuchdriver://127.0.0.1/x")


def test_sqlite_uri_is_ready_for_use(sqlite_uri: str) -> None:
    client = MlflowClient(sqlite_uri)

    assert [experiment.name for experiment in client.search_experiments()] == ["Default"]
