"""An old export is unpacked like an archive, by ids and by MLflow's API, and once."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import fsspec
import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import convert, diff, unpack
from mlflow_exim_plugin.schema.objects import Kind
from tests.old_exports import RUNS, VERSIONS, Export

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_exim_plugin import Report
    from tests.conftest import Bucket

pytestmark = pytest.mark.integration

FIRST, SECOND = RUNS


@pytest.mark.parametrize("by_ids", [True, False], ids=["by ids", "by API"])
def test_it_arrives_as_its_files_say(by_ids: bool, sqlite_uri: str, tmp_path: Path) -> None:
    folder = str(Export(tmp_path / "exported", "2.1").write_all())

    def unpacked() -> Report:
        return unpack(
            folder,
            tracking_uri=sqlite_uri,
            artifact_location=str(tmp_path / "files"),
            preserve_ids=by_ids,
        )

    report = unpacked()

    assert report.ok, report.failures
    assert report.read_as == "export of mlflow-export-import, layout 2.1"
    client = MlflowClient(sqlite_uri, sqlite_uri)
    experiment = client.get_experiment_by_name("wine")
    assert {key: experiment.tags.get(key) for key in ("team",)} == {"team": "red"}
    runs = {
        run.info.run_name: run
        for run in client.search_runs([experiment.experiment_id], run_view_type=3)
    }
    first, second = runs["first"], runs["second"]
    assert first.data.params == RUNS[FIRST]["params"]
    assert (first.info.start_time, first.info.end_time) == (1_600_000_000_000, 1_600_000_009_000)
    history = client.get_metric_history(first.info.run_id, "loss")
    assert [(m.step, m.timestamp, m.value) for m in history] == RUNS[FIRST]["metrics"]["loss"]
    assert math.isnan(client.get_metric_history(first.info.run_id, "odd")[0].value)
    assert [i.dataset.name for i in first.inputs.dataset_inputs] == ["wine"]
    local = client.download_artifacts(first.info.run_id, "plots/a b.txt", str(tmp_path))
    with open(local, "rb") as file:  # noqa: PTH123 - MLflow gives a text
        assert file.read() == b"\x00\xff"
    assert second.info.lifecycle_stage == "deleted"
    assert second.data.tags["mlflow.parentRunId"] == first.info.run_id
    versions = {v.version: v for v in client.search_model_versions("name = 'wine model'")}
    assert sorted(map(int, versions)) == [1, 2, 10]
    for truth in VERSIONS:
        found = versions[int(str(truth["version"]))]
        assert found.run_id == first.info.run_id
        assert found.description == truth["description"]
    assert client.get_model_version_by_alias("wine model", "champion").version == 2
    again = unpacked()
    assert again.ok, again.failures
    for kind in (Kind.EXPERIMENT, Kind.RUN, Kind.REGISTERED_MODEL, Kind.MODEL_VERSION):
        assert (again.counts[kind].written, again.counts[kind].failed) == (0, 0)
    there = client.search_runs([experiment.experiment_id], run_view_type=3)
    assert {run.info.run_id for run in there} == {first.info.run_id, second.info.run_id}
    assert client.get_metric_history(first.info.run_id, "loss") == history


def test_it_may_lie_in_a_bucket(s3_bucket: Bucket, tmp_path: Path) -> None:
    folder, url = Export(tmp_path / "exported", "2.2").write_all(), f"{s3_bucket.url}/exported"
    fsspec.filesystem("s3").put(str(folder), url, recursive=True)
    near, far = str(tmp_path / "near.tar.zst"), f"{s3_bucket.url}/far.tar.zst"
    back = tmp_path / "back"

    assert convert(str(folder), near).ok
    assert convert(url, far).ok
    assert convert(far, str(back)).ok

    assert diff(near, far).differences == []
    assert diff(url, str(back)).differences == []
