"""Experiments, runs, logged models and the registry as rows of MLflow's tables."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.sql.stored_values import as_stored_number
from mlflow_exim_plugin.schema.objects import key_values, linked_models

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlflow_exim_plugin.host.sql.writer import Rows
    from mlflow_exim_plugin.schema.objects import (
        Experiment,
        LoggedModel,
        ModelVersion,
        RegisteredModel,
        Run,
    )

__all__ = [
    "LOGGED_MODEL_COLUMNS",
    "LOGGED_MODEL_STATUSES",
    "MODEL_COLUMNS",
    "VERSION_COLUMNS",
    "experiment_rows",
    "logged_model_metrics",
    "logged_model_rows",
    "model_rows",
    "run_rows",
    "version_rows",
]


MODEL_COLUMNS = {
    "creation_time": "creation_timestamp",
    "last_updated_time": "last_updated_timestamp",
    "description": "description",
}
"""Fields of REST's ``RegisteredModel`` by the columns that they are kept in."""
VERSION_COLUMNS = {
    "creation_time": "creation_timestamp",
    "last_updated_time": "last_updated_timestamp",
    "user_id": "user_id",
    "current_stage": "current_stage",
    "description": "description",
    "source": "source",
    "run_id": "run_id",
    "status": "status",
    "status_message": "status_message",
    "run_link": "run_link",
}
"""Fields of REST's ``ModelVersion`` by the columns that they are kept in."""
LOGGED_MODEL_COLUMNS = {
    "model_id": "model_id",
    "experiment_id": "experiment_id",
    "name": "name",
    "creation_timestamp_ms": "creation_timestamp_ms",
    "last_updated_timestamp_ms": "last_updated_timestamp_ms",
    "artifact_location": "artifact_uri",
    "status": "status",
    "lifecycle_stage": "lifecycle_stage",
    "model_type": "model_type",
    "source_run_id": "source_run_id",
    "status_message": "status_message",
}
"""Fields of ``info`` of REST's ``LoggedModel`` by the columns that they are kept in."""
LOGGED_MODEL_STATUSES = (
    "LOGGED_MODEL_STATUS_UNSPECIFIED",
    "LOGGED_MODEL_PENDING",
    "LOGGED_MODEL_READY",
    "LOGGED_MODEL_UPLOAD_FAILED",
)
"""Each by the number that is kept of it."""


def experiment_rows(
    experiment: Experiment,
    experiment_id: int,
    name: str,
    artifact_location: str,
    workspace: str,
    tags: dict[str, str],
) -> Rows:
    """Return the rows of an experiment with these tags."""
    document = experiment.document
    row = {
        "experiment_id": experiment_id,
        "name": name,
        "artifact_location": artifact_location,
        "lifecycle_stage": document.get("lifecycle_stage", "active"),
        "creation_time": document.get("creation_time"),
        "last_update_time": document.get("last_update_time"),
        "workspace": workspace,
    }
    rows: Rows = [("experiments", row)]
    rows += [
        ("experiment_tags", {"experiment_id": experiment_id, "key": key, "value": value})
        for key, value in tags.items()
    ]
    return rows


def run_rows(
    run: Run,
    experiment_id: int,
    artifact_uri: str,
    user_id: str | None,
    tags: dict[str, str],
    dataset_uuid: Callable[[dict[str, Any]], tuple[str, bool]],
) -> Rows:
    """Return the rows of a run but its histories and latest metrics.

    Args:
        run: The run.
        experiment_id: Its experiment at the target.
        artifact_uri: Where its files are there.
        user_id: Its owner.
        tags: Its tags.
        dataset_uuid: Gives the id of a dataset, told by its row without one, and whether it has no
            row yet.
    """
    info, run_id = run.info, run.id
    is_deleted = info.get("lifecycle_stage") == "deleted"
    row = {
        "run_uuid": run_id,
        "name": info.get("run_name"),
        "source_type": "UNKNOWN",
        "source_name": "",
        "entry_point_name": "",
        # MLflow reads no run without these; through its API they would become the same.
        "user_id": user_id or "",
        "status": info.get("status", "RUNNING"),
        "start_time": info.get("start_time") or 0,
        "end_time": info.get("end_time"),
        # Not known over REST, and garbage collection never takes a run without.
        "deleted_time": run.as_of_ms if is_deleted else None,
        "source_version": "",
        "lifecycle_stage": info.get("lifecycle_stage", "active"),
        "artifact_uri": artifact_uri,
        "experiment_id": experiment_id,
    }
    rows: Rows = [("runs", row)]
    for table, entries in (("tags", tags), ("params", run.params)):
        rows += [
            (table, {"key": key, "value": value, "run_uuid": run_id})
            for key, value in entries.items()
        ]
    for entry in run.document.get("inputs", {}).get("dataset_inputs", ()):
        rows += _dataset_input(entry, run_id, experiment_id, dataset_uuid)
    inputs, outputs = linked_models(run.document)
    rows += [_link("RUN_INPUT", run_id, "MODEL_INPUT", model_id) for model_id in inputs]
    rows += [_link("RUN_OUTPUT", run_id, "MODEL_OUTPUT", *made) for made in outputs]
    return rows


