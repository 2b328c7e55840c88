"""What was deleted at the target stays so, and what would need it is left out by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import copy
from mlflow_exim_plugin.schema.objects import Kind
from tests.compare import assert_count_law

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.integration

LoggedModelOutput = getattr(mlflow.entities, "LoggedModelOutput", None)  # not in MLflow 2


def add(uri: str, experiment_id: str, name: str) -> tuple[str, str]:
    """Make a run and a logged model of it, with a version of each; return their ids."""
    client = MlflowClient(uri, uri)
    run = client.create_run(experiment_id, run_name=name)
    run_id, model_id = run.info.run_id, ""
    client.log_text(run_id, name, "model/note.txt")
    client.set_terminated(run_id)
    client.create_model_version("net", f"{run.info.artifact_uri}/model", run_id)
    if LoggedModelOutput is not None:
        model_id = client.create_logged_model(experiment_id, name, run_id).model_id
        client.finalize_logged_model(model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(model_id, 0)])
        client.create_model_version("net", f"models:/{model_id}", run_id, model_id=model_id)
    return run_id, model_id


@pytest.fixture
def source(sqlite_uri: str, tmp_path: Path) -> Iterator[str]:
    mlflow.set_tracking_uri(sqlite_uri)  # where MLflow looks for models:/
    client = MlflowClient(sqlite_uri, sqlite_uri)
    client.create_experiment("mine", str(tmp_path / "source"))
    client.create_registered_model("net")
    yield sqlite_uri
    mlflow.set_tracking_uri(None)


@pytest.mark.parametrize("preserve_ids", [True, False])
def test_an_experiment_whose_copy_was_deleted(
    source: str, make_sqlite: Callable[[], str], tmp_path: Path, *, preserve_ids: bool
) -> None:
    target = make_sqlite()
    more: dict[str, Any] = {
        "artifact_location": str(tmp_path / "target"),
        "preserve_ids": preserve_ids,
    }
    experiment_id = MlflowClient(source).get_experiment_by_name("mine").experiment_id
    copy(source, target, **more)
    client = MlflowClient(target, target)
    client.delete_experiment(client.get_experiment_by_name("mine").experiment_id)
    run_id, model_id = add(source, experiment_id, "new")

    for _ in range(2):
        report = copy(source, target, **more)

        assert report.ok
        assert_count_law(report)
        assert [skip.reason for skip in report.skips if skip.id in {"mine", run_id, model_id}] == [
            "its copy was deleted at the target; restore it there if it is to go on"
        ] * (2 + bool(model_id))
        left = {s.id: s.reason for s in report.skips if s.kind is Kind.MODEL_VERSION}
        assert f"those of run {run_id}, which is left out" in left["net/1"]
        if model_id:
            assert f"those of logged model {model_id}, which is left out" in left["net/2"]
        assert client.search_model_versions("name = 'net'") == []

    client.restore_experiment(client.search_experiments(view_type=2)[0].experiment_id)
    if preserve_ids:  # through its API MLflow looks for models:/ at the source here
        assert copy(source, target, **more).ok
        assert len(client.search_model_versions("name = 'net'")) == 1 + bool(model_id)


@pytest.mark.skipif(LoggedModelOutput is None, reason="MLflow 2 has no logged models")
def test_a_logged_model_whose_copy_was_deleted(
    source: str, make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    target = make_sqlite()
    client, there = MlflowClient(source, source), MlflowClient(target, target)
    experiment_id = client.get_experiment_by_name("mine").experiment_id
    _, model_id = add(source, experiment_id, "first")
    more: dict[str, Any] = {"artifact_location": str(tmp_path / "target"), "preserve_ids": False}
    assert copy(source, target, experiments=("mine",), **more).ok
    (model,) = there.search_logged_models([there.get_experiment_by_name("mine").experiment_id])
    there.delete_logged_model(model.model_id)

    report = copy(source, target, **more)

    assert report.ok
    left = {skip.id: skip.reason for skip in report.skips}
    assert left[model_id] == "its copy was deleted at the target"
    assert left["net/2"] == (
        f"its files are those of logged model {model_id}, which is left out: "
        "its copy was deleted at the target"
    )
    assert [v.version for v in there.search_model_versions("name = 'net'")] == [1]


@pytest.mark.parametrize("preserve_ids", [True, False])
def test_a_version_of_a_run_that_is_deleted_and_stays_behind(
    source: str, make_sqlite: Callable[[], str], tmp_path: Path, *, preserve_ids: bool
) -> None:
    target = make_sqlite()
    client = MlflowClient(source, source)
    run_id, _ = add(source, client.get_experiment_by_name("mine").experiment_id, "gone")
    client.delete_run(run_id)

    report = copy(
        source,
        target,
        artifact_location=str(tmp_path / "target"),
        preserve_ids=preserve_ids,
        deleted=False,
    )

    assert report.ok, report.failures
    what = [loss.what for loss in report.losses if loss.id == "net/1"]
    if preserve_ids:
        assert what == [f"its run {run_id} is not at the target"]
    else:
        assert "of 'mlflow_exim.model_versions' holds its files" in str(what)
