"""The AI gateway's model definitions, endpoints, guardrails and budgets, as documents.

Secrets are only counted and named: what they hold never leaves the server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError, ServerLostError
from mlflow_exim_plugin.host.absent import method
from mlflow_exim_plugin.host.connection import Host, translated
from mlflow_exim_plugin.host.documents import proto_document
from mlflow_exim_plugin.host.reading import pages
from mlflow_exim_plugin.schema.objects import Entity, Failure, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "budget_policies",
    "budget_policy_documents",
    "endpoint_bindings",
    "endpoint_documents",
    "endpoint_guardrails",
    "endpoints",
    "guardrail_documents",
    "guardrails",
    "model_definition_documents",
    "model_definitions",
    "secret_names",
]

_PAGE = 1000


def secret_names(host: Host) -> dict[str, str]:
    """Return the id of each secret by its name."""
    with translated("listing the names of the gateway's secrets"):
        listed = method(host.tracking, "list_secret_infos")()
    return {secret.secret_name: secret.secret_id for secret in listed}


def model_definition_documents(host: Host) -> list[dict[str, Any]]:
    """Return REST's ``GatewayModelDefinition`` each, by name."""
    with translated("listing the gateway's model definitions"):
        listed = method(host.tracking, "list_gateway_model_definitions")()
        return _by_name([proto_document(definition) for definition in listed])


def endpoint_documents(host: Host) -> list[dict[str, Any]]:
    """Return REST's ``GatewayEndpoint`` each, by name, without bindings and guardrails."""
    with translated("listing the gateway's endpoints"):
        listed = method(host.tracking, "list_gateway_endpoints")()
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
        listed = method(host.tracking, "list_endpoint_bindings")(endpoint_id=endpoint_id)
        documents = [proto_document(binding) for binding in listed]
    for document in documents:
        document.pop("endpoint_id", None)
    return sorted(documents, key=lambda d: (d["resource_type"], d["resource_id"]))


def endpoint_guardrails(host: Host, endpoint_id: str) -> list[dict[str, Any]]:
    """Return which guardrails an endpoint has and in which order; none before MLflow had them."""
    if not hasattr(host.tracking, "list_endpoint_guardrail_configs"):
        return []
    with translated(f"listing the guardrails of endpoint {endpoint_id}"):
        listed = host.tracking.list_endpoint_guardrail_configs(endpoint_id)
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
            for guardrail in pages(
                lambda token: method(host.tracking, "list_gateway_guardrails")(_PAGE, token)
            )
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
            proto_document(policy)
            for policy in pages(
                lambda token: method(host.tracking, "list_budget_policies")(_PAGE, token)
            )
        ]
    return sorted(documents, key=lambda d: (d["created_at"], d["budget_policy_id"]))


def model_definitions(host: Host) -> Iterator[Entity | Failure]:
    """Yield the model definitions."""
    for document in model_definition_documents(host):
        yield Entity(Kind.MODEL_DEFINITION, document)


def endpoints(host: Host) -> Iterator[Entity | Failure]:
    """Yield the endpoints with bindings and guardrails."""
    for document in endpoint_documents(host):
        try:
            document["bindings"] = endpoint_bindings(host, document["endpoint_id"])
            document["guardrails"] = endpoint_guardrails(host, document["endpoint_id"])
        except ServerLostError:
            raise
        except ServerError as error:
            yield Failure(Kind.ENDPOINT, document["endpoint_id"], error.message)
            continue
        yield Entity(Kind.ENDPOINT, document)


def guardrails(host: Host) -> Iterator[Entity | Failure]:
    """Yield the guardrails."""
    for document in guardrail_documents(host):
        yield Entity(Kind.GUARDRAIL, document)


def budget_policies(host: Host) -> Iterator[Entity | Failure]:
    """Yield the budget policies."""
    for document in budget_policy_documents(host):
        yield Entity(Kind.BUDGET_POLICY, document)


def _by_name(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(documents, key=lambda document: str(document.get("name", "")))
