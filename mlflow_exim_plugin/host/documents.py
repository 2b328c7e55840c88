"""MLflow's entities as the JSON objects its REST API returns for them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import InvalidArchiveError, UsageError
from mlflow_exim_plugin.schema.documents import (
    dataset_identity,
    json_number,
    metric_identity,
    sorted_entries,
    without_empty,
)
from mlflow_exim_plugin.schema.provenance import with_dots

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

__all__ = [
    "dataset_inputs",
    "experiment_document",
    "logged_model_document",
    "matching_runs",
    "model_version_document",
    "proto_document",
    "registered_model_document",
    "run_document",
]


def experiment_document(experiment: Any) -> dict[str, Any]:
    """Return REST's ``Experiment`` for an ``mlflow.entities.Experiment``."""
    document = proto_document(experiment)
    document["tags"] = sorted_entries(experiment.tags)
    return document


def run_document(run: Any) -> dict[str, Any]:
    """Return REST's ``Run`` for an ``mlflow.entities.Run``."""
    from mlflow.entities import RunStatus

    info = run.info
    run_info: dict[str, Any] = {
        "run_id": info.run_id,
        "run_uuid": info.run_id,
        # Servers before 1.30 have it in the tag alone.
        "run_name": info.run_name or run.data.tags.get("mlflow.runName") or info.run_name,
        "experiment_id": str(info.experiment_id),
        "user_id": info.user_id,
        "status": info.status if isinstance(info.status, str) else RunStatus.to_string(info.status),
        "start_time": info.start_time,
        "end_time": info.end_time,
        "artifact_uri": info.artifact_uri,
        "lifecycle_stage": info.lifecycle_stage,
    }
    metrics = sorted(run.data._metric_objs, key=lambda m: m.key)  # noqa: SLF001 - keeps the steps
    document: dict[str, Any] = {
        "info": {key: value for key, value in run_info.items() if value is not None},
        "data": {
            "metrics": [
                {
                    "key": metric.key,
                    "value": json_number(metric.value),
                    "timestamp": metric.timestamp,
                    "step": metric.step,
                }
                for metric in metrics
            ],
            "params": sorted_entries(run.data.params),
            "tags": sorted_entries(run.data.tags),
        },
    }
    if run.inputs and (inputs := proto_document(run.inputs)):
        for dataset_input in inputs.get("dataset_inputs", ()):
            dataset_input.get("tags", []).sort(key=lambda tag: tag["key"])
        inputs.get("dataset_inputs", []).sort(key=dataset_identity)
        inputs.get("model_inputs", []).sort(key=lambda model: model["model_id"])
        document["inputs"] = inputs
    outputs = getattr(run, "outputs", None)
    if outputs and (outputs_document := proto_document(outputs)):
        outputs_document.get("model_outputs", []).sort(
            key=lambda model: (model.get("step", 0), model["model_id"])
        )
        document["outputs"] = outputs_document
    return document


def logged_model_document(model: Any) -> dict[str, Any]:
    """Return REST's ``LoggedModel`` for an ``mlflow.entities.LoggedModel``."""
    document = proto_document(model)
    info = without_empty(document["info"])
    info["tags"] = sorted_entries(model.tags)
    metrics = document.get("data", {}).get("metrics", [])
    metrics.sort(key=metric_identity)
    return {"info": info, "data": {"metrics": metrics, "params": sorted_entries(model.params)}}


def registered_model_document(model: Any) -> dict[str, Any]:
    """Return REST's ``RegisteredModel`` without ``latest_versions``, which repeats the versions."""
    document = without_empty(proto_document(model))
    document.pop("latest_versions", None)
    if document.get("deployment_job_state") == "DEPLOYMENT_JOB_CONNECTION_STATE_UNSPECIFIED":
        del document["deployment_job_state"]  # protobuf's way to say that there is none
    # The entity's own ``tags`` leave out the one that makes it a prompt.
    tags = {with_dots(tag["key"]): tag.get("value", "") for tag in document.get("tags", [])}
    document["tags"] = sorted_entries(tags)
    document["aliases"] = sorted(document.get("aliases", []), key=lambda a: a["alias"])
    return document


def model_version_document(version: Any, aliases: list[str]) -> dict[str, Any]:
    """Return REST's ``ModelVersion``; searches leave the aliases out, so they are given."""
    document = without_empty(proto_document(version))
    tags = {with_dots(key): value for key, value in version.tags.items()}
    document["tags"] = sorted_entries(tags)
    document["aliases"] = sorted(aliases)
    if model_id := getattr(version, "model_id", None):
        document["model_id"] = model_id
    return document


def proto_document(entity: Any) -> dict[str, Any]:
    """Return the JSON object that REST gives for an entity of MLflow."""
    from mlflow.utils.proto_json_utils import message_to_json

    document: dict[str, Any] = json.loads(message_to_json(entity.to_proto()))
    return document


def signed(entity: Any) -> dict[str, Any]:
    """Return who made an entity of a registry and changed it last, and when."""
    return {
        "created_by": entity.created_by,
        "last_updated_by": entity.last_updated_by,
        "creation_timestamp": entity.creation_timestamp,
        "last_updated_timestamp": entity.last_updated_timestamp,
    }


def matching_runs(documents: list[dict[str, Any]], filter_string: str) -> list[dict[str, Any]]:
    """Return the run documents that match MLflow's filter language, as a server would.

    Raises:
        UsageError: The filter is not in MLflow's language.
    """
    from google.protobuf.json_format import ParseDict, ParseError
    from mlflow.entities import Run
    from mlflow.exceptions import MlflowException
    from mlflow.protos.service_pb2 import Run as ProtoRun
    from mlflow.utils.search_utils import SearchUtils

    try:
        entities = [
            Run.from_proto(ParseDict(document, ProtoRun(), ignore_unknown_fields=True))
            for document in documents
        ]
        matching = {run.info.run_id for run in SearchUtils.filter(entities, filter_string)}
    except MlflowException as error:
        raise UsageError(f"--filter: {error.message}") from error
    except ParseError as error:
        raise InvalidArchiveError(f"a run is not as MLflow has it: {error}") from error
    return [document for document in documents if document["info"]["run_id"] in matching]


def dataset_inputs(document: dict[str, Any]) -> list[DatasetInput]:
    """Return the dataset inputs of REST's ``Run`` as MLflow's entities."""
    from google.protobuf.json_format import ParseDict
    from mlflow.entities import DatasetInput
    from mlflow.protos.service_pb2 import DatasetInput as ProtoDatasetInput

    listed = document.get("inputs", {}).get("dataset_inputs", ())
    return [
        DatasetInput.from_proto(ParseDict(d, ProtoDatasetInput(), ignore_unknown_fields=True))
        for d in listed
    ]
