"""Every kind that is one document, with its hard cases, made through MLflow's own stores."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow import MlflowClient
from mlflow.entities import (
    FallbackConfig,
    FallbackStrategy,
    GatewayEndpointModelConfig,
    GatewayEndpointTag,
    GatewayModelLinkageType,
    IssueSeverity,
    IssueStatus,
    RoutingStrategy,
    TraceInfo,
    TraceLocation,
    TraceState,
)
from mlflow.entities.gateway_budget_policy import (
    BudgetAction,
    BudgetDuration,
    BudgetDurationUnit,
    BudgetTargetScope,
    BudgetUnit,
)
from mlflow.entities.gateway_guardrail import GuardrailAction, GuardrailStage
from mlflow.entities.mcp_server import MCPRemoteTransportType, MCPStatus, MCPTool
from mlflow.entities.mcp_server_version import ConnectOptionSettings
from mlflow.entities.webhook import WebhookEvent, WebhookStatus
from mlflow.genai.judges import make_judge
from mlflow.genai.label_schemas import (
    InputCategorical,
    InputNumeric,
    InputPassFail,
    InputText,
)
from mlflow.genai.scorers import scorer

from tests.seed import T0

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "SECRETS",
    "SERVER_ENV",
    "SeededEntities",
    "add_secrets",
    "judge_json",
    "seed_datasets",
    "seed_entities",
    "seed_gateway",
    "seed_judges",
    "seed_mcp_servers",
    "seed_webhooks",
]

SERVER_ENV = {
    "MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS": "true",
    "MLFLOW_ICON_URL_ALLOW_PRIVATE_IPS": "true",
    "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
}
"""What a server must allow so that all of it can be made without a network."""

SECRETS = {"openai key": "openai", "anthropic key": "anthropic"}
MANY_RECORDS = 1003
"""More than one page of a dataset's records."""


@dataclass
class SeededEntities:
    """What was made, by the words the tests use."""

    experiment_id: str = ""
    other_experiment_id: str = ""
    run_id: str = ""
    ids: dict[str, str] = field(default_factory=dict)


def seed_entities(uri: str) -> SeededEntities:
    """Make all of it."""
    made = SeededEntities()
    client = MlflowClient(uri, uri)
    made.experiment_id = client.create_experiment("judged")
    made.other_experiment_id = client.create_experiment("also judged")
    made.run_id = client.create_run(made.experiment_id).info.run_id
    client.set_terminated(made.run_id)
    store = client._tracking_client.store
    add_secrets(uri)
    seed_judges(store, made)
    seed_gateway(store, made)
    seed_datasets(store, made)
    seed_mcp_servers(store)
    seed_webhooks(client._get_registry_client().store)
    return made


def judge_json(name: str, instructions: str, model: str = "openai:/gpt-4o") -> str:
    """Return a judge as the registry stores it."""
    judge = make_judge(name=name, instructions=instructions, model=model)
    return json.dumps(judge.model_dump())


def add_secrets(uri: str, *names: str) -> None:
    """Create the gateway's secrets, all or the named ones."""
    store = MlflowClient(uri, uri)._tracking_client.store
    for name in names or SECRETS:
        store.create_gateway_secret(name, {"api_key": "sk-not-to-be-seen"}, provider=SECRETS[name])


def is_short(outputs: str) -> bool:
    """Judge by length."""
    return len(outputs) < 100


