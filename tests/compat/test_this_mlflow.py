"""Whole round trips inside whatever MLflow runs the tests: run them in old ones too."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlflow
import pytest
from mlflow import MlflowClient
from packaging.version import Version

from mlflow_exim_plugin import diff, open_archive, pack, unpack, verify
from tests.compare import assert_count_law, assert_same, snapshot
from tests.seed import MORE_ROWS_THAN_ONE_REPLY, Seeded, seed, seed_big
from tests.servers import new_sqlite_database

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


def test_server_to_server(make_server: MakeServer, tmp_path: Path) -> None:
    source, target = make_server(), make_server()
    is_old = Version(mlflow.__version__) < Version("3.3")
    seed(MlflowClient(source.url), old_server=is_old)

    assert_round_trip(source.url, target.url, tmp_path)


@pytest.mark.parametrize("preserve_ids", [True, False])
def test_database_to_database(tmp_path: Path, preserve_ids: bool) -> None:
    uris = [f"sqlite:///{tmp_path}/{name}.db" for name in ("source", "target")]
    for name in ("source", "target"):
        new_sqlite_database(tmp_path / f"{name}.db")
    seed(MlflowClient(uris[0], uris[0]), local_artifacts=True)

    assert_round_trip(uris[0], uris[1], tmp_path, preserve_ids=preserve_ids)
    if preserve_ids:
        kept = ["*.artifact_*", "*.source", "*.storage_location"]
        same = diff(*uris, rules="exact", ignore=kept)
        assert same.equal, same.differences[:5]


def test_large_histories(make_server: MakeServer, tmp_path: Path) -> None:
    source, target = make_server(), make_server()
    seed_big(MlflowClient(source.url), Seeded())

    assert_round_trip(source.url, target.url, tmp_path)

    with open_archive(str(tmp_path / "a.tar.zst")) as opened:
        assert opened.summary.info.metric_rows > MORE_ROWS_THAN_ONE_REPLY
