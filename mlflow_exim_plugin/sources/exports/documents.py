"""What the files of an export say, as REST's documents have it: of every generation alike.

An export holds the attributes of MLflow's Python objects, not what its REST API gives: tags as a
dict or a list, times as numbers or texts, and fields with a leading underscore for people.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.host.traces.documents import document_of_v3
from mlflow_exim_plugin.schema.documents import metric_identity, present, sorted_entries

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "IS_PROMPT",
    "dataset_document",
    "decimal_id",
    "entries",
    "experiment_document",
    "logged_model_document",
    "mend_dataset",
    "prompt_version_document",
    "registered_model_document",
    "run_document",
    "trace_document",
    "version_document",
]

IS_PROMPT = "mlflow.prompt.is_prompt"
_PROMPT_TEXT = "mlflow.prompt.text"
_PROMPT_TYPE = "_mlflow_prompt_type"
_MODEL_STATUS = {
    "UNSPECIFIED": "LOGGED_MODEL_STATUS_UNSPECIFIED",
    "PENDING": "LOGGED_MODEL_PENDING",
    "READY": "LOGGED_MODEL_READY",
    "FAILED": "LOGGED_MODEL_UPLOAD_FAILED",
}
_V2_STATES = {"OK", "ERROR", "IN_PROGRESS"}
_NOT_OF_REST = {
    *("trace_location", "request_time", "execution_duration"),
    *("trace_metadata", "tags", "assessments"),
}
_TIMES = {
    *("start_time", "end_time", "creation_time", "last_update_time"),
    *("creation_timestamp", "last_updated_timestamp"),
}
_DATASET_TIMES = ("created_time", "last_update_time")
_OF_NO_DOCUMENT = {"create_time", "source", "source_type"}
"""Beside those of other names: MLflow makes a dataset's source of its id."""
_OF_BOTH = {*_DATASET_TIMES, "dataset_id", "created_by", "last_updated_by", "tags"}
_DATASET_FIELDS = {*_OF_BOTH, "name", "digest", "schema", "profile", "experiment_ids", "records"}
_RECORD_FIELDS = {
    *_OF_BOTH,
    *("dataset_record_id", "inputs", "outputs", "expectations"),
    *("source", "source_id", "source_type"),
}
_OF_PARTS = {"tags", "aliases", "versions", "latest_versions"}


def decimal_id(experiment_id: Any) -> str:
    """Return an experiment's id as MLflow has it: Databricks has such as are no numbers."""
    text = str(experiment_id)
    if text.isascii() and text.isdigit() and len(text) <= 18:
        return text
    return str(int(hashlib.sha256(text.encode()).hexdigest()[:14], 16))


def entries(given: Any) -> list[dict[str, str]]:
    """Return tags or params, a dict or a list of entries, as REST's list by key.

    Raises:
        StoreError: They are neither.
    """
    if isinstance(given, list):
        try:
            given = {entry["key"]: entry.get("value") for entry in given}
        except (TypeError, KeyError, AttributeError):
            raise StoreError("its tags are no list of keys and values") from None
    if not isinstance(given or {}, dict):
        raise StoreError("its tags have no keys")
    found = {str(key): _text(value) for key, value in (given or {}).items()}
    return sorted_entries(found)


def experiment_document(found: dict[str, Any]) -> dict[str, Any]:
    """Return REST's ``Experiment``, with its ``permissions`` where they were exported."""
    document = _plain(found)
    document["experiment_id"] = decimal_id(_needed(found, "experiment_id"))
    document["name"] = _text(_needed(found, "name"))
    document.setdefault("lifecycle_stage", "active")
    return document


