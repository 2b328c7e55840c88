"""Folders that MLflow before 1.0 wrote: the files are as its releases 0.1.0 to 0.8.2 made them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlflow_exim_plugin import open_archive, pack, verify
from mlflow_exim_plugin.schema.objects import key_values

if TYPE_CHECKING:
    from pathlib import Path

RUN = "cd19c0f5ebc84f829dfc1916c4b96d4c"
META = {
    "0.1.0": f"""\
artifact_uri: /gone/mlruns/0/{RUN}/artifacts
end_time: 1530000009114
entry_point_name: ''
experiment_id: 0
name: Run 0
run_uuid: {RUN}
source_name: /home/ada/train.py
source_type: 4
source_version: ''
start_time: 1530000001101
status: 3
tags: []
user_id: ada
""",
    "0.8.2": f"""\
artifact_uri: /gone/mlruns/0/{RUN}/artifacts
end_time: null
entry_point_name: main
experiment_id: 0
lifecycle_stage: deleted
name: ''
run_uuid: {RUN}
source_name: https://github.com/ada/wine
source_type: 3
source_version: 4afec69ef703ad51d52c41b52696910017475764
start_time: 1540000083802
status: 1
tags: []
user_id: ada
""",
}


def store(folder: Path, version: str) -> Path:
    """Write the folder of one experiment with one run."""
    files = {
        "meta.yaml": "artifact_location: /gone/mlruns/0\nexperiment_id: 0\nname: Default\n"
        + ("lifecycle_stage: active\n" if version == "0.8.2" else ""),
        f"{RUN}/meta.yaml": META[version],
        f"{RUN}/metrics/loss": "1530000002 0.5\n1530000002 0.75\n1530000003 0.30000000000000004\n",
        f"{RUN}/params/lr": "0.1\n" if version == "0.1.0" else "0.1",
        f"{RUN}/params/lines": "a\nb\n",
        f"{RUN}/artifacts/folder/a.txt": "hi",
    }
    if version == "0.8.2":
        files |= {f"{RUN}/tags/mlflow.runName": "named\n", f"{RUN}/tags/note": "x"}
    for path, text in files.items():
        file = folder / "mlruns" / "0" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder / "mlruns"


@pytest.mark.parametrize("version", META)
def test_a_run_arrives_with_ms_tags_and_files(version: str, tmp_path: Path) -> None:
    archive = str(tmp_path / "a.tar.zst")

    report = pack(archive, tracking_uri=str(store(tmp_path, version)))

    assert report.ok, report.failures
    assert verify(archive).findings == []
    with open_archive(archive) as opened:
        (experiment,) = opened.experiments()
        assert experiment.mlflow.experiment["lifecycle_stage"] == "active"
        envelope = opened.run(RUN)
        history = opened.metric_history(RUN, "loss").to_pydict()
        with opened.open_artifact(RUN, "folder/a.txt") as stream:
            assert stream.read() == b"hi"
    run = envelope.mlflow.run
    assert history["timestamp"] == [1530000002000, 1530000002000, 1530000003000]
    assert history["value"] == [0.5, 0.75, 0.30000000000000004]
    assert history["step"] == [0, 0, 0]
    (latest,) = run["data"]["metrics"]
    assert (latest["value"], latest["timestamp"]) == (0.30000000000000004, 1530000003000)
    assert key_values(run["data"]["params"]) == {"lr": "0.1", "lines": "a\nb"}
    info, tags = run["info"], key_values(run["data"]["tags"])
    if version == "0.1.0":
        assert (info["status"], info["lifecycle_stage"]) == ("FINISHED", "active")
        assert (info["run_name"], info["name"], info["source_type"]) == ("Run 0", "Run 0", "LOCAL")
        assert (info["start_time"], info["end_time"]) == (1530000001101, 1530000009114)
        assert tags == {
            "mlflow.runName": "Run 0",
            "mlflow.source.name": "/home/ada/train.py",
            "mlflow.source.type": "LOCAL",
            "mlflow.user": "ada",
        }
    else:
        assert (info["status"], info["lifecycle_stage"]) == ("RUNNING", "deleted")
        assert (info["run_name"], info["source_type"]) == ("named", "PROJECT")
        assert "end_time" not in info
        assert tags == {
            "mlflow.runName": "named",
            "mlflow.source.name": "https://github.com/ada/wine",
            "mlflow.source.type": "PROJECT",
            "mlflow.source.git.commit": "4afec69ef703ad51d52c41b52696910017475764",
            "mlflow.project.entryPoint": "main",
            "mlflow.user": "ada",
            "note": "x",
        }


def test_a_time_in_ms_stays(tmp_path: Path) -> None:
    folder = store(tmp_path, "0.1.0")
    (folder / "0" / RUN / "metrics" / "loss").write_text("1530000002000 0.5\n")

    pack(str(tmp_path / "a.tar.zst"), tracking_uri=str(folder))

    with open_archive(str(tmp_path / "a.tar.zst")) as opened:
        history = opened.metric_history(RUN, "loss").to_pydict()
    assert history["timestamp"] == [1530000002000]


def test_a_later_run_without_its_stage_is_damaged(tmp_path: Path) -> None:
    folder = store(tmp_path, "0.8.2")
    (folder / "0" / "meta.yaml").write_text(
        "artifact_location: /gone\nexperiment_id: '0'\nname: Default\n"
    )

    report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=str(folder))

    assert "lacks lifecycle_stage" in report.failures[0].reason
