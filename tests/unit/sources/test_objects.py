"""Objects of an archive show what people look for."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mlflow_exim_plugin import open_archive
from mlflow_exim_plugin.errors import NotFoundError
from mlflow_exim_plugin.sources.archive.objects import ArchivedRun

GOOD = Path(__file__).parents[3] / "samples" / "v1" / "good"


def test_a_run_has_its_params_tags_and_last_metrics() -> None:
    with open_archive(str(GOOD / "experiments.tar.zst")) as archive:
        runs = {run.id: run for run in archive.runs()}
        for run_id, run in runs.items():
            data = run.mlflow.run["data"]
            assert run.params == {e["key"]: e.get("value", "") for e in data.get("params", [])}
            assert run.tags == {e["key"]: e.get("value", "") for e in data.get("tags", [])}
            for entry in data.get("metrics", []):
                told = run.metrics[entry["key"]]
                assert told == float(entry["value"]) or math.isnan(told)
            assert run_id in repr(run)
            assert archive.artifacts(run) == archive.artifacts(run_id)
            steps = archive.metric_history(run).column("step")
            assert steps.equals(archive.metric_history(run_id).column("step"))
        assert any(run.params and run.metrics for run in runs.values())
        assert any(run.tags for run in runs.values())
        with_files = next(run for run in runs.values() if archive.artifacts(run))
        entry = archive.artifacts(with_files)[0]
        with archive.open_artifact(with_files, entry.path) as stream:
            assert len(stream.read()) == entry.size_bytes
        with pytest.raises(NotFoundError, match=with_files.id):
            archive.open_artifact(with_files, "no such file")
        names = [experiment.name for experiment in archive.experiments()]
        assert names == [e.mlflow.experiment["name"] for e in archive.experiments()]


def test_models_and_versions_have_names_numbers_and_aliases() -> None:
    with open_archive(str(GOOD / "models.tar.zst")) as archive:
        model = archive.model("iris")
        assert model.aliases == {"champion": 7, "latest-good": 3}
        assert [version.version for version in archive.versions(model.name)] == [1, 3, 7]
        assert [version.aliases for version in archive.versions(model.name)][2] == ["champion"]
        assert "stage='Production'" in repr(archive.versions("iris")[2])
        assert "registered model: 4" in repr(archive)
    with open_archive(str(GOOD / "mlflow3.tar.zst")) as archive:
        tree = next(model for model in archive.logged_models() if model.name == "tree")
        assert (len(tree.params), len(tree.metrics), len(tree.tags)) == (1, 1, 1)


def test_a_notebook_shows_text_as_text_and_not_all_of_a_lot() -> None:
    tags = [{"key": f"t{i:03}", "value": "<script>" + "x" * 300} for i in range(150)]
    with open_archive(str(GOOD / "experiments.tar.zst")) as archive:
        document = next(archive.runs()).to_json()
    document["mlflow"]["run"]["info"] |= {"run_id": "1", "run_name": "<b>"}
    document["mlflow"]["run"]["data"] = {"tags": tags}
    run = ArchivedRun.model_validate(document)

    shown = run._repr_html_()

    assert "<script>" not in shown
    assert "<b>" not in shown
    assert "&lt;b&gt;" in shown
    assert "and 50 more" in shown
    assert "x" * 201 not in shown
    assert repr(run).startswith("<Run id='1', name='<b>'")
    assert repr(run).endswith("0 params, 0 metrics, 150 tags>")
