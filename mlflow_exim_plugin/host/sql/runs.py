"""Runs out of the database of a store that this process opens itself, many with each query.

MLflow's own call builds an object for every parameter and tag. Here rows become documents at once.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.errors import ServerError, ServerLostError
from mlflow_exim_plugin.host.api.reading import PROMPT_TAG, Reader
from mlflow_exim_plugin.host.documents import (
    model_version_document,
    registered_model_document,
)
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.sql.reader import TableReader
from mlflow_exim_plugin.schema.documents import dataset_identity, json_number
from mlflow_exim_plugin.schema.objects import VERSION_KINDS, Failure, Kind, Run
from mlflow_exim_plugin.schema.runs import RunHeader
from mlflow_exim_plugin.schema.tables import in_one_piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine, Table

__all__ = ["RowsOfRuns", "StoredReader", "StoredRuns"]

_IDS_AT_ONCE = 500
_NAME_TAG = "mlflow.runName"
_PARENT_TAG = "mlflow.parentRunId"


class StoredReader(Reader):
    """A ``Reader`` of a database, which lists an experiment's runs with one query.

    MLflow's listings fail as a whole of one row that is not as it should be. Then the ids come from
    the tables, and each object is read alone.
    """

    def found_experiments(self) -> Iterator[dict[str, Any] | Failure]:
        """Yield every experiment in any order, or why it cannot be read."""
        try:
            yield from super().found_experiments()
        except ServerLostError:
            raise
        except ServerError:
            if self.host.engine is None:
                raise
            for identity in self.host.stored_ids(_table("SqlExperiment").c.experiment_id):
                yield self._experiment(str(identity))

    def owners_without(self, unread: set[str]) -> set[str]:
        """Return the ids of experiments that are gone or unread, and that something belongs to."""
        from mlflow.store.tracking.dbmodels import models

        if self.host.engine is None:
            return super().owners_without(unread)
        tables = [getattr(models, name, None) for name in _OF_EXPERIMENTS]
        columns = [table.__table__.c.experiment_id for table in tables if table is not None]
        owners = {str(owner) for column in columns for owner in self.host.stored_ids(column)}
        known = self.host.stored_ids(_table("SqlExperiment").c.experiment_id)
        return owners - (set(map(str, known)) - unread)

    def registered_model(self, name: str) -> dict[str, Any]:
        """Return one registered model with its aliases, whatever its versions are like."""
        try:
            return super().registered_model(name)
        except ServerLostError:
            raise
        except ServerError:
            if not self._has_tables_of_models:
                raise
            from mlflow.store.model_registry.dbmodels.models import SqlRegisteredModel

            with (
                translated(f"reading registered model {name!r}"),
                self.host.registry.ManagedSessionMaker() as session,
            ):
                row = session.query(SqlRegisteredModel).filter_by(name=name).one()
                return registered_model_document(row.to_mlflow_entity([]))

    def found_versions(
        self, name: str, aliases: dict[str, int], kind: Kind
    ) -> list[dict[str, Any] | Failure]:
        """Return every version of a registered model or prompt, or why it cannot be read."""
        try:
            return super().found_versions(name, aliases, kind)
        except ServerLostError:
            raise
        except ServerError:
            if not self._has_tables_of_models:
                raise
            from mlflow.store.model_registry.dbmodels.models import SqlModelVersion

            rows = SqlModelVersion.__table__.c
            is_there = rows.name == name, rows.current_stage != _DELETED
            found: list[dict[str, Any] | Failure] = []
            for number in self.host.stored_ids(rows.version, *is_there):
                its = [alias for alias, aliased in aliases.items() if aliased == number]
                try:
                    with translated(f"reading version {number} of {name!r}"):
                        version = self.host.registry.get_model_version(name, str(number))
                        found.append(model_version_document(version, its))
                except ServerLostError:
                    raise
                except ServerError as error:
                    of = VERSION_KINDS[kind]
                    found.append(Failure(of, f"{name}/{number}", error.message))
            return found

    def _registered(self, filter_string: str | None) -> dict[str, bool]:
        try:
            return super()._registered(filter_string)
        except ServerLostError:
            raise
        except ServerError:
            if not self._has_tables_of_models:
                raise
            from mlflow.store.model_registry.dbmodels import models

            if filter_string is None:
                names = self.host.stored_ids(models.SqlRegisteredModel.__table__.c.name)
                return dict.fromkeys(names, False)
            tags = models.SqlRegisteredModelTag.__table__.c
            names = self.host.stored_ids(tags.name, tags.key == PROMPT_TAG)
            return dict.fromkeys(names, True)

    @property
    def _has_tables_of_models(self) -> bool:
        """Whether the registry's tables can be asked by name alone."""
        return self.host.has_one_store and not self.host.workspaces

    def runs(self, experiment_id: str, filter_string: str = "") -> dict[str, RunHeader]:
        """Return the headers of an experiment's runs that match, deleted ones included."""
        engine = self.host.engine
        if filter_string or engine is None:
            return super().runs(experiment_id, filter_string)
        from sqlalchemy import and_, select

        runs, tags = _table("SqlRun"), _table("SqlTag")
        of_parent = and_(tags.c.run_uuid == runs.c.run_uuid, tags.c.key == _PARENT_TAG)
        query = (
            select(runs.c.run_uuid, runs.c.lifecycle_stage, runs.c.start_time, tags.c.value)
            .select_from(runs.outerjoin(tags, of_parent))
            .where(runs.c.experiment_id == int(experiment_id))
        )
        doing = f"listing the runs of experiment {experiment_id}"
        with translated(doing), engine.connect() as connection:
            return {
                run_id: RunHeader(run_id, experiment_id, stage, start_time or 0, parent)
                for run_id, stage, start_time, parent in connection.execute(query).all()
            }


