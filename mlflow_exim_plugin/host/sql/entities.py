"""The kinds that are one document each, out of a database: what ``entity_rows`` writes, read back.

Each is told as MLflow's own store tells it. MLflow itself is asked for the kinds whose description
says why (``by_mlflow``), where there are any, and for a scorer whose model is an endpoint of the
gateway: it names that by rules which every release may change.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.entities.datasets import sound_records
from mlflow_exim_plugin.host.entities.judges import versions_of_scorer
from mlflow_exim_plugin.host.entities.listing import each
from mlflow_exim_plugin.host.open.workspaces import active
from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.schema.objects import Entity, Failure, Kind, by_number

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.host.tables import TableReader, Value
    from mlflow_exim_plugin.kinds.description import TableRows

__all__ = ["StoredEntities", "entities_of"]

_GATEWAY = "gateway:/"
"""Begins the name of a judge's model that is an endpoint of the gateway."""
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError)


def entities_of(host: Host) -> StoredEntities | None:
    """Return what reads the tables of a deployment, None where they are not at hand."""
    return None if host.tables is None else StoredEntities(host, host.tables)


class StoredEntities:
    """Reads objects out of a database of any of MLflow's schemas.

    Args:
        host: The deployment.
        tables: Its tables.
    """

    def __init__(self, host: Host, tables: TableReader) -> None:
        self._host = host
        self._tables = tables
        self._listed: dict[Kind, Callable[[Mapping[str, Any]], bool]] = {
            Kind.SCORER: self._has_versions,
            Kind.WEBHOOK: lambda webhook: webhook.get(_DELETED) is None,
        }
        self._finish: dict[Kind, Callable[[Entity], Entity]] = {
            Kind.SCORER: self._scorer,
            Kind.EVALUATION_DATASET: self._dataset,
            Kind.MODEL_DEFINITION: self._model_definition,
            Kind.GUARDRAIL: self._guardrail,
        }

    def tells(self, kind: Kind) -> bool:
        """Whether objects of a kind are read here."""
        return not KINDS[kind].by_mlflow and (kind is not Kind.WEBHOOK or self._host.has_one_store)

    def of(
        self, kind: Kind, experiment_id: str = "", ids: Collection[str] | None = None
    ) -> Iterator[Entity | Failure]:
        """Yield the objects of a kind, or why one cannot be read.

        Args:
            kind: The kind.
            experiment_id: Their experiment, where they belong to one.
            ids: Only those of these ids; None takes all.

        Raises:
            ServerError: The database refused.
        """
        described = KINDS[kind]
        id_column = described.id_column
        where: dict[str, Value] = {}
        if described.of_experiment:
            where["experiment_id"] = int(experiment_id)
        elif self._host.workspaces:
            where["workspace"] = active()
        doing = f"reading each {kind.words}"
        try:
            rows = self._rows(_rows_of(kind), doing, where)
        except ServerError:  # a broken one takes no other with it
            rows = []
            for identity in self._tables.values(described.table, id_column, **where):
                try:
                    rows += self._rows(_rows_of(kind), doing, where | {id_column: identity})
                except ServerError as error:
                    yield Failure(kind, str(identity), error.message)
        is_listed = self._listed.get(kind, bool)
        rows.sort(key=_rows_of(kind).row_sorting)
        by_id = {str(row[id_column]): row for row in rows if is_listed(row)}
        wanted = [identity for identity in by_id if ids is None or identity in ids]
        yield from each(
            kind, wanted, lambda identity: self._entity(kind, by_id[identity], experiment_id)
        )

    def datasets_of(self, experiment_ids: Collection[str]) -> Iterator[Entity | Failure]:
        """Yield the evaluation datasets that are linked to one of some experiments."""
        ids = {
            str(dataset_id)
            for experiment_id in experiment_ids
            for dataset_id in self._tables.values(
                _LINKS, "source_id", **_TO_EXPERIMENT, destination_id=experiment_id
            )
        }
        yield from self.of(Kind.EVALUATION_DATASET, ids=ids)

    def secret_names(self) -> list[str]:
        """Return the names of the gateway's secrets; what they hold is not read."""
        where: dict[str, Value] = {"workspace": active()} if self._host.workspaces else {}
        return self._tables.values("secrets", "secret_name", **where)

    def _has_versions(self, scorer: Mapping[str, Any]) -> bool:
        its: dict[str, Value] = {"scorer_id": scorer["scorer_id"]}
        return bool(self._tables.values("scorer_versions", "scorer_version", **its))

    def _entity(self, kind: Kind, row: Mapping[str, Any], experiment_id: str) -> Entity:
        doing = f"reading {kind.words} {row[KINDS[kind].id_column]}"
        try:
            document = _rows_of(kind).read(row, partial(self._below, doing))
        except _MALFORMED as error:
            raise _malformed(doing, error) from error
        document.pop("workspace", None)
        if "experiment_id" in document:
            document["experiment_id"] = str(document["experiment_id"])
        entity = Entity(kind, document, experiment_id)
        finish = self._finish.get(kind)
        return finish(entity) if finish else entity

    def _below(
        self, doing: str, part: TableRows, owner: Mapping[str, Value]
    ) -> list[dict[str, Any]]:
        """Return the rows of a part; records are read by themselves."""
        if part.table == _RECORDS:
            return []
        its = {name: value for name, value in owner.items() if self._tables.has(part.table, name)}
        return self._rows(part, doing, its)

    def _rows(
        self, rows: TableRows, doing: str, where: Mapping[str, Value]
    ) -> list[dict[str, Any]]:
        names = dict.fromkeys((*rows.columns, *_BESIDE.get(rows.table, ())))
        found = self._tables.found(rows.table, names, doing, **where)
        return [{**where, **row} for row in found]

    def _scorer(self, scorer: Entity) -> Entity:
        document = scorer.document
        if not document["online_configs"]:
            del document["online_configs"]
        if any(_GATEWAY in version["serialized_scorer"] for version in document["versions"]):
            name = str(document["scorer_name"])
            self._host.ask_mlflow(f"the model of scorer {name!r} is an endpoint of the gateway")
            document["versions"] = versions_of_scorer(self._host, scorer.experiment_id, name)
        return scorer

    def _dataset(self, dataset: Entity) -> Entity:
        doing = f"reading dataset {dataset.id}"
        linked = self._tables.values(
            _LINKS, "destination_id", **_TO_EXPERIMENT, source_id=dataset.id
        )
        listed, issues = sound_records(dataset.id, self._records(dataset.id, doing))
        experiment_ids = sorted(map(str, linked), key=by_number)
        dataset.document |= {"experiment_ids": experiment_ids, "records": listed}
        dataset.issues = tuple(issues)
        return dataset

    def _records(self, dataset_id: str, doing: str) -> Iterator[dict[str, Any] | Failure]:
        """Yield the records of a dataset, some read at a time: they may be more than fit."""
        ids = self._tables.values(_RECORDS, _RECORD_ID, dataset_id=dataset_id)
        for start in range(0, len(ids), _PAGE_RECORDS):
            some = ids[start : start + _PAGE_RECORDS]
            try:
                yield from self._some_records(some, doing)
            except ServerError:
                for identity in some:
                    try:
                        yield from self._some_records([identity], doing)
                    except ServerError as error:
                        name = f"{dataset_id}/{identity}"
                        yield Failure(Kind.DATASET_RECORD, name, error.message)

    def _some_records(self, ids: list[str], doing: str) -> list[dict[str, Any]]:
        (rows,) = (r for r in _rows_of(Kind.EVALUATION_DATASET).parts if r.table == _RECORDS)
        found = self._tables.found(_RECORDS, rows.columns, doing, **{_RECORD_ID: ids})
        try:
            return [rows.read(row, partial(self._below, doing)) for row in found]
        except _MALFORMED as error:
            raise _malformed(doing, error) from error

    def _model_definition(self, definition: Entity) -> Entity:
        secret = definition.document.get("secret_id")
        if secret is not None:
            for name in self._tables.values("secrets", "secret_name", secret_id=secret):
                definition.document["secret_name"] = name
        return definition

    def _guardrail(self, guardrail: Entity) -> Entity:
        """Tell its scorer as well, and the name of its endpoint in place of the id."""
        document, doing = guardrail.document, f"reading guardrail {guardrail.id}"
        scorer = document["scorer"]
        its = {"scorer_id": scorer["scorer_id"]}
        for row in self._tables.found("scorers", ("experiment_id", "scorer_name"), doing, **its):
            scorer |= row | {"experiment_id": str(row["experiment_id"])}
        its |= {"scorer_version": scorer["scorer_version"]}
        for row in self._tables.found("scorer_versions", ("creation_time",), doing, **its):
            scorer |= row
        if (endpoint := document.pop("action_endpoint_id", None)) is not None:
            for name in self._tables.values("endpoints", "name", endpoint_id=endpoint):
                document["action_endpoint_id"] = name
        return guardrail


def _malformed(doing: str, error: Exception) -> ServerError:
    return ServerError(f"{doing}: it is malformed: {type(error).__name__} {error}")


def _rows_of(kind: Kind) -> TableRows:
    rows = KINDS[kind].rows
    if rows is None:
        raise ValueError(f"{kind} has no tables")
    return rows


_LINKS = "entity_associations"
_TO_EXPERIMENT: dict[str, Value] = {
    "source_type": "evaluation_dataset",
    "destination_type": "experiment",
}
_RECORDS, _RECORD_ID = "evaluation_dataset_records", "dataset_record_id"
_PAGE_RECORDS = 100
_DELETED = "deleted_timestamp"
_BESIDE = {"webhooks": (_DELETED,)}
"""Columns that are read and of which no field is made."""
