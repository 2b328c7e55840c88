"""Scorers, label schemas, issues and review queues to a deployment."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.api.halving import send_halving
from mlflow_exim_plugin.host.entities import judges
from mlflow_exim_plugin.host.traces.writing import TraceCalls
from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.schema.objects import Entity, Failure, Kind, Loss
from mlflow_exim_plugin.sinks.policy import (
    TargetNames,
    differing,
    find_name,
    names_of,
    say_kept,
)
from mlflow_exim_plugin.sinks.references import follow
from mlflow_exim_plugin.sinks.scorers import (
    called_endpoints,
    content_of,
    numbers_after,
    say_renumbered,
    with_endpoints,
)
from mlflow_exim_plugin.sinks.server.entities.plain import Calls, PlainWriter
from mlflow_exim_plugin.sinks.server.ids import Planned
from mlflow_exim_plugin.sinks.server.target import (
    Destination,
    FamilyWriter,
    ServerTarget,
    attempt,
    look_elsewhere,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["writers"]

_ITEMS = 100


@dataclass
class _Scorer:
    """A scorer at the target: its versions in order."""

    versions: list[dict[str, Any]] = field(default_factory=list)

    @property
    def id(self) -> str:
        return str(self.versions[-1].get("scorer_id", "")) if self.versions else ""

    @property
    def texts(self) -> dict[int, str]:
        return {int(v["scorer_version"]): v["serialized_scorer"] for v in self.versions}


class ScorerWriter(FamilyWriter):
    """Writes scorers, each with its versions in order.

    Those that call an endpoint of the gateway wait for the endpoints.

    Args:
        target: The deployment.
        endpoint_name: Gives an endpoint's name at the target for its name at the source.
        lacks: Whether the target has a gateway without an endpoint of this name.
    """

    def __init__(
        self,
        target: ServerTarget,
        endpoint_name: Callable[[str], str],
        lacks: Callable[[str], bool],
    ) -> None:
        super().__init__(target)
        self._endpoint_name = endpoint_name
        self._lacks = lacks
        self._waiting: list[tuple[Entity, Destination]] = []
        self._there: dict[str, dict[str, _Scorer]] = {}

    def write(self, entity: Entity, to: Destination, report: Report) -> None:
        """Write a scorer, or let it wait."""
        self._scorers(to.experiment_id)
        if any(
            called_endpoints(version["serialized_scorer"])
            for version in entity.document["versions"]
        ):
            self._waiting.append((entity, to))
        else:
            self._write(entity, to, report)

    def finish(self, report: Report) -> None:
        """Write the scorers that waited for endpoints."""
        waiting, self._waiting = self._waiting, []
        for entity, to in waiting:
            try:
                self._write(entity, to, report)
            except ServerError as error:
                report.failed(Failure(entity.kind, entity.id, error.message))

    def _write(self, entity: Entity, to: Destination, report: Report) -> None:
        document = entity.document
        name = str(document["scorer_name"])
        wanted = [
            with_endpoints(v["serialized_scorer"], self._endpoint_name)
            for v in document["versions"]
        ]
        contents = set(map(content_of, wanted))
        names = TargetNames(
            self._scorers(to.experiment_id).get,
            is_same=lambda there: not contents.isdisjoint(map(content_of, there.texts.values())),
        )
        named = find_name(entity, name, names, self._target.options.on_conflict, report)
        if named.is_left:
            return
        scorer = named.there or _Scorer()
        numbers = numbers_after(scorer.texts, wanted)
        written = False
        for serialized, number in zip(wanted, numbers, strict=True):
            if number not in scorer.texts:
                written = True
                self._register(scorer, to.experiment_id, named.name, serialized, number)
        self._scorers(to.experiment_id)[named.name] = scorer
        self._know(document, scorer.id, numbers)
        say_renumbered(entity, numbers, report)
        written |= self._set_online_config(entity, to.experiment_id, named.name, scorer.id, report)
        named.count(entity.kind, name, report, changed=written)

    def _register(
        self, scorer: _Scorer, experiment_id: str, name: str, serialized: str, number: int
    ) -> None:
        version: dict[str, Any] = {"scorer_version": number, "scorer_id": scorer.id}
        version["scorer_id"] = version["scorer_id"] or Planned(f"scorer {name}")
        if gone := [called for called in called_endpoints(serialized) if self._lacks(called)]:
            raise ServerError(f"it calls endpoint {gone[0]!r}, which is not at the target")
        if not self._target.options.dry_run:
            version = judges.register_scorer(self._target.host, experiment_id, name, serialized)
        # The answer has an endpoint's id in it.
        scorer.versions.append(version | {"serialized_scorer": serialized})

    def _know(self, document: dict[str, Any], target_id: str, numbers: list[int]) -> None:
        source_id = document["scorer_id"]
        self._target.ids.know(Kind.SCORER, source_id, target_id)
        for version, number in zip(document["versions"], numbers, strict=True):
            old = f"{source_id}/{version['scorer_version']}"
            self._target.ids.know(Kind.SCORER, old, str(number))

    def _set_online_config(
        self, entity: Entity, experiment_id: str, name: str, scorer_id: str, report: Report
    ) -> bool:
        configs = entity.document.get("online_configs", [])
        if not configs:
            return False
        is_new = isinstance(scorer_id, Planned)
        there = [] if is_new else judges.online_configs(self._target.host, scorer_id)
        if there:
            if fields := differing(configs[-1], there[-1], "sample_rate", "filter_string"):
                report.lost(
                    Loss(entity.kind, name, f"it keeps its own {' and '.join(fields)} there")
                )
            return False
        return self._target.options.dry_run or attempt(
            lambda: judges.set_online_config(self._target.host, experiment_id, name, configs[-1]),
            Loss(entity.kind, name, ""),
            report,
        )

    def _scorers(self, experiment_id: str) -> dict[str, _Scorer]:
        if experiment_id not in self._there:
            host, is_new = self._target.host, isinstance(experiment_id, Planned)
            if is_new:
                look_elsewhere(self._scorers)
            self._there[experiment_id] = {
                name: _Scorer(judges.scorer_versions(host, experiment_id, name))
                for name in (() if is_new else judges.scorer_names(host, experiment_id))
            }
        return self._there[experiment_id]


class LabelSchemaWriter(FamilyWriter):
    """Writes label schemas; MLflow makes the default one of an experiment itself."""

    def write(self, entity: Entity, to: Destination, report: Report) -> None:
        """Write one label schema."""
        document = entity.document
        name = str(document["name"])
        if document.get("is_default"):
            self._have_default(entity, to, report)
            return
        names = names_of(entity.kind, document, _Schemas(self._target, to.experiment_id).get)
        named = find_name(entity, name, names, self._target.options.on_conflict, report)
        if named.there is not None:
            self._target.ids.know(Kind.LABEL_SCHEMA, entity.id, named.there["schema_id"])
            if not named.is_left:
                report.skipped(entity.kind, name, named.reason)
            return
        schema_id: str = Planned(entity.id)
        if not self._target.options.dry_run:
            schema_id = judges.create_label_schema(
                self._target.host, to.experiment_id, named.name, document
            )
        self._target.ids.know(Kind.LABEL_SCHEMA, entity.id, schema_id)
        report.written(entity.kind)

    def _have_default(self, entity: Entity, to: Destination, report: Report) -> None:
        host, name = self._target.host, str(entity.document["name"])
        there = _Schemas(self._target, to.experiment_id).get(name)
        is_new = there is None
        if is_new and not self._target.options.dry_run:
            judges.make_default_schema(host, to.experiment_id)
            there = judges.find_label_schema(host, to.experiment_id, name)
        if there is None:
            self._target.ids.know(Kind.LABEL_SCHEMA, entity.id, Planned(entity.id))
        else:
            self._target.ids.know(Kind.LABEL_SCHEMA, entity.id, there["schema_id"])
            if fields := differing(entity.document, there, *_SCHEMA_FIELDS):
                what = f"the target's default differs in {', '.join(fields)}"
                report.lost(Loss(entity.kind, name, what))
        if is_new:
            report.written(entity.kind)
        else:
            report.skipped(entity.kind, name, "it is there already")


_SCHEMA_FIELDS = KINDS[Kind.LABEL_SCHEMA].same


class _Schemas(dict[str, dict[str, Any]]):
    """The label schemas of an experiment by name, each asked for: a listing would write."""

    def __init__(self, target: ServerTarget, experiment_id: str) -> None:
        super().__init__()
        self._target = target
        self._experiment_id = experiment_id

    def get(self, name: str, default: Any = None) -> Any:
        find = partial(judges.find_label_schema, self._target.host)
        if isinstance(self._experiment_id, Planned):
            look_elsewhere(lambda experiment_id: find(experiment_id, name))
        elif name not in self:
            found = find(self._experiment_id, name)
            if found is None:
                return default
            self[name] = found
        return super().get(name, default)


def issue_writer(target: ServerTarget) -> PlainWriter:
    """Make what writes issues; what cannot change in them says which are there already."""
    may_go = ("metadata", "last_seen_timestamp", "last_updated_by")
    calls = Calls(judges.issues, _create_issue, may_change=("status", "severity"), may_go=may_go)
    return PlainWriter(target, Kind.ISSUE, calls)


def _create_issue(host: Host, to: Destination, _: str, issue: dict[str, Any]) -> dict[str, Any]:
    return judges.create_issue(host, to.experiment_id, issue)


class QueueWriter(FamilyWriter):
    """Writes review queues with their items, after the traces that are their items."""

    def __init__(self, target: ServerTarget) -> None:
        super().__init__(target)
        self._traces = TraceCalls(target.host)
        self._there: dict[str, dict[str, dict[str, Any]]] = {}

    def write(self, entity: Entity, to: Destination, report: Report) -> None:
        """Write one review queue."""
        document = entity.document
        name = str(document["name"])
        queues = self._queues(to.experiment_id)
        followed, losses = follow(entity, self._target.ids.get)
        schema_ids = sorted(followed.get("schema_ids", ()))
        for loss in losses:
            report.lost(loss)
        wanted = _sorted(document | {"schema_ids": schema_ids})
        fields = ("queue_type", "schema_ids", "users")
        names = TargetNames(
            lambda name: queues.get(name.lower()),
            is_same=lambda there: not differing(wanted, _sorted(there), *fields[:2]),
            keeps=lambda there: differing(wanted, _sorted(there), *fields),
        )
        named = find_name(entity, name, names, self._target.options.on_conflict, report)
        if named.is_left:
            return
        if named.there is None:
            planned = Planned(entity.id)
            queue = document | {"name": named.name, "queue_id": planned, "schema_ids": schema_ids}
            if not self._target.options.dry_run:
                queue["queue_id"] = judges.create_review_queue(
                    self._target.host, to.experiment_id, named.name, document, schema_ids
                )
            queues[named.name.lower()] = queue
        else:
            queue = named.there
            if named.is_ours:
                say_kept(entity, "it", names.keeps(queue), report)
        self._target.ids.know(Kind.REVIEW_QUEUE, entity.id, queue["queue_id"])
        added = self._add_items(entity, to.experiment_id, queue["queue_id"], report)
        named.count(entity.kind, name, report, changed=added)

    def _add_items(self, entity: Entity, experiment_id: str, queue_id: str, report: Report) -> bool:
        """Add the items that are not there and complete those that are pending there."""
        dry_run = self._target.options.dry_run
        host, items = self._target.host, entity.document.get("items", [])
        if not items:
            return False
        is_new = isinstance(queue_id, Planned)
        listed = () if is_new else judges.queue_items(host, queue_id)
        there = {item["item_id"]: item for item in listed}
        wanted = {
            self._target.ids.get(Kind.TRACE, item["item_id"]) or item["item_id"]: item
            for item in items
        }
        for trace_id in self._gone([*wanted.keys() - there.keys()], experiment_id):
            what = f"its item {trace_id} is not kept: its experiment has no such trace"
            report.lost(Loss(entity.kind, str(entity.document["name"]), what))
            del wanted[trace_id]
        if dry_run:
            return any(
                trace_id not in there or there[trace_id]["status"] == "PENDING" != item["status"]
                for trace_id, item in wanted.items()
            )
        missing = [trace_id for trace_id in wanted if trace_id not in there]
        batches = (missing[start : start + _ITEMS] for start in range(0, len(missing), _ITEMS))
        refused = dict(send_halving(batches, partial(judges.add_queue_items, host, queue_id)))
        changed = len(missing) > len(refused)
        for trace_id, item in wanted.items():
            status = there.get(trace_id, {}).get("status", "PENDING")
            if trace_id in refused or status == item["status"] or status != "PENDING":
                continue
            try:
                judges.set_item_status(host, queue_id, item, trace_id)
                changed = True
            except ServerError as error:
                refused[trace_id] = error
        for trace_id, refusal in refused.items():
            name = str(entity.document["name"])
            report.lost(
                Loss(entity.kind, name, f"its item {trace_id} is not kept: {refusal.message}")
            )
        return changed

    def _gone(self, trace_ids: list[str], experiment_id: str) -> list[str]:
        """Return those of some traces that did not come along, and that the target has not got."""
        came = set(self._target.ids.all(Kind.TRACE).values())
        doubtful = sorted(set(trace_ids) - came)
        found: dict[str, tuple[str, Any]] = {}
        if not isinstance(experiment_id, Planned):
            for start in range(0, len(doubtful), _ITEMS):
                found |= self._traces.existing(doubtful[start : start + _ITEMS])
        return [i for i in doubtful if found.get(i, ("",))[0] != experiment_id]

    def _queues(self, experiment_id: str) -> dict[str, dict[str, Any]]:
        """Return the queues by name in lower case: MLflow takes no two that differ in case."""
        if experiment_id not in self._there:
            is_new = isinstance(experiment_id, Planned)
            if is_new:
                look_elsewhere(self._queues)
            listed = [] if is_new else judges.queue_documents(self._target.host, experiment_id)
            self._there[experiment_id] = {str(queue["name"]).lower(): queue for queue in listed}
        return self._there[experiment_id]


def _sorted(queue: dict[str, Any]) -> dict[str, Any]:
    return queue | {field: sorted(queue.get(field, ())) for field in ("schema_ids", "users")}


def writers(target: ServerTarget, others: Mapping[Kind, Any]) -> dict[Kind, FamilyWriter]:
    """Make what writes each kind."""
    return {
        Kind.SCORER: ScorerWriter(
            target,
            lambda name: others[Kind.ENDPOINT].names.get(name, name),
            lambda name: others[Kind.ENDPOINT].lacks(name),  # noqa: PLW0108 - they come later
        ),
        Kind.LABEL_SCHEMA: LabelSchemaWriter(target),
        Kind.ISSUE: issue_writer(target),
        Kind.REVIEW_QUEUE: QueueWriter(target),
    }
