"""The load that benchmarks measure with: always the same, and valid in MLflow's own eyes."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, get_args

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from tests.benchmarks import workload
from tests.depth import one_of
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = workload._SHAPES["artifacts"]
    small = workload._Shape(**{**vars(shape), "weights_bytes": 4096, "plots": 3})
    monkeypatch.setitem(workload._SHAPES, "artifacts", small)


def build(kind: workload.Kind, root: Path, scale: float) -> MlflowClient:
    root.mkdir()
    new_sqlite_database(root / "mlflow.db")
    return MlflowClient(workload.build(kind, root, scale=scale))


def content(root: Path) -> list[str]:
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        rows = [line.replace(str(root), "ROOT") for line in database.iterdump()]
    files = sorted(path for path in (root / "artifacts").rglob("*") if path.is_file())
    return rows + [f"{path.relative_to(root)} {path.read_bytes().hex()}" for path in files]


@pytest.mark.parametrize("kind", one_of(*get_args(workload.Kind)))
def test_twice_the_same(kind: workload.Kind, tmp_path: Path) -> None:
    build(kind, tmp_path / "one", 0.02)
    build(kind, tmp_path / "two", 0.02)

    assert content(tmp_path / "one") == content(tmp_path / "two")


@pytest.mark.exhaustive
def test_metrics(tmp_path: Path) -> None:
    client = build("metrics", tmp_path / "load", 0.1)
    runs = client.search_runs(["1"], run_view_type=ViewType.ACTIVE_ONLY, max_results=100)
    assert len(runs) == 20
    histories = {
        (run.info.run_id, key): client.get_metric_history(run.info.run_id, key)
        for run in runs
        for key in run.data.metrics
    }

    assert all(len(run.data.metrics) == 20 for run in runs)
    assert {len(history) for history in histories.values()} == {500, 510}
    assert any(math.isnan(row.value) for history in histories.values() for row in history)
    for run in runs:
        for key, latest in run.data.metrics.items():
            history = histories[run.info.run_id, key]
            last = max(history, key=lambda row: (row.step, row.timestamp, row.value))
            assert latest == last.value or (math.isnan(latest) and math.isnan(last.value))


def test_runs(tmp_path: Path) -> None:
    client = build("runs", tmp_path / "load", 0.012)
    experiments = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    runs = client.search_runs(experiments, run_view_type=ViewType.ALL, max_results=1000)

    assert len(experiments) == 10
    assert len(runs) == 120
    assert {len(run.data.params) for run in runs} == {10}
    assert {run.info.lifecycle_stage for run in runs} == {"active", "deleted"}
    assert {"RUNNING", "FINISHED"} <= {run.info.status for run in runs}
    assert {len(run.inputs.dataset_inputs) for run in runs} == {2}
    parents = {run.data.tags.get("mlflow.parentRunId") for run in runs} - {None}
    assert parents <= {run.info.run_id for run in runs}
    assert len(parents) > 1
    assert any("新" in run.data.tags["mlflow.note.content"] for run in runs)


def test_registry(tmp_path: Path) -> None:
    client = build("registry", tmp_path / "load", 0.4)
    models = client.search_registered_models(max_results=100)
    versions = client.search_model_versions(max_results=1000)

    assert len(models) == 20
    assert len(versions) == 18 * 5
    assert max(int(version.version) for version in versions) == 8
    champion = client.get_model_version_by_alias("model-001", "champion")
    assert champion.current_stage == "Production"
    assert champion.run_id is not None
    (folder,) = client.list_artifacts(champion.run_id)
    assert folder.path == "model"


def test_artifacts(tmp_path: Path) -> None:
    client = build("artifacts", tmp_path / "load", 0.1)
    run = client.search_runs(["1"])[0]

    assert [item.path for item in client.list_artifacts(run.info.run_id)] == [
        "config.json",
        "model",
        "plots",
    ]
    assert len(client.list_artifacts(run.info.run_id, "plots")) == 3
