"""Logged models of a database, read without MLflow's store."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mlflow_exim_plugin.errors import NotFoundError, ServerError
from mlflow_exim_plugin.host.api.logged_models import LoggedModels
from mlflow_exim_plugin.host.open.workspaces import active
from mlflow_exim_plugin.host.sql.run_rows import LOGGED_MODEL_COLUMNS, LOGGED_MODEL_STATUSES
from mlflow_exim_plugin.schema.documents import (
    json_number,
    metric_identity,
    present,
    sorted_entries,
    without_empty,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.host.tables import TableReader

__all__ = ["StoredLoggedModels", "logged_models_of"]


def logged_models_of(host: Host) -> LoggedModels:
    """Return what reads the logged models of a deployment: its tables where they are at hand."""
    return LoggedModels(host) if host.tables is None else StoredLoggedModels(host, host.tables)


class StoredLoggedModels(LoggedModels):
    """Reads the logged models of a database.

    Args:
        host: The deployment.
        tables: Its tables.
    """

    def __init__(self, host: Host, tables: TableReader) -> None:
        super().__init__(host)
        self._tables = tables

    def documents(self, *experiment_ids: str) -> Iterator[dict[str, Any]]:
        """Yield every logged model of experiments but the deleted ones, by id."""
        for ids in self.ids_of_some([*experiment_ids]).values():
            for model_id in sorted(ids):
                yield self.read(model_id)

    def ids_of_some(self, experiment_ids: list[str]) -> dict[str, set[str]]:
        """Return the logged models of experiments but the deleted ones, by experiment."""
        return {
            experiment_id: set(
                self._tables.values(
                    "logged_models",
                    "model_id",
                    experiment_id=int(experiment_id),
                    lifecycle_stage="active",
                )
            )
            for experiment_id in experiment_ids
        }

    def deleted_ids(self) -> list[str]:
        """Return the deleted logged models."""
        return self._tables.values("logged_models", "model_id", lifecycle_stage="deleted")

    def there(self, model_ids: Iterable[str]) -> set[str]:
        """Return those of some logged models that are there."""
        ids = list(model_ids)
        found: set[str] = set()
        for start in range(0, len(ids), _AT_ONCE):
            some = ids[start : start + _AT_ONCE]
            doing = "looking for logged models"
            rows = self._tables.rows("logged_models", _ID, doing, limit=None, model_id=some)
            found.update(rows.column("model_id").to_pylist())
        return found

    def read(self, model_id: str) -> dict[str, Any]:
        """Return one logged model; ``info.lifecycle_stage`` says it where it is deleted.

        Raises:
            NotFoundError: There is none of that id in the active workspace.
            ServerError: It cannot be read.
        """
        found = self._rows("logged_models", _MODEL, model_id)
        if not found or not self._is_here(found[0]["experiment_id"]):
            raise NotFoundError(f"there is no logged model {model_id}")
        (row,) = found
        if (status := row["status"]) not in range(len(LOGGED_MODEL_STATUSES)):
            raise ServerError(f"reading logged model {model_id}: there is no status {status}")
        info = {LOGGED_MODEL_COLUMNS[column]: value for column, value in row.items()}
        info |= {
            "experiment_id": str(row["experiment_id"]),
            "status": LOGGED_MODEL_STATUSES[status],
        }
        if row["lifecycle_stage"] != "deleted":
            del info["lifecycle_stage"]
        info = without_empty(present(info))
        info["tags"] = self._entries("logged_model_tags", _TAG, model_id)
        metrics = [_metric(metric) for metric in self._rows(_METRICS, _METRIC, model_id)]
        metrics.sort(key=metric_identity)
        params = self._entries("logged_model_params", _PARAM, model_id)
        return {"info": info, "data": {"metrics": metrics, "params": params}}

    def _is_here(self, experiment_id: int) -> bool:
        if not self._host.workspaces:
            return True
        its = self._tables.values("experiments", "workspace", experiment_id=experiment_id)
        return its == [active()]

    def _entries(self, table: str, columns: pa.Schema, model_id: str) -> list[dict[str, str]]:
        rows = (tuple(row.values()) for row in self._rows(table, columns, model_id))
        return sorted_entries(dict(rows))

    def _rows(self, table: str, columns: pa.Schema, model_id: str) -> list[dict[str, Any]]:
        doing = f"reading logged model {model_id}"
        found: list[dict[str, Any]] = self._tables.rows(
            table, columns, doing, model_id=model_id
        ).to_pylist()
        return found


def _metric(row: dict[str, Any]) -> dict[str, Any]:
    """Return REST's ``Metric``; nothing stands for NaN."""
    value = row["metric_value"]
    metric = {
        "key": row["metric_name"],
        "value": json_number(math.nan if value is None else value),
        "timestamp": row["metric_timestamp_ms"],
        "step": row["metric_step"],
    }
    links = ("model_id", "dataset_name", "dataset_digest", "run_id")
    return metric | {name: row[name] for name in links if row[name]}


_AT_ONCE = 1000
_TEXT, _NUMBER = pa.string(), pa.int64()
_ID = pa.schema({"model_id": _TEXT})
_NUMBERS = ("experiment_id", "creation_timestamp_ms", "last_updated_timestamp_ms", "status")
_MODEL = pa.schema(dict.fromkeys(LOGGED_MODEL_COLUMNS, _TEXT) | dict.fromkeys(_NUMBERS, _NUMBER))
_TAG = pa.schema({"tag_key": _TEXT, "tag_value": _TEXT})
_PARAM = pa.schema({"param_key": _TEXT, "param_value": _TEXT})
_METRICS = "logged_model_metrics"
_METRIC = pa.schema(
    {
        "metric_name": _TEXT,
        "metric_value": pa.float64(),
        "metric_timestamp_ms": _NUMBER,
        "metric_step": _NUMBER,
        "model_id": _TEXT,
        "dataset_name": _TEXT,
        "dataset_digest": _TEXT,
        "run_id": _TEXT,
    }
)
