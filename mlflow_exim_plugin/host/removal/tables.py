"""Rows of runs in a database: which are theirs, and how they go."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from datetime import date, datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import and_, delete, literal, or_, select, true

from mlflow_exim_plugin.host.open.workspaces import DEFAULT
from mlflow_exim_plugin.host.sql.writer import TableWriter
from mlflow_exim_plugin.schema.objects import SOURCE_RUN

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from sqlalchemy import ColumnElement, Table

__all__ = ["LINKED_TYPES", "FilesAt", "RemovalTables", "RunParts"]

LINKED_TYPES = {"RUN", "RUN_INPUT", "RUN_OUTPUT"}
"""What ``inputs`` calls a run, as the end of a link."""
_AT_ONCE = 400
"""So many values a statement names: SQLite takes 999 in all."""
_QUEUE = "sql_trace_rollup_rebuild_queue"
_COUNTED = {
    "sql_trace_metric_daily_rollups": "trace_metric",
    "sql_span_cost_daily_rollups": "span_cost",
    "sql_assessment_daily_rollups": "assessment",
}
"""Tables of what a server counted of each day, and what its queue calls them."""


_PLACES = (
    ("runs", "run", "run_uuid", "artifact_uri"),
    ("logged_models", "logged model", "model_id", "artifact_location"),
    ("trace_tags", "trace", "request_id", "value"),
    ("experiments", "experiment", "experiment_id", "artifact_location"),
)
"""Tables that say where files lie: of what, the column of its id, and that of the place."""
FILES_OF_TRACE = "mlflow.artifactLocation"
_NAMED_AT_ONCE = 50


class FilesAt(NamedTuple):
    """Where files lie.

    Attributes:
        what: Of what, for people.
        owner: Its id.
        place: The place as the database has it.
    """

    what: str
    owner: str
    place: str


@dataclass
class RunParts:
    """A run in a database and what goes with it.

    Attributes:
        id: The run's id.
        row: Its own row.
        workspace: The workspace of its experiment.
        models: Where the files of its logged models are, by their ids.
        traces: Where the files of its traces are, by their ids; None where they have none.
    """

    id: str
    row: dict[str, Any]
    workspace: str = DEFAULT
    models: dict[str, str] = field(default_factory=dict)
    traces: dict[str, str | None] = field(default_factory=dict)

    @property
    def is_deleted(self) -> bool:
        """Whether it is deleted already, as MLflow's API does it."""
        return bool(self.row["lifecycle_stage"] == "deleted")

    @property
    def folders(self) -> dict[str, str]:
        """Where its files are, by the id that the place must have."""
        files = {self.id: str(self.row.get("artifact_uri") or "")} | self.models
        files |= {trace: place for trace, place in self.traces.items() if place}
        return {owner: place for owner, place in files.items() if place}


