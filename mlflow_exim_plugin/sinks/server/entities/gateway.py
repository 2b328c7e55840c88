"""The AI gateway to a deployment: its secrets must be there, by name."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.entities import gateway
from mlflow_exim_plugin.host.open.absent import is_absent
from mlflow_exim_plugin.schema.objects import Entity, Kind, Loss
from mlflow_exim_plugin.sinks.policy import TargetNames, differing, find_name, say_kept
from mlflow_exim_plugin.sinks.references import follow
from mlflow_exim_plugin.sinks.server.entities.plain import Calls, PlainWriter
from mlflow_exim_plugin.sinks.server.ids import Planned
from mlflow_exim_plugin.sinks.server.target import Destination, FamilyWriter, ServerTarget, attempt

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["writers"]

_AGAIN = "create it, then unpack again"


def definition_writer(target: ServerTarget) -> PlainWriter:
    """Make what writes model definitions whose secrets are there."""
    secrets: dict[str, str] = {}

    def require(host: Host, definition: dict[str, Any]) -> None:
        if not secrets:
            secrets.update(gateway.secret_names(host))
        _secret_id(definition, secrets)

    def create(host: Host, _: Destination, name: str, definition: dict[str, Any]) -> str:
        return gateway.create_model_definition(
            host, name, definition, _secret_id(definition, secrets)
        )

    listed = _of_workspace(gateway.model_definition_documents)
    return PlainWriter(target, Kind.MODEL_DEFINITION, Calls(listed, create, require))


def _secret_id(definition: dict[str, Any], secrets: dict[str, str]) -> str:
    name = definition.get("secret_name")
    if not name:
        raise ServerError(
            f"model definition {definition['name']!r} has no secret at the source, and MLflow "
            "creates none without"
        )
    if name not in secrets:
        raise ServerError(
            f"model definition {definition['name']!r} needs the gateway secret {name!r} "
            f"(provider {definition['provider']}) at the target: {_AGAIN}"
        )
    return secrets[name]


def _of_workspace(
    listed: Callable[[Host], list[dict[str, Any]]],
) -> Callable[[Host, str], list[dict[str, Any]]]:
    return lambda host, _: listed(host)


class EndpointWriter(FamilyWriter):
    """Writes endpoints; their guardrails and bindings follow at the end.

    Attributes:
        names: Name at the target by name at the source.
    """

    def __init__(self, target: ServerTarget) -> None:
        super().__init__(target)
        self._there: dict[str, dict[str, Any]] | None = None
        self._unfinished: list[tuple[Entity, str]] = []
        self.names: dict[str, str] = {}

    def write(self, entity: Entity, to: Destination, report: Report) -> None:  # noqa: ARG002 - it belongs to no experiment
        """Write one endpoint with its models and tags."""
        document = entity.document
        name = str(document.get("name", ""))
        there = self._endpoints()
        wanted, losses = follow(entity, self._target.ids.get, self._target.ids.refusals)
        routes = _routes(wanted)
        names = TargetNames(
            there.get,
            is_same=lambda there: _routes(there) == routes,
            keeps=lambda there: differing(routes, _routes(there), *routes),
        )
        named = find_name(entity, name, names, self._target.options.on_conflict, report)
        self.names[name] = named.name
        if named.is_left and named.there:
            self._target.ids.know(entity.kind, entity.id, named.there["endpoint_id"])
            return
        if named.there is None:
            endpoint_id = self._create(named.name, wanted)
            for loss in losses:
                report.lost(loss)
        else:
            endpoint_id = named.there["endpoint_id"]
        self._target.ids.know(entity.kind, entity.id, endpoint_id)
        self._unfinished.append((entity, endpoint_id))
        tagged = self._tag(entity, endpoint_id, named.there, report)
        named.count(entity.kind, name, report, changed=tagged)

    def finish(self, report: Report) -> None:
        """Put guardrails and bindings on the endpoints."""
        unfinished, self._unfinished = self._unfinished, []
        for entity, endpoint_id in unfinished:
            self._add_guardrails(entity, endpoint_id, report)
            self._add_bindings(entity, endpoint_id, report)

    def id_of(self, name: str) -> str | None:
        """Return the target's id of an endpoint by its name at the source."""
        return self.id_there(self.names.get(name, name))

    def lacks(self, name: str) -> bool:
        """Whether the target has a gateway without an endpoint of this name."""
        try:
            return self.id_there(name) is None
        except ServerError as error:
            if not is_absent(error):
                raise
            return False

    def id_there(self, name: str) -> str | None:
        """Return the target's id of an endpoint by its name there."""
        there = self._endpoints().get(name)
        return str(there["endpoint_id"]) if there else None

    def _create(self, name: str, endpoint: dict[str, Any]) -> str:
        endpoint_id: str = Planned(str(endpoint.get("endpoint_id") or name))
        if not self._target.options.dry_run:
            endpoint_id = gateway.create_endpoint(self._target.host, name, endpoint)
        self._endpoints()[name] = endpoint | {"endpoint_id": endpoint_id}
        return endpoint_id

    def _tag(
        self, entity: Entity, endpoint_id: str, there: dict[str, Any] | None, report: Report
    ) -> bool:
        """Set the tags that are not there."""
        present = {tag["key"]: tag.get("value") for tag in (there or {}).get("tags", ())}
        changed = False
        for tag in entity.document.get("tags", ()):
            if tag["key"] in present:
                if present[tag["key"]] != tag.get("value"):
                    say_kept(entity, f"tag {tag['key']!r}", ["value"], report)
                continue
            if not self._target.options.dry_run:
                gateway.set_endpoint_tag(self._target.host, endpoint_id, tag)
            changed = True
        return changed

    def _add_guardrails(self, entity: Entity, endpoint_id: str, report: Report) -> None:
        wanted = entity.document.get("guardrails", [])
        if not wanted:
            return
        host = self._target.host
        is_new = isinstance(endpoint_id, Planned)
        listed = [] if is_new else gateway.endpoint_guardrails(host, endpoint_id)
        there = {g["guardrail_id"]: g for g in listed}
        for config in wanted:
            guardrail_id = self._target.ids.get(Kind.GUARDRAIL, config["guardrail_id"])
            order = config.get("execution_order")
            if guardrail_id in there:
                if there[guardrail_id].get("execution_order") != order:
                    say_kept(entity, f"guardrail {guardrail_id!r}", ["execution_order"], report)
            elif guardrail_id is None:
                self._lose(
                    entity, f"guardrail {config['guardrail_id']} is not at the target", report
                )
            else:
                self._try(
                    entity,
                    partial(gateway.add_guardrail, host, endpoint_id, guardrail_id, order),
                    report,
                )

    def _add_bindings(self, entity: Entity, endpoint_id: str, report: Report) -> None:
        wanted = entity.document.get("bindings", [])
        if not wanted:
            return
        host = self._target.host
        is_new = isinstance(endpoint_id, Planned)
        listed = [] if is_new else gateway.endpoint_bindings(host, endpoint_id)
        there = {(binding["resource_type"], binding["resource_id"]) for binding in listed}
        for binding in wanted:
            resource_id = binding["resource_id"]
            if binding["resource_type"] == "scorer":
                resource_id = self._target.ids.get(Kind.SCORER, resource_id)
            if resource_id is None:
                what = f"scorer {binding['resource_id']}, to which it is bound, is not there"
                self._lose(entity, what, report)
            elif (binding["resource_type"], resource_id) not in there:
                self._try(
                    entity,
                    partial(gateway.bind_endpoint, host, endpoint_id, resource_id, binding),
                    report,
                )

    def _try(self, entity: Entity, call: Callable[[], None], report: Report) -> None:
        if not self._target.options.dry_run:
            attempt(call, Loss(entity.kind, str(entity.document.get("name", "")), ""), report)

    def _lose(self, entity: Entity, what: str, report: Report) -> None:
        report.lost(Loss(entity.kind, str(entity.document.get("name", "")), what))

    def _endpoints(self) -> dict[str, dict[str, Any]]:
        if self._there is None:
            listed = gateway.endpoint_documents(self._target.host)
            self._there = {str(endpoint.get("name", "")): endpoint for endpoint in listed}
        return self._there