def _dataset_input(
    entry: dict[str, Any],
    run_id: str,
    experiment_id: int,
    dataset_uuid: Callable[[dict[str, Any]], tuple[str, bool]],
) -> Rows:
    dataset = entry["dataset"]
    row = {
        "experiment_id": experiment_id,
        "name": dataset["name"],
        "digest": dataset["digest"],
        "dataset_source_type": dataset.get("source_type", ""),
        "dataset_source": dataset.get("source", ""),
        "dataset_schema": dataset.get("schema"),
        "dataset_profile": dataset.get("profile"),
    }
    identity, is_new = dataset_uuid(row)
    rows: Rows = [("datasets", {"dataset_uuid": identity, **row})] if is_new else []
    link = _link("DATASET", identity, "RUN", run_id)
    rows.append(link)
    rows += [
        (
            "input_tags",
            {"input_uuid": link[1]["input_uuid"], "name": tag["key"], "value": tag["value"]},
        )
        for tag in entry.get("tags", ())
    ]
    return rows


def _link(
    source_type: str, source_id: str, destination_type: str, destination_id: str, step: int = 0
) -> tuple[str, dict[str, Any]]:
    row = {
        "input_uuid": secrets.token_hex(16),  # like a uuid4, at a third of the time
        "source_type": source_type,
        "source_id": source_id,
        "destination_type": destination_type,
        "destination_id": destination_id,
        "step": step,
    }
    return "inputs", row


def logged_model_rows(
    model: LoggedModel, experiment_id: int, artifact_location: str, tags: dict[str, str]
) -> Rows:
    """Return the rows of a logged model but its metrics."""
    info = model.info
    of_model = {"model_id": model.id, "experiment_id": experiment_id}
    row = {column: info.get(field) for column, field in LOGGED_MODEL_COLUMNS.items()}
    row |= of_model | {
        "artifact_location": artifact_location,
        "status": LOGGED_MODEL_STATUSES.index(info.get("status", LOGGED_MODEL_STATUSES[0])),
        "lifecycle_stage": info.get("lifecycle_stage", "active"),
    }
    rows: Rows = [("logged_models", row)]
    params = key_values(model.document.get("data", {}).get("params"))
    for table, entries in (("tag", tags), ("param", params)):
        rows += [
            (f"logged_model_{table}s", of_model | {f"{table}_key": k, f"{table}_value": v})
            for k, v in entries.items()
        ]
    return rows


def logged_model_metrics(model: LoggedModel, experiment_id: int) -> Rows:
    """Return the rows of a logged model's metrics, each of which belongs to a run."""
    rows: Rows = []
    for metric in model.document.get("data", {}).get("metrics", ()):
        row = {
            "model_id": model.id,
            "experiment_id": experiment_id,
            "metric_name": metric["key"],
            "metric_timestamp_ms": metric.get("timestamp", 0),
            "metric_step": metric.get("step", 0),
            "metric_value": as_stored_number(metric["value"]),
            "run_id": metric["run_id"],
            "dataset_name": metric.get("dataset_name"),
            "dataset_digest": metric.get("dataset_digest"),
        }
        rows.append(("logged_model_metrics", row))
    return rows


def model_rows(model: RegisteredModel, name: str, workspace: str, tags: dict[str, str]) -> Rows:
    """Return the rows of a registered model or prompt but its versions and aliases."""
    document = model.document
    owner = {"workspace": workspace, "name": name}
    row = owner | {column: document.get(field) for column, field in MODEL_COLUMNS.items()}
    rows: Rows = [("registered_models", row)]
    return rows + _tags("registered_model_tags", owner, tags.items())


def version_rows(
    version: ModelVersion,
    name: str,
    number: int,
    workspace: str,
    places: tuple[str | None, str | None],
    tags: dict[str, str],
) -> Rows:
    """Return the rows of a version.

    Args:
        version: The version.
        name: Its name at the target.
        number: Its number there.
        workspace: Its workspace there.
        places: Its source there, and where its files are.
        tags: Its tags.
    """
    document = version.document
    owner = {"workspace": workspace, "name": name, "version": number}
    source, storage_location = places
    row = owner | {column: document.get(field) for column, field in VERSION_COLUMNS.items()}
    row |= {
        "current_stage": document.get("current_stage", "None"),
        "source": source,
        "storage_location": storage_location,
        "status": document.get("status", "READY"),
    }
    rows: Rows = [("model_versions", row)]
    return rows + _tags("model_version_tags", owner, tags.items())


def _tags(table: str, owner: dict[str, Any], tags: Iterable[tuple[str, str]]) -> Rows:
    return [(table, owner | {"key": key, "value": value}) for key, value in tags]
