"""What mlflow-export-import itself exported from a server is what that server holds."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from uv import find_uv_bin

from mlflow_exim_plugin import convert, diff, pack
from tests.servers import CACHE, locked, mlflow_python

if TYPE_CHECKING:
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
        mlflow.log_text("artifact_path: model", "model/MLmodel")
        mlflow.log_text("weights", "model/weights")
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


FILL_MORE = (
    FILL
    + """
from mlflow.entities import Metric, RunTag
wine = client.get_experiment_by_name("wine").experiment_id
client.set_experiment_tag(wine, "team", "red")
with mlflow.start_run(run_name="outer") as outer, mlflow.start_run(nested=True) as inner:
    mlflow.log_text("n", "nested.txt")
client.log_batch(
    inner.info.run_id,
    [Metric("odd", v, 1_600_000_000_000 + i, i - 1) for i, v in enumerate([math.inf, -0.1, 3e-9])],
    tags=[RunTag(f"t{i}", "x" * i) for i in range(150)],
)
client.set_terminated(inner.info.run_id, "FAILED")
client.set_registered_model_alias("wine", "champion", 2)
"""
)


@pytest.mark.generations
def test_the_peer_imports_what_is_written_for_it(make_server: MakeServer, tmp_path: Path) -> None:
    source, target = (  # in folders without the word "artifacts", at which the peer errs
        make_server(
            mlflow_version=MLFLOW,
            serve_artifacts=False,
            artifacts_destination=str(tmp_path / f"files of {name}"),
        )
        for name in ("source", "target")
    )
    run(source.url, ["-c", FILL_MORE])
    held, exported = str(tmp_path / "held.tar.zst"), tmp_path / "exported"
    pack(held, tracking_uri=source.url)
    assert convert(held, str(exported)).ok
    for runs in exported.glob("experiments/*/runs"):  # as docs say for the release on PyPI
        for folder in runs.iterdir():
            folder.rename(runs.parent / folder.name)
        runs.rmdir()

    module = "mlflow_export_import.bulk.import_models"
    asked = ["--input-dir", str(exported), "--delete-model", "False"]
    run(target.url, ["-m", module, *asked], PYTHONPATH=str(peer("1.2.0")))

    one, two = (_told(server.url) for server in (source, target))
    assert len(one["runs"]) == 5
    assert two == one


def _told(url: str) -> dict[str, Any]:
    """Return what raw REST says of a server, without what docs say that the peer loses."""
    (wine,) = [
        experiment
        for experiment in _ask(url, "experiments/search", {"max_results": 9})["experiments"]
        if experiment["name"] == "wine"
    ]
    asked = {"experiment_ids": [wine["experiment_id"]], "max_results": 99}
    found = _ask(url, "runs/search", asked)["runs"]
    names = {run["info"]["run_id"]: run["info"]["run_name"] for run in found}
    runs = {}
    for run in found:
        run_id = run["info"]["run_id"]
        tags = {tag["key"]: tag["value"] for tag in run["data"].get("tags", ())}
        if parent := tags.get("mlflow.parentRunId"):
            tags["mlflow.parentRunId"] = names[parent]
        root = f"{run['info']['artifact_uri']}/"
        files = sorted(Path(root).rglob("*"))
        keys = [metric["key"] for metric in run["data"].get("metrics", ())]
        histories = {
            key: [
                (m["step"], m["timestamp"], m["value"])
                for m in _ask(url, f"metrics/get-history?run_id={run_id}&metric_key={key}")[
                    "metrics"
                ]
            ]
            for key in keys
        }
        runs[names[run_id]] = (
            tags,
            {param["key"]: param["value"] for param in run["data"].get("params", ())},
            {key: sorted(rows) for key, rows in histories.items()},
            {
                str(file.relative_to(root)): file.read_bytes()
                for file in files
                if file.is_file() and file.name != "MLmodel"  # the peer writes its own
            },
        )
    model = _ask(url, "registered-models/get?name=wine")["registered_model"]
    search = "model-versions/search?filter=name%3D'wine'"
    versions = {
        version["version"]: (
            names[version["run_id"]],
            version["current_stage"],
            version.get("description"),
            version.get("tags"),
            version["source"].rpartition("/")[2],
        )
        for version in _ask(url, search)["model_versions"]
    }
    tags = {t["key"]: t["value"] for t in wine.get("tags", ())}
    described = {name: model.get(name) for name in ("description", "tags")}
    return {"tags": tags, "runs": runs, "model": described, "versions": versions}


def _ask(url: str, endpoint: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{url}/api/2.0/mlflow/{endpoint}", data, headers)
    with urllib.request.urlopen(request) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def run(uri: str, arguments: list[str], **environment: str) -> None:
    """Run what is no part of this package in the environment of the old server."""
    subprocess.run(
        [str(mlflow_python(MLFLOW)), *arguments],
        env=os.environ | {"MLFLOW_TRACKING_URI": uri} | environment,
        check=True,
        capture_output=True,
    )
