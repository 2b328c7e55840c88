"""The names inside MLflow that the package uses although they are not public, one by one."""

from __future__ import annotations

import re
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Metric, RunData
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

import mlflow_exim_plugin
from mlflow_exim_plugin.host.connection import Host

pytestmark = pytest.mark.compat

PRIVATE = {
    "_tracking_client",
    "_get_registry_client",
    "_metric_objs",
    "_host_creds",
}


def test_a_client_has_its_stores(sqlite_uri: str) -> None:
    client = mlflow.MlflowClient(sqlite_uri, sqlite_uri)
    for method in ("search_experiments", "search_runs", "create_run", "log_batch"):
        assert callable(getattr(client._tracking_client.store, method))
    for method in ("search_registered_models", "search_model_versions", "create_model_version"):
        assert callable(getattr(client._get_registry_client().store, method))


def test_run_data_keeps_the_steps_of_its_metrics() -> None:
    data = RunData(metrics=[Metric("loss", 0.5, 1_600_000_000_000, 7)])
    assert [(metric.key, metric.step) for metric in data._metric_objs] == [("loss", 7)]


def test_a_proxied_root_has_credentials() -> None:
    root = MlflowArtifactsRepository.resolve_uri("mlflow-artifacts:/1/r", "http://127.0.0.1:5000")
    assert root == "http://127.0.0.1:5000/api/2.0/mlflow-artifacts/artifacts/1/r"
    assert HttpArtifactRepository(root)._host_creds.host.startswith("http://127.0.0.1:5000")


def test_the_store_of_a_server_has_credentials() -> None:
    host = Host("http://127.0.0.1:5000", create=False)
    assert host.tracking.get_host_creds().host == "http://127.0.0.1:5000"


def test_no_other_private_name_is_used() -> None:
    package = Path(mlflow_exim_plugin.__file__).parent
    used = {
        name
        for path in [*package.glob("host/*.py"), *package.glob("s*/*.py")]
        for line in path.read_text(encoding="utf-8").splitlines()
        if "SLF001" in line
        for name in re.findall(r"(?<!self)\.(_[a-z]\w*)", line)
    }
    assert used == PRIVATE
