"""Runs out of the database of a store that this process opens itself, many with each query.

MLflow's own call builds an object for every parameter and tag. Here rows become documents at once.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.host.connection import translated
from mlflow_exim_plugin.host.documents import dataset_identity, json_number
from mlflow_exim_plugin.host.table_reader import TableReader
from mlflow_exim_plugin.schema.objects import Run
from mlflow_exim_plugin.schema.tables import in_one_piece
from mlflow_exim_plugin.stages.select import RunHeader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine, Table

__all__ = ["StoredRuns"]

_IDS_AT_ONCE = 500
_NAME_TAG = "mlflow.runName"
_PARENT_TAG = "mlflow.parentRunId"


class StoredRuns:
    """Reads runs from a database.

    Args:
        engine: The store's own, with MLflow's schema.

    Attributes:
        bytes_a_run: Size of what was read last of a run in its tables, on the average; at least 1.

    Source: ``SqlAlchemyStore.engine`` and MLflow's tables of runs.
    """

    def __init__(self, engine: Engine) -> None:
        self.bytes_a_run = 1.0
        self._engine = engine
        self._tables = TableReader(engine)

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

    def close(self) -> None:
        """Let go of the database."""
        self._tables.close()

    def runs(self, run_ids: list[str]) -> dict[str, Run]:
        """Return the runs that are there, by id, without their parts; at most some hundreds."""
        as_of_ms = time.time_ns() // 1_000_000
        metrics = self._tables.rows("latest_metrics", _METRICS, _DOING, run_uuid=run_ids)
        params = self._tables.rows("params", _PAIRS, _DOING, run_uuid=run_ids)
        tags = self._tables.rows("tags", _PAIRS, _DOING, run_uuid=run_ids)
        read_bytes = metrics.nbytes + params.nbytes + tags.nbytes
        self.bytes_a_run = read_bytes / len(run_ids) if read_bytes else 1.0
        data = {
            "metrics": _by_run(metrics, _metrics),
            "params": _by_run(params, _pairs),
            "tags": _by_run(tags, _pairs),
        }
        inputs, outputs = self._inputs(run_ids), self._made_models(run_ids)
        runs = {}
        for info in self._infos(run_ids):
            run_id = info["run_id"]
            its = {name: of_run.get(run_id, []) for name, of_run in data.items()}
            if info["run_name"] is None:
                named = (tag["value"] for tag in its["tags"] if tag["key"] == _NAME_TAG)
                info["run_name"] = next(named, None)
            known = {name: value for name, value in info.items() if value is not None}
            document: dict[str, Any] = {"info": known, "data": its}
            if run_id in inputs:
                document["inputs"] = inputs[run_id]
            if run_id in outputs:
                document["outputs"] = {"model_outputs": outputs[run_id]}
            doubles = [m["value"] for m in its["metrics"] if isinstance(m["value"], float)]
            runs[run_id] = Run(document, as_of_ms=as_of_ms, doubles=doubles)
        return runs

    def _infos(self, run_ids: list[str]) -> Iterator[dict[str, Any]]:
        rows = self._tables.rows("runs", _INFO, _DOING, run_uuid=run_ids)
        for row in zip(*rows.to_pydict().values(), strict=True):
            run_id, name, experiment_id, user_id, status, start, end, uri, stage = row
            yield {
                "run_id": run_id,
                "run_uuid": run_id,
                "run_name": name or None,
                "experiment_id": str(experiment_id),
                "user_id": user_id,
                "status": status,
                "start_time": start,
                "end_time": end,
                "artifact_uri": uri,
                "lifecycle_stage": stage,
            }

    def _inputs(self, run_ids: list[str]) -> dict[str, dict[str, Any]]:
        """Return REST's ``RunInputs`` of the runs that have any."""
        links = self._tables.rows(
            "inputs", _DATASET_LINK, _DOING, destination_type="RUN", destination_id=run_ids
        ).to_pydict()
        found: dict[str, dict[str, Any]] = {}
        tags: dict[str, list[dict[str, Any]]] = {identity: [] for identity in links["input_uuid"]}
        datasets = self._datasets(set(links["source_id"]))
        seen: set[tuple[str, str]] = set()
        for identity, source_id, run_id in zip(*links.values(), strict=True):
            if (run_id, source_id) in seen or source_id not in datasets:
                continue
            seen.add((run_id, source_id))
            entry = {"tags": tags[identity], "dataset": dict(datasets[source_id])}
            found.setdefault(run_id, {}).setdefault("dataset_inputs", []).append(entry)
        if tags:
            rows = self._tables.rows("input_tags", _INPUT_TAG, _DOING, input_uuid=list(tags))
            for identity, name, value in zip(*rows.to_pydict().values(), strict=True):
                tags[identity].append({"key": name, "value": value})
        for run_id, model_ids in self._linked("RUN_INPUT", "MODEL_INPUT", run_ids):
            listed = found.setdefault(run_id, {}).setdefault("model_inputs", [])
            listed.append({"model_id": model_ids[0]})
        for document in found.values():
            _sort_inputs(document)
        return found

    def _datasets(self, identities: set[str]) -> dict[str, dict[str, Any]]:
        """Return REST's ``Dataset`` of each of some; an empty schema or profile is none."""
        if not identities:
            return {}
        rows = self._tables.rows("datasets", _DATASET, _DOING, dataset_uuid=sorted(identities))
        found = {}
        for row in zip(*rows.to_pydict().values(), strict=True):
            identity, name, digest, source_type, source, schema, profile = row
            dataset = {
                "name": name,
                "digest": digest,
                "source_type": source_type,
                "source": source,
                "schema": schema,
                "profile": profile,
            }
            found[identity] = {
                key: value
                for key, value in dataset.items()
                if value or key not in {"schema", "profile"}
            }
        return found

    def _made_models(self, run_ids: list[str]) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for run_id, (model_id, step) in self._linked("RUN_OUTPUT", "MODEL_OUTPUT", run_ids):
            found.setdefault(run_id, []).append({"model_id": model_id, "step": step})
        for listed in found.values():
            listed.sort(key=lambda model: (model["step"], model["model_id"]))
        return found

    def _linked(
        self, source: str, destination: str, run_ids: list[str]
    ) -> Iterator[tuple[str, tuple[str, int]]]:
        """Yield run, model and step of the links between runs and logged models."""
        if "step" not in _table("SqlInput").c:
            return  # before MLflow 3 there were no logged models
        rows = self._tables.rows(
            "inputs",
            _MODEL_LINK,
            _DOING,
            source_type=source,
            destination_type=destination,
            source_id=run_ids,
        )
        for run_id, model_id, step in zip(*rows.to_pydict().values(), strict=True):
            yield run_id, (model_id, step)

    def linked_traces(self, run_ids: list[str]) -> Iterator[tuple[str, str]]:
        """Yield run and trace of the links between the two, by run."""
        from mlflow.store.tracking.dbmodels import models

        if not hasattr(models, "SqlEntityAssociation"):
            return  # before MLflow 3.3
        for start in range(0, len(run_ids), _IDS_AT_ONCE):
            links = self._tables.rows(
                "entity_associations",
                _TRACE_LINK,
                "reading links of traces",
                source_type="trace",
                destination_type="run",
                destination_id=run_ids[start : start + _IDS_AT_ONCE],
            )
            yield from sorted(zip(*links.to_pydict().values(), strict=True))