class RemovalTables(TableWriter):
    """A database of which rows of runs are changed and taken away, by what it really has.

    All happens inside of transactions, as in its base.
    """

    def parts(self, run_ids: Iterable[str]) -> dict[str, RunParts]:
        """Return what there is of runs, by id; a run that is not there is left out."""
        found: dict[str, RunParts] = {}
        for some in _some(run_ids):
            rows = self.select("runs", run_uuid=some)
            found |= {row["run_uuid"]: RunParts(row["run_uuid"], row) for row in rows}
        for some in _some(found):
            self._add_models(found, some)
            self._add_traces(found, some)
        if self.has("experiments", "workspace"):
            owners = tuple({parts.row["experiment_id"] for parts in found.values()})
            for some_owners in _some(owners):
                for row in self.select("experiments", experiment_id=some_owners):
                    for parts in found.values():
                        if parts.row["experiment_id"] == row["experiment_id"]:
                            parts.workspace = str(row["workspace"] or DEFAULT)
        return found

    def _add_models(self, found: dict[str, RunParts], run_ids: tuple[str, ...]) -> None:
        if not self.has("logged_models"):
            return
        for row in self.select("logged_models", source_run_id=run_ids):
            found[row["source_run_id"]].models[row["model_id"]] = str(row["artifact_location"])

    def _add_traces(self, found: dict[str, RunParts], run_ids: tuple[str, ...]) -> None:
        if not self.has("trace_request_metadata"):
            return
        for row in self.select("trace_request_metadata", key=SOURCE_RUN, value=run_ids):
            found[row["value"]].traces[row["request_id"]] = None
        owners = {trace: of for of in found.values() for trace in of.traces}
        for some in _some(owners):
            of_place = self.select("trace_tags", key=FILES_OF_TRACE, request_id=some)
            for row in of_place:
                owners[row["request_id"]].traces[row["request_id"]] = row["value"]

    def referring(self, table: str, column: str) -> Iterator[tuple[Table, str, bool]]:
        """Yield tables with a foreign key to a column: the column there, and whether it empties.

        A table whose column becomes empty when the row that it names goes does not go with it.
        """
        for other in self._metadata.tables.values():
            if other.name == table:
                continue
            for key in other.foreign_keys:
                if key.column.table.name == table and key.column.name == column:
                    yield other, key.parent.name, (key.ondelete or "").upper() == "SET NULL"

    @property
    def names(self) -> list[str]:
        """The tables that there are."""
        return sorted(self._metadata.tables)

    def select_of(
        self, table: str, column: str, ids: Iterable[str], **key: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows that name one of some ids; none where there is no such table."""
        if self.has(table, column):
            for some in _some(ids):
                yield from self.select(table, **{column: some}, **key)

    def assessments_of_runs(self) -> list[dict[str, Any]]:
        """Return those assessments that may name a run."""
        there = self._metadata.tables["assessments"].columns
        told = there["assessment_metadata"].contains("sourceRunId")
        return self._found("assessments", there["run_id"].is_not(None) | told)

    def places(self, owners: Collection[str]) -> Iterator[FilesAt]:
        """Yield where other files lie that may lie in the folders of some owners, or around them.

        Args:
            owners: Ids of runs, logged models and traces.
        """
        for table, what, id_column, column in _PLACES:
            if not self.has(table, column):
                continue
            there = self._metadata.tables[table].columns
            place = there[column]
            condition = and_(there["key"] == FILES_OF_TRACE) if table == "trace_tags" else true()
            if len(owners) <= _NAMED_AT_ONCE:
                named = [place.contains(owner, autoescape=True) for owner in owners]
                if what == "run":
                    named.append(place.not_like(literal("%") + there[id_column] + literal("%")))
                condition = and_(condition, or_(*named))
            for row in self._found(table, condition):
                if row[column]:
                    yield FilesAt(what, str(row[id_column]), str(row[column]))

    def run_of(self, place: FilesAt) -> str:
        """Return the run that whoever owns a place goes with, empty where there is none."""
        if place.what == "run":
            return place.owner
        if place.what == "logged model":
            row = self.one("logged_models", model_id=place.owner) or {}
            return str(row.get("source_run_id") or "")
        if place.what == "trace":
            key = {"request_id": place.owner, "key": SOURCE_RUN}
            return str((self.one("trace_request_metadata", **key) or {}).get("value") or "")
        return ""

    def owners_among(self, names: Collection[str]) -> Iterator[FilesAt]:
        """Yield the runs, logged models and traces of which some texts are ids, without places."""
        for what, table, column in (
            ("run", "runs", "run_uuid"),
            ("logged model", "logged_models", "model_id"),
            ("trace", "trace_info", "request_id"),
        ):
            for row in self.select_of(table, column, names):
                yield FilesAt(what, str(row[column]), "")

    def _found(self, table: str, condition: ColumnElement[bool]) -> list[dict[str, Any]]:
        self.flush()
        self.begin()
        assert self._connection is not None  # noqa: S101 - begin() opened it
        with self._doing(f"reading {table}"):
            query = select(self._metadata.tables[table]).where(condition)
            return [dict(row) for row in self._connection.execute(query).mappings()]

    def delete(self, table: str, **key: Any) -> int:
        """Delete the rows with these values, and return how many there were."""
        there = self._metadata.tables[table]
        self.flush()
        self.begin()
        assert self._connection is not None  # noqa: S101 - begin() opened it
        count = 0
        (name, values), *more = key.items()
        for some in _some(values if isinstance(values, tuple) else (values,)):
            statement = delete(there).where(there.columns[name].in_(some))
            for also, value in more:
                column = there.columns[also]
                is_one = column.in_(value) if isinstance(value, tuple) else column == value
                statement = statement.where(is_one)
            with self._doing(f"deleting from {table}"):
                count += self._connection.execute(statement).rowcount
        return count

    def delete_with_all_below(self, table: str, column: str, values: tuple[str, ...]) -> int:
        """Delete rows and first all that foreign keys say to belong to them.

        Raises:
            ServerError: A table names a row through a key that is not known here.
        """
        if not values:
            return 0
        count = 0
        for other, its_column, is_emptied in self.referring(table, column):
            if is_emptied:
                for some in _some(values):
                    self.update(other.name, {its_column: None}, **{its_column: some})
            else:
                count += self.delete_with_all_below(other.name, its_column, values)
        return count + self.delete(table, **{column: values})

    def delete_traces(self, trace_ids: tuple[str, ...]) -> int:
        """Delete traces with their spans, assessments and links."""
        if not trace_ids:
            return 0
        for end in ("source", "destination"):
            if self.has("entity_associations"):
                key = {f"{end}_id": trace_ids, f"{end}_type": "trace"}
                self.delete("entity_associations", **key)
        self._count_anew(trace_ids)
        return self.delete_with_all_below("trace_info", "request_id", trace_ids)

    def _count_anew(self, trace_ids: tuple[str, ...]) -> None:
        """Let the server count again what it once counted of the days of some traces.

        Source: ``SqlAlchemyStore._enqueue_rollup_rebuilds_for_trace_delete``.
        """
        if not self.has(_QUEUE):
            return
        for some in _some(trace_ids):
            days = {
                (int(row["experiment_id"]), _day(int(row["timestamp_ms"])))
                for row in self.select("trace_info", request_id=some)
            }
            for table, family in _COUNTED.items():
                owners = tuple({owner for owner, _ in days})
                counted = self.select(table, experiment_id=owners) if self.has(table) else []
                stale = {(row["experiment_id"], _day_of(row["rollup_day"])) for row in counted}
                for owner, day in sorted(stale & days):
                    key = {"experiment_id": owner, "rollup_day": day, "rollup_family": family}
                    if self.one(_QUEUE, **key) is None:
                        self.add([(_QUEUE, key)])

    def delete_models(self, model_ids: tuple[str, ...]) -> int:
        """Delete logged models with all that is theirs."""
        return self.delete_with_all_below("logged_models", "model_id", model_ids)

    def delete_run(self, run_id: str) -> int:
        """Delete a run with all that is its own, links included."""
        uuids: list[str] = []
        for end in ("source", "destination"):
            links = self.select(
                "inputs", **{f"{end}_id": run_id, f"{end}_type": tuple(LINKED_TYPES)}
            )
            uuids += [str(link["input_uuid"]) for link in links]
            self.delete("inputs", **{f"{end}_id": run_id, f"{end}_type": tuple(LINKED_TYPES)})
            if self.has("entity_associations"):
                self.delete("entity_associations", **{f"{end}_id": run_id, f"{end}_type": "run"})
        if uuids:
            self.delete("input_tags", input_uuid=tuple(uuids))
        return self.delete_with_all_below("runs", "run_uuid", (run_id,))

    def tag(self, run_id: str, tags: dict[str, str]) -> None:
        """Set tags of a run."""
        for key, value in tags.items():
            if self.one("tags", run_uuid=run_id, key=key) is None:
                self.add([("tags", {"run_uuid": run_id, "key": key, "value": value})])
            else:
                self.update("tags", {"value": value}, run_uuid=run_id, key=key)

    def put_into(self, parts: RunParts, experiment_id: int) -> None:
        """Give a run, its logged models and its traces to another experiment."""
        own = {"experiment_id": experiment_id}
        self._count_anew(tuple(parts.traces))
        self.update("runs", own, run_uuid=parts.id)
        for table, column, ids in self._of_experiments(parts):
            for some in _some(ids):
                self.update(table, own, **{column: some})
        self._count_anew(tuple(parts.traces))
        self._put_datasets_into(parts.id, experiment_id)

    def _of_experiments(self, parts: RunParts) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Yield the tables that name the experiment of a model or trace of a run beside its id."""
        for root, column, ids in (
            ("logged_models", "model_id", tuple(parts.models)),
            ("trace_info", "request_id", tuple(parts.traces)),
        ):
            if not ids:
                continue
            yield root, column, ids
            for other, its_column, _ in self.referring(root, column):
                if self.has(other.name, "experiment_id"):
                    yield other.name, its_column, ids

    def _put_datasets_into(self, run_id: str, experiment_id: int) -> None:
        """Let the inputs of a run name datasets of another experiment, as MLflow looks for them."""
        for link in self.select("inputs", destination_id=run_id, destination_type="RUN"):
            used = self.one("datasets", dataset_uuid=link["source_id"])
            if used is None or used["experiment_id"] == experiment_id:
                continue
            named = {"experiment_id": experiment_id}
            named |= {name: used[name] for name in ("name", "digest")}
            there = self.one("datasets", **named)
            if there is None and self.count("inputs", source_id=link["source_id"]) == 1:
                of_it = {"dataset_uuid": link["source_id"]}
                self.update("datasets", {"experiment_id": experiment_id}, **of_it)
                continue
            if there is None:
                there = used | named | {"dataset_uuid": uuid.uuid4().hex}
                self.add([("datasets", there)])
            key = {"source_type": link["source_type"], "source_id": link["source_id"]}
            key |= {"destination_type": "RUN", "destination_id": run_id}
            self.update("inputs", {"source_id": there["dataset_uuid"]}, **key)

    def hide(self, run_id: str) -> None:
        """Let a run be deleted, as MLflow's API does it, with its assessments left as they are."""
        now_ms = time.time_ns() // 1_000_000
        values = {"lifecycle_stage": "deleted", "deleted_time": now_ms}
        self.update("runs", values, run_uuid=run_id)

    def state_of(self, parts: RunParts, without: Collection[str] = ()) -> list[str]:
        """Return what tells whether anything changed of a run or of what goes with it.

        Of metric rows only their number: they are added, and never changed.

        Args:
            parts: The run.
            without: Tags that may change.
        """
        of_run = {"run_uuid": parts.id}
        state = [repr(self.count("metrics", **of_run)), *map(_plain, self.select("runs", **of_run))]
        for table in ("params", "latest_metrics", "tags"):
            rows = self.select(table, **of_run)
            state += [_plain(r) for r in rows if table != "tags" or r["key"] not in without]
        for end in ("source", "destination"):
            for link in self.select("inputs", **{f"{end}_id": parts.id}):
                if used := self.select("datasets", dataset_uuid=link["source_id"]):
                    state += [_plain({**used[0], "dataset_uuid": ""})]
                    link = {**link, "source_id": ""}  # noqa: PLW2901 - it goes by what it stands for
                state += [_plain(link)]
        for root, column, ids in (
            ("logged_models", "model_id", tuple(parts.models)),
            ("trace_info", "request_id", tuple(parts.traces)),
        ):
            if ids:
                tables = {root: column} | {t.name: c for t, c, _ in self.referring(root, column)}
                for table, its_column in tables.items():
                    for some in _some(ids):
                        state += map(_plain, self.select(table, **{its_column: some}))
        return sorted(state)


def _plain(row: Mapping[str, Any]) -> str:
    """Return a row as text, wherever it is."""
    return repr(sorted((name, v) for name, v in row.items() if name != "experiment_id"))


def _day(time_ms: int) -> date:
    return datetime.fromtimestamp(time_ms / 1000, timezone.utc).date()


def _day_of(stored: Any) -> date:
    """Return a day as any driver gives it: SQLite's column is a text where no type is known."""
    return date.fromisoformat(stored) if isinstance(stored, str) else stored


def _some(values: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
    listed = tuple(values)
    for start in range(0, len(listed), _AT_ONCE):
        yield listed[start : start + _AT_ONCE]
