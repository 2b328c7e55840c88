"""Logged models with every hard case, made through MLflow's client; MLflow 3 only."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.entities import (
    Dataset,
    DatasetInput,
    LoggedModelInput,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
)

from tests.compare import as_default
from tests.seed import T0, Seeded, log_metrics, new_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["ModelsMade", "log_model_files", "seed_logged_models"]

MANY_PARAMS = 230


@dataclass
class ModelsMade:
    """What was made, by role."""

    runs: Seeded = field(default_factory=Seeded)
    models: dict[str, str] = field(default_factory=dict)

    @property
    def deleted(self) -> list[str]:
        return [self.models[role] for role in ("gone", "gone input")]


def seed_logged_models(client: MlflowClient, locations: dict[str, str] | None = None) -> ModelsMade:
    """Fill a deployment.

    Args:
        client: Of the deployment.
        locations: Artifact location by experiment name, for a store without a server.
    """
    made = ModelsMade()
    for name in ("models", "evaluations", "left"):
        location = (locations or {}).get(name)
        made.runs.experiments[name] = client.create_experiment(name, location)
    models, evaluations, left = made.runs.experiments.values()
    train = new_run(client, made.runs, "train", models)
    doomed = new_run(client, made.runs, "doomed", models)
    child = new_run(client, made.runs, "evaluate", evaluations, parent=train)
    ended = new_run(client, made.runs, "of deleted experiment", left)

    def model(role: str, experiment_id: str, run_id: str | None = None, **more: Any) -> str:
        created = client.create_logged_model(experiment_id, role, run_id, **more)
        made.models[role] = str(created.model_id)
        return made.models[role]

    params = {f"p{number:03}": "v" * (number * 40) for number in range(MANY_PARAMS)}
    net = model("net", models, train, params=params, tags={"team": "a", "empty": ""})
    log_model_files(
        client,
        net,
        {
            "MLmodel": f"# kept  as it is\nmodel_id: {net}\nrun_id:   {train}\nflavors: {{}}\n",
            "data/deep/weights.bin": "x" * 300_000 + train,
            "data/a b+1.txt": "ü",
            "empty": "",
        },
    )
    client.finalize_logged_model(net, LoggedModelStatus.READY)
    second = model("second of a run", models, train, model_type="Agent")
    client.finalize_logged_model(second, LoggedModelStatus.FAILED)
    model("pending", models, train)
    free = model("without a run", models, tags={"note": "ü\n✓"})
    log_model_files(client, free, {"MLmodel": "flavors: {}\n"})
    client.finalize_logged_model(free, LoggedModelStatus.READY)
    gone = model("gone", models, train)
    log_model_files(client, gone, {"MLmodel": f"model_id: {gone}\n"})
    gone_input = model("gone input", models)
    of_doomed = model("of doomed", models, doomed)
    of_left = model("of deleted experiment", left, ended)

    outputs = {train: [(net, 3), (second, 5), (gone, 7)], doomed: [(of_doomed, 0)]}
    outputs[ended] = [(of_left, 2)]
    for run_id, links in outputs.items():
        client.log_outputs(run_id, [LoggedModelOutput(*link) for link in links])
    client.log_inputs(
        child,
        [DatasetInput(Dataset("test", "d1", "local", "s", "{}", "{}"))],
        [LoggedModelInput(net), LoggedModelInput(of_left)],
    )
    client.log_inputs(doomed, models=[LoggedModelInput(gone_input)])

    log_metrics(client, child, {"only of the run": [(1.0, T0, 0)]})
    rows = [
        Metric("accuracy", 0.5, T0, 0, net, "test", "d1"),
        Metric("accuracy", 0.75, T0 + 1, 1, net, "test", "d1"),
        Metric("accuracy", 0.75, T0 + 1, 2, net),
        Metric("zero", 0.0, T0, 0, net),
        Metric("nan", math.nan, T0, 0, net),
        Metric("inf", math.inf, T0, 0, net),
        Metric("of a deleted model", 0.25, T0, 0, gone),
    ]
    client.log_batch(child, rows)
    client.log_batch(doomed, [Metric("loss", 0.125, T0, 0, net)])
    client.log_batch(doomed, [Metric("x", 1.0, T0, 0, of_doomed)])
    client.log_batch(ended, [Metric("loss", 2.0, T0, 0, of_left)])

    client.create_registered_model("shop")
    client.create_model_version("shop", f"models:/{net}", train, model_id=net)
    root = client.get_logged_model(free).artifact_location
    client.create_model_version("shop", root, model_id=free)
    client.set_registered_model_alias("shop", "champion", "1")
    client.delete_run(doomed)
    client.delete_logged_model(gone)
    client.delete_logged_model(gone_input)
    client.delete_experiment(left)
    return made


def log_model_files(client: MlflowClient, model_id: str, files: dict[str, str]) -> None:
    """Log files of a logged model under the given paths."""
    with tempfile.TemporaryDirectory() as folder, as_default(client.tracking_uri):
        for path, text in files.items():
            local = Path(folder) / path
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(text.encode())
        client.log_model_artifacts(model_id, folder)
