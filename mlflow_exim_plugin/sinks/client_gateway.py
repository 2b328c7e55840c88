"""The AI gateway to a deployment: its secrets must be there, by name."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host import gateway
from mlflow_exim_plugin.schema.objects import Entity, Kind, Loss
from mlflow_exim_plugin.sinks.client_options import OnConflict
from mlflow_exim_plugin.sinks.client_places import (
    Destination,
    Target,
    attempt,
    differing,
    find_place,
    leave_to_stranger,
    say_renamed,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.schema.report import Report

__all__ = ["BudgetWriter", "EndpointWriter", "GuardrailWriter", "ModelDefinitionWriter"]

_AGAIN = "create it, then unpack again"


class ModelDefinitionWriter:
    """Writes model definitions whose secrets are there.

    Attributes:
        names: Name by id, both at the source.
        missing: Why a model definition is not there, by id at the source.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._there: dict[str, dict[str, Any]] | None = None
        self._secrets: dict[str, str] | None = None
        self.names: dict[str, str] = {}
        self.missing: dict[str, str] = {}

    def write(self, entity: Entity, to: Destination, report: Report) -> None:  # noqa: ARG002 - it belongs to no experiment
        """Write one model definition."""
        document = entity.document
        name = str(document["name"])
        self.names[entity.id] = name
        if self._there is None:
            listed = gateway.model_definition_documents(self._target.host)
            self._there = {str(definition["name"]): definition for definition in listed}
        place = find_place(
            entity,
            name,
            self._there,
            lambda there: not differing(document, there, *_DEFINITION_FIELDS),
            self._target.options,
            numbered="{}-{}",
        )
        if place.there is not None:
            self._target.ids.know(entity.kind, entity.id, place.there["model_definition_id"])
            if place.is_ours:
                report.skipped(entity.kind, name, "it is there already")
            else:
                fields = differing(document, place.there, *_DEFINITION_FIELDS)
                leave_to_stranger(entity, name, fields, report)
            return
        try:
            secret_id = self._secret_id(document)
        except ServerError as error:
            self.missing[entity.id] = error.message
            raise
        definition_id = ""
        if not self._target.options.dry_run:
            definition_id = gateway.create_model_definition(
                self._target.host, place.name, document, secret_id
            )
        self._there[place.name] = document | {"model_definition_id": definition_id}
        self._target.ids.know(entity.kind, entity.id, definition_id)
        say_renamed(entity, name, place, report)
        report.written(entity.kind)

    def finish(self, report: Report) -> None:
        """Nothing waits."""

    def _secret_id(self, document: dict[str, Any]) -> str:
        name = document.get("secret_name")
        if not name:
            raise ServerError(
                f"model definition {document['name']!r} has no secret at the source, and MLflow "
                "creates none without"
            )
        if self._secrets is None:
            self._secrets = gateway.secret_names(self._target.host)
        if name not in self._secrets:
            raise ServerError(
                f"model definition {document['name']!r} needs the gateway secret {name!r} "
                f"(provider {document['provider']}) at the target: {_AGAIN}"
            )
        return self._secrets[name]


_DEFINITION_FIELDS = ("provider", "model_name", "secret_name")