def _routes(document: dict[str, Any]) -> dict[str, Any]:
    """Return where an endpoint sends calls, without what the server adds."""
    models = sorted(
        (
            mapping["model_definition_id"],
            mapping["linkage_type"],
            float(mapping.get("weight", 1.0)),
            int(mapping.get("fallback_order", -1)),
        )
        for mapping in document.get("model_mappings", [])
    )
    others = ("routing_strategy", "fallback_config", "usage_tracking")
    return {"model_mappings": models} | {field: document.get(field) for field in others}


def guardrail_writer(target: ServerTarget, endpoints: EndpointWriter) -> PlainWriter:
    """Make what writes guardrails, each with the version of the scorer that it runs."""

    def refer(guardrail: Entity) -> tuple[dict[str, Any], list[Loss]]:
        document, scorer = guardrail.document, guardrail.document["scorer"]
        action = document.get("action_endpoint_id")
        if action and endpoints.id_of(action) is None:
            raise ServerError(
                f"guardrail {document['name']!r} needs endpoint {action!r}, which is not at the "
                "target"
            )
        action = endpoints.names.get(action, action) if action else action
        return document | {"scorer": _named(scorer), "action_endpoint_id": action}, []

    def create(host: Host, _: Destination, __: str, guardrail: dict[str, Any]) -> str:
        scorer, action = guardrail["scorer"], guardrail["action_endpoint_id"]
        number = int(scorer["scorer_version"])
        endpoint = endpoints.id_there(action) if action else None
        return gateway.create_guardrail(host, guardrail, scorer["scorer_id"], number, endpoint)

    def listed(host: Host, _: str) -> list[dict[str, Any]]:
        found = gateway.guardrail_documents(host)
        return [guardrail | {"scorer": _named(guardrail["scorer"])} for guardrail in found]

    return PlainWriter(target, Kind.GUARDRAIL, Calls(listed, create), refer)


def _named(scorer: dict[str, Any]) -> dict[str, Any]:
    """Return what says which version of a scorer it is."""
    return {name: scorer.get(name) for name in ("scorer_id", "scorer_version")}


def budget_writer(target: ServerTarget) -> PlainWriter:
    """Make what writes budget policies."""
    listed = _of_workspace(gateway.budget_policy_documents)
    calls = Calls(listed, lambda host, _, __, d: gateway.create_budget_policy(host, d))
    return PlainWriter(target, Kind.BUDGET_POLICY, calls)


def writers(target: ServerTarget, _: Mapping[Kind, Any]) -> dict[Kind, FamilyWriter]:
    """Make what writes each kind."""
    endpoints = EndpointWriter(target)
    return {
        Kind.MODEL_DEFINITION: definition_writer(target),
        Kind.ENDPOINT: endpoints,
        Kind.GUARDRAIL: guardrail_writer(target, endpoints),
        Kind.BUDGET_POLICY: budget_writer(target),
    }
