"""The AI gateway: model definitions, endpoints, guardrails and budgets, read and written.

Secrets are only counted and named: what they hold never leaves the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.answers import NOBODY_REFUSED, UnbelievableError
from mlflow_exim_plugin.host.documents import proto_document
from mlflow_exim_plugin.host.entities.listing import each, every, whole
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.open.absent import method
from mlflow_exim_plugin.schema.objects import Entity, Failure, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.host.open.host import Host

__all__ = [
    "READS",
    "add_guardrail",
    "bind_endpoint",
    "budget_policy_documents",
    "create_budget_policy",
    "create_endpoint",
    "create_guardrail",
    "create_model_definition",
    "endpoint_bindings",
    "endpoint_documents",
    "endpoint_guardrails",
    "endpoints",
    "guardrail_documents",
    "model_definition_documents",
    "secret_names",
    "set_endpoint_tag",
]


def _listed(host: Host, name: str, path: str, **arguments: str) -> Any:
    """Return a listing that has no pages; a server is doubted that says there is nothing.

    These take no parameter that all servers refuse nonsense in, but none takes a POST.
    """
    listed = method(host.tracking, name)(**arguments)
    if listed or not host.is_http:
        return listed
    endpoint = f"/api/2.0/mlflow/gateway/{path}"
    if host.call("POST", endpoint, doing=f"doubting {path}", body={}, retries=False).ok:
        raise UnbelievableError(NOBODY_REFUSED)
    return listed


def secret_names(host: Host) -> dict[str, str]:
    """Return the id of each secret by its name."""
    with translated("listing the names of the gateway's secrets"):
        listed = _listed(host, "list_secret_infos", "secrets/list")
    return {secret.secret_name: secret.secret_id for secret in listed}


def model_definition_documents(host: Host) -> list[dict[str, Any]]:
    """Return REST's ``GatewayModelDefinition`` each, by name."""
    with translated("listing the gateway's model definitions"):
        listed = _listed(host, "list_gateway_model_definitions", "model-definitions/list")
        return _by_name([proto_document(definition) for definition in listed])


def endpoint_documents(host: Host) -> list[dict[str, Any]]:
    """Return REST's ``GatewayEndpoint`` each, by name, without bindings and guardrails."""
    with translated("listing the gateway's endpoints"):
        listed = _listed(host, "list_gateway_endpoints", "endpoints/list")
        documents = _by_name([proto_document(endpoint) for endpoint in listed])
    for document in documents:
        mappings = document.get("model_mappings", [])
        for mapping in mappings:
            mapping.pop("model_definition", None)  # repeats the model definition
            mapping.pop("endpoint_id", None)
        mappings.sort(
            key=lambda m: (m["linkage_type"], m.get("fallback_order", 0), m["mapping_id"])
        )
        document["tags"] = sorted(document.get("tags", []), key=lambda tag: str(tag["key"]))
    return documents


def endpoint_bindings(host: Host, endpoint_id: str) -> list[dict[str, Any]]:
    """Return which resources an endpoint is bound to."""
    with translated(f"listing the bindings of endpoint {endpoint_id}"):
        path = "endpoints/bindings/list"
        listed = _listed(host, "list_endpoint_bindings", path, endpoint_id=endpoint_id)
        documents = [proto_document(binding) for binding in listed]
    for document in documents:
        document.pop("endpoint_id", None)
    return sorted(documents, key=lambda d: (d["resource_type"], d["resource_id"]))


def endpoint_guardrails(host: Host, endpoint_id: str) -> list[dict[str, Any]]:
    """Return which guardrails an endpoint has and in which order; none before MLflow had them."""
    if not hasattr(host.tracking, "list_endpoint_guardrail_configs"):
        return []
    with translated(f"listing the guardrails of endpoint {endpoint_id}"):
        path = "guardrails/list-for-endpoint"
        listed = _listed(host, "list_endpoint_guardrail_configs", path, endpoint_id=endpoint_id)
        documents = [proto_document(config) for config in listed]
    for document in documents:
        document.pop("guardrail", None)  # repeats the guardrail
        document.pop("endpoint_id", None)
    return sorted(documents, key=lambda d: (d.get("execution_order", 0), d["guardrail_id"]))


def guardrail_documents(host: Host) -> list[dict[str, Any]]:
    """Return REST's ``GatewayGuardrail`` each, by name.

    ``action_endpoint_id`` holds the endpoint's name: so MLflow answers.
    """
    with translated("listing the gateway's guardrails"):
        documents = [
            proto_document(guardrail)
            for guardrail in every(host.tracking, "list_gateway_guardrails")
        ]
    for document in documents:
        scorer = document["scorer"]
        scorer.pop("serialized_scorer", None)  # repeats the scorer
        scorer["experiment_id"] = str(scorer["experiment_id"])
    return _by_name(documents)


def budget_policy_documents(host: Host) -> list[dict[str, Any]]:
    """Return REST's ``GatewayBudgetPolicy`` each, oldest first."""
    with translated("listing the gateway's budget policies"):
        documents = [
            proto_document(policy) for policy in every(host.tracking, "list_budget_policies")
        ]
    return sorted(documents, key=lambda d: (d["created_at"], d["budget_policy_id"]))