def seed_judges(store: Any, made: SeededEntities) -> None:
    """Make scorers, label schemas, issues and review queues."""
    experiment_id = made.experiment_id
    for strictness in ("kind", "fair", "strict"):
        version = store.register_scorer(
            experiment_id, "tone", judge_json("tone", f"Is {{{{ outputs }}}} {strictness}?")
        )
    made.ids["tone"] = version.scorer_id
    store.register_scorer(experiment_id, "is_short", json.dumps(scorer(is_short).model_dump()))
    store.upsert_online_scoring_config(experiment_id, "is_short", 0.0, "trace.status = 'OK'")
    store.register_scorer(
        made.other_experiment_id, "tone", judge_json("tone", "Another {{ outputs }} altogether")
    )

    store.list_label_schemas(experiment_id)  # MLflow adds the default one
    inputs = {
        "correct?": InputPassFail("Correct", "Wrong"),
        "topics": InputCategorical(["billing", "größe", "日本"], multi_select=True),
        "one topic": InputCategorical(["a", "b"]),
        "stars": InputNumeric(min_value=1, max_value=5),
        "any number": InputNumeric(),
        "short text": InputText(max_length=140),
        "any text": InputText(),
    }
    for number, (name, given) in enumerate(inputs.items()):
        schema = store.create_label_schema(
            experiment_id,
            name=name,
            type="expectation" if "text" in name else "feedback",
            input=given,
            instruction=f"Say what you think of {name}\nin 日本語" if number % 2 else None,
            enable_comment=bool(number % 3),
        )
        made.ids[name] = schema.schema_id

    common = {"experiment_id": experiment_id, "name": "Slow answers", "description": "p99 > 10 s"}
    full = store.create_issue(
        **common,
        status=IssueStatus.RESOLVED,
        severity=IssueSeverity.HIGH,
        root_causes=["a cold cache", "größe"],
        source_run_id=made.run_id,
        categories=["latency"],
        created_by="ada",
    )
    made.ids["full issue"] = full.issue_id
    made.ids["bare issue"] = store.create_issue(**common).issue_id
    made.ids["its twin"] = store.create_issue(**common).issue_id
    store.update_issue(made.ids["its twin"], status=IssueStatus.REJECTED)

    queue = store.create_review_queue(
        experiment_id,
        name="Expert Review",
        queue_type="custom",
        users=["bob", "alice"],
        schema_ids=[made.ids["correct?"], made.ids["stars"]],
    )
    made.ids["queue"] = queue.queue_id
    traces = [f"tr-{number:032x}" for number in range(1, 6)]
    for number, trace_id in enumerate(traces):
        store.start_trace(
            TraceInfo(
                trace_id=trace_id,
                trace_location=TraceLocation.from_experiment_id(experiment_id),
                request_time=T0 + number,
                execution_duration=5,
                state=TraceState.OK,
            )
        )
    store.add_items_to_review_queue(queue.queue_id, item_ids=traces)
    for trace_id, status in zip(traces, ("complete", "declined", "complete"), strict=False):
        store.set_review_queue_item_status(
            queue.queue_id, item_id=trace_id, status=status, completed_by="alice"
        )
    store.set_review_queue_item_status(queue.queue_id, item_id=traces[2], status="pending")
    store.create_review_queue(experiment_id, name="empty", queue_type="custom")
    personal = store.get_or_create_user_queue(experiment_id, user="default")
    store.add_items_to_review_queue(personal.queue_id, item_ids=traces[:1])


def seed_gateway(store: Any, made: SeededEntities) -> None:
    """Make model definitions, endpoints, a judge on an endpoint, guardrails and budgets."""
    secrets = {secret.secret_name: secret.secret_id for secret in store.list_secret_infos()}
    definitions = {}
    for name, secret, provider, model in (
        ("fast", "openai key", "openai", "gpt-4o-mini"),
        ("good", "openai key", "openai", "gpt-4o"),
        ("spare", "anthropic key", "anthropic", "claude-sonnet"),
    ):
        definitions[name] = store.create_gateway_model_definition(
            name, secrets[secret], provider, model, created_by="ada"
        ).model_definition_id
    primary, fallback = GatewayModelLinkageType.PRIMARY, GatewayModelLinkageType.FALLBACK
    chat = store.create_gateway_endpoint(
        "chat",
        [
            GatewayEndpointModelConfig(definitions["fast"], primary, 0.25),
            GatewayEndpointModelConfig(definitions["good"], primary, 0.75),
            GatewayEndpointModelConfig(definitions["spare"], fallback, 1.0, 0),
        ],
        created_by="ada",
        routing_strategy=RoutingStrategy.REQUEST_BASED_TRAFFIC_SPLIT,
        fallback_config=FallbackConfig(FallbackStrategy.SEQUENTIAL, 2),
        experiment_id=made.experiment_id,
    )
    made.ids["chat"] = chat.endpoint_id
    for key, value in {"team": "größe", "stage": "prod"}.items():
        store.set_gateway_endpoint_tag(chat.endpoint_id, GatewayEndpointTag(key, value))
    plain = store.create_gateway_endpoint(
        "untracked",
        [GatewayEndpointModelConfig(definitions["spare"], primary)],
        usage_tracking=False,
    )
    safe = store.register_scorer(
        made.experiment_id,
        "safe",
        judge_json("safe", "Is {{ outputs }} safe?", model="gateway:/chat"),
    )
    store.upsert_online_scoring_config(made.experiment_id, "safe", 0.125, "trace.status = 'OK'")
    guardrails = [
        store.create_gateway_guardrail(
            "keep it kind", made.ids["tone"], 2, GuardrailStage.BEFORE, GuardrailAction.VALIDATION
        ),
        store.create_gateway_guardrail(
            "clean up",
            safe.scorer_id,
            1,
            GuardrailStage.AFTER,
            GuardrailAction.SANITIZATION,
            action_endpoint_id=plain.endpoint_id,
        ),
    ]
    for order, guardrail in enumerate(reversed(guardrails)):
        store.add_guardrail_to_endpoint(chat.endpoint_id, guardrail.guardrail_id, order)
    for amount, action in ((10.5, BudgetAction.ALERT), (99.0, BudgetAction.REJECT)):
        store.create_budget_policy(
            BudgetUnit.USD,
            amount,
            BudgetDuration(BudgetDurationUnit.DAYS, 7),
            BudgetTargetScope.GLOBAL,
            action,
            created_by="ada",
        )
    store.create_budget_policy(
        BudgetUnit.USD,
        1.0,
        BudgetDuration(BudgetDurationUnit.MONTHS, 1),
        BudgetTargetScope.ENDPOINT,
        BudgetAction.ALERT,
        target_value=chat.endpoint_id,
    )


