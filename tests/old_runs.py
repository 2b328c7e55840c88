"""Old runs of every sort that retention meets: plain ones, ones in use, ones that hold."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import (
    AssessmentSource,
    Dataset,
    DatasetInput,
    Feedback,
    InputTag,
    LoggedModelInput,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.tracing.trace_manager import InMemoryTraceManager

from tests.compare import as_default

__all__ = ["OLD_MS", "OldRuns", "seed_old_runs"]

OLD_MS = 1_600_000_000_000
STEPS = 40


@dataclass
class OldRuns:
    """What was made, by role.

    Attributes:
        experiment: Id of the experiment "old".
        runs: Run ids.
        models: Logged models.
        traces: Traces.
        used: Roles of the runs that something uses, and a word that says by what.
    """

    experiment: str = ""
    runs: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    traces: dict[str, str] = field(default_factory=dict)
    used: dict[str, str] = field(default_factory=dict)

    @property
    def free(self) -> list[str]:
        """Roles of the old runs that nothing uses and nothing holds."""
        kept = {*self.used, "held", "young", "running"}
        return sorted(role for role in self.runs if role not in kept)


def seed_old_runs(uri: str, folder: Path | None = None, *, traces: bool = True) -> OldRuns:
    """Fill a deployment.

    Args:
        uri: The deployment.
        folder: Where files are to lie, for a store without a server.
        traces: Whether there are any.
    """
    with as_default(uri):  # a registry of a database asks the default one for a model
        return _seeded(uri, folder, traces=traces)


def _seeded(uri: str, folder: Path | None, *, traces: bool) -> OldRuns:
    client, made = MlflowClient(uri, uri), OldRuns()

    def experiment(name: str) -> str:
        return str(client.create_experiment(name, None if folder is None else f"{folder}/{name}"))

    made.experiment, other = experiment("old"), experiment("other")

    def run(
        role: str,
        into: str = made.experiment,
        *,
        start_ms: int = OLD_MS,
        parent: str = "",
        ends: bool = True,
    ) -> str:
        tags = {"role": role, "mlflow.user": "ada"} | (
            {"mlflow.parentRunId": parent} if parent else {}
        )
        run_id = str(client.create_run(into, start_ms, tags, role).info.run_id)
        made.runs[role] = run_id
        rows = [
            Metric(key, step / 7, start_ms + step, step)
            for key in ("loss", "acc")
            for step in range(STEPS)
        ]
        params = [Param("lr", "0.1"), Param("role", role)]
        client.log_batch(run_id, rows, params, [RunTag("note", f"of {role}")])
        used = DatasetInput(Dataset("data", "d1", "local", "s", "{}", "{}"), [InputTag("of", role)])
        client.log_inputs(run_id, [used])
        with tempfile.TemporaryDirectory() as files:
            Path(files, "deep").mkdir()
            Path(files, "deep", "file.txt").write_text(f"of {role}" * 50)
            Path(files, "top.txt").write_text(role)
            client.log_artifacts(run_id, files)
        if ends:
            client.set_terminated(run_id, "FINISHED", start_ms + 5_000)
        return run_id

    def model(role: str, of: str, into: str = made.experiment) -> str:
        created = client.create_logged_model(into, role, of, params={"depth": "3"})
        made.models[role] = model_id = str(created.model_id)
        client.log_outputs(of, [LoggedModelOutput(model_id, 1)])
        with tempfile.TemporaryDirectory() as files:
            Path(files, "MLmodel").write_text(f"model_id: {model_id}\n")
            client.log_model_artifacts(model_id, files)
        client.finalize_logged_model(model_id, "READY")
        return model_id

    run("plain")
    run("with model")
    model("free", made.runs["with model"])
    sweep = run("sweep")
    run("trial", parent=sweep)
    old_parent = run("parent of young")
    run("young", parent=old_parent, start_ms=4_000_000_000_000)
    made.used["parent of young"] = "child"
    run("of version")
    client.create_registered_model("registered")
    of_version = made.runs["of version"]
    source = str(client.get_run(of_version).info.artifact_uri)
    client.create_model_version("registered", source, of_version)
    client.set_registered_model_alias("registered", "champion", "1")
    made.used["of version"] = "registered"
    registered_model = model("registered", run("of model of version"))
    where = str(client.get_logged_model(registered_model).artifact_location)
    client.create_model_version("registered", where, None, model_id=registered_model)
    made.used["of model of version"] = "registered"
    tested = model("tested", run("of tested model"))
    young = made.runs["young"]
    client.log_inputs(young, models=[LoggedModelInput(tested)])
    made.used["of tested model"] = "young"
    held = run("held")
    client.set_tag(held, "mlflow.exim.legal_hold", "case 7")
    run("running", ends=False)
    run("elsewhere", other)
    if traces:
        _seed_traces(client, made)
    return made


def _seed_traces(client: MlflowClient, made: OldRuns) -> None:
    def trace(role: str, run_id: str = "") -> str:
        span = client.start_trace(role, experiment_id=made.experiment, inputs={"q": role})
        if run_id:
            manager = InMemoryTraceManager.get_instance()
            with manager.get_trace(span.trace_id) as live:
                live.info.trace_metadata["mlflow.sourceRun"] = run_id
        client.end_trace(span.trace_id, outputs={"a": role})
        mlflow.flush_trace_async_logging()
        made.traces[role] = str(span.trace_id)
        return made.traces[role]

    def judge(trace_id: str, by: str) -> None:
        feedback = Feedback(
            "judged",
            1.0,
            source=AssessmentSource("HUMAN", "ada"),
            trace_id=trace_id,
            metadata={"mlflow.assessment.sourceRunId": by},
        )
        client._tracking_client.store.create_assessment(feedback)

    plain = made.runs["with model"]
    judge(trace("own", plain), plain)
    judging = str(client.create_run(made.experiment, OLD_MS, run_name="judge").info.run_id)
    client.set_terminated(judging, "FINISHED", OLD_MS + 1)
    made.runs["judge"] = judging
    judge(trace("free"), judging)
    made.used["judge"] = "assessment"
