"""A server with every kind of object that MLflow 3.17 stores, and what joins them.

The cases within a kind are those of the other seeds; here stands what leads from one kind to
another. Everything is made through MLflow's client and REST API::

    python tests/everything.py http://localhost:5000
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from mlflow import MlflowClient
from mlflow.entities import (
    AssessmentSource,
    Feedback,
    IssueStatus,
    LoggedModelOutput,
    LoggedModelStatus,
    TraceState,
)
from mlflow.entities.assessment import IssueReference

from tests.compare import as_default
from tests.seed import Seeded, new_run, seed
from tests.seed_entities import SERVER_ENV, judge_json, seed_entities
from tests.seed_logged_models import log_model_files, seed_logged_models
from tests.seed_prompts import seed_by_hand, seed_prompts
from tests.trace_seed import seed_traces, started_trace

__all__ = ["SERVER_ENV", "fill"]


def fill(uri: str) -> None:
    """Fill a server.

    Args:
        uri: A server that was started with ``SERVER_ENV``.
    """
    client = MlflowClient(uri, uri)
    seed(client)
    seed_logged_models(client)
    seed_traces(uri)
    seed_entities(uri)
    seed_prompts(client)
    seed_by_hand(client)
    _join(client)
    _delete_what_is_full(client)


def _join(client: MlflowClient) -> None:
    """Make an agent whose traces, prompt, judge, issue and queue all speak of each other."""
    store = client._tracking_client.store
    made = Seeded()
    experiment_id = client.create_experiment("agent ✓", tags={"mlflow.experimentKind": "genai"})
    run_id = new_run(client, made, "evaluation", experiment_id)
    model_ids = []
    for name in ("agent", "fallback"):
        model = client.create_logged_model(experiment_id, name, run_id, model_type="agent")
        model_ids.append(model.model_id)
        log_model_files(client, model.model_id, {"MLmodel": f"model_id: {model.model_id}\n"})
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(m, n) for n, m in enumerate(model_ids)])
    client.create_registered_model("agent")
    for model_id in model_ids:
        client.create_model_version("agent", f"models:/{model_id}", run_id, model_id=model_id)
    prompt = client.register_prompt("agent.system", "You are {{who}}", tags={"lang": "en"})
    with as_default(client.tracking_uri):  # a link between two stores looks there
        client.link_prompt_version_to_run(run_id, prompt)

    traces = [
        started_trace(
            store,
            experiment_id,
            f"tr-{0xA6E27:031x}{turn}",
            state=TraceState.ERROR if turn == 2 else TraceState.OK,
            tags={"turn": str(turn), "lines": "a\nb ✓"},
            metadata={
                "mlflow.trace.session": "session ✓ 1",
                "mlflow.trace.user": "anna",
                "mlflow.sourceRun": run_id,
                "mlflow.modelId": model_ids[0],
            },
        )
        for turn in range(3)
    ]
    store.link_traces_to_run(traces[:2], run_id)
    with as_default(client.tracking_uri):
        client.link_prompt_versions_to_trace([prompt], traces[0])

    issue = store.create_issue(
        experiment_id,
        "too slow",
        "It takes a minute",
        IssueStatus.PENDING,
        source_run_id=run_id,
        created_by="judge",
    )
    human = AssessmentSource("HUMAN", "anna@example.org")
    for assessment in (
        IssueReference(issue.issue_id, "too slow", source=human, run_id=run_id),
        Feedback("helpful", value=True, source=human, rationale="größe"),
    ):
        assessment.trace_id = traces[0]
        store.create_assessment(assessment)

    dataset = store.create_dataset("agent questions", {"mlflow.user": "anna"}, [experiment_id])
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello ✓"}]
    store.upsert_dataset_records(
        dataset.dataset_id,
        [
            {
                "inputs": {"messages": turns},
                "expectations": {"polite": True, "score": 0.5},
                "source": {"source_type": "TRACE", "source_data": {"trace_id": traces[1]}},
                "tags": {"from": "session"},
            }
        ],
    )
    store.register_scorer(experiment_id, "polite", judge_json("polite", "Is {{ outputs }} nice?"))
    schemas = [schema.schema_id for schema in store.list_label_schemas(experiment_id)]
    queue = store.create_review_queue(
        experiment_id, name="to read", queue_type="custom", users=["anna"], schema_ids=schemas
    )
    store.add_items_to_review_queue(queue.queue_id, item_ids=traces)


def _delete_what_is_full(client: MlflowClient) -> None:
    """Make a deleted experiment with a run, a logged model, a trace and an issue in it."""
    store = client._tracking_client.store
    experiment_id = client.create_experiment("deleted with everything")
    run_id = new_run(client, Seeded(), "in it", experiment_id)
    client.create_logged_model(experiment_id, "left behind", run_id)
    started_trace(store, experiment_id, metadata={"mlflow.sourceRun": run_id})
    store.create_issue(experiment_id, "never solved", "It was deleted", IssueStatus.PENDING)
    client.delete_experiment(experiment_id)


if __name__ == "__main__":
    fill(sys.argv[1])
