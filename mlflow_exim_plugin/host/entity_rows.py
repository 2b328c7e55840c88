"""Objects that are one document as rows of MLflow's tables."""

from __future__ import annotations

import hashlib
import json
import uuid
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import ParseDict

from mlflow_exim_plugin.schema.objects import Entity, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.host.table_writer import Rows

__all__ = ["HOMES", "association", "entity_rows"]

HOMES: dict[Kind, tuple[str, str, tuple[str, ...]]] = {
    Kind.SCORER: ("scorers", "scorer_id", ("experiment_id", "scorer_name")),
    Kind.LABEL_SCHEMA: ("label_schemas", "schema_id", ("experiment_id", "name")),
    Kind.ISSUE: ("issues", "issue_id", ()),
    Kind.REVIEW_QUEUE: ("review_queues", "queue_id", ("experiment_id", "name_key")),
    Kind.EVALUATION_DATASET: ("evaluation_datasets", "dataset_id", ()),
    Kind.MODEL_DEFINITION: ("model_definitions", "model_definition_id", ("workspace", "name")),
    Kind.ENDPOINT: ("endpoints", "endpoint_id", ("workspace", "name")),
    Kind.GUARDRAIL: ("guardrails", "guardrail_id", ()),
    Kind.BUDGET_POLICY: ("budget_policies", "budget_policy_id", ()),
    Kind.MCP_SERVER: ("mcp_servers", "name", ("workspace", "name")),
    Kind.WEBHOOK: ("webhooks", "webhook_id", ()),
}
"""Of each kind its table, the column of its id, and those of a name that only one can have."""

_WRAPPED = "mlflow_wrapped"


def entity_rows(entity: Entity, experiment_id: int | None, workspace: str) -> Rows:
    """Return the rows of an object, its own first.

    Args:
        entity: The object; what it refers to has the target's ids.
        experiment_id: Its experiment at the target, None where it belongs to none.
        workspace: Its workspace.

    Raises:
        KeyError: The document lacks a field that MLflow's always have.
        TypeError: A field of it has another type.
        ValueError: A field of it has no value that MLflow knows.
    """
    document = entity.document | {"workspace": workspace}
    if experiment_id is not None:
        document["experiment_id"] = experiment_id
    return _MAKERS[entity.kind](document)


def association(source: tuple[str, str], destination: tuple[str, str]) -> Rows:
    """Return the row of a link between two objects, each given as type and id."""
    row = {
        "association_id": f"a-{uuid.uuid4().hex}",
        "source_type": source[0],
        "source_id": source[1],
        "destination_type": destination[0],
        "destination_id": destination[1],
    }
    return [("entity_associations", row)]


def _some(document: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: document.get(name) for name in names}


def _tags(table: str, document: dict[str, Any], **owner: Any) -> Rows:
    return [
        (table, owner | {"key": tag["key"], "value": tag.get("value", "")})
        for tag in document.get("tags", ())
    ]


def _scorer(document: dict[str, Any]) -> Rows:
    scorer_id = document["scorer_id"]
    rows: Rows = [("scorers", _some(document, "experiment_id", "scorer_name", "scorer_id"))]
    for version in document["versions"]:
        row = _some(version, "scorer_version", "serialized_scorer", "creation_time")
        rows.append(("scorer_versions", row | {"scorer_id": scorer_id}))
    for config in document.get("online_configs", ()):
        row = _some(config, "online_scoring_config_id", "sample_rate", "filter_string")
        owner = {"scorer_id": scorer_id, "experiment_id": document["experiment_id"]}
        rows.append(("online_scoring_configs", row | owner))
    return rows


def _label_schema(document: dict[str, Any]) -> Rows:
    from mlflow.genai.label_schemas.label_schemas import LabelSchema
    from mlflow.protos.label_schemas_pb2 import LabelSchema as ProtoLabelSchema
    from mlflow.store.tracking.dbmodels.models import SqlLabelSchema

    sent = {k: v for k, v in document.items() if k not in {"workspace", "experiment_id"}}
    proto = ParseDict(sent, ProtoLabelSchema(), ignore_unknown_fields=True)
    proto.experiment_id = str(document["experiment_id"])
    made = SqlLabelSchema.from_mlflow_entity(LabelSchema.from_proto(proto))
    return [("label_schemas", {c.name: getattr(made, c.name) for c in made.__table__.columns})]


def _issue(document: dict[str, Any]) -> Rows:
    row = _some(
        document,
        "issue_id",
        "experiment_id",
        "name",
        "status",
        "severity",
        "source_run_id",
        "created_timestamp",
        "last_updated_timestamp",
        "created_by",
    )
    row["description"] = document.get("description", "")
    for name in ("root_causes", "categories"):
        row[name] = json.dumps(document[name]) if document.get(name) else None
    return [("issues", row)]


