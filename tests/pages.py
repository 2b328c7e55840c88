"""A server with what MLflow's pages draw: curves, pictures, tables, spans, evaluations."""

from __future__ import annotations

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, SpanType

from tests.compare import as_default

__all__ = ["EXPERIMENT", "fill"]

EXPERIMENT = "drawn ✓"
_T0_MS = 1_780_000_000_000
_STEPS = 40


def fill(uri: str) -> None:
    """Fill a server."""
    import pandas as pd
    from matplotlib.figure import Figure

    client = MlflowClient(uri, uri)
    experiment_id = client.create_experiment(EXPERIMENT)
    for number, name in enumerate(("short", "long")):
        run_id = client.create_run(experiment_id, _T0_MS + number, run_name=name).info.run_id
        loss = [Metric("loss", 100 * 0.8**step, _T0_MS + step, step) for step in range(_STEPS)]
        accuracy = [Metric("accuracy", step, _T0_MS + step, step) for step in range(_STEPS)]
        client.log_batch(run_id, [*loss, *accuracy])
        client.log_param(run_id, "depth", 3 + number)
    client.set_terminated(run_id, end_time=_T0_MS + 60_000)
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([1, 2])
    client.log_figure(run_id, figure, "plots/line.png")
    client.log_table(run_id, {"fruit": ["apple", "pear"], "weight": [7, 9]}, "fruits.json")
    client.log_text(run_id, "some words", "note.txt")
    with as_default(uri):
        mlflow.set_experiment(EXPERIMENT)
        with mlflow.start_run(run_id=run_id):
            data = pd.DataFrame({"x": [1.0, 2.0]})
            mlflow.log_input(mlflow.data.from_pandas(data, name="fruits of may"), "training")
        client.set_terminated(run_id, end_time=_T0_MS + 60_000)
        with mlflow.start_span("answer", SpanType.AGENT) as outer:
            outer.set_inputs({"question": "which fruit?"})
            with mlflow.start_span("look up", SpanType.RETRIEVER) as inner:
                inner.set_outputs(["apple"])
            outer.set_outputs("an apple")
        mlflow.flush_trace_async_logging()
        records = [{"inputs": {"question": "which fruit?"}, "expectations": {"answer": "apple"}}]
        dataset = mlflow.genai.datasets.create_dataset("asked fruits", experiment_id=experiment_id)
        dataset.merge_records(records)
        client.register_prompt("greeting", "Hello {{name}}, which fruit?")
    evaluated = client.create_run(experiment_id, _T0_MS + 9, run_name="graded").info.run_id
    client.set_tag(evaluated, "mlflow.runType", "genai_evaluate")
    client.log_metric(evaluated, "correctness/mean", 0.75, _T0_MS, 0)
    client.set_terminated(evaluated, end_time=_T0_MS + 60_000)
    client.create_registered_model("fruits", description="grades fruits")
    client.create_model_version("fruits", f"runs:/{run_id}/model", run_id)
    client.set_registered_model_alias("fruits", "champion", "1")
