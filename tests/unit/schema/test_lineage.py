"""Names of source tags: what is written, what is read, and how the hops of both join."""

from __future__ import annotations

from typing import Any

import pytest

from mlflow_exim_plugin.schema.envelope import System
from mlflow_exim_plugin.schema.lineage import (
    export_tags,
    import_tags,
    is_or_was,
    is_source_tag,
    later_source_tags,
    sources_of,
)
from mlflow_exim_plugin.schema.objects import Experiment, Kind, ModelVersion, RegisteredModel, Run
from mlflow_exim_plugin.schema.provenance import ORIGIN, experiment_origin, model_origin

A, B, C = "a" * 32, "b" * 32, "c" * 32


def system(uri: str = "http://old") -> System:
    return System.now("test", "3.17.2", uri)


def entries(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in tags.items()]


def run(run_id: str, tags: dict[str, str], **info: Any) -> Run:
    return Run({"info": {"run_id": run_id, **info}, "data": {"tags": entries(tags)}})


def origins(item: Run) -> list[str]:
    return [hop.origin for hop in sources_of(item)]


def test_only_the_first_prefix_is_taken_off() -> None:
    tags = import_tags(run(A, {"mlflow.mlflow.x": "1", "mlflow.x": "2"}), system())
    assert tags["mlflow_exim.mlflow_tag.mlflow.x"] == "1"
    assert tags["mlflow_exim.mlflow_tag.x"] == "2"


def test_numbers_and_lists_become_json_and_documents_stay_out() -> None:
    document = {
        "name": "m",
        "version": "3",
        "creation_timestamp": 17,
        "aliases": ["champion"],
        "description": "long",
        "tags": entries({"team": "risk"}),
        "source": "models:/m-1",
        "model_params": [{"name": "depth", "value": "6"}],
    }
    tags = import_tags(ModelVersion(document), system("http://old"))
    assert {k: v for k, v in tags.items() if ".field." in k} == {
        "mlflow_exim.field.name": "m",
        "mlflow_exim.field.version": "3",
        "mlflow_exim.field.creation_timestamp": "17",
        "mlflow_exim.field.source": "models:/m-1",
    }
    assert tags["mlflow_exim.src_client.tracking_uri"] == "http://old"


def carried(item: Run, new_id: str) -> Run:
    """Return the copy that an unpack with source tags makes."""
    own = {k: v for k, v in item.tags.items() if k != ORIGIN}
    origin = " ".join([item.id, *item.tags.get(ORIGIN, "").split()])
    return run(new_id, own | import_tags(item, system()) | {ORIGIN: origin}, user_id="bea")


def test_hops_come_oldest_first_and_the_first_keeps_its_names() -> None:
    first = carried(run(A, {"mlflow.user": "ana"}, user_id="ana"), B)
    second = carried(first, C)
    assert origins(second) == [A, B]
    assert [hop.fields["user_id"] for hop in sources_of(second)] == ["ana", "bea"]
    assert second.tags["mlflow_exim.run_info.run_id"] == A
    assert second.tags["mlflow_exim.hop_2.run_info.run_id"] == B
    assert sources_of(second)[0].tags == {"user": "ana"}


def test_both_generations_of_one_hop_are_one() -> None:
    source = run(A, {"mlflow.user": "ana"}, status="FINISHED")
    packed = run(A, source.tags | export_tags(source, "churn", system("http://old")))
    (hop,) = sources_of(carried(packed, B))
    assert hop.names == ["mlflow_export_import", "mlflow_exim"]
    assert hop.fields["status"] == "FINISHED"
    assert hop.server["experiment_name"] == "churn"
    assert hop.server["tracking_uri"] == "http://old"


def test_an_older_tool_comes_before_ours() -> None:
    tags = {"mlflow_export_import.run_info.run_id": A, ORIGIN: B}
    assert origins(run(C, tags)) == [A, B]


def test_hops_without_source_tags_are_hops() -> None:
    tags = {ORIGIN: f"{B} {A}", "mlflow_exim.run_info.run_id": B}
    found = sources_of(run(C, tags))
    assert [(hop.origin, bool(hop.names)) for hop in found] == [(A, False), (B, True)]
    assert is_or_was(run(C, tags), A)
    assert is_or_was(run(C, tags), C)
    assert not is_or_was(run(C, tags), "d" * 32)


@pytest.mark.parametrize(
    ("key", "part", "name"),
    [
        ("mlflow_export_import.metadata.tracking_uri", "server", "tracking_uri"),
        ("mlflow_export_import.metadata.run-id", "fields", "run_id"),
        ("mlflow_export_import.metadata.experiment_id", "fields", "experiment_id"),
        ("mlflow_export_import.run_info.status", "fields", "status"),
        ("mlflow_export_import.mlflow.source.name", "tags", "source.name"),
        ("mlflow_exim.mlflow.user", "tags", "user"),
        ("mlflow_exim.tag.user", "tags", "user"),
        ("mlflow_exim.mlflow_tag.user", "tags", "user"),
        ("mlflow_exim.field._creation_time", "fields", "_creation_time"),
        ("mlflow_exim.src_version.name", "fields", "name"),
        ("mlflow_exim.src_client.tracking_uri", "server", "tracking_uri"),
        ("mlflow_exim.src_run.mlflow.user", "tags", "user"),
        ("mlflow_exim_field_creation_timestamp", "fields", "creation_timestamp"),
        ("mlflow_exim_src_run_mlflow_user", "tags", "user"),
        ("mlflow_exim_hop_2_run_info_status", "fields", "status"),
    ],
)
def test_every_name_of_the_field_is_read(key: str, part: str, name: str) -> None:
    (hop,) = sources_of(run(C, {key: "value"}))
    assert getattr(hop, part) == {name: "value"}
    assert is_source_tag(key)


@pytest.mark.parametrize(
    "key",
    [ORIGIN, "mlflow.exim.content", "mlflow.exim.logged_model.m-1", "mlflow.user", "team",
     "mlflow_eximfield.x", "x.mlflow_exim.field.y", "mlflow_exim.hop_0.field.x"],
)  # fmt: skip
def test_other_names_are_not(key: str) -> None:
    assert not is_source_tag(key)
    assert not any(hop.names for hop in sources_of(run(C, {key: "value"})))


def test_experiments_and_models_join_their_origins_by_what_their_fields_say() -> None:
    experiment = {"experiment_id": "3", "creation_time": 17, "artifact_location": "file:///x"}
    tags = import_tags(Experiment(experiment), system())
    tags[ORIGIN] = experiment_origin(experiment)
    (hop,) = sources_of(Experiment({"experiment_id": "1", "tags": entries(tags)}))
    assert hop.fields["experiment_id"] == "3"
    model = {"name": "m", "creation_timestamp": 17}
    tags = import_tags(RegisteredModel(model), system())
    tags[ORIGIN] = f"{model_origin(model)} {'0' * 32}"
    found = sources_of(RegisteredModel({"name": "m", "tags": entries(tags)}, kind=Kind.PROMPT))
    assert [bool(hop.fields) for hop in found] == [False, True]


def test_only_hops_that_may_be_new_are_told_as_later() -> None:
    before = import_tags(run(A, {}), system())
    after = before | import_tags(run(B, before), system())
    assert set(later_source_tags(after, before, 1)) == set(after) - set(before)
    assert later_source_tags(before, after, 1) == []
    assert later_source_tags(after, {}, 1) == []
    assert set(later_source_tags(after, {}, 2)) == set(after)
