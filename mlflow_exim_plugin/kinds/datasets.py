"""Evaluation datasets with their records."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.kinds.description import (
    KEY,
    LINK,
    TAG,
    Description,
    GrowingRows,
    Growth,
    Json,
    Kept,
    TableRows,
    as_json,
    same,
)
from mlflow_exim_plugin.kinds.kind import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["EVALUATION_DATASET"]

_WRAPPED = "mlflow_wrapped"


def _inputs(record: dict[str, Any], *, sort_keys: bool = False) -> str:
    return json.dumps(record.get("inputs", {}), sort_keys=sort_keys)


def _input_hash(record: dict[str, Any]) -> str:
    return hashlib.sha256(_inputs(record, sort_keys=True).encode()).hexdigest()


def _outputs(record: dict[str, Any]) -> str:
    outputs = record.get("outputs")
    return json.dumps(None if outputs is None else {_WRAPPED: outputs})


def _unwrapped(outputs: str) -> Any:
    found = json.loads(outputs)
    return found.get(_WRAPPED) if found else None


def _as_mlflow_tells(record: dict[str, Any], _row: Mapping[str, Any]) -> None:
    """Add what MLflow makes of a record's source when it reads it."""
    record.setdefault("tags", {})
    record.pop("source_type", None)
    if source := record.pop("source", None):
        kind, data = source["source_type"].upper(), source.get("source_data") or {}
        record |= {"source": {"source_type": kind, "source_data": data}, "source_type": kind}
        named = data.get("trace_id" if kind == "TRACE" else "source_id")
        if not record.get("source_id") and named is not None:
            record["source_id"] = named


EVALUATION_DATASET = Description(
    Kind.EVALUATION_DATASET,
    since="3.4",
    folder="datasets",
    id_field="dataset_id",
    parts=("records", Kind.DATASET_RECORD),
    # MLflow tells the records of a dataset apart by their inputs.
    lists={"tags": KEY, "records": ("inputs",), "experiment_ids": ()},
    refers={
        "dataset_id": Kind.EVALUATION_DATASET,
        "schema": Json(),
        "profile": Json(),
        "experiment_ids[]": Kind.EXPERIMENT,
        "records[].dataset_id": Kind.EVALUATION_DATASET,
        "records[].source.source_data.trace_id": Kind.TRACE,
    },
    drops={"experiment_ids[]": "its link to experiment {it}, which is not there, is left out"},
    rest={
        "times": "created_time last_update_time"
        " records[*].created_time records[*].last_update_time",
        "users": "created_by last_updated_by records[*].created_by records[*].last_updated_by",
        "inner ids": "digest records[*].dataset_record_id",
    },
    anew="ids, digests and times are the target's; the tag mlflow.exim.origin keeps the old ids",
    parts_anew="ids and times are the target's; the creator is what the tag mlflow.user says",
    rows=TableRows(
        "evaluation_datasets",
        same(
            "dataset_id workspace name schema profile digest created_time last_update_time"
            " created_by last_updated_by"
        ),
        parts=(
            TableRows("evaluation_dataset_tags", TAG, at="tags", owner=("dataset_id",)),
            TableRows(
                "evaluation_dataset_records",
                same(
                    "dataset_record_id source_id source_type created_time last_update_time"
                    " created_by last_updated_by",
                    inputs=Kept("inputs", _inputs, json.loads),
                    input_hash=_input_hash,
                    outputs=Kept("outputs", _outputs, _unwrapped),
                    expectations=as_json("expectations"),
                    tags=as_json("tags"),
                    source=as_json("source"),
                ),
                at="records",
                owner=("dataset_id",),
                order=("created_time", "dataset_record_id"),
                completed=_as_mlflow_tells,
            ),
        ),
        order=("dataset_id",),
    ),
    growth=Growth(
        stage=lambda dataset: int(dataset["last_update_time"] or 0),
        end=0,
        fixed=frozenset({"workspace", "name", "created_time", "created_by"}),
        parts={
            "evaluation_dataset_records": GrowingRows(("dataset_record_id",), since="created_time"),
            "evaluation_dataset_tags": GrowingRows(("key",), is_set=True),
            "entity_associations": GrowingRows(
                LINK, ends=(("source", "evaluation_dataset"),), is_set=True
            ),
        },
        goes_on=True,
    ),
    secrets="name created_by last_updated_by tags schema profile records[].inputs"
    " records[].outputs records[].expectations records[].tags records[].source"
    " records[].created_by records[].last_updated_by",
)