def seed_datasets(store: Any, made: SeededEntities) -> None:
    """Make evaluation datasets: full, empty, large, and two of one name."""
    both = [made.experiment_id, made.other_experiment_id]
    full = store.create_dataset(
        "questions", {"owner": "ada", "mlflow.user": "ada", "größe": "日本"}, both
    )
    store.upsert_dataset_records(full.dataset_id, list(_records()))
    twin = store.create_dataset("questions", None, [made.experiment_id])
    store.upsert_dataset_records(twin.dataset_id, [{"inputs": {"q": "only in the twin"}}])
    store.create_dataset("empty", None, [])
    many = store.create_dataset("many", {"size": "large"}, [made.other_experiment_id])
    records = [{"inputs": {"n": n}, "expectations": {"even": n % 2 == 0}} for n in range(1003)]
    for start in range(0, MANY_RECORDS, 500):
        store.upsert_dataset_records(many.dataset_id, records[start : start + 500])
    made.ids |= {"full": full.dataset_id, "twin": twin.dataset_id, "many": many.dataset_id}


def _records() -> Iterator[dict[str, Any]]:
    yield {"inputs": {"q": "What is MLflow?"}}
    yield {
        "inputs": {"q": "größe 日本", "nested": {"list": [1, 2.5, None, True]}},
        "outputs": {"answer": "a"},
        "expectations": {"expected_facts": ["a", "b"], "score": 0.5},
        "tags": {"mlflow.user": "bob", "level": "hard"},
        "source": {"source_type": "TRACE", "source_data": {"trace_id": f"tr-{1:032x}"}},
    }
    yield {
        "inputs": {"persona": "Student", "goal": "Find articles", "context": {"user": "U1"}},
        "expectations": {"guidelines": "be brief"},
        "source": {"source_type": "HUMAN", "source_data": {"user_name": "ada"}},
    }
    yield {
        "inputs": {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant"}]},
        "outputs": "just text",
        "source": {"source_type": "DOCUMENT", "source_data": {"doc_uri": "s3://b/d.md"}},
    }
    yield {"inputs": {"q": "from code"}, "source": {"source_type": "CODE", "source_data": {}}}


def seed_mcp_servers(store: Any) -> None:
    """Make MCP servers with versions of every status."""
    name = "com.example/weather"
    icons = [{"src": "https://127.0.0.1/icon.png", "mimeType": "image/png"}]
    store.create_mcp_server(name, description="Größe des Wetters", icons=icons)
    store.update_mcp_server(name, display_name="Weather")
    store.set_mcp_server_tag(name, "team", "sky")
    store.set_mcp_server_tag(name, "empty", "")
    tool = MCPTool(
        "forecast",
        title="Forecast",
        description="日本",
        input_schema={"type": "object", "properties": {"city": {"type": "string"}}},
    )
    for version, status in (("1.0.0", "deprecated"), ("1.1.0-rc.1", "draft"), ("2.0.0", "active")):
        server_json = {"name": name, "version": version, "description": f"v{version}"}
        store.create_mcp_server_version(
            server_json,
            source="https://example.com/repo",
            status=MCPStatus.DRAFT if status == "draft" else MCPStatus.ACTIVE,
            tools=[tool] if version == "2.0.0" else None,
            connect_options={"npx": ConnectOptionSettings(hidden=True)}
            if version == "2.0.0"
            else None,
        )
        if status == "deprecated":
            store.update_mcp_server_version(name, version, status=MCPStatus.DEPRECATED)
    store.set_mcp_server_version_tag(name, "2.0.0", "checked", "yes")
    store.set_mcp_server_alias(name, "production", "2.0.0")
    store.create_mcp_access_endpoint(name, "https://example.com/mcp", server_alias="production")
    store.create_mcp_access_endpoint(
        name, "https://example.com/sse", MCPRemoteTransportType.SSE, server_version="1.0.0"
    )
    store.create_mcp_server("com.example/bare")


def seed_webhooks(registry: Any) -> None:
    """Make webhooks: the registry's servers must be allowed to use loopback."""
    registry.create_webhook(
        "notify",
        "https://localhost/hook",
        [WebhookEvent.from_str("model_version.created"), WebhookEvent.from_str("prompt.created")],
        description="Tells the team größe",
        secret="not-to-be-seen",
        status=WebhookStatus.ACTIVE,
    )
    registry.create_webhook(
        "resting",
        "https://localhost/other",
        [WebhookEvent.from_str("registered_model.created")],
        status=WebhookStatus.DISABLED,
    )
