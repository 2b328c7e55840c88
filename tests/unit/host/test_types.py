"""Documents held to the types of MLflow's own messages."""

from __future__ import annotations

from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.host.types import require_types
from mlflow_exim_plugin.schema.objects import (
    Entity,
    Experiment,
    Kind,
    ModelVersion,
    RegisteredModel,
    Run,
    StreamObject,
)

assert MlflowClient  # the stores know their messages then


def experiment(**more: Any) -> Experiment:
    return Experiment({"experiment_id": "1", "name": "e", "lifecycle_stage": "active"} | more)


def run(data: dict[str, Any] | None = None, **more: Any) -> Run:
    info = {"run_id": "r", "experiment_id": "1", "status": "FINISHED", "start_time": 1}
    return Run({"info": info | more, "data": data or {}})


def version(**more: Any) -> ModelVersion:
    return ModelVersion({"name": "m", "version": "1", "current_stage": "None"} | more)


def scorer(serialized: Any) -> Entity:
    versions = [{"scorer_version": 1, "serialized_scorer": serialized, "creation_time": 1}]
    document = {"scorer_id": "s", "scorer_name": "s", "versions": versions}
    return Entity(Kind.SCORER, document, "1")


METRIC = {"key": "a", "value": 0.5, "timestamp": 1, "step": -1}
RIGHT = [
    experiment(tags=[{"key": "a", "value": "b"}, {"key": "c"}], creation_time=None, new_field=[1]),
    run({"metrics": [METRIC, METRIC | {"value": "NaN"}, METRIC | {"value": 1}]}, end_time=2**62),
    run({"params": [{"key": "a", "value": "b"}], "tags": []}, lifecycle_stage="deleted"),
    version(current_stage="Production", status="READY", aliases=["a"], tags=[]),
    RegisteredModel({"name": "m", "aliases": [{"alias": "a", "version": "1"}]}),
    RegisteredModel({"name": "m", "description": None}, Kind.PROMPT),
    scorer('{"name": "s"}'),
]
WRONG = [
    scorer("../x"),
    scorer("[]"),
    scorer("[" * 100_000),
    experiment(experiment_id="\uff11"),
    experiment(experiment_id="-1"),
    experiment(experiment_id="1" * 20),
    experiment(creation_time="x"),
    experiment(last_update_time=True),
    experiment(lifecycle_stage="zombie"),
    experiment(lifecycle_stage=1),
    experiment(tags={"a": "b"}),
    experiment(tags=[{"key": "a", "value": 1}]),
    experiment(tags=["a"]),
    run(start_time=2**70),
    run(status="FOO"),
    run(status=1),
    run(lifecycle_stage="zombie"),
    run(run_name=7),
    run({"params": [{"key": "a", "value": None}, {"key": "b", "value": {}}]}),
    run({"metrics": [METRIC | {"value": "high"}]}),
    run({"metrics": [METRIC | {"step": 1.5}]}),
    Run({"info": {"run_id": "r", "experiment_id": "1"}, "inputs": []}),
    version(status="FOO"),
    version(current_stage="FOO"),
    version(current_stage=[]),
    version(creation_timestamp="x"),
    version(aliases="a"),
    RegisteredModel({"name": "m", "creation_timestamp": "x"}),
    RegisteredModel({"name": "m", "aliases": [{"alias": 1}]}, Kind.PROMPT),
]


@pytest.mark.parametrize("item", RIGHT)
def test_what_mlflow_makes_is_taken(item: StreamObject) -> None:
    require_types(item)


@pytest.mark.parametrize("item", WRONG)
def test_what_mlflow_could_not_have_made_is_refused(item: StreamObject) -> None:
    with pytest.raises(InvalidArchiveError, match="not as MLflow has it"):
        require_types(item)