class EndpointWriter:
    """Writes endpoints; their guardrails and bindings follow at the end.

    Attributes:
        names: Name at the target by name at the source.
    """

    def __init__(self, target: Target, definitions: ModelDefinitionWriter) -> None:
        self._target = target
        self._definitions = definitions
        self._there: dict[str, dict[str, Any]] | None = None
        self._unfinished: list[tuple[Entity, str]] = []
        self.names: dict[str, str] = {}

    def write(self, entity: Entity, to: Destination, report: Report) -> None:  # noqa: ARG002 - it belongs to no experiment
        """Write one endpoint with its models and tags."""
        document = entity.document
        name = str(document.get("name", ""))
        there = self._endpoints()
        definition_ids = self._definition_ids(document)
        wanted = _routes(document, definition_ids)
        place = find_place(
            entity,
            name,
            there,
            lambda found: _routes(found) == wanted,
            self._target.options,
            numbered="{}-{}",
        )
        if place.is_strange and self._target.options.on_conflict is OnConflict.SKIP:
            report.skipped(entity.kind, name, "the target has another endpoint of that name")
            return
        self.names[name] = place.name
        if place.there is None:
            endpoint_id = self._create(entity, place.name, definition_ids, report)
            say_renamed(entity, name, place, report)
        else:
            endpoint_id = place.there["endpoint_id"]
        self._target.ids.know(entity.kind, entity.id, endpoint_id)
        self._unfinished.append((entity, endpoint_id))
        tagged = self._tag(entity, endpoint_id, place.there, report)
        if place.is_strange:
            fields = ["models, weights or fallbacks"]
            leave_to_stranger(entity, name, fields, report)
        elif tagged or place.there is None:
            report.written(entity.kind)
        else:
            report.skipped(entity.kind, name, "it is there already")

    def finish(self, report: Report) -> None:
        """Put guardrails and bindings on the endpoints."""
        unfinished, self._unfinished = self._unfinished, []
        if self._target.options.dry_run:
            return
        for entity, endpoint_id in unfinished:
            self._add_guardrails(entity, endpoint_id, report)
            self._add_bindings(entity, endpoint_id, report)

    def id_of(self, name: str) -> str | None:
        """Return the target's id of an endpoint by its name at the source."""
        there = self._endpoints().get(self.names.get(name, name))
        return str(there["endpoint_id"]) if there else None

    def _definition_ids(self, document: dict[str, Any]) -> list[str]:
        found = []
        for mapping in document.get("model_mappings", ()):
            source_id = mapping["model_definition_id"]
            target_id = self._target.ids.get(Kind.MODEL_DEFINITION, source_id)
            if target_id is None:
                name = self._definitions.names.get(source_id, source_id)
                why = self._definitions.missing.get(source_id, "it is not at the target")
                raise ServerError(
                    f"endpoint {document.get('name')!r} needs model definition {name!r}: {why}"
                )
            found.append(target_id)
        return found

    def _create(self, entity: Entity, name: str, definition_ids: list[str], report: Report) -> str:
        document = entity.document
        source_experiment = document.get("experiment_id")
        experiment_id = None
        if source_experiment:
            experiment_id = self._target.ids.get(Kind.EXPERIMENT, source_experiment)
            if experiment_id is None:
                what = (
                    f"experiment {source_experiment} of its traces is not there: it has a new one"
                )
                report.lost(Loss(entity.kind, name, what))
        endpoint_id = ""
        if not self._target.options.dry_run:
            endpoint_id = gateway.create_endpoint(
                self._target.host, name, document, definition_ids, experiment_id
            )
        self._endpoints()[name] = document | {
            "endpoint_id": endpoint_id,
            "model_mappings": [
                mapping | {"model_definition_id": definition_id}
                for mapping, definition_id in zip(
                    document.get("model_mappings", ()), definition_ids, strict=True
                )
            ],
        }
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
                    what = f"it keeps its own tag {tag['key']!r}"
                    report.lost(Loss(entity.kind, str(entity.document.get("name")), what))
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
        there = {g["guardrail_id"]: g for g in gateway.endpoint_guardrails(host, endpoint_id)}
        for config in wanted:
            guardrail_id = self._target.ids.get(Kind.GUARDRAIL, config["guardrail_id"])
            order = config.get("execution_order")
            if guardrail_id in there:
                if there[guardrail_id].get("execution_order") != order:
                    self._lose(entity, f"guardrail {guardrail_id} keeps its own place", report)
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
        there = {
            (binding["resource_type"], binding["resource_id"])
            for binding in gateway.endpoint_bindings(host, endpoint_id)
        }
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
        attempt(call, Loss(entity.kind, str(entity.document.get("name", "")), ""), report)

    def _lose(self, entity: Entity, what: str, report: Report) -> None:
        report.lost(Loss(entity.kind, str(entity.document.get("name", "")), what))

    def _endpoints(self) -> dict[str, dict[str, Any]]:
        if self._there is None:
            listed = gateway.endpoint_documents(self._target.host)
            self._there = {str(endpoint.get("name", "")): endpoint for endpoint in listed}
        return self._there


