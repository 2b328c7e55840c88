"""How REST's documents are put, wherever they come from: numbers, keyed entries, and order.

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