def _review_queue(document: dict[str, Any]) -> Rows:
    queue_id = document["queue_id"]
    row = _some(
        document, "queue_id", "experiment_id", "name", "created_by", "creation_time_ms",
        "last_update_time_ms",
    )  # fmt: skip
    row["name_key"] = document["name"].lower()
    row["queue_type"] = document["queue_type"].lower()
    rows: Rows = [("review_queues", row)]
    rows += [
        ("review_queue_users", {"queue_id": queue_id, "user_id": user})
        for user in document.get("users", ())
    ]
    if row["queue_type"] != "user":  # those of a user have all of the experiment's questions
        rows += [
            ("review_queue_label_schemas", {"queue_id": queue_id, "schema_id": schema_id})
            for schema_id in document.get("schema_ids", ())
        ]
    for item in document.get("items", ()):
        times = ("completed_by", "completed_time_ms", "creation_time_ms", "last_update_time_ms")
        states = {name: item[name].lower() for name in ("item_type", "status")}
        of_item = _some(item, "item_id", *times) | states | {"queue_id": queue_id}
        rows.append(("review_queue_items", of_item))
    return rows


def _dataset(document: dict[str, Any]) -> Rows:
    dataset_id = document["dataset_id"]
    row = _some(
        document, "dataset_id", "workspace", "name", "schema", "profile", "digest",
        "created_time", "last_update_time", "created_by", "last_updated_by",
    )  # fmt: skip
    rows: Rows = [("evaluation_datasets", row)]
    rows += _tags("evaluation_dataset_tags", document, dataset_id=dataset_id)
    for record in document.get("records", ()):
        outputs = record.get("outputs")
        inputs = record.get("inputs", {})
        of_record = _some(
            record, "dataset_record_id", "source_id", "source_type", "created_time",
            "last_update_time", "created_by", "last_updated_by",
        )  # fmt: skip
        text = json.dumps(inputs, sort_keys=True)
        of_record |= {
            "dataset_id": dataset_id,
            "inputs": json.dumps(inputs),
            "outputs": json.dumps(None if outputs is None else {_WRAPPED: outputs}),
            "expectations": json.dumps(record.get("expectations")),
            "tags": json.dumps(record.get("tags")),
            "source": json.dumps(record.get("source")),
            "input_hash": hashlib.sha256(text.encode()).hexdigest(),
        }
        rows.append(("evaluation_dataset_records", of_record))
    for experiment_id in document.get("experiment_ids", ()):
        rows += association(("evaluation_dataset", dataset_id), ("experiment", experiment_id))
    return rows


_SIGNED = ("created_by", "created_at", "last_updated_by", "last_updated_at", "workspace")


def _model_definition(document: dict[str, Any]) -> Rows:
    names = ("model_definition_id", "name", "secret_id", "provider", "model_name", *_SIGNED)
    return [("model_definitions", _some(document, *names))]


def _endpoint(document: dict[str, Any]) -> Rows:
    endpoint_id = document["endpoint_id"]
    names = ("endpoint_id", "name", "routing_strategy", "experiment_id", *_SIGNED)
    row = _some(document, *names)
    mappings = document.get("model_mappings", ())
    fallbacks = [m["model_definition_id"] for m in mappings if m["linkage_type"] == "FALLBACK"]
    fallback = document.get("fallback_config")
    if fallback is not None or fallbacks:
        known = _some(fallback or {}, "strategy", "max_attempts")
        row["fallback_config_json"] = json.dumps(known | {"model_definition_ids": fallbacks})
    row["usage_tracking"] = document.get("usage_tracking", True)
    if row["experiment_id"] is not None:
        row["experiment_id"] = int(row["experiment_id"])
    rows: Rows = [("endpoints", row)]
    for mapping in mappings:
        of_mapping = _some(
            mapping, "mapping_id", "model_definition_id", "linkage_type", "fallback_order",
            "created_by", "created_at",
        )  # fmt: skip
        of_mapping |= {"endpoint_id": endpoint_id, "weight": mapping.get("weight", 1.0)}
        rows.append(("endpoint_model_mappings", of_mapping))
    for binding in document.get("bindings", ()):
        of_binding = _some(
            binding, "resource_type", "resource_id", "created_at", "created_by",
            "last_updated_at", "last_updated_by", "display_name",
        )  # fmt: skip
        rows.append(("endpoint_bindings", of_binding | {"endpoint_id": endpoint_id}))
    rows += _tags("endpoint_tags", document, endpoint_id=endpoint_id)
    for config in document.get("guardrails", ()):
        of_config = _some(config, "guardrail_id", "execution_order", "created_by", "created_at")
        of_config |= {"endpoint_id": endpoint_id, "workspace": document["workspace"]}
        rows.append(("guardrail_configs", of_config))
    return rows


