"""A folder that MLflow's own client has filled with one of everything that it keeps in files."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import AssessmentSource, LoggedModelInput

from tests.compare import as_default

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Store", "fill_folder"]

ME = AssessmentSource("HUMAN", "me")


@dataclass(frozen=True)
class Store:
    """A folder that MLflow's own client has filled."""

    folder: Path
    experiments: dict[str, str]
    runs: dict[str, str]

    @property
    def uri(self) -> str:
        return self.folder.as_uri()

    def run(self, role: str, experiment: str = "e") -> Path:
        return self.folder / self.experiments[experiment] / self.runs[role]

    def copied(self, to: Path, *, says_so: bool = False) -> Store:
        """Return the same in another place.

        Args:
            to: The place.
            says_so: False leaves the old place in the roots.
        """
        shutil.copytree(self.folder, to, symlinks=True)
        for path in to.rglob("*") if says_so else ():
            if path.is_file():
                content = path.read_bytes()
                path.write_bytes(content.replace(os.fsencode(self.folder), os.fsencode(to)))
        return Store(to, self.experiments, self.runs)


def fill_folder(folder: Path) -> Store:
    """Fill a folder, which is made; its MLflow must be allowed to (``MLFLOW_ALLOW_FILE_STORE``)."""
    with as_default(folder.as_uri()):
        store = _fill(folder)
        mlflow.flush_trace_async_logging()
    return store


def _fill(folder: Path) -> Store:
    client = MlflowClient()
    ids = {
        "e": client.create_experiment("e", tags={"a/b": "1", "empty": ""}),
        "gone": client.create_experiment("gone"),
    }
    made = Store(folder, ids, {})
    with mlflow.start_run(experiment_id=ids["e"], run_name="it's: #1") as run:
        made.runs["full"] = run.info.run_id
        mlflow.log_params({"p/q": "v", "empty": "", "line": "a\nb\u2028c"})
        for step in range(5):
            mlflow.log_metric("m/x", step * 0.5, step=step)
        mlflow.log_metrics({"nan": float("nan"), "inf": float("-inf"), "again": 1.0})
        dataset: Any = mlflow.data.from_numpy(np.zeros((2, 2)), source="http://x/y", name="d")
        mlflow.log_input(dataset, context="train", tags={"k": "v"})
        mlflow.log_text("w", "a/b.txt")
        model = mlflow.create_external_model(
            "m", params={"a": "b"}, tags={"t": "u"}, model_type="agent"
        )
        for step in range(3):
            mlflow.log_metric("of", step, step=step, model_id=model.model_id, dataset=dataset)
        deleted = mlflow.create_external_model("deleted")
        client.log_outputs(
            run.info.run_id, [mlflow.entities.LoggedModelOutput(model.model_id, step=4)]
        )
    client.delete_logged_model(deleted.model_id)
    with mlflow.start_run(experiment_id=ids["e"]) as run:
        made.runs["parent"] = run.info.run_id
        client.log_inputs(run.info.run_id, models=[LoggedModelInput(model.model_id)])
        with mlflow.start_run(experiment_id=ids["e"], nested=True) as child:
            made.runs["deleted"] = child.info.run_id
    client.delete_run(made.runs["deleted"])
    with mlflow.start_run(experiment_id=ids["gone"]) as run:
        made.runs["of gone"] = run.info.run_id
        mlflow.log_metric("x", 1)
    client.delete_experiment(ids["gone"])
    _fill_registry(client, made.runs["full"], model.model_id)
    mlflow.set_experiment(experiment_id=ids["e"])
    _trace(1)
    mlflow.flush_trace_async_logging()
    trace_id = str(mlflow.get_last_active_trace_id())
    first = mlflow.log_feedback(
        trace_id=trace_id, name="f", value=0.5, rationale="r", source=ME, metadata={"k": "v"}
    )
    mlflow.log_expectation(trace_id=trace_id, name="x", value={"a": [1, 2]}, source=ME)
    mlflow.override_feedback(trace_id=trace_id, assessment_id=str(first.assessment_id), value=True)
    with mlflow.start_run(run_id=made.runs["full"]):
        _trace(2)
    return made


@mlflow.trace  # type: ignore[untyped-decorator]
def _trace(x: int) -> int:
    with mlflow.start_span("inner") as span:
        span.set_inputs({"a": 1})
    return x + 1


def _fill_registry(client: MlflowClient, run_id: str, model_id: str) -> None:
    client.create_registered_model("net", {"t": "u"}, "what it is")
    root = client.get_run(run_id).info.artifact_uri
    for _ in range(3):
        client.create_model_version("net", f"{root}/a", run_id, {"k": "v"}, description="d")
    client.delete_model_version("net", "3")
    client.create_registered_model("of model")
    client.create_model_version("of model", f"models:/{model_id}", model_id=model_id)
    client.copy_model_version("models:/net/1", "copied")
    client.set_registered_model_alias("net", "champion", "2")
    mlflow.genai.register_prompt("p", "hello {{x}}", tags={"a": "b"})
    mlflow.genai.register_prompt("p", "bye {{x}}", commit_message="second")
