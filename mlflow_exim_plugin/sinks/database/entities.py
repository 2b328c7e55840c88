"""Objects that are one document to a database, under their own ids."""

from __future__ import annotations

import uuid
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.sql.entity_rows import entity_rows
from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.schema.objects import Entity, Kind, Loss
from mlflow_exim_plugin.sinks.absent_kinds import ABSENT
from mlflow_exim_plugin.sinks.counting import count_artifacts, parts_of, skip_whole
from mlflow_exim_plugin.sinks.database.files import put_files
from mlflow_exim_plugin.sinks.database.namesakes import Found, compare_parts
from mlflow_exim_plugin.sinks.database.states import State
from mlflow_exim_plugin.sinks.part_files import files_of_parts, require_places_inside
from mlflow_exim_plugin.sinks.policy import TargetName, TargetNames, find_name, say_kept
from mlflow_exim_plugin.sinks.references import follow
from mlflow_exim_plugin.sinks.scorers import (
    called_endpoints,
    numbers_after,
    say_renumbered,
    with_endpoints,
)

if TYPE_CHECKING:
    from mlflow_exim_plugin.host.sql.writer import Rows
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.database.states import RowComparison
    from mlflow_exim_plugin.sinks.database.target import DatabaseTarget

__all__ = ["EntityTables"]

_PART_IDS = {"mcp_access_endpoints": "id", "online_scoring_configs": "online_scoring_config_id"}
"""Columns of ids that parts have of their own: those that joined a namesake have taken them."""