def _routes(document: dict[str, Any], definition_ids: list[str] | None = None) -> Any:
    """Return where an endpoint sends calls, without what the server adds."""
    mappings = document.get("model_mappings", [])
    ids = definition_ids or [mapping["model_definition_id"] for mapping in mappings]
    return (
        sorted(
            (
                definition_id,
                mapping["linkage_type"],
                float(mapping.get("weight", 1.0)),
                int(mapping.get("fallback_order", -1)),
            )
            for definition_id, mapping in zip(ids, mappings, strict=True)
        ),
        document.get("routing_strategy"),
        document.get("fallback_config"),
        document.get("usage_tracking"),
    )


class GuardrailWriter:
    """Writes guardrails, each with the version of the scorer that it runs."""

    def __init__(self, target: Target, endpoints: EndpointWriter) -> None:
        self._target = target
        self._endpoints = endpoints
        self._there: list[dict[str, Any]] | None = None

    def write(self, entity: Entity, to: Destination, report: Report) -> None:  # noqa: ARG002 - it belongs to no experiment
        """Write one guardrail."""
        document, ids = entity.document, self._target.ids
        if self._there is None:
            self._there = gateway.guardrail_documents(self._target.host)
        scorer = document["scorer"]
        scorer_id = ids.get(Kind.SCORER, scorer["scorer_id"])
        version = ids.get(Kind.SCORER, f"{scorer['scorer_id']}/{scorer['scorer_version']}")
        if scorer_id is None or version is None:
            raise ServerError(
                f"guardrail {document['name']!r} needs version {scorer['scorer_version']} of "
                f"scorer {scorer['scorer_name']!r}, which is not at the target"
            )
        action_endpoint_id = None
        action_endpoint = document.get("action_endpoint_id")
        if action_endpoint:
            action_endpoint_id = self._endpoints.id_of(action_endpoint)
            if action_endpoint_id is None:
                raise ServerError(
                    f"guardrail {document['name']!r} needs endpoint {action_endpoint!r}, which is "
                    "not at the target"
                )
            action_endpoint = self._endpoints.names.get(action_endpoint, action_endpoint)
        wanted = document | {"action_endpoint_id": action_endpoint}
        for there in self._there:
            is_of_scorer = (
                there["scorer"].get("scorer_id") == scorer_id
                and str(there["scorer"]["scorer_version"]) == version
            )
            if is_of_scorer and not differing(wanted, there, *_GUARDRAIL_FIELDS):
                self._there.remove(there)
                ids.know(entity.kind, entity.id, there["guardrail_id"])
                report.skipped(entity.kind, entity.id, "it is there already")
                return
        guardrail_id = ""
        if not self._target.options.dry_run:
            guardrail_id = gateway.create_guardrail(
                self._target.host, document, scorer_id, int(version), action_endpoint_id
            )
        ids.know(entity.kind, entity.id, guardrail_id)
        report.written(entity.kind)

    def finish(self, report: Report) -> None:
        """Nothing waits."""


_GUARDRAIL_FIELDS = ("name", "stage", "action", "action_endpoint_id")


class BudgetWriter:
    """Writes budget policies; one with equal content is the same one."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._there: list[dict[str, Any]] | None = None

    def write(self, entity: Entity, to: Destination, report: Report) -> None:  # noqa: ARG002 - it belongs to no experiment
        """Write one budget policy."""
        document = entity.document
        if self._there is None:
            self._there = gateway.budget_policy_documents(self._target.host)
        if document["target_scope"] == "ENDPOINT" and document.get("target_value"):
            endpoint_id = self._target.ids.get(Kind.ENDPOINT, document["target_value"])
            if endpoint_id is None:
                raise ServerError(f"its endpoint {document['target_value']} is not at the target")
            document = document | {"target_value": endpoint_id}
        for there in self._there:
            if not differing(document, there, *_BUDGET_FIELDS):
                self._there.remove(there)
                report.skipped(entity.kind, entity.id, "it is there already")
                return
        if not self._target.options.dry_run:
            gateway.create_budget_policy(self._target.host, document)
        report.written(entity.kind)

    def finish(self, report: Report) -> None:
        """Nothing waits."""


_BUDGET_FIELDS = (
    "budget_unit",
    "budget_amount",
    "duration",
    "target_scope",
    "target_value",
    "budget_action",
)
