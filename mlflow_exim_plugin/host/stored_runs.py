"""Runs out of the database of a store that this process opens itself, many with each query.

MLflow's own call builds an object for every parameter and tag. Here rows become documents at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.connection import translated
from mlflow_exim_plugin.host.documents import json_number
from mlflow_exim_plugin.stages.select import RunHeader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine, Select, Table

__all__ = ["StoredRuns"]

_IDS_AT_ONCE = 500
_NAME_TAG = "mlflow.runName"
_PARENT_TAG = "mlflow.parentRunId"


class StoredRuns:
    """Reads runs from a database.

    Args:
        engine: The store's own, with MLflow's schema.

    Source: ``SqlAlchemyStore.engine`` and MLflow's tables of runs.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def headers(self, experiment_id: str) -> dict[str, RunHeader]:
        """Return the headers of all runs of an experiment, deleted ones included."""
        from sqlalchemy import and_, select

        runs, tags = _table("SqlRun"), _table("SqlTag")
        of_parent = and_(tags.c.run_uuid == runs.c.run_uuid, tags.c.key == _PARENT_TAG)
        query = (
            select(runs.c.run_uuid, runs.c.lifecycle_stage, runs.c.start_time, tags.c.value)
            .select_from(runs.outerjoin(tags, of_parent))
            .where(runs.c.experiment_id == int(experiment_id))
        )
        doing = f"listing the runs of experiment {experiment_id}"
        with translated(doing), self._engine.connect() as connection:
            return {
                run_id: RunHeader(run_id, experiment_id, stage, start_time or 0, parent)
                for run_id, stage, start_time, parent in connection.execute(query)
            }

    def documents(self, run_ids: list[str]) -> dict[str, dict[str, Any]]:
        """Return REST's ``Run`` of each run that is there, by id; at most some hundreds at once."""
        from sqlalchemy import select

        runs = _table("SqlRun")
        with translated("reading runs"), self._engine.connect() as connection:
            data = {
                "metrics": _entries(connection, "SqlLatestMetric", run_ids),
                "params": _entries(connection, "SqlParam", run_ids),
                "tags": _entries(connection, "SqlTag", run_ids),
            }
            inputs, outputs = _inputs(connection, run_ids), _made_models(connection, run_ids)
            found = connection.execute(select(runs).where(runs.c.run_uuid.in_(run_ids)))
            documents = {}
            for row in found.mappings():
                run_id = row["run_uuid"]
                its = {name: of_run.get(run_id, []) for name, of_run in data.items()}
                document = {"info": _info(row, its["tags"]), "data": its}
                if run_id in inputs:
                    document["inputs"] = inputs[run_id]
                if run_id in outputs:
                    document["outputs"] = {"model_outputs": outputs[run_id]}
                documents[run_id] = document
        return documents

    def linked_traces(self, run_ids: list[str]) -> Iterator[tuple[str, str]]:
        """Yield run and trace of the links between the two, by run."""
        from mlflow.store.tracking.dbmodels import models
        from sqlalchemy import select

        if not hasattr(models, "SqlEntityAssociation"):
            return  # before MLflow 3.3
        links = _table("SqlEntityAssociation")
        for start in range(0, len(run_ids), _IDS_AT_ONCE):
            query = select(links.c.destination_id, links.c.source_id).where(
                links.c.source_type == "trace",
                links.c.destination_type == "run",
                links.c.destination_id.in_(run_ids[start : start + _IDS_AT_ONCE]),
            )
            with translated("reading links of traces"), self._engine.connect() as connection:
                found = sorted((run, trace) for run, trace in connection.execute(query))
            yield from found


def _info(row: Any, tags: list[dict[str, Any]]) -> dict[str, Any]:
    name = row["name"] or next((tag["value"] for tag in tags if tag["key"] == _NAME_TAG), None)
    info = {
        "run_id": row["run_uuid"],
        "run_uuid": row["run_uuid"],
        "run_name": name if name is not None else row["name"],
        "experiment_id": str(row["experiment_id"]),
        "user_id": row["user_id"],
        "status": row["status"],
        "start_time": row["start_time"],
        "end_time": row["end_time"],
        "artifact_uri": row["artifact_uri"],
        "lifecycle_stage": row["lifecycle_stage"],
    }
    return {key: value for key, value in info.items() if value is not None}


