"""Runs out of the database of a store that this process opens itself, many with each query.

MLflow's own call builds an object for every parameter and tag. Here rows become documents at once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.host.tables import TableReader
from mlflow_exim_plugin.schema.documents import dataset_identity, json_number, sorted_entries
from mlflow_exim_plugin.schema.objects import Run
from mlflow_exim_plugin.schema.tables import in_one_piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

__all__ = ["RowsOfRuns", "StoredRuns"]

_NAME_TAG = "mlflow.runName"
_USER_TAG = "mlflow.user"
_OF_1_0 = "451aebb31d03"
"""Revision before that with which MLflow 1.0 keeps users in tags."""


class StoredRuns:
    """Reads runs from a database.

    Args:
        engine: The database's, of any of MLflow's schemas.
        tables: Reads them, for a few runs; else they are read by a connection of their own.

    Source: MLflow's tables of runs.
    """

    def __init__(self, engine: Engine, tables: TableReader | None = None) -> None:
        self._tables = tables or TableReader(engine)

    def close(self) -> None:
        """Let go of the database."""
        self._tables.close()

    def read(self, run_ids: list[str]) -> RowsOfRuns:
        """Return the rows of some runs, whose ids go into one query: a thousand at most.

        Raises:
            ServerError: The database refused, or holds what is not of its column's type.
            ServerLostError: The database is gone.
        """
        as_of_ms = time.time_ns() // 1_000_000
        links = self._rows("inputs", _DATASET_LINK, destination_type="RUN", destination_id=run_ids)
        return RowsOfRuns(
            as_of_ms,
            infos=self._rows("runs", _INFO, run_uuid=run_ids),
            metrics=self._latest_metrics(run_ids),
            params=self._rows("params", _PAIRS, run_uuid=run_ids),
            tags=self._rows("tags", _PAIRS, run_uuid=run_ids),
            dataset_links=links,
            datasets=self._rows("datasets", _DATASET, dataset_uuid=_distinct(links, "source_id")),
            input_tags=self._rows(
                "input_tags", _INPUT_TAG, input_uuid=_distinct(links, "input_uuid")
            ),
            model_inputs=self._model_links("RUN_INPUT", "MODEL_INPUT", run_ids),
            model_outputs=self._model_links("RUN_OUTPUT", "MODEL_OUTPUT", run_ids),
            tags_users=not self._has_users_in_columns,
        )

    @cached_property
    def _has_users_in_columns(self) -> bool:
        """Whether it is from before MLflow 1.0, whose migration made tags of the users of runs."""
        revisions = self._tables.values("alembic_version", "version_num")
        return not revisions or revisions == [_OF_1_0]

    def _latest_metrics(self, run_ids: list[str]) -> pa.Table:
        if self._tables.has("latest_metrics", "key"):
            return self._rows("latest_metrics", _METRICS, run_uuid=run_ids)
        # Before MLflow 1.2 they were looked for among all.
        rows = self._rows("metrics", _METRICS, run_uuid=run_ids)
        order = ("run_uuid", "key", "step", "timestamp", "value")
        rows = rows.sort_by([(name, "ascending") for name in order])
        owners = pc.binary_join_element_wise(rows.column("run_uuid"), rows.column("key"), "/")
        ends = pc.run_end_encode(in_one_piece(owners)).run_ends
        return rows.take(pc.subtract(ends, 1))

    def _rows(self, table: str, columns: pa.Schema, **where: str | list[str]) -> pa.Table:
        if [] in where.values():
            return columns.empty_table()
        return self._tables.rows(table, columns, _DOING, limit=None, **where)

    def _model_links(self, source: str, destination: str, run_ids: list[str]) -> pa.Table:
        if not self._tables.has("inputs", "step"):
            return _MODEL_LINK.empty_table()  # before MLflow 3 there were no logged models
        return self._rows(
            "inputs",
            _MODEL_LINK,
            source_type=source,
            destination_type=destination,
            source_id=run_ids,
        )


@dataclass
class RowsOfRuns:
    """What a database has of some runs, as rows.

    To read rows is to wait, to make documents of them is to work: a thread that does both waits for
    the interpreter as well, after each of its many calls to Arrow.

    Attributes:
        as_of_ms: When they were read, ms since the Unix epoch.
        infos: Schema ``_INFO``; the others have the schemas that their names tell.
        tags_users: Whether the tags say already who made a run.
    """

    as_of_ms: int
    infos: pa.Table
    metrics: pa.Table
    params: pa.Table
    tags: pa.Table
    dataset_links: pa.Table
    datasets: pa.Table
    input_tags: pa.Table
    model_inputs: pa.Table
    model_outputs: pa.Table
    tags_users: bool = True

    @property
    def bytes_a_run(self) -> int:
        """Size of a run's metrics, parameters and tags on the average; at least 1."""
        runs: int = self.infos.num_rows
        size_bytes: int = self.metrics.nbytes + self.params.nbytes + self.tags.nbytes
        return max(size_bytes // max(runs, 1), 1)

    def runs(self) -> dict[str, Run]:
        """Return the runs that are there, by id, without their parts."""
        metrics = _by_run(self.metrics, _metrics)
        params, tags = _by_run(self.params, _pairs), _by_run(self.tags, _pairs)
        inputs, outputs, has_names = self._inputs(), self._outputs(), self._has_names
        runs = {}
        for info in self._infos():
            run_id = info["run_id"]
            its = {
                "metrics": metrics.get(run_id, []),
                "params": params.get(run_id, []),
                "tags": tags.get(run_id, []),
            }
            if not self.tags_users and info["user_id"]:
                known = {tag["key"]: tag["value"] for tag in its["tags"]}
                its["tags"] = sorted_entries({_USER_TAG: info["user_id"]} | known)
            if info["run_name"] is None:
                named = (tag["value"] for tag in its["tags"] if tag["key"] == _NAME_TAG)
                info["run_name"] = next(named, None)
            document: dict[str, Any] = {"info": _known(info), "data": its}
            if run_id in inputs:
                document["inputs"] = inputs[run_id]
            if run_id in outputs:
                document["outputs"] = {"model_outputs": outputs[run_id]}
            run = runs[run_id] = Run(document, as_of_ms=self.as_of_ms)
            if has_names:
                values = [metric["value"] for metric in its["metrics"]]
                run.doubles = [value for value in values if isinstance(value, float)]
        return runs

    @property
    def _has_names(self) -> bool:
        """Whether none lacks its name, so that each document has the form of a run."""
        keyed = (self.metrics, self.params, self.tags)
        links = (self.model_inputs, self.model_outputs)
        names = [t.column("key") for t in keyed] + [t.column("destination_id") for t in links]
        return not any(column.null_count for column in names)

    def _infos(self) -> Iterator[dict[str, Any]]:
        for row in _tuples(self.infos):
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

    def _inputs(self) -> dict[str, dict[str, Any]]:
        """Return REST's ``RunInputs`` of the runs that have any."""
        found: dict[str, dict[str, Any]] = {}
        tags: dict[str, list[dict[str, Any]]] = {}
        for identity, name, value in _tuples(self.input_tags):
            tags.setdefault(identity, []).append({"key": name, "value": value})
        datasets = self._datasets()
        seen: set[tuple[str, str]] = set()
        for identity, source_id, run_id in _tuples(self.dataset_links):
            if (run_id, source_id) in seen or source_id not in datasets:
                continue
            seen.add((run_id, source_id))
            entry: dict[str, Any] = {"dataset": dict(datasets[source_id])}
            if identity in tags:
                entry = {"tags": sorted(tags[identity], key=_key)} | entry
            found.setdefault(run_id, {}).setdefault("dataset_inputs", []).append(entry)
        for run_id, model_id, _step in _tuples(self.model_inputs):
            listed = found.setdefault(run_id, {}).setdefault("model_inputs", [])
            listed.append({"model_id": model_id})
        for document in found.values():
            if "dataset_inputs" in document:
                document["dataset_inputs"].sort(key=dataset_identity)
            if "model_inputs" in document:
                document["model_inputs"].sort(key=lambda model: model["model_id"])
        return found

    def _datasets(self) -> dict[str, dict[str, Any]]:
        """Return REST's ``Dataset`` of each; an empty schema or profile is none."""
        found = {}
        for identity, name, digest, source_type, source, schema, profile in _tuples(self.datasets):
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

    def _outputs(self) -> dict[str, list[dict[str, Any]]]:
        """Return REST's ``ModelOutput`` of the runs that have any."""
        found: dict[str, list[dict[str, Any]]] = {}
        for run_id, model_id, step in _tuples(self.model_outputs):
            found.setdefault(run_id, []).append({"model_id": model_id, "step": step})
        for listed in found.values():
            listed.sort(key=lambda model: (model["step"], model["model_id"]))
        return found


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
    [
        pa.field("run_uuid", _TEXT),
        pa.field("key", _TEXT),
        pa.field("value", pa.float64()),
        pa.field("timestamp", _NUMBER),
        # The first tables did not have these.
        pa.field("step", _NUMBER, nullable=False),
        pa.field("is_nan", pa.bool_(), nullable=False),
    ]
)
_DATASET_LINK = pa.schema({"input_uuid": _TEXT, "source_id": _TEXT, "destination_id": _TEXT})
_MODEL_LINK = pa.schema({"source_id": _TEXT, "destination_id": _TEXT, "step": _NUMBER})
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


def _known(info: dict[str, Any]) -> dict[str, Any]:
    if None not in info.values():
        return info
    return {name: value for name, value in info.items() if value is not None}


def _key(entry: dict[str, Any]) -> str:
    return str(entry["key"])


def _tuples(rows: pa.Table) -> Iterator[tuple[Any, ...]]:
    return zip(*rows.to_pydict().values(), strict=True)


def _distinct(rows: pa.Table, column: str) -> list[str]:
    return sorted(rows.column(column).unique().to_pylist())
