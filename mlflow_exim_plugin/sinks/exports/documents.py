"""MLflow's objects as mlflow-export-import has them: the attributes of its Python entities."""

from __future__ import annotations

import contextlib
import json
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.schema.objects import key_values

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow_exim_plugin.schema.objects import LoggedModel, Trace

__all__ = [
    "dataset",
    "experiment",
    "logged_model",
    "prompt",
    "registered_model",
    "run_parts",
    "trace",
    "unknown_fields",
    "version",
]

_TIMES = (
    *("start_time", "end_time", "creation_time", "last_update_time"),
    *("creation_timestamp", "last_updated_timestamp"),
)
_STATUS = {
    "LOGGED_MODEL_STATUS_UNSPECIFIED": "UNSPECIFIED",
    "LOGGED_MODEL_PENDING": "PENDING",
    "LOGGED_MODEL_READY": "READY",
    "LOGGED_MODEL_UPLOAD_FAILED": "FAILED",
}
_ENTRY = {"key", "value"}
_METRIC = {
    "key",
    "value",
    "timestamp",
    "step",
    "model_id",
    "dataset_name",
    "dataset_digest",
    "run_id",
}
_NEEDED = {"run_id": "", "description": "", "current_stage": "None", "aliases": []}
_OF_NO_DATASET = {"dataset_name": None, "dataset_digest": None}
"""What REST leaves out of a version or metric where there is nothing in it, and that tool needs."""
_PROMPT_TAGS = {"mlflow.prompt.is_prompt", "mlflow.prompt.text"}


def experiment(document: dict[str, Any]) -> dict[str, Any]:
    """Return REST's ``Experiment`` with its tags as a dict, and times for people."""
    found = {k: v for k, v in document.items() if k != "permissions"}
    return _for_people(found | {"tags": key_values(document.get("tags"))})


def run_parts(document: dict[str, Any]) -> dict[str, Any]:
    """Return what a run's file says beside its metrics."""
    data, inputs = document.get("data", {}), document.get("inputs", {})
    return {
        "info": _for_people({"user_id": ""} | document["info"]),
        "params": key_values(data.get("params")),
        "tags": key_values(data.get("tags")),
        "inputs": {
            "dataset_inputs": [
                {"dataset": one["dataset"], "tags": one.get("tags", [])}
                for one in inputs.get("dataset_inputs", ())
            ],
            "model_inputs": inputs.get("model_inputs", []),
        },
        "outputs": {"model_outputs": document.get("outputs", {}).get("model_outputs", [])},
    }


def logged_model(model: LoggedModel) -> dict[str, Any]:
    """Return what a logged model's file says."""
    info, data = model.info, model.document.get("data", {})
    status = info.get("status", "")
    names = ("status_message", "lifecycle_stage")
    return {
        "experiment_id": model.experiment_id,
        "model_id": model.id,
        "artifact_location": info.get("artifact_uri"),
        "creation_timestamp": info.get("creation_timestamp_ms"),
        "last_updated_timestamp": info.get("last_updated_timestamp_ms"),
        "status": _STATUS.get(status, status),
        **{name: info.get(name) for name in ("name", "model_type", "source_run_id")},
        **{name: info[name] for name in names if name in info},
        "tags": key_values(info.get("tags")),
        "params": key_values(data.get("params")),
        "metrics": [
            _OF_NO_DATASET
            | metric
            | ({"value": float(metric["value"])} if "value" in metric else {})
            for metric in data.get("metrics", ())
        ],
        "model_uri": f"models:/{model.id}",
    }


def trace(item: Trace) -> dict[str, Any]:
    """Return what a trace's file says; its spans lie beside it."""
    info = item.info
    elsewhere = {"trace_id", "request_time_ms", "execution_duration_ms", "trace_metadata", "tags"}
    return {
        "info": {
            "trace_id": item.id,
            "trace_location": {
                "type": "MLFLOW_EXPERIMENT",
                "mlflow_experiment": {"experiment_id": item.experiment_id},
            },
            "request_time": info.get("request_time_ms"),
            "execution_duration": info.get("execution_duration_ms"),
            **{name: value for name, value in info.items() if name not in elsewhere},
            "trace_metadata": info.get("trace_metadata", {}),
            "tags": info.get("tags", {}),
            "assessments": [_assessment(one, item.id) for one in item.assessments],
        },
        "data": [
            {
                "name": span["name"],
                "trace_id": item.id,
                "span_id": span["span_id"],
                "parent_id": span["parent_span_id"],
            }
            for span in item.spans or ()
        ],
    }


def registered_model(
    document: dict[str, Any], versions: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    """Return what a registered model's file says, with what it says of its versions."""
    return _for_people(document) | {"versions": list(versions)}


def version(document: dict[str, Any], run: tuple[str, str] | None) -> dict[str, Any]:
    """Return REST's ``ModelVersion`` with its tags as a dict, and times for people.

    Args:
        document: REST's.
        run: The name of the experiment and the artifact root of its run, if that is exported.
    """
    found = _NEEDED | document | {"tags": key_values(document.get("tags"))}
    if run is not None:
        found["_experiment_name"], found["_run_artifact_uri"] = run
    return _for_people(found)


def prompt(document: dict[str, Any]) -> dict[str, Any]:
    """Return what the file of a version of a prompt says."""
    tags = key_values(document.get("tags"))
    template: Any = tags.get("mlflow.prompt.text", "")
    if tags.get("_mlflow_prompt_type") == "chat":
        with contextlib.suppress(ValueError):  # one that was written by hand stays a text
            messages = json.loads(template)
            template = messages if json.dumps(messages) == template else template
    names = ("creation_timestamp", "last_updated_timestamp", "user_id")
    return _for_people(
        {
            "name": document["name"],
            "version": int(document["version"]),
            "template": template,
            "tags": {key: value for key, value in tags.items() if key not in _PROMPT_TAGS},
            **{name: document[name] for name in names if name in document},
            "commit_message": document.get("description"),
            "uri": f"prompts:/{document['name']}/{document['version']}",
        }
    )


def dataset(document: dict[str, Any]) -> dict[str, Any]:
    """Return what an evaluation dataset's file says."""
    return document | {"tags": key_values(document.get("tags"))}


def unknown_fields(document: dict[str, Any]) -> list[str]:
    """Return the fields of keyed entries for which a dict of texts has no place, sorted."""
    parts = [document, document.get("info", {}), document.get("data", {})]
    entries = [
        (entry, _METRIC if name == "metrics" else _ENTRY)
        for part in parts
        for name in ("tags", "params", "metrics")
        if isinstance(listed := part.get(name), list)
        for entry in listed
    ]
    return sorted({key for entry, known in entries for key in entry.keys() - known})


def _assessment(found: dict[str, Any], trace_id: str) -> dict[str, Any]:
    is_expectation = "expectation" in found
    document = {
        "assessment_type": "expectation" if is_expectation else "feedback",
        "name": found.get("assessment_name"),
        "trace_id": trace_id,
        **{k: v for k, v in found.items() if k not in {"assessment_name", "expectation"}},
    }
    if is_expectation:
        document["expectation"] = found["expectation"]
    return document


def _for_people(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document with its times as text too, as that tool has them."""
    times = {f"_{name}": _time_text(document[name]) for name in _TIMES if document.get(name)}
    return document | times


def _time_text(time_ms: int) -> str:
    moment = datetime.fromtimestamp(time_ms // 1000, timezone.utc)
    return moment.strftime("%Y-%m-%d %H:%M:%S")
