"""Servers of other MLflow versions answer the MLflow of this interpreter."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from tests.servers import REQUIREMENTS, old_versions

if TYPE_CHECKING:
    from tests.conftest import MakeServer

pytestmark = [pytest.mark.integration, pytest.mark.compat]

VERSIONS = sorted(Path(file).stem for file in REQUIREMENTS.glob("*.txt"))


@pytest.mark.parametrize("mlflow_version", old_versions(*VERSIONS))
def test_old_server(
    make_server: MakeServer, tmp_path: Path, mlflow_version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(mlflow_version=mlflow_version)
    with urllib.request.urlopen(f"{server.url}/version") as answer:
        assert answer.read().decode() == mlflow_version

    # Old MLflow (2.22, 3.1) sends artifacts to this one, whatever its client was given.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    client = MlflowClient(server.url)
    run_id = client.create_run(client.create_experiment("old")).info.run_id
    client.log_metric(run_id, "loss", 0.5, timestamp=1_700_000_000_000, step=7)
    client.log_dict(run_id, {"lr": 0.1}, "config.json")

    (metric,) = client.get_metric_history(run_id, "loss")
    assert (metric.value, metric.timestamp, metric.step) == (0.5, 1_700_000_000_000, 7)
    back = client.download_artifacts(run_id, "config.json", str(tmp_path))
    assert json.loads(Path(back).read_text(encoding="utf-8")) == {"lr": 0.1}