_DOING = "reading runs"
_TEXT, _NUMBER = pa.string(), pa.int64()
_INFO = pa.schema(
    {
        "run_uuid": _TEXT,
        "name": _TEXT,
        "experiment_id": _NUMBER,
        "user_id": _TEXT,
        "status": _TEXT,
        "start_time": _NUMBER,
        "end_time": _NUMBER,
        "artifact_uri": _TEXT,
        "lifecycle_stage": _TEXT,
    }
)
_PAIRS = pa.schema({"run_uuid": _TEXT, "key": _TEXT, "value": _TEXT})
_METRICS = pa.schema(
    {
        "run_uuid": _TEXT,
        "key": _TEXT,
        "value": pa.float64(),
        "timestamp": _NUMBER,
        "step": _NUMBER,
        "is_nan": pa.bool_(),
    }
)
_DATASET_LINK = pa.schema({"input_uuid": _TEXT, "source_id": _TEXT, "destination_id": _TEXT})
_MODEL_LINK = pa.schema({"source_id": _TEXT, "destination_id": _TEXT, "step": _NUMBER})
_TRACE_LINK = pa.schema({"destination_id": _TEXT, "source_id": _TEXT})
_INPUT_TAG = pa.schema({"input_uuid": _TEXT, "name": _TEXT, "value": _TEXT})
_DATASET = pa.schema(
    {
        "dataset_uuid": _TEXT,
        "name": _TEXT,
        "digest": _TEXT,
        "dataset_source_type": _TEXT,
        "dataset_source": _TEXT,
        "dataset_schema": _TEXT,
        "dataset_profile": _TEXT,
    }
)


def _by_run(
    rows: pa.Table, made: Callable[[pa.Table], list[dict[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """Return metrics, params or tags by run, each run's sorted by key."""
    rows = rows.sort_by([("run_uuid", "ascending"), ("key", "ascending")])
    entries, found, start = made(rows), {}, 0
    ends = pc.run_end_encode(in_one_piece(rows.column("run_uuid")))
    for run_id, end in zip(ends.values.to_pylist(), ends.run_ends.to_pylist(), strict=True):
        found[run_id] = entries[start:end]
        start = end
    return found


def _pairs(rows: pa.Table) -> list[dict[str, Any]]:
    keys, values = (rows.column(name).to_pylist() for name in ("key", "value"))
    return [{"key": key, "value": value} for key, value in zip(keys, values, strict=True)]


def _metrics(rows: pa.Table) -> list[dict[str, Any]]:
    value = pc.if_else(rows.column("is_nan"), float("nan"), rows.column("value"))
    values = value.to_pylist()
    if not pc.all(pc.is_finite(value)).as_py():
        values = [json_number(number) for number in values]
    keys, timestamps, steps = (rows.column(n).to_pylist() for n in ("key", "timestamp", "step"))
    return [
        {"key": key, "value": value, "timestamp": timestamp, "step": step}
        for key, value, timestamp, step in zip(keys, values, timestamps, steps, strict=True)
    ]


def _key(entry: dict[str, Any]) -> str:
    return str(entry["key"])


def _sort_inputs(document: dict[str, Any]) -> None:
    for entry in document.get("dataset_inputs", ()):
        if entry["tags"]:
            entry["tags"].sort(key=_key)
        else:
            del entry["tags"]
    document.get("dataset_inputs", []).sort(key=dataset_identity)
    document.get("model_inputs", []).sort(key=lambda model: model["model_id"])


def _table(model: str) -> Table:
    from mlflow.store.tracking.dbmodels import models

    table: Table = getattr(models, model).__table__
    return table
