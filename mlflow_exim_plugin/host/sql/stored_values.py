"""Numbers as MLflow's SQL store keeps them, which is not always as they were."""

from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.schema.tables import HISTORY

__all__ = ["LARGEST", "as_stored", "as_stored_number"]

LARGEST = 1.7976931348623157e308
"""SQL stores keep infinities as the largest double."""


def as_stored(rows: pa.Table) -> pa.Table:
    """Return rows as a SQL store keeps them: no infinities, no negative zero, one NaN."""
    value = rows.column("value")
    value = pc.if_else(pc.equal(value, float("inf")), LARGEST, value)
    value = pc.if_else(pc.equal(value, float("-inf")), -LARGEST, value)
    value = pc.if_else(pc.equal(value, 0.0), 0.0, value)
    value = pc.if_else(pc.is_nan(value), float("nan"), value)
    return rows.set_column(rows.column_names.index("value"), HISTORY.field("value"), value)


def as_stored_number(value: float | str) -> float:
    """Return a number as MLflow stores it: finite, NaN as a zero."""
    number = float(value)
    if math.isnan(number):
        return 0.0
    return min(max(number, -LARGEST), LARGEST)