class StoredRuns:
    """Reads runs from a database.

    Args:
        engine: The store's own, with MLflow's schema.

    Source: ``SqlAlchemyStore.engine`` and MLflow's tables of runs.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tables = TableReader(engine)

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
            metrics=self._rows("latest_metrics", _METRICS, run_uuid=run_ids),
            params=self._rows("params", _PAIRS, run_uuid=run_ids),
            tags=self._rows("tags", _PAIRS, run_uuid=run_ids),
            dataset_links=links,
            datasets=self._rows("datasets", _DATASET, dataset_uuid=_distinct(links, "source_id")),
            input_tags=self._rows(
                "input_tags", _INPUT_TAG, input_uuid=_distinct(links, "input_uuid")
            ),
            model_inputs=self._model_links("RUN_INPUT", "MODEL_INPUT", run_ids),
            model_outputs=self._model_links("RUN_OUTPUT", "MODEL_OUTPUT", run_ids),
        )

    def _rows(self, table: str, columns: pa.Schema, **where: str | list[str]) -> pa.Table:
        if [] in where.values():
            return columns.empty_table()
        return self._tables.rows(table, columns, _DOING, limit=None, **where)

    def _model_links(self, source: str, destination: str, run_ids: list[str]) -> pa.Table:
        if "step" not in _table("SqlInput").c:
            return _MODEL_LINK.empty_table()  # before MLflow 3 there were no logged models
        return self._rows(
            "inputs",
            _MODEL_LINK,
            source_type=source,
            destination_type=destination,
            source_id=run_ids,
        )

    def linked_traces(self, run_ids: list[str]) -> Iterator[tuple[str, str]]:
        """Yield run and trace of the links between the two, by run."""
        yield from self._trace_links("run", "destination_id", run_ids)

    def linked_prompts(self, trace_ids: list[str]) -> Iterator[tuple[str, str]]:
        """Yield prompt version and trace of the links between the two."""
        yield from self._trace_links("prompt_version", "source_id", trace_ids)

    def _trace_links(self, to: str, end: str, ids: list[str]) -> Iterator[tuple[str, str]]:
        from mlflow.store.tracking.dbmodels import models

        if not hasattr(models, "SqlEntityAssociation"):
            return  # before MLflow 3.3
        for start in range(0, len(ids), _IDS_AT_ONCE):
            links = self._tables.rows(
                "entity_associations",
                _TRACE_LINK,
                "reading links of traces",
                limit=None,
                source_type="trace",
                destination_type=to,
                **{end: ids[start : start + _IDS_AT_ONCE]},
            )
            yield from sorted(_tuples(links))


@dataclass
class RowsOfRuns:
    """What a database has of some runs, as rows.

    To read rows is to wait, to make documents of them is to work: a thread that does both waits for
    the interpreter as well, after each of its many calls to Arrow.

    Attributes:
        as_of_ms: When they were read, ms since the Unix epoch.
        infos: Schema ``_INFO``; the others have the schemas that their names tell.
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
        inputs, outputs = self._inputs(), self._outputs()
        runs = {}
        for info in self._infos():
            run_id = info["run_id"]
            its = {
                "metrics": metrics.get(run_id, []),
                "params": params.get(run_id, []),
                "tags": tags.get(run_id, []),
            }
            if info["run_name"] is None:
                named = (tag["value"] for tag in its["tags"] if tag["key"] == _NAME_TAG)
                info["run_name"] = next(named, None)
            document: dict[str, Any] = {"info": _known(info), "data": its}
            if run_id in inputs:
                document["inputs"] = inputs[run_id]
            if run_id in outputs:
                document["outputs"] = {"model_outputs": outputs[run_id]}
            doubles = [m["value"] for m in its["metrics"] if isinstance(m["value"], float)]
            runs[run_id] = Run(document, as_of_ms=self.as_of_ms, doubles=doubles)
        return runs

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


_DELETED = "Deleted_Internal"
"""Stage of a version that MLflow keeps the number of."""
_OF_EXPERIMENTS = ("SqlRun", "SqlLoggedModel", "SqlTraceInfo")


def _table(model: str) -> Table:
    from mlflow.store.tracking.dbmodels import models

    table: Table = getattr(models, model).__table__
    return table