def run_document(payload: dict[str, Any], latest: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return REST's ``Run``.

    Args:
        payload: What the file says of the run.
        latest: REST's ``Metric`` of each key.
    """
    found = payload.get("info")
    if not isinstance(found, dict):
        raise StoreError("it says nothing of the run itself")
    info = _plain(found)
    run_id = _text(_needed({"run_id": found.get("run_uuid"), **present(found)}, "run_id"))
    info["run_id"] = info["run_uuid"] = run_id
    info["experiment_id"] = decimal_id(_needed(found, "experiment_id"))
    info.pop("tags", None)
    tags = entries(payload.get("tags"))
    if not info.get("run_name"):
        name = next((tag["value"] for tag in tags if tag["key"] == "mlflow.runName"), "")
        info |= {"run_name": name} if name else {}
    data = {"metrics": list(latest), "params": entries(payload.get("params")), "tags": tags}
    document: dict[str, Any] = {"info": info, "data": data}
    if inputs := _inputs(payload.get("inputs")):
        document["inputs"] = inputs
    made = _listed(payload.get("outputs"), "model_outputs")
    if made:
        models = [
            {"model_id": _text(_needed(m, "model_id")), "step": int(m.get("step") or 0)}
            for m in made
        ]
        document["outputs"] = {
            "model_outputs": sorted(models, key=lambda m: (m["step"], m["model_id"]))
        }
    return document


def logged_model_document(found: dict[str, Any]) -> dict[str, Any]:
    """Return REST's ``LoggedModel``."""
    said = _text(found.get("status") or "UNSPECIFIED")
    created = found.get("creation_timestamp", found.get("creation_time"))
    info = {
        "experiment_id": decimal_id(_needed(found, "experiment_id")),
        "model_id": _text(_needed(found, "model_id")),
        "name": found.get("name"),
        "artifact_uri": found.get("artifact_location"),
        "creation_timestamp_ms": _number(created),
        "last_updated_timestamp_ms": _number(found.get("last_updated_timestamp")),
        "model_type": found.get("model_type"),
        "source_run_id": found.get("source_run_id"),
        "status": _MODEL_STATUS.get(said, said),
        "status_message": found.get("status_message"),
        "lifecycle_stage": found.get("lifecycle_stage"),
    }
    info = {key: value for key, value in info.items() if value not in (None, "")}
    info["tags"] = entries(found.get("tags"))
    metrics = [
        {key: value for key, value in metric.items() if value is not None}
        for metric in found.get("metrics") or ()
    ]
    metrics.sort(key=metric_identity)
    return {"info": info, "data": {"metrics": metrics, "params": entries(found.get("params"))}}


def registered_model_document(found: dict[str, Any]) -> dict[str, Any]:
    """Return REST's ``RegisteredModel``, with its ``permissions`` where they were exported."""
    document = _plain(found, without_empty=True)
    document["name"] = _text(_needed(found, "name"))
    listed = [
        {"alias": _text(_needed(a, "alias")), "version": _text(_needed(a, "version"))}
        for a in found.get("aliases") or ()
    ]
    document["aliases"] = sorted(listed, key=lambda entry: entry["alias"])
    return document


def version_document(found: dict[str, Any], name: str) -> dict[str, Any]:
    """Return REST's ``ModelVersion``.

    Args:
        found: What an export says of it.
        name: Of its registered model.
    """
    # MLflow's own texts of the parameters and metrics behind a version: its model has them.
    said = {k: v for k, v in found.items() if k not in {"params", "metrics"}}
    document = _plain(said, without_empty=True)
    document["name"] = name
    document["version"] = _text(_needed(found, "version"))
    document.setdefault("status", "READY")
    if source := found.get("_source"):  # `source` was overwritten with where the export put it
        document["source"] = _text(source)
    document["aliases"] = sorted(map(_text, found.get("aliases") or ()))
    return document


def prompt_version_document(found: dict[str, Any]) -> dict[str, Any]:
    """Return REST's ``ModelVersion`` of a version of a prompt, as MLflow's registry keeps it."""
    template = found.get("template")
    tags = _texts(found.get("tags")) | {IS_PROMPT: "true"}
    if isinstance(template, str):
        tags[_PROMPT_TEXT] = template
    else:
        tags |= {_PROMPT_TEXT: json.dumps(template), _PROMPT_TYPE: "chat"}
    described = found.get("commit_message") or found.get("description")
    document = {
        "name": _text(_needed(found, "name")),
        "version": _text(_needed(found, "version")),
        "creation_timestamp": _number(found.get("creation_timestamp")),
        "last_updated_timestamp": _number(found.get("last_updated_timestamp")),
        "description": described,
        "user_id": found.get("user_id"),
        "source": "prompt-template",
        "status": "READY",
    }
    document = {key: value for key, value in document.items() if value not in (None, "")}
    return document | {"tags": entries(tags), "aliases": []}


def dataset_document(found: dict[str, Any]) -> dict[str, Any]:
    """Return the document of an evaluation dataset with its records."""
    created = found.get("created_time", found.get("create_time"))
    dataset_id = _text(_needed(found, "dataset_id"))
    document: dict[str, Any] = {
        "dataset_id": dataset_id,
        "name": _text(_needed(found, "name")),
        "digest": found.get("digest"),
        "schema": _json_text(found.get("schema")),
        "profile": _json_text(found.get("profile")),
        "created_time": _number(created),
        "last_update_time": _number(found.get("last_update_time")),
        "created_by": found.get("created_by"),
        "last_updated_by": found.get("last_updated_by"),
    }
    others = {name: found[name] for name in found if name not in {*document, *_OF_NO_DOCUMENT}}
    document |= {name: value for name, value in others.items() if not name.startswith("_")}
    document = {key: value for key, value in document.items() if value not in (None, "")}
    document["tags"] = entries(found.get("tags"))
    document["experiment_ids"] = [decimal_id(one) for one in found.get("experiment_ids") or ()]
    document["records"] = [
        _record(record, dataset_id, number)
        for number, record in enumerate(found.get("records") or ())
    ]
    return document


def mend_dataset(dataset: dict[str, Any], exported_ms: int) -> Iterator[str]:
    """Give a dataset and its records the times without which no MLflow reads them.

    Args:
        dataset: The document of an evaluation dataset.
        exported_ms: When it was there at the latest, ms since the Unix epoch.

    Yields:
        What the export lacks of it, or has and no MLflow keeps.
    """
    records = dataset["records"]
    lacks_times = False
    for one in (dataset, *records):
        times = [one[name] for name in _DATASET_TIMES if name in one]
        if len(times) < len(_DATASET_TIMES):
            lacks_times = True
            made_ms = times[0] if times else dataset.get("created_time", exported_ms)
            one.update(dict.fromkeys(_DATASET_TIMES, made_ms) | one)
    if lacks_times:
        yield "the export does not tell all of its times: others that it tells stand for them"
    foreign = (dataset.keys() - _DATASET_FIELDS) | (set().union(*records) - _RECORD_FIELDS)
    if foreign:
        yield f"MLflow has no such fields and keeps none of them: {', '.join(sorted(foreign))}"


def _record(found: dict[str, Any], dataset_id: str, number: int) -> dict[str, Any]:
    """Return a record of a dataset; an export made by hand may have none of the ids."""
    if found.get("dataset_record_id"):
        return present(found)
    made = hashlib.sha256(f"{dataset_id} {number}".encode()).hexdigest()[:32]
    ids = {"dataset_record_id": f"dr-{made}", "dataset_id": dataset_id}
    return ids | present(found)


def trace_document(info: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the document of a trace, and the id of its experiment.

    Args:
        info: What an export says of it, written by MLflow 3 or 2.
    """
    if "trace_id" in info:
        place = (info.get("trace_location") or {}).get("mlflow_experiment") or {}
        experiment_id = place.get("experiment_id")
        of_rest = {name: value for name, value in info.items() if name not in _NOT_OF_REST}
        of_rest["trace_id"] = _text(_needed(info, "trace_id"))
        times = info.get("request_time"), info.get("execution_duration")
        metadata, assessments = info.get("trace_metadata"), info.get("assessments") or ()
    else:
        experiment_id = info.get("experiment_id")
        state = info.get("status")
        of_rest = {
            "trace_id": _text(_needed(info, "request_id")),
            "state": state if state in _V2_STATES else "STATE_UNSPECIFIED",
        }
        times = info.get("timestamp_ms"), info.get("execution_time_ms")
        metadata, assessments = info.get("request_metadata"), ()
    if experiment_id is None:
        raise StoreError("it does not say which experiment it is of")
    of_rest |= {"request_time_ms": _number(times[0]), "execution_duration_ms": _number(times[1])}
    document = document_of_v3({k: v for k, v in of_rest.items() if v is not None})
    document["info"]["trace_metadata"] = _texts(metadata)
    document["info"]["tags"] = _texts(info.get("tags"))
    document["assessments"] = sorted(
        (_assessment(one) for one in assessments),
        key=lambda assessment: str(assessment.get("assessment_id", "")),
    )
    return document, decimal_id(experiment_id)


def _assessment(found: dict[str, Any]) -> dict[str, Any]:
    """Return REST's ``Assessment`` with times in ms."""
    named = {"assessment_name": found.get("name")} | found
    document = {
        key: value
        for key, value in named.items()
        if value is not None and key not in {"name", "assessment_type", "trace_id", "feedback"}
    }
    document["metadata"] = _texts(found.get("metadata"))
    if found.get("assessment_type") == "expectation" or found.get("expectation") is not None:
        value = found.get("expectation")
        document["expectation"] = value if isinstance(value, dict) else {"value": value}
    elif (feedback := found.get("feedback")) is not None:
        if isinstance(feedback, dict):  # REST has a value always, if only null beside an error
            feedback = {k: v for k, v in feedback.items() if v is not None or k == "value"}
        document["feedback"] = feedback
    return document


def _inputs(given: Any) -> dict[str, Any]:
    datasets = given if isinstance(given, list) else _listed(given, "dataset_inputs")
    listed: list[dict[str, Any]] = []
    for one in datasets:
        dataset = present(_needed(one, "dataset"))
        tags = entries(one.get("tags"))
        listed.append({"dataset": dataset} | ({"tags": tags} if tags else {}))
    listed.sort(
        key=lambda one: (str(one["dataset"].get("name")), str(one["dataset"].get("digest")))
    )
    models = [{"model_id": _text(_needed(m, "model_id"))} for m in _listed(given, "model_inputs")]
    models.sort(key=lambda model: model["model_id"])
    inputs = {"dataset_inputs": listed, "model_inputs": models}
    return {name: of_kind for name, of_kind in inputs.items() if of_kind}


def _listed(given: Any, name: str) -> list[Any]:
    found = given.get(name) if isinstance(given, dict) else None
    return found if isinstance(found, list) else []


def _plain(found: dict[str, Any], *, without_empty: bool = False) -> dict[str, Any]:
    """Return fields as REST has them: with entries for tags, and without those for people."""
    document: dict[str, Any] = {}
    for key, value in found.items():
        if key.startswith("_") or key in _OF_PARTS or value is None:
            continue
        if key in _TIMES:
            value = _number(value)  # noqa: PLW2901 - some exports have them as text
        if value != "" or not without_empty:
            document[key] = value
    return document | {"tags": entries(found.get("tags"))}


def _needed(found: Any, name: str) -> Any:
    value = found.get(name) if isinstance(found, dict) else None
    if value is None or value == "":
        raise StoreError(f"it lacks {name}")
    return value


def _number(value: Any) -> int | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise StoreError(f"{value!r:.60} is no time") from None


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, sort_keys=True)


def _texts(given: Any) -> dict[str, str]:
    return {entry["key"]: entry["value"] for entry in entries(given)}


def _json_text(value: Any) -> str | None:
    return None if value is None else _text(value)