def _guardrail(document: dict[str, Any]) -> Rows:
    names = ("guardrail_id", "name", "stage", "action", "action_endpoint_id", *_SIGNED)
    scorer = document["scorer"]
    of_scorer = {"scorer_id": scorer["scorer_id"], "scorer_version": scorer["scorer_version"]}
    return [("guardrails", _some(document, *names) | of_scorer)]


def _budget_policy(document: dict[str, Any]) -> Rows:
    row = _some(
        document, "budget_policy_id", "budget_unit", "budget_amount", "target_scope",
        "budget_action", "target_value", *_SIGNED,
    )  # fmt: skip
    duration = document["duration"]
    row |= {"duration_unit": duration["unit"], "duration_value": duration["value"]}
    return [("budget_policies", row)]


def _mcp_server(document: dict[str, Any]) -> Rows:
    from mlflow.utils.semver_utils import encode_prerelease_sort_key, parse_semver

    workspace, name = document["workspace"], document["name"]
    owner = {"workspace": workspace, "name": name}

    def signed(of: dict[str, Any]) -> dict[str, Any]:
        times = {
            "created_at": of.get("creation_timestamp"),
            "last_updated_at": of.get("last_updated_timestamp"),
        }
        return _some(of, "created_by", "last_updated_by") | times

    row = owner | _some(document, "display_name", "description") | signed(document)
    rows: Rows = [("mcp_servers", row | {"icons": json.dumps(_own_icons(document))})]
    rows += _tags("mcp_server_tags", document, **owner)
    for version in document.get("versions", ()):
        number = parse_semver(version["version"])
        of_version = owner | _some(version, "version", "status", "source") | signed(version)
        of_version |= {
            "version_major": number.major,
            "version_minor": number.minor,
            "version_patch": number.patch,
            "version_prerelease_sort_key": encode_prerelease_sort_key(number),
            "server_json": json.dumps(version["server_json"]),
            "tools": json.dumps(version.get("tools")),
            "connect_options": json.dumps(version.get("connect_options")),
        }
        rows.append(("mcp_server_versions", of_version))
        rows += _tags("mcp_server_version_tags", version, **owner, version=version["version"])
    for alias in document.get("aliases", ()):
        rows.append(("mcp_server_aliases", owner | _some(alias, "alias", "version")))
    for endpoint in document.get("access_endpoints", ()):
        fields = ("id", "url", "transport_type", "server_version", "server_alias")
        of_endpoint = _some(endpoint, *fields) | signed(endpoint)
        of_endpoint |= {"workspace": workspace, "server_name": name}
        rows.append(("mcp_access_endpoints", of_endpoint))
    return rows


def _own_icons(document: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the icons of a server without those that MLflow shows of its version."""
    shown = document.get("icons")
    if not shown:
        return [] if shown is not None else None
    own = [icon for icon in shown if icon.get("source", "server") == "server"]
    return [{k: v for k, v in icon.items() if k != "source"} for icon in own] or None


def _webhook(document: dict[str, Any]) -> Rows:
    row = _some(
        document, "webhook_id", "workspace", "name", "description", "url", "creation_timestamp",
        "last_updated_timestamp",
    )  # fmt: skip
    row["status"] = "DISABLED"  # it has no secret to sign with
    events = [
        {name: event[name].lower() for name in ("entity", "action")}
        for event in document.get("events", ())
    ]
    return [
        ("webhooks", row),
        *(("webhook_events", event | {"webhook_id": document["webhook_id"]}) for event in events),
    ]


_MAKERS: dict[Kind, Callable[[dict[str, Any]], Rows]] = {
    Kind.SCORER: _scorer,
    Kind.LABEL_SCHEMA: _label_schema,
    Kind.ISSUE: _issue,
    Kind.REVIEW_QUEUE: _review_queue,
    Kind.EVALUATION_DATASET: _dataset,
    Kind.MODEL_DEFINITION: _model_definition,
    Kind.ENDPOINT: _endpoint,
    Kind.GUARDRAIL: _guardrail,
    Kind.BUDGET_POLICY: _budget_policy,
    Kind.MCP_SERVER: _mcp_server,
    Kind.WEBHOOK: _webhook,
}
