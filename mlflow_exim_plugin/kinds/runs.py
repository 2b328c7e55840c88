"""Experiments, runs, logged models and traces."""

from __future__ import annotations

from mlflow_exim_plugin.kinds.description import (
    KEY,
    LINK,
    ArtifactUri,
    Description,
    GrowingRows,
    Growth,
    Json,
    TableRows,
)
from mlflow_exim_plugin.kinds.kind import Kind

__all__ = ["EXPERIMENT", "LOGGED_MODEL", "RUN", "TRACE"]

_RUN_STAGES = {"SCHEDULED": 0, "RUNNING": 1}
_MODEL_PENDING = 1
"""MLflow's number of ``LOGGED_MODEL_PENDING``."""

EXPERIMENT = Description(
    Kind.EXPERIMENT,
    since="1.30",
    joins=("runs",),
    lists={"tags": KEY},
    refers={"experiment_id": Kind.EXPERIMENT},
    rest={"times": "creation_time last_update_time", "artifact roots": "artifact_location"},
    anew="experiment ids, creation and update times are the target's",
    secrets="name artifact_location tags",
)

RUN = Description(
    Kind.RUN,
    since="1.30",
    lists={
        "data.metrics": KEY,
        "data.params": KEY,
        "data.tags": KEY,
        "inputs.dataset_inputs": ("dataset.name", "dataset.digest"),
        "inputs.dataset_inputs[].tags": KEY,
        "inputs.model_inputs": ("model_id",),
        "outputs.model_outputs": ("model_id", "step"),
    },
    id_field="run_id",
    known_as="run_uuid",
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
    anew="run ids are new; the tag mlflow.exim.origin keeps the old ones",
    rows=TableRows("runs", {}),  # host.sql.run_rows makes them
    unlike={
        "runs": "artifact_uri deleted_time experiment_id source_type source_name entry_point_name"
        " source_version"
    },
    growth=Growth(
        stage=lambda run: _RUN_STAGES.get(run["status"], 2),
        end=2,
        fixed=frozenset({"start_time"}),
        parts={
            "params": GrowingRows(("key",)),
            "inputs": GrowingRows(
                LINK,
                ends=(("destination", "RUN"), ("source", "RUN_INPUT"), ("source", "RUN_OUTPUT")),
            ),
            "tags": GrowingRows(("key",), is_set=True),
        },
        keeps=frozenset({"user_id", "mlflow.user"}),
    ),
    secrets="info.run_name info.user_id info.artifact_uri data.metrics data.params data.tags"
    " inputs.dataset_inputs[].dataset inputs.dataset_inputs[].tags",
)

LOGGED_MODEL = Description(
    Kind.LOGGED_MODEL,
    since="3.0",
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
        "empty is absent": "info.model_type info.source_run_id",
    },
    anew="model_id, artifact_location, creation_timestamp, last_updated_timestamp and "
    "status_message are the target's; the tag mlflow.exim.origin keeps the old ids",
    unlike={"logged_models": "artifact_location"},
    growth=Growth(
        stage=lambda model: 0 if model["status"] == _MODEL_PENDING else 1,
        end=1,
        fixed=frozenset(
            {"experiment_id", "name", "creation_timestamp_ms", "model_type", "source_run_id"}
        ),
        parts={
            "logged_model_params": GrowingRows(("param_key",)),
            "logged_model_metrics": GrowingRows(
                ("metric_name", "metric_timestamp_ms", "metric_step", "run_id")
            ),
            "logged_model_tags": GrowingRows(("tag_key",), is_set=True),
        },
        goes_on=True,
    ),
    secrets="info.name info.model_type info.artifact_uri info.tags info.status_message data.params"
    " data.metrics",
)

TRACE = Description(
    Kind.TRACE,
    since="2.14",
    lists={
        "assessments": ("assessment_id",),
        "spans": ("span_id",),
        "info.linked_runs": (),
        "info.linked_prompts": (),
        "info.unlinked_prompts": (),
    },
    refers={
        "experiment_id": Kind.EXPERIMENT,
        "info.trace_id": Kind.TRACE,
        "info.linked_runs[]": Kind.RUN,
        "info.linked_prompts[]": Kind.PROMPT_VERSION,
        "info.unlinked_prompts[]": Kind.PROMPT_VERSION,
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
    unlike={"spans": "end_time_unix_nano"},
    growth=Growth(
        stage=lambda trace: 0 if trace["status"] == "IN_PROGRESS" else 1,
        end=1,
        fixed=frozenset({"experiment_id"}),
        parts={
            "spans": GrowingRows(("span_id",), until="end_time_unix_nano"),
            "trace_tags": GrowingRows(("key",), is_set=True),
            "trace_request_metadata": GrowingRows(("key",), is_set=True),
            "trace_metrics": GrowingRows(("key",), is_set=True),
            "assessments": GrowingRows(("assessment_id",), is_set=True),
        },
    ),
    names="info.linked_prompts info.unlinked_prompts assessments[].assessment_name",
    secrets="info.client_request_id info.request_preview info.response_preview info.tags"
    " info.trace_metadata spans[].name spans[].status_message spans[].attributes spans[].events"
    " spans[].links[].attributes assessments[].source assessments[].feedback"
    " assessments[].expectation assessments[].issue assessments[].rationale"
    " assessments[].metadata",
)