def endpoints(host: Host) -> Iterator[Entity | Failure]:
    """Yield the endpoints with bindings and guardrails."""
    by_id = {document["endpoint_id"]: document for document in endpoint_documents(host)}

    def read(endpoint_id: str) -> Entity:
        bindings = endpoint_bindings(host, endpoint_id)
        guardrails = endpoint_guardrails(host, endpoint_id)
        parts = {"bindings": bindings, "guardrails": guardrails}
        return Entity(Kind.ENDPOINT, by_id[endpoint_id] | parts)

    yield from each(Kind.ENDPOINT, by_id, read)


def _by_name(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(documents, key=lambda document: str(document.get("name", "")))


def create_model_definition(host: Host, name: str, document: dict[str, Any], secret_id: str) -> str:
    """Create a model definition and return its id."""
    with translated(f"creating model definition {name!r}"):
        created = method(host.tracking, "create_gateway_model_definition")(
            name,
            secret_id,
            document["provider"],
            document["model_name"],
            created_by=document.get("created_by") or None,
        )
    return str(created.model_definition_id)


def create_endpoint(host: Host, name: str, document: dict[str, Any]) -> str:
    """Create an endpoint and return its id.

    Args:
        host: The deployment.
        name: Its name.
        document: REST's ``GatewayEndpoint``; what it refers to has the target's ids.
    """
    with translated(f"creating endpoint {name!r}"):
        from mlflow.entities import (
            FallbackConfig,
            FallbackStrategy,
            GatewayEndpointModelConfig,
            GatewayModelLinkageType,
            RoutingStrategy,
        )

        strategy = document.get("routing_strategy")
        fallback = document.get("fallback_config")
        configs = [
            GatewayEndpointModelConfig(
                mapping["model_definition_id"],
                GatewayModelLinkageType(mapping["linkage_type"]),
                mapping.get("weight", 1.0),
                mapping.get("fallback_order"),
            )
            for mapping in document["model_mappings"]
        ]
        created = method(host.tracking, "create_gateway_endpoint")(
            name,
            configs,
            created_by=document.get("created_by") or None,
            routing_strategy=RoutingStrategy(strategy) if strategy else None,
            fallback_config=FallbackConfig(
                FallbackStrategy(fallback["strategy"]) if fallback.get("strategy") else None,
                fallback.get("max_attempts"),
            )
            if fallback is not None
            else None,
            experiment_id=document.get("experiment_id"),
            usage_tracking=document.get("usage_tracking", True),
        )
    return str(created.endpoint_id)


def set_endpoint_tag(host: Host, endpoint_id: str, tag: dict[str, str]) -> None:
    """Set one tag of an endpoint."""
    with translated(f"tagging endpoint {endpoint_id}"):
        from mlflow.entities import GatewayEndpointTag

        host.tracking.set_gateway_endpoint_tag(
            endpoint_id, GatewayEndpointTag(tag["key"], tag.get("value"))
        )


def bind_endpoint(host: Host, endpoint_id: str, resource_id: str, binding: dict[str, Any]) -> None:
    """Bind an endpoint to a resource."""
    with translated(f"binding endpoint {endpoint_id} to {binding['resource_type']} {resource_id}"):
        from mlflow.entities import GatewayResourceType

        resource = GatewayResourceType(binding["resource_type"])
        host.tracking.create_endpoint_binding(
            endpoint_id,
            resource if host.is_http else resource.value,
            resource_id,
            created_by=binding.get("created_by") or None,
        )


def create_guardrail(
    host: Host,
    document: dict[str, Any],
    scorer_id: str,
    scorer_version: int,
    action_endpoint_id: str | None,
) -> str:
    """Create a guardrail and return its id."""
    with translated(f"creating guardrail {document['name']!r}"):
        from mlflow.entities.gateway_guardrail import GuardrailAction, GuardrailStage

        created = method(host.tracking, "create_gateway_guardrail")(
            document["name"],
            scorer_id,
            scorer_version,
            GuardrailStage(document["stage"]),
            GuardrailAction(document["action"]),
            action_endpoint_id=action_endpoint_id,
        )
    return str(created.guardrail_id)


def add_guardrail(host: Host, endpoint_id: str, guardrail_id: str, order: int | None) -> None:
    """Put a guardrail on an endpoint."""
    with translated(f"putting guardrail {guardrail_id} on endpoint {endpoint_id}"):
        host.tracking.add_guardrail_to_endpoint(endpoint_id, guardrail_id, order)


def create_budget_policy(host: Host, document: dict[str, Any]) -> str:
    """Create a budget policy and return its id."""
    with translated("creating a budget policy"):
        from mlflow.entities.gateway_budget_policy import (
            BudgetAction,
            BudgetDuration,
            BudgetDurationUnit,
            BudgetTargetScope,
            BudgetUnit,
        )

        duration = document["duration"]
        more = {"target_value": document["target_value"]} if document.get("target_value") else {}
        created = method(host.tracking, "create_budget_policy")(
            BudgetUnit(document["budget_unit"]),
            document["budget_amount"],
            BudgetDuration(BudgetDurationUnit(duration["unit"]), duration["value"]),
            BudgetTargetScope(document["target_scope"]),
            BudgetAction(document["budget_action"]),
            created_by=document.get("created_by") or None,
            **more,
        )
    return str(created.budget_policy_id)


READS = {
    Kind.MODEL_DEFINITION: whole(Kind.MODEL_DEFINITION, model_definition_documents),
    Kind.ENDPOINT: endpoints,
    Kind.GUARDRAIL: whole(Kind.GUARDRAIL, guardrail_documents),
    Kind.BUDGET_POLICY: whole(Kind.BUDGET_POLICY, budget_policy_documents),
}
"""What reads each kind."""
