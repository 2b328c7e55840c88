"""One object of each kind that has a name, and namesakes of them: MLflow's own stores make them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import (
    GatewayEndpointModelConfig,
    GatewayEndpointTag,
    GatewayModelLinkageType,
    TraceInfo,
    TraceLocation,
    TraceState,
)
from mlflow.entities.model_registry import ModelVersionTag as VersionTag
from mlflow.entities.model_registry import RegisteredModelTag as ModelTag
from mlflow.exceptions import MlflowException
from mlflow.genai.label_schemas import InputPassFail

from mlflow_exim_plugin.schema.objects import Kind
from tests.compare_entities import entities
from tests.seed import T0, Seeded, new_run
from tests.seed_entities import judge_json

__all__ = ["OWNER", "SERVER", "found", "seed_named", "seed_owner"]

OWNER = "judged"
SERVER = "com.example/weather"
_TRACE = f"tr-{7:032x}"


def seed_owner(uri: str) -> None:
    """Make the experiment that objects with names lie in, and a trace to be reviewed."""
    client = MlflowClient(uri, uri)
    location = TraceLocation.from_experiment_id(client.create_experiment(OWNER))
    client._tracking_client.store.start_trace(
        TraceInfo(_TRACE, location, request_time=T0, execution_duration=5, state=TraceState.OK)
    )


def seed_named(uri: str, side: str, *only: Kind) -> None:
    """Make one object of each kind that has a name; only what names the side differs.

    Args:
        uri: A SQLite file.
        side: ``source`` or ``target``.
        only: The kinds, if not all.
    """
    client = MlflowClient(uri, uri)
    store = client._tracking_client.store
    judged = client.get_experiment_by_name(OWNER).experiment_id

    def wants(kind: Kind) -> bool:
        return not only or kind in only

    if wants(Kind.EXPERIMENT):
        new_run(client, Seeded(), side, client.create_experiment("training", tags={"team": side}))
    if wants(Kind.REGISTERED_MODEL):
        client.create_registered_model("net", {"team": side})
        folder = Path(uri.removeprefix("sqlite:///")).parent / f"net of {side}"
        folder.mkdir()
        (folder / "MLmodel").write_text(side)
        client.create_model_version("net", str(folder), description=side)
    if wants(Kind.PROMPT):
        registry = client._get_registry_client().store
        is_prompt = {"mlflow.prompt.is_prompt": "true"}
        text = is_prompt | {"mlflow.prompt.text": side}
        registry.create_registered_model("chat", [ModelTag(*tag) for tag in is_prompt.items()])
        tags = [VersionTag(*tag) for tag in text.items()]
        registry.create_model_version("chat", "dummy-source", tags=tags)
    if wants(Kind.SCORER):
        store.register_scorer(judged, "tone", judge_json("tone", f"Say {side} {{{{ outputs }}}}"))
    asked = []
    if wants(Kind.LABEL_SCHEMA):
        schema = InputPassFail(side, "no")
        store.create_label_schema(judged, name="stars", type="feedback", input=schema)
    if wants(Kind.REVIEW_QUEUE):
        if side == "source":
            asked = [store.get_label_schema_by_name(judged, "stars").schema_id]
        queue = store.create_review_queue(
            judged, name="Review", queue_type="custom", users=[side], schema_ids=asked
        )
        if side == "source":
            store.add_items_to_review_queue(queue.queue_id, item_ids=[_TRACE])
    if wants(Kind.MODEL_DEFINITION) or wants(Kind.ENDPOINT):
        _seed_gateway(store, side, "fast" if wants(Kind.MODEL_DEFINITION) else "another")
    if wants(Kind.ENDPOINT):
        _seed_endpoint(store, side)
    if wants(Kind.MCP_SERVER):
        _seed_server(store, side, "2.0.0" if side == "source" else "9.0.0")


def _seed_gateway(store: Any, side: str, definition: str) -> None:
    secret = store.create_gateway_secret("key", {"api_key": "k"}, provider="openai")
    store.create_gateway_model_definition(definition, secret.secret_id, "openai", side)


def _seed_endpoint(store: Any, side: str) -> None:
    (definition,) = store.list_gateway_model_definitions()
    weight = 0.5 if side == "source" else 0.25
    model = GatewayEndpointModelConfig(
        definition.model_definition_id, GatewayModelLinkageType.PRIMARY, weight
    )
    endpoint = store.create_gateway_endpoint("route", [model], usage_tracking=False)
    for key, value in (("team", side), (side, "")):
        store.set_gateway_endpoint_tag(endpoint.endpoint_id, GatewayEndpointTag(key, value))


def _seed_server(store: Any, side: str, own: str) -> None:
    store.create_mcp_server(SERVER, description=side)
    for version in ("1.0.0", own):
        store.create_mcp_server_version({"name": SERVER, "version": version, "title": side})
    store.set_mcp_server_version_tag(SERVER, own, side, "")
    for key, value in (("team", side), (side, "")):
        store.set_mcp_server_tag(SERVER, key, value)
    for alias in ("stable", side):
        store.set_mcp_server_alias(SERVER, alias, own)
    store.create_mcp_access_endpoint(SERVER, f"https://{side}.example.com/mcp", server_alias=side)


def found(uri: str) -> dict[Kind, Any]:
    """Return what MLflow says of them, by kind and name."""
    client = MlflowClient(uri, uri)
    said = entities(uri)
    judged = said["experiments"][OWNER]
    return {
        Kind.REGISTERED_MODEL: {
            model.name: [
                client.get_model_version(model.name, str(number)).description
                for number in range(1, int(model.latest_versions[0].version) + 1)
            ]
            for model in client.search_registered_models()
        },
        Kind.PROMPT: {p.name: _texts(client, p.name) for p in client.search_prompts()},
        Kind.EXPERIMENT: {
            e.name: sorted(run.data.tags["role"] for run in client.search_runs([e.experiment_id]))
            for e in client.search_experiments()
            if e.name.startswith("training")
        },
        Kind.SCORER: {
            name: ["source" if "Say source" in text else "target" for _, text in s["versions"]]
            for name, s in judged["scorers"].items()
        },
        Kind.LABEL_SCHEMA: {
            name: schema.input.positive_label
            for name in ("stars", "stars (2)")
            if (schema := _label_schema(client, name))
        },
        Kind.REVIEW_QUEUE: {
            name: (*q["users"], len(q["items"])) for name, q in judged["review_queues"].items()
        },
        Kind.MODEL_DEFINITION: {n: d[2] for n, d in said["model_definitions"].items()},
        Kind.ENDPOINT: {
            name: ([model[2] for model in e["models"]], dict(e["tags"]))
            for name, e in said["endpoints"].items()
        },
        Kind.MCP_SERVER: {
            name: {
                "description": s["description"],
                "versions": {
                    number: (v["server_json"]["title"], v["server_json"]["name"], *v["tags"])
                    for number, v in s["versions"].items()
                },
                "tags": s["tags"],
                "aliases": s["aliases"],
                "access endpoints": sorted(json.loads(e)["url"] for e in s["access_endpoints"]),
            }
            for name, s in said["mcp_servers"].items()
        },
    }


def _texts(client: MlflowClient, prompt: str) -> list[str]:
    """Return the texts of its versions in order."""
    texts: list[str] = []
    while True:
        try:
            version = client.get_prompt_version(prompt, str(len(texts) + 1))
        except MlflowException:
            return texts
        texts.append(version.template)


def _label_schema(client: MlflowClient, name: str) -> Any:
    """Return one by its name: MLflow's listing would add another."""
    judged = client.get_experiment_by_name(OWNER).experiment_id
    try:
        return client._tracking_client.store.get_label_schema_by_name(judged, name)
    except MlflowException:
        return None
