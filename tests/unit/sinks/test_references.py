"""References are followed as kinds describe them, whichever sink asks."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.schema.objects import Entity, Kind
from mlflow_exim_plugin.sinks.references import follow

THERE = {
    (Kind.EXPERIMENT, "1"): "11",
    (Kind.EXPERIMENT, "2"): "11",
    (Kind.RUN, "r"): "new-r",
    (Kind.LABEL_SCHEMA, "ls-1"): "new-ls",
    (Kind.MODEL_DEFINITION, "d-1"): "new-d",
    (Kind.ENDPOINT, "e-1"): "new-e",
    (Kind.SCORER, "s-1"): "new-s",
    (Kind.SCORER, "s-1/3"): "1",
}


def find(kind: Kind, identity: str) -> str | None:
    return THERE.get((kind, identity))


def followed(kind: Kind, **document: Any) -> tuple[dict[str, Any], list[str]]:
    new, losses = follow(Entity(kind, document), find)
    return new, [loss.what for loss in losses]


def test_what_is_there_is_named_by_its_id_at_the_target() -> None:
    assert followed(Kind.ISSUE, issue_id="i", source_run_id="r") == (
        {"issue_id": "i", "source_run_id": "new-r"},
        [],
    )


def test_what_is_not_there_is_left_out_and_named() -> None:
    new, lost = followed(Kind.ISSUE, issue_id="i", source_run_id="gone")
    assert new == {"issue_id": "i", "source_run_id": None}
    assert lost == ["the run that found it, gone, is not there"]


@pytest.mark.parametrize("document", [{}, {"source_run_id": None}, {"source_run_id": ""}])
def test_nothing_refers_to_nothing(document: dict[str, Any]) -> None:
    assert followed(Kind.ISSUE, issue_id="i", **document) == ({"issue_id": "i", **document}, [])


def test_elements_of_a_list_that_are_not_there_leave_it() -> None:
    new, lost = followed(Kind.REVIEW_QUEUE, queue_id="q", schema_ids=["ls-0", "ls-1"])
    assert new["schema_ids"] == ["new-ls"]
    assert lost == ["its label schema ls-0 is not there and left out"]


def test_two_that_became_one_are_named_once() -> None:
    new, lost = followed(Kind.EVALUATION_DATASET, dataset_id="d", experiment_ids=["1", "2", "3"])
    assert new["experiment_ids"] == ["11"]
    assert lost == ["its link to experiment 3, which is not there, is left out"]


def test_what_an_object_cannot_be_without_refuses_it() -> None:
    mappings = [{"model_definition_id": "d-1"}, {"model_definition_id": "d-2"}]
    endpoint = Entity(
        Kind.ENDPOINT, {"endpoint_id": "e", "name": "chat", "model_mappings": mappings}
    )
    with pytest.raises(ServerError, match="'chat' needs model definition 'd-2': it is not at the"):
        follow(endpoint, find)
    refused = {(Kind.MODEL_DEFINITION, "d-2"): ("spare", "no secret")}
    with pytest.raises(ServerError, match="'chat' needs model definition 'spare': no secret"):
        follow(endpoint, find, refused)
    assert endpoint.document["model_mappings"] == mappings


def test_only_some_values_of_a_field_refer_to_something() -> None:
    policy: dict[str, Any] = {"budget_policy_id": "b", "target_value": "e-1"}
    assert (
        followed(Kind.BUDGET_POLICY, **policy, target_scope="ENDPOINT")[0]["target_value"]
        == "new-e"
    )
    assert followed(Kind.BUDGET_POLICY, **policy, target_scope="USER")[0]["target_value"] == "e-1"
    with pytest.raises(ServerError, match="its endpoint me is not at the target"):
        followed(
            Kind.BUDGET_POLICY, budget_policy_id="b", target_value="me", target_scope="ENDPOINT"
        )


@pytest.mark.parametrize(
    ("version", "new"), [(3, {"scorer_id": "new-s", "scorer_version": 1}), (4, None)]
)
def test_a_version_is_named_by_owner_and_number(version: int, new: dict[str, Any] | None) -> None:
    scorer = {"scorer_id": "s-1", "scorer_version": version, "scorer_name": "safe"}
    guardrail = {"guardrail_id": "g", "name": "clean up", "scorer": scorer}
    if new is not None:
        assert followed(Kind.GUARDRAIL, **guardrail)[0]["scorer"] == scorer | new
        return
    with pytest.raises(ServerError, match="'clean up' needs version 4 of scorer 'safe', which is"):
        followed(Kind.GUARDRAIL, **guardrail)
