"""Experiments, runs, logged models and traces."""

from __future__ import annotations

from mlflow_exim_plugin.kinds.description import KEY, ArtifactUri, Description, Json
from mlflow_exim_plugin.kinds.kind import Kind

__all__ = ["EXPERIMENT", "LOGGED_MODEL", "RUN", "TRACE"]

EXPERIMENT = Description(
    Kind.EXPERIMENT,
    joins=("runs",),
    lists={"tags": KEY},
    refers={"experiment_id": Kind.EXPERIMENT},
    rest={"times": "creation_time last_update_time", "artifact roots": "artifact_location"},
    anew="experiment ids, creation and update times are the target's",
)

RUN = Description(
    Kind.RUN,
    lists={
        "data.metrics": KEY,
        "data.params": KEY,
        "data.tags": KEY,
        "inputs.dataset_inputs": ("dataset.name", "dataset.digest"),
        "inputs.dataset_inputs[].tags": KEY,
        "inputs.model_inputs": ("model_id",),
        "outputs.model_outputs": ("model_id", "step"),
    },
    refers={
        "info.run_id": Kind.RUN,
        "info.run_uuid": Kind.RUN,
        "info.experiment_id": Kind.EXPERIMENT,
        "info.artifact_uri": ArtifactUri(),
        "data.tags.mlflow.parentRunId": Kind.RUN,
        "data.tags.mlflow.log-model.history": Json(Kind.RUN, "run_id"),
        "inputs.model_inputs[].model_id": Kind.LOGGED_MODEL,
        "outputs.model_outputs[].model_id": Kind.LOGGED_MODEL,
    },
    rest={"artifact roots": "info.artifact_uri"},
    anew="run ids are new; the tag mlflow_exim.origin keeps the old ones",
)

LOGGED_MODEL = Description(
    Kind.LOGGED_MODEL,
    lists={
        "info.tags": KEY,
        "data.params": KEY,
        "data.metrics": (
            "key",
            "run_id",
            "step",
            "timestamp",
            "dataset_name",
            "dataset_digest",
        ),
    },
    refers={
        "info.model_id": Kind.LOGGED_MODEL,
        "info.experiment_id": Kind.EXPERIMENT,
        "info.source_run_id": Kind.RUN,
        "info.artifact_uri": ArtifactUri(),
        "info.tags.mlflow.modelVersions": Json(Kind.REGISTERED_MODEL, "name"),
        "data.metrics[].run_id": Kind.RUN,
        "data.metrics[].model_id": Kind.LOGGED_MODEL,
    },
    rest={
        "times": "info.creation_timestamp_ms info.last_updated_timestamp_ms",
        "artifact roots": "info.artifact_uri",
        "marks of the server": "info.tags.mlflow.modelVersions",
        "version status": "info.status_message",
    },
    anew="model_id, artifact_location, creation_timestamp, last_updated_timestamp and "
    "status_message are the target's; the tag mlflow_exim.origin keeps the old ids",
)

TRACE = Description(
    Kind.TRACE,
    lists={"assessments": ("assessment_id",), "spans": ("span_id",), "info.linked_runs": ()},
    refers={
        "experiment_id": Kind.EXPERIMENT,
        "info.trace_id": Kind.TRACE,
        "info.linked_runs[]": Kind.RUN,
        "info.trace_metadata.mlflow.sourceRun": Kind.RUN,
        "info.trace_metadata.mlflow.modelId": Kind.LOGGED_MODEL,
        "spans[].attributes.mlflow.modelId": Kind.LOGGED_MODEL,
        "assessments[].metadata.mlflow.assessment.sourceRunId": Kind.RUN,
        # The name of an assessment that speaks of an issue is the issue's id.
        "assessments[].assessment_name": Kind.ISSUE,
    },
    rest={
        "artifact roots": "info.tags.mlflow.artifactLocation",
        "places of spans": "info.tags.mlflow.trace.spansLocation"
        " info.tags.mlflow.trace.archiveLocation info.tags.mlflow.trace.archivalFailure",
        "marks of the server": "info.trace_metadata.mlflow.trace.infoFinalized",
    },
)
