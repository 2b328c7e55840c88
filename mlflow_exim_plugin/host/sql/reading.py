"""Experiments, runs and the registry of a database, listed and read without MLflow's stores.

Of a table whose rows cannot be read together each object's are read alone: one that is broken costs
itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mlflow_exim_plugin.errors import NotFoundError, ServerError
from mlflow_exim_plugin.host.api.reading import PROMPT_TAG, Reader
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.open.workspaces import active
from mlflow_exim_plugin.host.sql.run_rows import MODEL_COLUMNS, VERSION_COLUMNS
from mlflow_exim_plugin.host.sql.runs import StoredRuns
from mlflow_exim_plugin.options import ALL_IDS
from mlflow_exim_plugin.schema.documents import present, sorted_entries, without_empty
from mlflow_exim_plugin.schema.objects import VERSION_KINDS, Failure, Kind
from mlflow_exim_plugin.schema.provenance import with_dots
from mlflow_exim_plugin.schema.runs import PARENT, RunHeader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeAlias

    from sqlalchemy import ColumnClause, Engine

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.host.tables import TableReader, Value

    Found: TypeAlias = dict[str, Any] | Failure
    Where: TypeAlias = dict[str, Value]

__all__ = ["StoredReader", "reader_of"]

_TEXT, _NUMBER = pa.string(), pa.int64()
_EXPERIMENT = pa.schema(
    {
        "experiment_id": _NUMBER,
        "name": _TEXT,
        "artifact_location": _TEXT,
        "lifecycle_stage": _TEXT,
        "last_update_time": _NUMBER,
        "creation_time": _NUMBER,
        "workspace": _TEXT,
    }
)
_EXPERIMENT_TAG = pa.schema({"experiment_id": _NUMBER, "key": _TEXT, "value": _TEXT})
_TIMES = {"creation_time": _NUMBER, "last_updated_time": _NUMBER}
_MODEL = pa.schema({"name": _TEXT, **dict.fromkeys(MODEL_COLUMNS, _TEXT), **_TIMES})
_MODEL_TAG = pa.schema({"key": _TEXT, "value": _TEXT})
_ALIAS = pa.schema({"alias": _TEXT, "version": _NUMBER})
_VERSION = pa.schema({"version": _NUMBER, **dict.fromkeys(VERSION_COLUMNS, _TEXT), **_TIMES})
_VERSION_TAG = pa.schema({"version": _NUMBER, "key": _TEXT, "value": _TEXT})
_DELETED = "Deleted_Internal"
"""Stage of a version that MLflow keeps the number of."""
_HEADER = ("run_uuid", "lifecycle_stage", "start_time", "experiment_id")
_OF_EXPERIMENTS = ("runs", "logged_models", "trace_info")


def reader_of(host: Host) -> Reader:
    """Return what reads a deployment: its tables where they are at hand, else MLflow's client."""
    if host.tables is None or host.engine is None:
        return Reader(host)
    return StoredReader(host, host.tables, host.engine)