def _entries(
    connection: Connection, model: str, run_ids: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """Return metrics, params or tags of runs, by run and sorted by key."""
    from sqlalchemy import select

    table = _table(model)
    names = ["run_uuid", "key", "value"]
    is_metric = "step" in table.c
    if is_metric:
        names += ["timestamp", "step", "is_nan"]
    query = select(*(table.c[name] for name in names)).where(table.c.run_uuid.in_(run_ids))
    found: dict[str, list[dict[str, Any]]] = {}
    for row in connection.execute(query):
        entry = {"key": row[1], "value": row[2]}
        if is_metric:
            value = float("nan") if row[5] else row[2]
            entry = {
                "key": row[1],
                "value": json_number(value),
                "timestamp": row[3],
                "step": row[4],
            }
        found.setdefault(row[0], []).append(entry)
    for entries in found.values():
        entries.sort(key=_key)
    return found


def _key(entry: dict[str, Any]) -> str:
    return str(entry["key"])


def _inputs(connection: Connection, run_ids: list[str]) -> dict[str, dict[str, Any]]:
    """Return REST's ``RunInputs`` of the runs that have any."""
    from sqlalchemy import select

    inputs, datasets, input_tags = _table("SqlInput"), _table("SqlDataset"), _table("SqlInputTag")
    found: dict[str, dict[str, Any]] = {}
    tags: dict[str, list[dict[str, Any]]] = {}
    query = (
        select(inputs.c.input_uuid, inputs.c.destination_id, datasets)
        .join(datasets, inputs.c.source_id == datasets.c.dataset_uuid)
        .where(inputs.c.destination_type == "RUN", inputs.c.destination_id.in_(run_ids))
    )
    seen: set[tuple[str, str]] = set()
    for row in connection.execute(query).mappings():
        run_id = row["destination_id"]
        if (run_id, row["dataset_uuid"]) in seen:
            continue
        seen.add((run_id, row["dataset_uuid"]))
        its_tags = tags.setdefault(row["input_uuid"], [])
        entry = {"tags": its_tags, "dataset": _dataset(row)}
        found.setdefault(run_id, {}).setdefault("dataset_inputs", []).append(entry)
    if tags:
        of_input = select(input_tags).where(input_tags.c.input_uuid.in_(list(tags)))
        for row in connection.execute(of_input).mappings():
            tags[row["input_uuid"]].append({"key": row["name"], "value": row["value"]})
    for run_id, model_ids in _linked(connection, "RUN_INPUT", "MODEL_INPUT", run_ids):
        listed = found.setdefault(run_id, {}).setdefault("model_inputs", [])
        listed.append({"model_id": model_ids[0]})
    for document in found.values():
        _sort_inputs(document)
    return found


def _sort_inputs(document: dict[str, Any]) -> None:
    for entry in document.get("dataset_inputs", ()):
        entry["tags"].sort(key=_key)
        if not entry["tags"]:
            del entry["tags"]
    document.get("dataset_inputs", []).sort(
        key=lambda e: (e["dataset"]["name"], e["dataset"]["digest"])
    )
    document.get("model_inputs", []).sort(key=lambda model: model["model_id"])


def _dataset(row: Any) -> dict[str, Any]:
    """Return REST's ``Dataset``; an empty schema or profile is none."""
    dataset = {
        "name": row["name"],
        "digest": row["digest"],
        "source_type": row["dataset_source_type"],
        "source": row["dataset_source"],
    }
    for name in ("schema", "profile"):
        if value := row[f"dataset_{name}"]:
            dataset[name] = value
    return dataset


def _made_models(connection: Connection, run_ids: list[str]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for run_id, (model_id, step) in _linked(connection, "RUN_OUTPUT", "MODEL_OUTPUT", run_ids):
        found.setdefault(run_id, []).append({"model_id": model_id, "step": step})
    for listed in found.values():
        listed.sort(key=lambda model: (model["step"], model["model_id"]))
    return found


def _linked(
    connection: Connection, source: str, destination: str, run_ids: list[str]
) -> Iterator[tuple[str, tuple[str, int]]]:
    """Yield run, model and step of the links between runs and logged models."""
    from sqlalchemy import select

    inputs = _table("SqlInput")
    if "step" not in inputs.c:
        return  # before MLflow 3 there were no logged models
    query: Select[Any] = select(inputs.c.source_id, inputs.c.destination_id, inputs.c.step).where(
        inputs.c.source_type == source,
        inputs.c.destination_type == destination,
        inputs.c.source_id.in_(run_ids),
    )
    for run_id, model_id, step in connection.execute(query):
        yield run_id, (model_id, step)


def _table(model: str) -> Table:
    from mlflow.store.tracking.dbmodels import models

    table: Table = getattr(models, model).__table__
    return table
