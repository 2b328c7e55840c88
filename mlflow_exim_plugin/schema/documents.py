"""How REST's documents are put, wherever they come from: numbers, keyed entries, order, schemas.

Lists of keyed entries are sorted: their order means nothing to MLflow, and the same object must
give the same document from every source.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.kinds import GIVEN_BY_CALLERS

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "SCHEMAS",
    "dataset_identity",
    "json_number",
    "metric_identity",
    "present",
    "sorted_entries",
    "without_empty",
]

_METRIC_IDENTITY = ("key", "run_id", "step", "timestamp", "dataset_name", "dataset_digest")


def json_number(value: float) -> float | str:
    """Return a double as REST's JSON has it: NaN and the infinities as strings."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def sorted_entries(texts: Mapping[str, str]) -> list[dict[str, str]]:
    """Return a dict as REST's list of keyed entries, by key."""
    return [{"key": key, "value": texts[key]} for key in sorted(texts)]


def dataset_identity(entry: dict[str, Any]) -> tuple[str, str]:
    """Return what tells one ``DatasetInput`` of a run from another."""
    return entry["dataset"]["name"], entry["dataset"]["digest"]


def metric_identity(metric: dict[str, Any]) -> list[str]:
    """Return what tells one ``Metric`` of a logged model from another."""
    return [str(metric.get(name, "")) for name in _METRIC_IDENTITY]


def present(document: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a document that are there."""
    return {key: value for key, value in document.items() if value is not None}


def without_empty(document: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is empty and no caller gave: REST's client says it where there is nothing.

    What a caller may give stays: a server keeps empty text where it was not given, a database that
    is written to without one keeps nothing. Only REST's client does not tell the two apart.
    """
    return {k: v for k, v in document.items() if v != "" or k in GIVEN_BY_CALLERS}


_TEXT = {"type": "string"}
_NUMBER = {"type": "string", "pattern": "^[1-9][0-9]{0,17}$"}


def _object(*required: str, **fields: Any) -> dict[str, Any]:
    return {"type": "object", "required": [*required], "properties": fields}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


_KEYED = _list(_object("key", key=_TEXT))
_LINKED = _list(_object("model_id", model_id=_TEXT))

SCHEMAS = {
    "experiment": _object("experiment_id", "name", experiment_id=_TEXT, name=_TEXT, tags=_KEYED),
    "run": _object(
        "info",
        info=_object(
            "run_id",
            "experiment_id",
            run_id=_TEXT,
            experiment_id=_TEXT,
            start_time={"type": "integer"},
            end_time={"type": "integer"},
        ),
        data=_object(metrics=_KEYED, params=_KEYED, tags=_KEYED),
        inputs=_object(model_inputs=_LINKED),
        outputs=_object(model_outputs=_LINKED),
    ),
    "logged_model": _object(
        "info",
        info=_object("model_id", "experiment_id", model_id=_TEXT, experiment_id=_TEXT, tags=_KEYED),
        data=_object(metrics=_KEYED, params=_KEYED),
    ),
    "model": _object(
        "name",
        name=_TEXT,
        tags=_KEYED,
        aliases=_list(_object("alias", "version", alias=_TEXT, version=_NUMBER)),
    ),
    "version": _object("name", "version", name=_TEXT, version=_NUMBER, tags=_KEYED),
}
"""JSON Schemas of what an archive's documents have to have of REST's objects, and may have more.

They say what the checks in ``envelope`` do, which are faster; a test holds that both agree.
"""
