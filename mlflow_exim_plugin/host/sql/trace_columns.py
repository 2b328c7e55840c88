"""What the columns of MLflow's table of traces hold, for who writes rows and who reads them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["COST", "INFO", "NAME", "PROMOTED", "SESSION", "TOKENS", "promoted_metadata"]

INFO = {
    "request_id": "trace_id",
    "client_request_id": "client_request_id",
    "request_preview": "request_preview",
    "response_preview": "response_preview",
    "timestamp_ms": "request_time_ms",
    "execution_time_ms": "execution_duration_ms",
    "status": "state",
}
"""Fields of a document's info by column."""
NAME = "mlflow.traceName"
"""Tag that MLflow 3.17 keeps in a column."""
SESSION, TOKENS, COST = "mlflow.trace.session", "mlflow.trace.tokenUsage", "mlflow.trace.cost"
PROMOTED: dict[str, tuple[str, ...]] = {
    SESSION: ("session_id",),
    TOKENS: (
        "input_tokens",
        "output_tokens",
        "total_tokens",
        "cache_read_input_tokens",
        "cache_creation_input_tokens",
        "cache_creation_input_tokens_above_1hr",
    ),
    COST: ("input_cost", "output_cost", "total_cost"),
}
"""Columns in which MLflow 3.17 keeps metadata, numbers under their names in its JSON."""


def promoted_metadata(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata that a trace's columns hold.

    Source: MLflow's ``compatibility_metadata_from_columns``.
    """
    found = {}
    for key, columns in PROMOTED.items():
        numbers = {name: row[name] for name in columns if row.get(name) is not None}
        if numbers:
            found[key] = numbers["session_id"] if key == SESSION else json.dumps(numbers)
    return found
