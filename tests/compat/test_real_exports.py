"""What mlflow-export-import itself exported from a server is what that server holds."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from uv import find_uv_bin

from mlflow_exim_plugin import convert, diff, pack
from tests.servers import CACHE, locked, mlflow_python

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MakeServer

pytestmark = [pytest.mark.integration, pytest.mark.compat]

MLFLOW = "2.22.5"
NEEDED = ("databricks-cli==0.17.8", "oauthlib==3.2.2", "tabulate==0.9.0")
"""What it imports beside MLflow; what it declares would bring another MLflow."""
LAYOUTS = {"1.1.2": "1a", "1.2.0": "2.0"}
FILL = """
import math
import mlflow
from mlflow import MlflowClient

mlflow.set_experiment("wine")
client = MlflowClient()
for i in range(3):
    with mlflow.start_run(run_name=f"run {i}", tags={"note": "ä"}) as run:
        mlflow.log_params({"a": i, "b": "x" * i})
        for step in range(5):
            mlflow.log_metric("loss", 1 / (step + 1), step=step)
        mlflow.log_metric("nan", math.nan)
        mlflow.log_text("hi", "folder/a.txt")
        mlflow.log_text("m", "model/MLmodel")
    if i == 0:
        client.create_registered_model("wine", {"owner": "ada"}, "red and white")
    source = f"{run.info.artifact_uri}/model"
    client.create_model_version("wine", source, run.info.run_id, {"n": str(i)}, description=f"v{i}")
client.transition_model_version_stage("wine", "1", "Production")
client.transition_model_version_stage("wine", "2", "Staging")
"""


def peer(version: str) -> Path:
    """Return a folder with that release of it, installed once on this machine."""
    folder = CACHE / f"mlflow-export-import-{version}"
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not (folder / "bin").exists():
            install = [find_uv_bin(), "pip", "install", "--quiet", "--no-deps"]
            packages = [f"mlflow-export-import=={version}", *NEEDED]
            subprocess.run([*install, "--target", str(folder), *packages], check=True)
    return folder


def test_real_exports_are_what_their_server_holds(make_server: MakeServer, tmp_path: Path) -> None:
    server = make_server(mlflow_version=MLFLOW)
    run(server.url, ["-c", FILL])
    held = str(tmp_path / "server.tar.zst")
    pack(held, tracking_uri=server.url, experiments=("wine",), models=("*",))
    for version, layout in LAYOUTS.items():
        exported, archive = tmp_path / version, str(tmp_path / f"{version}.tar.zst")
        module = "mlflow_export_import.bulk.export_models"
        asked = ["--models", "all", "--output-dir", str(exported)]
        run(server.url, ["-m", module, *asked], PYTHONPATH=str(peer(version)))

        report = convert(str(exported), archive)

        assert report.ok, report.failures
        assert report.read_as == f"export of mlflow-export-import, layout {layout}"
        # The older has the latest version of each stage alone; each of these three is one.
        found = diff(held, archive)
        assert found.differences == []
        assert found.equal


def run(uri: str, arguments: list[str], **environment: str) -> None:
    """Run what is no part of this package in the environment of the old server."""
    subprocess.run(
        [str(mlflow_python(MLFLOW)), *arguments],
        env=os.environ | {"MLFLOW_TRACKING_URI": uri} | environment,
        check=True,
        capture_output=True,
    )