class StoredReader(Reader):
    """Reads documents out of a database; only what is searched for is searched by MLflow.

    Args:
        host: The deployment.
        tables: Its tables.
        engine: Its database.
    """

    def __init__(self, host: Host, tables: TableReader, engine: Engine) -> None:
        super().__init__(host)
        self._tables = tables
        self._engine = engine

    def found_experiments(self) -> Iterator[Found]:
        """Yield every experiment in any order, or why it cannot be read."""
        doing = "listing the experiments"
        yield from self._together_or_alone(
            self._experiments,
            lambda: self._tables.values("experiments", "experiment_id", **self._owner()),
            lambda identity, reason: Failure(Kind.EXPERIMENT, str(identity), reason),
            doing,
        )

    def _experiments(self, doing: str, identity: int | None = None) -> list[dict[str, Any]]:
        one: Where = {} if identity is None else {"experiment_id": identity}
        tags: dict[int, dict[str, str]] = {}
        for tag in self._rows("experiment_tags", _EXPERIMENT_TAG, doing, **one):
            tags.setdefault(tag["experiment_id"], {})[tag["key"]] = tag["value"] or ""
        return [
            present(row)
            | {
                "experiment_id": str(row["experiment_id"]),
                "tags": sorted_entries(tags.get(row["experiment_id"], {})),
            }
            for row in self._rows("experiments", _EXPERIMENT, doing, **one, **self._owner())
        ]

    def owners_without(self, unread: set[str], among: Iterable[str] | None = None) -> set[str]:
        """Return the ids of experiments that are gone or unread, and that something belongs to.

        Args:
            unread: Those that cannot be read.
            among: All of those that something belongs to; they are looked for without it.
        """
        owners = set(among) if among is not None else self._owners()
        known = self._tables.values("experiments", "experiment_id")
        return owners - (set(map(str, known)) - unread)

    def _owners(self) -> set[str]:
        return {
            str(owner)
            for table in _OF_EXPERIMENTS
            for owner in self._tables.values(table, "experiment_id")
        }

    def _runs_of_some(
        self, experiment_ids: list[str], filter_string: str
    ) -> dict[str, dict[str, RunHeader]]:
        if filter_string:
            self.host.ask_mlflow("runs are searched in its language")
            return super()._runs_of_some(experiment_ids, filter_string)
        return self._runs_within(experiment_ids, "", ALL_IDS)

    def _runs_within(
        self, experiment_ids: list[str], filter_string: str, ids: tuple[str, str]
    ) -> dict[str, dict[str, RunHeader]]:
        if filter_string:
            return super()._runs_within(experiment_ids, filter_string, ids)
        from sqlalchemy import and_, column, select, table

        of_run: list[ColumnClause[Any]] = [column(name) for name in _HEADER]
        of_tag: list[ColumnClause[Any]] = [column(name) for name in ("run_uuid", "key", "value")]
        runs, tags = table("runs", *of_run), table("tags", *of_tag)
        of_parent = and_(tags.c.run_uuid == runs.c.run_uuid, tags.c.key == PARENT)
        named = (*(runs.c[name] for name in _HEADER), tags.c.value)
        query = (
            select(*named)
            .select_from(runs.outerjoin(tags, of_parent))
            .where(runs.c.experiment_id.in_(map(int, experiment_ids)))
        )
        # By the order of the database, in which its index finds them; parts are disjoint in any.
        if ids[0]:
            query = query.where(runs.c.run_uuid >= ids[0])
        if ids[1]:
            query = query.where(runs.c.run_uuid < ids[1])
        found: dict[str, dict[str, RunHeader]] = {e: {} for e in experiment_ids}
        doing = f"listing the runs of experiment {', '.join(experiment_ids[:3])}"
        with translated(doing), self._engine.connect() as connection:
            for run_id, stage, start_time, owner, parent in connection.execute(query).all():
                header = RunHeader(run_id, str(owner), stage, start_time or 0, parent)
                found[header.experiment_id][run_id] = header
        return found

    def run(self, run_id: str) -> dict[str, Any]:
        """Return one run."""
        try:
            found = StoredRuns(self._engine, self._tables).read([run_id]).runs()
        except ServerError:  # SQLite keeps anything in any column, and MLflow takes some of it
            self.host.ask_mlflow(f"rows of run {run_id} are not of the types that it writes")
            return super().run(run_id)
        if run_id not in found:
            there_is_none = f"reading run {run_id}: there is none of this id"
            raise ServerError(there_is_none) from NotFoundError(there_is_none)
        return found[run_id].document

    def _registered(self, filter_string: str | None) -> dict[str, bool]:
        if not self.host.has_one_store:
            self.host.ask_mlflow("its model registry is in another place")
            return super()._registered(filter_string)
        self.has_registry = True
        if filter_string is None:
            models = self._tables.values("registered_models", "name", **self._owner())
            return dict.fromkeys(models, False)
        is_prompt = self._owner(key=PROMPT_TAG, value="true")
        return dict.fromkeys(
            self._tables.values("registered_model_tags", "name", **is_prompt), True
        )

    def registered_model(self, name: str) -> dict[str, Any]:
        """Return one registered model with its aliases."""
        if not self.host.has_one_store:
            return super().registered_model(name)
        doing, owner = f"reading registered model {name!r}", self._owner(name=name)
        found = list(self._rows("registered_models", _MODEL, doing, **owner))
        if not found:
            raise ServerError(f"{doing}: there is none of this name")
        tags = self._rows("registered_model_tags", _MODEL_TAG, doing, **owner)
        aliases = self._rows("registered_model_aliases", _ALIAS, doing, **owner)
        document = _named(found[0], MODEL_COLUMNS) | {"name": name}
        if not document.get("description"):
            document.pop("description", None)
        document["tags"] = _tags(tags)
        document["aliases"] = sorted(
            ({"alias": a["alias"], "version": str(a["version"])} for a in aliases),
            key=lambda alias: alias["alias"],
        )
        return document

    def model_versions(
        self, name: str, aliases: dict[str, int], kind: Kind = Kind.REGISTERED_MODEL
    ) -> list[dict[str, Any]]:
        """Return every version of a registered model or prompt, by number."""
        if not self.host.has_one_store:
            return super().model_versions(name, aliases, kind)
        found = []
        for version in self.found_versions(name, aliases, kind):
            if isinstance(version, Failure):
                raise ServerError(version.reason)
            found.append(version)
        return found

    def found_versions(self, name: str, aliases: dict[str, int], kind: Kind) -> list[Found]:
        """Return every version of a registered model or prompt, or why it cannot be read."""
        if not self.host.has_one_store:
            return super().found_versions(name, aliases, kind)
        its: dict[int, list[str]] = {}
        for alias, number in aliases.items():
            its.setdefault(number, []).append(alias)

        def read(doing: str, number: int | None = None) -> list[dict[str, Any]]:
            return self._versions(name, its, doing, {} if number is None else {"version": number})

        owner = self._owner(name=name)
        found = self._together_or_alone(
            read,
            lambda: self._tables.values("model_versions", "version", **owner),
            lambda number, reason: Failure(VERSION_KINDS[kind], f"{name}/{number}", reason),
            f"listing the versions of {name!r}",
        )
        return list(found)

    def _versions(
        self, name: str, aliases: dict[int, list[str]], doing: str, one: Where
    ) -> list[dict[str, Any]]:
        owner = self._owner(name=name, **one)
        tags: dict[int, list[dict[str, Any]]] = {}
        for tag in self._rows("model_version_tags", _VERSION_TAG, doing, **owner):
            tags.setdefault(tag["version"], []).append(tag)
        rows = self._rows("model_versions", _VERSION, doing, **owner)
        return [
            {"name": name}
            | without_empty(_named(row, VERSION_COLUMNS))
            | {
                "version": str(row["version"]),
                "tags": _tags(tags.get(row["version"], ())),
                "aliases": sorted(aliases.get(row["version"], ())),
            }
            for row in sorted(rows, key=lambda row: int(row["version"]))
            if row["current_stage"] != _DELETED
        ]

    def download_uri(self, name: str, version: int) -> str:
        """Return where a model version's files really are."""
        if not self.host.has_one_store:
            return super().download_uri(name, version)
        owner = self._owner(name=name, version=version)
        for column in ("storage_location", "source"):
            for found in self._tables.values("model_versions", column, **owner):
                if found:
                    return str(found)
        return ""

    def _rows(
        self, table: str, columns: pa.Schema, doing: str, **where: Value
    ) -> Iterator[dict[str, Any]]:
        found = self._tables.rows(table, columns, doing, limit=None, **where)
        yield from found.to_pylist()

    def _owner(self, **where: Value) -> Where:
        """Return what rows of the active workspace hold beside others."""
        if not self.host.workspaces:
            return where
        return {"workspace": active(), **where}

    def _together_or_alone(
        self,
        read: Callable[..., list[dict[str, Any]]],
        ids: Callable[[], Iterable[int]],
        failed: Callable[[int, str], Failure],
        doing: str,
    ) -> Iterator[Found]:
        """Yield documents of all rows of a table, of each object alone where that fails.

        Args:
            read: Reads all documents, or those of one id, by what is being done.
            ids: Gives the ids.
            failed: Makes a failure of an id and a reason.
            doing: What is being done.
        """
        try:
            together = read(doing)
        except ServerError:
            for identity in ids():
                try:
                    yield from read(f"{doing}, of {identity}", identity)
                except ServerError as error:
                    yield failed(identity, error.message)
        else:
            yield from together


def _named(row: dict[str, Any], fields: dict[str, str]) -> dict[str, Any]:
    """Return a row as a document: by the names of its fields, without those that hold nothing."""
    return present({fields.get(column, column): value for column, value in row.items()})


def _tags(rows: Iterable[dict[str, Any]]) -> list[dict[str, str]]:
    return sorted_entries({with_dots(row["key"]): row["value"] or "" for row in rows})
