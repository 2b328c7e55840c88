"""What MLflow's API says of every kind that is one document, by names, to compare two deployments.

It is read with MLflow's own stores, never with the package under test. What may differ stands in
``LEFT_OUT``; ids that point at other objects are replaced by the names of these.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.utils.proto_json_utils import message_to_json

from mlflow_exim_plugin.schema.provenance import is_provenance

__all__ = ["LEFT_OUT", "entities"]

LEFT_OUT = {
    "scorer": "scorer_id, creation_time; online_scoring_config_id",
    "label_schema": "schema_id, created_by, created_at, last_updated_at",
    "issue": "issue_id, created_timestamp, last_updated_timestamp",
    "review_queue": "queue_id, created_by, creation_time_ms, last_update_time_ms; of items "
    "completed_time_ms, creation_time_ms, last_update_time_ms",
    "evaluation_dataset": "dataset_id, digest, created_time, last_update_time, last_updated_by",
    "dataset_record": "dataset_record_id, created_time, last_update_time, last_updated_by",
    "model_definition": "model_definition_id, secret_id, created_at, last_updated_at, "
    "last_updated_by",
    "endpoint": "endpoint_id, created_at, last_updated_at, last_updated_by; mapping_id; of "
    "bindings and guardrails created_at, created_by",
    "guardrail": "guardrail_id, created_by, created_at, last_updated_by, last_updated_at",
    "budget_policy": "budget_policy_id, created_at, last_updated_at, last_updated_by",
    "mcp_server": "created_by, last_updated_by, creation_timestamp, last_updated_timestamp, ids "
    "of access endpoints",
    "webhook": "webhook_id, creation_timestamp, last_updated_timestamp, status (always disabled)",
}
"""What REST cannot keep, by kind: ids and times. All else must be equal."""


def entities(uri: str) -> dict[str, Any]:
    """Return all of it."""
    client = MlflowClient(uri, uri)
    store = client._tracking_client.store
    experiments = {
        e.experiment_id: e.name for e in client.search_experiments(view_type=ViewType.ACTIVE_ONLY)
    }
    runs = {
        run.info.run_id: run.info.run_name
        for run in client.search_runs(list(experiments), run_view_type=ViewType.ALL)
    }
    return {
        "experiments": {
            name: _of_experiment(store, experiment_id, runs)
            for experiment_id, name in experiments.items()
        },
        "datasets": _datasets(store, experiments),
        **_gateway(store, experiments),
        "mcp_servers": {s.name: _mcp_server(store, s) for s in store.search_mcp_servers()},
        "webhooks": sorted(
            (w.name, w.url, w.description, sorted(map(str, w.events)))
            for w in client._get_registry_client().store.list_webhooks()
        ),
    }


def _of_experiment(store: Any, experiment_id: str, runs: dict[str, str]) -> dict[str, Any]:
    queues = store.list_review_queues(experiment_id, max_results=100)
    schemas = {s.schema_id: s for s in _label_schemas(store, experiment_id)}
    for schema_id in {schema_id for queue in queues for schema_id in queue.schema_ids}:
        schemas[schema_id] = store.get_label_schema(schema_id)
    return {
        "scorers": {s.scorer_name: _scorer(store, s) for s in store.list_scorers(experiment_id)},
        "label_schemas": {
            s.name: _proto(s, "schema_id", "experiment_id", "created_by", "created_at")
            for s in schemas.values()
        },
        "issues": sorted(
            json.dumps(
                _proto(issue, "issue_id", "experiment_id", "created_timestamp")
                | {"source_run_id": runs.get(issue.source_run_id or "")},
                sort_keys=True,
            )
            for issue in store.search_issues(experiment_id)
        ),
        "review_queues": {
            queue.name: {
                "type": str(queue.queue_type),
                "users": sorted(queue.users),
                "schemas": sorted(schemas[schema_id].name for schema_id in queue.schema_ids),
                "items": sorted(
                    (item.item_id, str(item.item_type), str(item.status), item.completed_by)
                    for item in store.list_review_queue_items(queue.queue_id, max_results=1000)
                ),
            }
            for queue in queues
        },
    }


def _label_schemas(store: Any, experiment_id: str) -> list[Any]:
    """List them only where that writes nothing."""
    try:
        store.get_label_schema_by_name(experiment_id, "Feedback")
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return []
    return list(store.list_label_schemas(experiment_id, max_results=1000))


def _scorer(store: Any, latest: Any) -> dict[str, Any]:
    versions = store.list_scorer_versions(latest.experiment_id, latest.scorer_name)
    return {
        "versions": sorted((v.scorer_version, v._serialized_scorer) for v in versions),
        "configs": [
            (config.sample_rate, config.filter_string)
            for config in store.get_online_scoring_configs([latest.scorer_id])
        ],
    }


def _datasets(store: Any, experiments: dict[str, str]) -> list[dict[str, Any]]:
    found = []
    for dataset in store.search_datasets(max_results=1000):
        linked = store.get_dataset_experiment_ids(dataset.dataset_id)
        records, _ = store._load_dataset_records(dataset.dataset_id)
        found.append(
            {
                "name": dataset.name,
                "tags": {k: v for k, v in dataset.tags.items() if not is_provenance(k)},
                "schema": json.loads(dataset.schema or "null"),
                "profile": json.loads(dataset.profile or "null"),
                "created_by": dataset.created_by,
                "experiments": sorted(experiments[e] for e in linked),
                "records": sorted(
                    json.dumps(
                        {k: v for k, v in record.to_dict().items() if k not in _OF_RECORDS},
                        sort_keys=True,
                    )
                    for record in records
                ),
            }
        )
    return sorted(found, key=lambda dataset: json.dumps(dataset, sort_keys=True))


_OF_RECORDS = {
    "dataset_record_id",
    "dataset_id",
    "created_time",
    "last_update_time",
    "last_updated_by",
}


def _gateway(store: Any, experiments: dict[str, str]) -> dict[str, Any]:
    definitions = {d.model_definition_id: d for d in store.list_gateway_model_definitions()}
    endpoints = {e.endpoint_id: e for e in store.list_gateway_endpoints()}
    scorers = {
        s.scorer_id: (experiments[e], s.scorer_name)
        for e in experiments
        for s in store.list_scorers(e)
    }
    guardrails = {g.guardrail_id: g for g in store.list_gateway_guardrails()}
    return {
        "model_definitions": {
            d.name: (d.secret_name, d.provider, d.model_name, d.created_by)
            for d in definitions.values()
        },
        "endpoints": {
            e.name: {
                "models": sorted(
                    (
                        definitions[m.model_definition_id].name,
                        m.linkage_type.value,
                        m.weight,
                        m.fallback_order,
                    )
                    for m in e.model_mappings
                ),
                "routing": e.routing_strategy,
                "fallback": asdict(e.fallback_config) if e.fallback_config else None,
                "experiment": experiments.get(e.experiment_id),
                "tracked": e.usage_tracking,
                "tags": sorted((t.key, t.value) for t in e.tags),
                "created_by": e.created_by,
                "bindings": sorted(
                    (str(b.resource_type), *scorers[b.resource_id])
                    for b in store.list_endpoint_bindings(endpoint_id=e.endpoint_id)
                ),
                "guardrails": [
                    (c.execution_order, guardrails[c.guardrail_id].name)
                    for c in store.list_endpoint_guardrail_configs(e.endpoint_id)
                ],
            }
            for e in endpoints.values()
        },
        "guardrails": {
            g.name: (
                experiments[g.scorer.experiment_id],
                g.scorer.scorer_name,
                g.scorer.scorer_version,
                g.stage.value,
                g.action.value,
                g.action_endpoint_name,
            )
            for g in guardrails.values()
        },
        "budgets": sorted(
            (
                b.budget_unit.value,
                b.budget_amount,
                b.duration.unit.value,
                b.duration.value,
                b.target_scope.value,
                b.budget_action.value,
                b.created_by or "",
                endpoints[b.target_value].name if b.target_value else "",
            )
            for b in store.list_budget_policies()
        ),
    }


def _mcp_server(store: Any, server: Any) -> dict[str, Any]:
    versions = {
        # A server says [] where the database says that there are none.
        v.version: _without_signature(asdict(v)) | {"tools": asdict(v)["tools"] or []}
        for v in store.search_mcp_server_versions(server.name)
    }
    document = _without_signature(asdict(store.get_mcp_server(server.name)))
    document["versions"] = versions
    document["access_endpoints"] = sorted(
        json.dumps(
            {k: v for k, v in _without_signature(e).items() if k not in {"id", "resolved_version"}},
            sort_keys=True,
        )
        for e in document["access_endpoints"]
    )
    return document


def _without_signature(document: dict[str, Any]) -> dict[str, Any]:
    left_out = {"created_by", "last_updated_by", "creation_timestamp", "last_updated_timestamp"}
    return {key: value for key, value in document.items() if key not in left_out}


def _proto(entity: Any, *left_out: str) -> dict[str, Any]:
    document = json.loads(message_to_json(entity.to_proto()))
    times = {"last_updated_at", "last_updated_timestamp"}
    return {k: v for k, v in document.items() if k not in left_out and k not in times}
