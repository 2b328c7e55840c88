"""Whole round trips inside whatever MLflow runs the tests: run them in old ones too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlflow
import pytest
from mlflow import MlflowClient
from packaging.version import Version

from mlflow_exim_plugin import diff, open_archive, pack, unpack, verify
from mlflow_exim_plugin.host.open.host import Host
from tests.compare import assert_count_law, assert_same, snapshot
from tests.filled import copy_of_database, copy_of_server
from tests.seed import MORE_ROWS_THAN_ONE_REPLY, Seeded, seed, seed_big
from tests.servers import new_sqlite_database
from tests.told import assert_told_as_by_mlflow

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MakeServer

pytestmark = [pytest.mark.integration, pytest.mark.compat]


def assert_round_trip(
    source_uri: str, target_uri: str, folder: Path, *, preserve_ids: bool | None = None
) -> None:
    archive = str(folder / "a.tar.zst")
    source = snapshot(source_uri)

    packed = pack(archive, tracking_uri=source_uri)
    report = unpack(archive, tracking_uri=target_uri, preserve_ids=preserve_ids)

    assert packed.failures == report.failures == []
    assert_count_law(packed, source)
    assert_count_law(report, source)
    assert_same(source, snapshot(target_uri), report)
    assert verify(archive).ok
    with open_archive(archive) as opened:
        assert opened.summary.system.mlflow_version == mlflow.__version__
    again = unpack(archive, tracking_uri=target_uri, preserve_ids=preserve_ids)
    assert again.ok
    assert {counts.written for counts in again.counts.values()} == {0}


def fill(uri: str) -> None:
    seed(MlflowClient(uri), old_server=Version(mlflow.__version__) < Version("3.3"))


def fill_database(uri: str) -> None:
    seed(MlflowClient(uri, uri), local_artifacts=True)


def fill_big(uri: str) -> None:
    seed_big(MlflowClient(uri), Seeded())


def test_server_to_server(make_server: MakeServer, tmp_path: Path) -> None:
    copy_of_server(tmp_path / "source", fill)
    source, target = make_server(tmp_path / "source"), make_server()

    assert_round_trip(source.url, target.url, tmp_path)


@pytest.mark.parametrize("preserve_ids", [True, False])
def test_database_to_database(tmp_path: Path, preserve_ids: bool) -> None:
    uris = [f"sqlite:///{tmp_path}/{name}.db" for name in ("source/mlflow", "target")]
    copy_of_database(tmp_path / "source", fill_database)
    new_sqlite_database(tmp_path / "target.db")
    with Host(uris[0], create=False) as host:
        assert assert_told_as_by_mlflow(host) >= {"experiment", "run", "registered_model"}

    assert_round_trip(uris[0], uris[1], tmp_path, preserve_ids=preserve_ids)
    if preserve_ids:
        kept = ["*.artifact_*", "*.source", "*.storage_location"]
        same = diff(*uris, rules="exact", ignore=kept)
        assert same.equal, same.differences[:5]


def test_traces_of_a_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    new_sqlite_database(tmp_path / "mlflow.db")
    client = MlflowClient(uri, uri)
    experiment_id = client.create_experiment("traced", str(tmp_path / "files"))
    mlflow.set_tracking_uri(uri)
    try:
        for number, end in enumerate((client.end_trace, client.end_trace, None)):
            tags = {"number": str(number), "größe": "a\nb"}
            inputs = {"question": [number, 0.5, None]}
            root = client.start_trace("t", inputs=inputs, tags=tags, experiment_id=experiment_id)
            if end is not None:
                end(root.request_id, outputs={"answer": 1}, status="ERROR" if number else "OK")
        flush = getattr(mlflow, "flush_trace_async_logging", None)
        if flush is not None:
            flush()
    finally:
        mlflow.set_tracking_uri(None)

    with Host(uri, create=False) as host:
        assert "trace" in assert_told_as_by_mlflow(host)


def test_large_histories(make_server: MakeServer, tmp_path: Path) -> None:
    copy_of_server(tmp_path / "source", fill_big)
    source, target = make_server(tmp_path / "source"), make_server()

    assert_round_trip(source.url, target.url, tmp_path)

    with open_archive(str(tmp_path / "a.tar.zst")) as opened:
        assert opened.summary.info.metric_rows > MORE_ROWS_THAN_ONE_REPLY