class EntityTables:
    """Writes every kind whose objects are ``Entity``.

    Args:
        target: The database.
    """

    def __init__(self, target: DatabaseTarget) -> None:
        self._target = target
        self._configs: Rows = []
        self._calling: list[tuple[dict[str, Any], str]] = []

    def write(self, entity: Entity, experiment_id: int | None, report: Report) -> None:
        """Write one object with its parts.

        Raises:
            ConflictError: The target has a namesake of that name and the policy is ``fail``.
            InvalidArchiveError: Its files would be outside of what a server keeps.
            ServerError: The database cannot hold it, or lacks what it refers to.
        """
        target = self._target
        described = KINDS[entity.kind]
        id_column = described.id_column
        if entity.kind in target.capabilities.lacks:
            skip_whole(entity, ABSENT, report)
            return
        require_places_inside(entity)
        entity = self._referring(entity, report)
        rows = self._rows(entity, experiment_id)
        target.require_types(rows)
        rows = target.fit(entity.kind, entity.id, rows, report)
        own = described.unique if described.is_named else (id_column,)
        key = {column: rows[0][1][column] for column in own}
        # Of an object whose name is its id nothing else tells which one it is.
        if not described.is_named:
            compared = target.compare(entity.kind, rows, key)
            if compared is not None:
                self._settle(entity, rows, compared, report)
                return
        if described.unique:
            named = self._named(entity, experiment_id, rows, report)
            if named.there is not None:
                self._join(entity, named, report)
                return
            rows = self._fitting(_under(entity, named.name), experiment_id)
            key = {column: rows[0][1][column] for column in key}
        self._put(rows, **key)
        if entity.kind is Kind.WEBHOOK and entity.document.get("status") == "ACTIVE":
            what = "it is disabled at the target: its secret is not packed"
            report.lost(Loss(entity.kind, entity.id, what))
        target.count(entity.kind, report)
        for kind, count in parts_of(entity):
            written = sum(table == "evaluation_dataset_records" for table, _ in rows)
            target.count(kind, report, written)
            report.skipped(kind, entity.id, "the target cannot hold them", count - written)
        self._put_files(entity, rows, report)

    def _settle(self, entity: Entity, rows: Rows, compared: RowComparison, report: Report) -> None:
        """Complete an object that is there in an earlier state, or leave it as it is."""
        target = self._target
        if compared.state is not State.EARLIER:
            target.leave(entity.kind, entity.id, compared, report)
            return
        target.require(rows)
        target.grow(entity.kind, entity.id, compared, report)
        target.count(entity.kind, report)
        for kind, count in parts_of(entity):
            written = compared.count("evaluation_dataset_records")
            target.count(kind, report, written)
            report.skipped(kind, entity.id, "they are there already", count - written)

    def finish(self, report: Report) -> None:
        """Let scorers call their endpoints, and name the guardrails that did not come."""
        calling, self._calling = self._calling, []
        for version, serialized in calling:
            key = self._version_there(version)
            missing: list[str] = []
            new = with_endpoints(serialized, partial(self._endpoint_id, missing=missing))
            for name in missing:
                what = f"the endpoint {name!r} that it calls is not at the target"
                report.lost(Loss(Kind.SCORER, key["scorer_id"], what))
            there = self._target.tables.one("scorer_versions", **key)
            # What anybody else wrote there stays.
            if there and there["serialized_scorer"] == serialized != new:
                self._target.tables.update("scorer_versions", {"serialized_scorer": new}, **key)
        for _, config in self._configs:
            what = f"guardrail {config['guardrail_id']} is not at the target"
            report.lost(Loss(Kind.ENDPOINT, config["endpoint_id"], what))
        self._configs = []

    def _fitting(self, entity: Entity, experiment_id: int | None) -> Rows:
        """Return an object's rows as the database can hold them; what that takes away was said."""
        return self._target.tables.fitted(self._rows(entity, experiment_id))[0]

    def _rows(self, entity: Entity, experiment_id: int | None) -> Rows:
        with translated(f"reading {entity.kind} {entity.id}"):
            return entity_rows(entity, experiment_id, self._target.workspace)

    def _put_configs(self) -> None:
        """Put guardrails onto endpoints as soon as both are there."""
        waiting: Rows = []
        for row in self._configs:
            if self._target.is_there("guardrails", guardrail_id=row[1]["guardrail_id"]):
                self._target.add([row])
            else:
                waiting.append(row)
        self._configs = waiting

    def _named(
        self, entity: Entity, experiment_id: int | None, rows: Rows, report: Report
    ) -> TargetName[Found]:
        """Return the name of an object at the target, and what has it there."""
        tables, described, (table, own) = self._target.tables, KINDS[entity.kind], rows[0]
        columns = [column for column in described.unique if tables.has(table, column)]

        def find(name: str) -> Found | None:
            folded = name.lower() if columns[-1] == "name_key" else name
            row = tables.one(table, **{c: own[c] for c in columns} | {columns[-1]: folded})
            if row is None:
                return None
            document = _under(entity, name).document | {
                described.id_column: row[described.id_column]
            }
            numbers = []
            if entity.kind is Kind.SCORER:
                its = tables.select("scorer_versions", scorer_id=row["scorer_id"])
                texts = {int(v["scorer_version"]): v["serialized_scorer"] for v in its}
                numbers = numbers_after(
                    texts, (v["serialized_scorer"] for v in document["versions"])
                )
                both = zip(document["versions"], numbers, strict=True)
                document["versions"] = [v | {"scorer_version": n} for v, n in both]
            joining = self._fitting(replace(entity, document=document), experiment_id)
            return compare_parts(row, joining, described, tables, numbers)

        def is_same(found: Found) -> bool:
            column = described.itself
            is_itself = bool(column and own[column]) and own[column] == found.row[column]
            return is_itself or found.is_copy

        names = TargetNames(find, is_same=is_same, keeps=lambda found: found.keeps)
        name, policy = str(entity.document[described.name]), self._target.options.on_conflict
        return find_name(entity, name, names, policy, report)

    def _join(self, entity: Entity, named: TargetName[Found], report: Report) -> None:
        """Add what is missing of an object to what has its name, or leave it to that."""
        found, id_column = named.there, KINDS[entity.kind].id_column
        assert found is not None  # noqa: S101 - the caller looked
        known, identity = self._target.ids[entity.kind], str(entity.document[id_column])
        if named.is_left and found.numbers:  # whoever names a version would get another one
            return
        known[identity] = str(found.row[id_column])
        if named.is_left:
            return
        if found.numbers:
            say_renumbered(entity, found.numbers, report)
            for version, number in zip(entity.document["versions"], found.numbers, strict=True):
                known[f"{identity}/{version['scorer_version']}"] = str(number)
        if named.is_ours:
            say_kept(entity, "it", found.keeps, report)
        for part, fields in found.kept:
            say_kept(entity, part, fields, report)
        if self._put(found.missing):
            self._target.count(entity.kind, report)
            self._put_files(entity, found.missing, report)
        else:
            report.skipped(entity.kind, entity.id, named.reason)

    def _put(self, rows: Rows, **key: Any) -> bool:
        """Write rows, if any; guardrails are put onto endpoints as soon as both are there."""
        for table, row in rows:
            column = _PART_IDS.get(table, "")
            if column and self._target.is_there(table, **{column: row[column]}):
                row[column] = uuid.uuid4().hex
        configs = [row for row in rows if row[0] == "guardrail_configs"]
        rows = [row for row in rows if row[0] != "guardrail_configs"]
        self._target.require(rows)
        self._target.add(rows, **key)
        if not self._target.options.dry_run:
            self._configs += configs
            self._put_configs()
        return bool(rows)

    def _put_files(self, entity: Entity, rows: Rows, report: Report) -> None:
        """Send the files of the parts that were written."""
        described = KINDS[entity.kind]
        for part, root, files in files_of_parts(entity):
            number = described.files and part[described.files.name]
            if ("skill_versions", number) not in [(t, row.get("version")) for t, row in rows]:
                continue
            if self._target.options.dry_run:
                count_artifacts(files, report)
            else:
                put_files(self._target, entity.id, root, files, report)

    def _referring(self, entity: Entity, report: Report) -> Entity:
        """Return an object that refers to what the target has."""
        document, losses = follow(entity, self._target.find)
        by_name = {
            Kind.SCORER: self._scorer,
            Kind.MODEL_DEFINITION: self._with_secret,
            Kind.GUARDRAIL: self._action,
        }
        if entity.kind in by_name and (what := by_name[entity.kind](document)):
            losses.append(Loss(entity.kind, entity.id, what))
        for loss in losses:
            report.lost(loss)
        return replace(entity, document=document)

    def _scorer(self, document: dict[str, Any]) -> str:
        """Put ids of endpoints where MLflow shows names; they may come later in the stream."""
        versions = []
        for version in document["versions"]:
            serialized = version["serialized_scorer"]
            if called_endpoints(serialized):
                key = {
                    "scorer_id": document["scorer_id"],
                    "scorer_version": version["scorer_version"],
                }
                self._calling.append((key, serialized))
                serialized = with_endpoints(serialized, self._endpoint_id)
            versions.append(version | {"serialized_scorer": serialized})
        document["versions"] = versions
        return ""

    def _version_there(self, version: dict[str, Any]) -> dict[str, Any]:
        """Return the key of a version of a scorer at the target."""
        known, old = self._target.ids[Kind.SCORER], version["scorer_id"]
        number = version["scorer_version"]
        number = int(known.get(f"{old}/{number}", number))
        return {"scorer_id": known.get(old, old), "scorer_version": number}

    def _endpoint_id(self, name: str, missing: list[str] | None = None) -> str:
        found = self._endpoint_named(name)
        if found is None and missing is not None:
            missing.append(name)
        return str(found["endpoint_id"]) if found else name

    def _endpoint_named(self, name: str) -> dict[str, Any] | None:
        tables = self._target.tables
        if not tables.has("endpoints"):
            return None
        return tables.one("endpoints", **self._target.owned("endpoints", name=name))

    def _with_secret(self, document: dict[str, Any]) -> str:
        tables, secret_id = self._target.tables, document.get("secret_id")
        if not secret_id or tables.one("secrets", secret_id=secret_id):
            return ""
        name = document.get("secret_name")
        found = tables.one("secrets", **self._target.owned("secrets", secret_name=name))
        document["secret_id"] = found["secret_id"] if found else None
        return "" if found else f"its secret {name!r} is not at the target"

    def _action(self, document: dict[str, Any]) -> str:
        """Put the id of the endpoint where MLflow shows its name."""
        name = document.get("action_endpoint_id")
        found = self._endpoint_named(name) if name else None
        if not name or (found is None and self._target.options.dry_run):
            return ""
        document["action_endpoint_id"] = found["endpoint_id"] if found else None
        return "" if found else f"its endpoint {name!r} is not at the target"


def _under(entity: Entity, name: str) -> Entity:
    """Return an object under another name."""
    document = entity.document | {KINDS[entity.kind].name: name}
    if entity.kind is Kind.MCP_SERVER:
        document["versions"] = [
            version | {"server_json": version["server_json"] | {"name": name}}
            for version in document.get("versions", ())
        ]
    return replace(entity, document=document)
