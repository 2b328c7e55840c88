"""The AI gateway: model definitions, endpoints, guardrails and budgets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.kinds.description import (
    KEY,
    TAG,
    Description,
    Kept,
    TableRows,
    Version,
    default,
    same,
)
from mlflow_exim_plugin.kinds.kind import Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["BUDGET_POLICY", "ENDPOINT", "GUARDRAIL", "MODEL_DEFINITION"]

_SIGNED = " created_by created_at last_updated_by last_updated_at workspace"
_THEIRS = "ids and times are the target's"
_PEOPLE = "created_by last_updated_by"


def _fallback(endpoint: dict[str, Any]) -> str | None:
    config, mappings = endpoint.get("fallback_config"), endpoint.get("model_mappings", ())
    ids = [m["model_definition_id"] for m in mappings if m["linkage_type"] == "FALLBACK"]
    if config is None and not ids:
        return None
    known = {name: (config or {}).get(name) for name in ("strategy", "max_attempts")}
    return json.dumps(known | {"model_definition_ids": ids})


def _with_signer(document: dict[str, Any], _row: Mapping[str, Any]) -> None:
    """Say that nobody is known to have made it, or to have changed it, as MLflow says it."""
    document.setdefault("created_by", "")
    document.setdefault("last_updated_by", "")


def _with_maker(config: dict[str, Any], _row: Mapping[str, Any]) -> None:
    config.setdefault("created_by", "")


def _without_models(config: str) -> dict[str, Any] | None:
    found = json.loads(config)
    return {k: v for k in ("strategy", "max_attempts") if (v := found.get(k)) is not None}


def _is_tracked(endpoint: dict[str, Any]) -> bool:
    return bool(endpoint.get("usage_tracking", True))


def _experiment(endpoint: dict[str, Any]) -> int | None:
    experiment_id = endpoint.get("experiment_id")
    return None if experiment_id is None else int(experiment_id)


MODEL_DEFINITION = Description(
    Kind.MODEL_DEFINITION,
    since="3.8",
    folder="gateway/model_definitions",
    id_field="model_definition_id",
    refers={"model_definition_id": Kind.MODEL_DEFINITION},
    unique=("workspace", "name"),
    numbered="{}-{}",
    same=("provider", "model_name", "secret_name"),
    rest={"users": "last_updated_by", "inner ids": "secret_id"},
    anew=_THEIRS,
    rows=TableRows(
        "model_definitions",
        same("model_definition_id name secret_id provider model_name" + _SIGNED),
        order=("name",),
    ),
    names="name secret_name",
    secrets=_PEOPLE,
)

ENDPOINT = Description(
    Kind.ENDPOINT,
    since="3.8",
    folder="gateway/endpoints",
    id_field="endpoint_id",
    lists={
        "tags": KEY,
        "model_mappings": ("model_definition_id", "linkage_type", "fallback_order"),
        "bindings": ("resource_type", "resource_id"),
        "guardrails": ("guardrail_id",),
    },
    refers={
        "endpoint_id": Kind.ENDPOINT,
        "experiment_id": Kind.EXPERIMENT,
        "model_mappings[].model_definition_id": Kind.MODEL_DEFINITION,
        "bindings[].resource_id": Kind.SCORER,
        "guardrails[].guardrail_id": Kind.GUARDRAIL,
    },
    needs={
        "model_mappings[].model_definition_id": "endpoint {name!r} needs model definition"
        " {named!r}: {why}"
    },
    drops={"experiment_id": "experiment {it} of its traces is not there"},
    unique=("workspace", "name"),
    numbered="{}-{}",
    joins=("tags", "guardrails", "bindings"),
    rest={
        "users": "last_updated_by *[*].created_by *[*].last_updated_by",
        "inner ids": "model_mappings[*].mapping_id",
    },
    anew=_THEIRS,
    rows=TableRows(
        "endpoints",
        same(
            "endpoint_id name routing_strategy" + _SIGNED,
            experiment_id=Kept("experiment_id", _experiment, str),
            fallback_config_json=Kept("fallback_config", _fallback, _without_models),
            usage_tracking=Kept("usage_tracking", _is_tracked, bool),
        ),
        parts=(
            TableRows(
                "endpoint_model_mappings",
                same(
                    "mapping_id model_definition_id linkage_type fallback_order created_by"
                    " created_at",
                    weight=default("weight", value=1.0),
                ),
                at="model_mappings",
                owner=("endpoint_id",),
                order=("linkage_type", "fallback_order", "mapping_id"),
            ),
            TableRows(
                "endpoint_bindings",
                same(
                    "resource_type resource_id created_at created_by last_updated_at"
                    " last_updated_by display_name"
                ),
                at="bindings",
                owner=("endpoint_id",),
                order=("resource_type", "resource_id"),
            ),
            TableRows("endpoint_tags", TAG, at="tags", owner=("endpoint_id",)),
            TableRows(
                "guardrail_configs",
                same("guardrail_id execution_order created_by created_at"),
                at="guardrails",
                owner=("endpoint_id", "workspace"),
                order=("execution_order", "guardrail_id"),
                completed=_with_maker,
            ),
        ),
        order=("name",),
        completed=_with_signer,
    ),
    names="name",
    secrets="tags bindings[].display_name model_mappings[].created_by guardrails[].created_by "
    + _PEOPLE,
)

GUARDRAIL = Description(
    Kind.GUARDRAIL,
    since="3.12",
    folder="gateway/guardrails",
    id_field="guardrail_id",
    refers={
        "guardrail_id": Kind.GUARDRAIL,
        "scorer.scorer_id": Kind.SCORER,
        "scorer.experiment_id": Kind.EXPERIMENT,
        "scorer": Version(Kind.SCORER, "scorer_id", "scorer_version"),
    },
    needs={
        "scorer": "guardrail {name!r} needs version {scorer[scorer_version]} of scorer"
        " {scorer[scorer_name]!r}, which is not at the target"
    },
    same=("name", "stage", "action", "action_endpoint_id", "scorer"),
    rest={"times": "scorer.creation_time", "users": "created_by last_updated_by"},
    anew="ids, creators and times are the target's",
    rows=TableRows(
        "guardrails",
        same(
            "guardrail_id name stage action action_endpoint_id" + _SIGNED,
            scorer_id="scorer.scorer_id",
            scorer_version="scorer.scorer_version",
        ),
        order=("name",),
        completed=_with_signer,
    ),
    names="action_endpoint_id scorer.scorer_name",
    secrets="name " + _PEOPLE,
)

BUDGET_POLICY = Description(
    Kind.BUDGET_POLICY,
    since="3.11",
    folder="gateway/budget_policies",
    id_field="budget_policy_id",
    refers={"budget_policy_id": Kind.BUDGET_POLICY, "target_value": Kind.ENDPOINT},
    needs={"target_value": "its endpoint {it} is not at the target"},
    only={"target_value": ("target_scope", "ENDPOINT")},
    natural=("target_scope", "budget_action"),
    same=(
        "budget_unit",
        "budget_amount",
        "duration",
        "target_scope",
        "target_value",
        "budget_action",
    ),
    rest={"users": "last_updated_by"},
    anew=_THEIRS,
    rows=TableRows(
        "budget_policies",
        same(
            "budget_policy_id budget_unit budget_amount target_scope budget_action target_value"
            + _SIGNED,
            duration_unit="duration.unit",
            duration_value="duration.value",
        ),
        order=("created_at", "budget_policy_id"),
        completed=_with_signer,
    ),
    secrets=_PEOPLE,
)
