"""Servers of MLflow 1, before there was a search of experiments, are packed as they answer."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from mlflow_exim_plugin import open_archive, pack, verify
from mlflow_exim_plugin.schema.objects import Kind, key_values
from tests.first_servers import VERSIONS, FirstServer, start_first_server

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.compat]

T0 = 1_600_000_000_000
FILES = {"folder/a.txt": b"hi", "b.bin": b"\x00\xff"}


def fill(server: FirstServer, *, has_registry: bool) -> list[str]:
    """Fill a server as its own clients would, and return the ids of its runs."""
    experiment_id = server.call("experiments/create", {"name": "wine"})["experiment_id"]
    gone = server.call("experiments/create", {"name": "gone"})["experiment_id"]
    server.call("experiments/delete", {"experiment_id": gone})
    run_ids = []
    for i in range(3):
        asked = {
            "experiment_id": experiment_id,
            "user_id": "ada",
            "start_time": T0 + i,
            "tags": [{"key": "mlflow.runName", "value": f"run {i}"}],
        }
        info = server.call("runs/create", asked)["run"]["info"]
        run_id = info["run_id"]
        run_ids.append(run_id)
        for step in range(3):
            row = {"key": "loss", "value": 1 / (step + 1), "timestamp": T0 + step, "step": step}
            server.call("runs/log-metric", {"run_id": run_id, **row})
        server.call("runs/log-parameter", {"run_id": run_id, "key": "lr", "value": str(i)})
        put_files(urlsplit(info["artifact_uri"]).path)
        server.call("runs/update", {"run_id": run_id, "status": "FINISHED", "end_time": T0 + 9})
    server.call("runs/delete", {"run_id": run_ids[2]})
    if has_registry:
        server.call("registered-models/create", {"name": "m", "description": "text"})
        source = {"name": "m", "source": f"{info['artifact_uri']}/folder", "run_id": run_id}
        for _ in range(2):
            server.call("model-versions/create", source)
        stage = {"name": "m", "version": "2", "stage": "Production"}
        server.call(
            "model-versions/transition-stage", {**stage, "archive_existing_versions": False}
        )
    return run_ids


def put_files(root: str) -> None:
    from pathlib import Path

    for path, content in FILES.items():
        file = Path(root, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


@pytest.mark.parametrize("version", VERSIONS)
def test_all_that_it_holds_is_packed(version: str, tmp_path: Path) -> None:
    server = start_first_server(version, tmp_path / "server")
    has_registry = version != "1.0.0"
    try:
        run_ids = fill(server, has_registry=has_registry)
        truth = {run_id: server.call(f"runs/get?run_id={run_id}")["run"] for run_id in run_ids}

        report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=server.url)
    finally:
        server.stop()

    assert report.ok, report.failures
    assert report.losses == []
    assert verify(str(tmp_path / "a.tar.zst")).findings == []
    assert (Kind.REGISTERED_MODEL in report.counts) is has_registry
    with open_archive(str(tmp_path / "a.tar.zst")) as archive:
        stages = {
            e.mlflow.experiment["name"]: e.mlflow.experiment["lifecycle_stage"]
            for e in archive.experiments()
        }
        assert stages == {"Default": "active", "wine": "active", "gone": "deleted"}
        for i, run_id in enumerate(run_ids):
            envelope = archive.run(run_id)
            info, data = envelope.mlflow.run["info"], envelope.mlflow.run["data"]
            told = truth[run_id]["info"]
            assert (info["status"], info["user_id"]) == ("FINISHED", "ada")
            assert (info["start_time"], info["end_time"]) == (T0 + i, T0 + 9)
            assert info["lifecycle_stage"] == told["lifecycle_stage"]
            assert info["run_name"] == f"run {i}"
            assert key_values(data["params"]) == {"lr": str(i)}
            history = archive.metric_history(run_id, "loss").to_pydict()
            assert history["step"] == [0, 1, 2]
            assert history["value"] == [1.0, 0.5, 1 / 3]
            assert history["timestamp"] == [T0, T0 + 1, T0 + 2]
            assert {entry.path for entry in envelope.info.artifacts} == set(FILES)
            for path, content in FILES.items():
                with archive.open_artifact(run_id, path) as stream:
                    assert stream.read() == content
        if has_registry:
            assert archive.model("m").mlflow.registered_model["description"] == "text"
            versions = {
                v.mlflow.model_version["version"]: v.mlflow.model_version
                for v in archive.versions("m")
            }
            assert versions["2"]["current_stage"] == "Production"
            assert versions["1"]["run_id"] == run_ids[2]
