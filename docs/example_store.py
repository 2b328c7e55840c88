"""Fills a store with the example that the pages tell of: an experiment and a model named churn."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric

EXPERIMENT = "churn"
STEPS = 100


def fill(uri: str, artifact_location: str | None = None) -> str:
    """Log three runs, a registered model with two versions, a prompt and a trace.

    Args:
        uri: Tracking URI of a store or server in which they are not.
        artifact_location: Where the files go; the store's own place without it.

    Returns:
        The run that the pages name by its id.
    """
    client = MlflowClient(uri, uri)
    experiment_id = client.create_experiment(EXPERIMENT, artifact_location)
    runs = [_log_run(client, experiment_id, depth) for depth in (3, 5, 8)]
    client.create_registered_model(EXPERIMENT, description="Who is about to leave?")
    for run_id in runs[:2]:
        source = f"{client.get_run(run_id).info.artifact_uri}/model"
        client.create_model_version(EXPERIMENT, source, run_id)
    client.set_registered_model_alias(EXPERIMENT, "champion", "2")
    client.register_prompt(name="reason", template="Why did {{customer}} leave?")
    _log_trace(uri, experiment_id)
    return runs[1]


def _log_run(client: MlflowClient, experiment_id: str, depth: int) -> str:
    run_id: str = client.create_run(experiment_id, run_name=f"depth {depth}").info.run_id
    client.log_param(run_id, "depth", depth)
    start_ms = client.get_run(run_id).info.start_time
    losses = [
        Metric("loss", math.exp(-step * depth / 200), start_ms + step, step)
        for step in range(STEPS)
    ]
    client.log_batch(run_id, losses)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        model.mkdir()
        Path(model, "MLmodel").write_text(f"flavors: {{}}\nrun_id: {run_id}\n", encoding="utf-8")
        Path(model, "weights.bin").write_bytes(bytes(range(256)) * 64 * depth)
        client.log_artifacts(run_id, folder)
    client.set_terminated(run_id)
    return run_id


def _log_trace(uri: str, experiment_id: str) -> None:
    """Log a trace as a program does, and leave this process as it was."""
    os.environ["MLFLOW_EXPERIMENT_ID"] = experiment_id
    mlflow.set_tracking_uri(uri)
    try:
        with mlflow.start_span("ask", span_type="LLM") as span:
            span.set_inputs({"customer": "Ada"})
            span.set_outputs({"reason": "price"})
        mlflow.flush_trace_async_logging()
    finally:
        mlflow.set_tracking_uri(None)
        del os.environ["MLFLOW_EXPERIMENT_ID"]
