"""Origins: the same object always has the same, different ones never."""

from __future__ import annotations

import hashlib

from mlflow_exim_plugin.schema.provenance import (
    CONTENT,
    ORIGIN,
    TAGS,
    chained,
    experiment_origin,
    is_provenance,
    logged_model_remembered,
    model_origin,
    newest,
    origins,
    told,
)

EXPERIMENT = {"experiment_id": "1", "creation_time": 5, "artifact_location": "/a", "name": "x"}
MODEL = {"name": "m", "creation_timestamp": 5}


def test_origin_of_an_experiment_survives_what_people_change() -> None:
    renamed = {**EXPERIMENT, "name": "y", "lifecycle_stage": "deleted", "last_update_time": 9}
    assert experiment_origin(renamed) == experiment_origin(EXPERIMENT)


def test_origins_of_different_objects_differ() -> None:
    origins = {
        experiment_origin(EXPERIMENT),
        experiment_origin({**EXPERIMENT, "experiment_id": "2"}),
        experiment_origin({**EXPERIMENT, "creation_time": 6}),
        experiment_origin({**EXPERIMENT, "artifact_location": "/b"}),
        experiment_origin({}),
        model_origin(MODEL),
        model_origin({**MODEL, "name": "n"}),
        model_origin({**MODEL, "creation_timestamp": 6}),
    }
    assert len(origins) == 8


def test_origin_is_what_the_spec_says() -> None:
    hashed = hashlib.sha256(b'["experiment","1",5,"/a"]').hexdigest()
    assert experiment_origin(EXPERIMENT) == hashed[:32]
    assert (
        model_origin({"name": "m"})
        == (hashlib.sha256(b'["registered_model","m",null]').hexdigest()[:32])
    )


def test_hops_are_chained_newest_first() -> None:
    first = chained("a", {})
    second = chained("b", {ORIGIN: first})
    third = chained("c", {ORIGIN: second, "other": "tag"})
    assert third == "c b a"
    assert newest(third) == "c"
    assert newest("") == ""


def test_tags_have_a_prefix_that_pages_of_mlflow_hide_and_one_of_earlier_versions() -> None:
    assert {tag.rpartition(".")[0] for tag in TAGS} == {"mlflow.exim", "mlflow_exim"}


def test_both_names_are_read_and_the_present_one_counts() -> None:
    assert origins("c", {"mlflow_exim.origin": "b a"}) == ["c", "b", "a"]
    assert chained("c", {"mlflow_exim.origin": "a", "mlflow.exim.origin": "b"}) == "c b"
    assert told({"mlflow_exim.content": "x", "mlflow.exim.content": ""}, CONTENT) == ""
    assert told({"mlflow_exim.content": "x"}, CONTENT) == "x"
    assert told({}, CONTENT) == ""
    for prefix in ("mlflow.exim.", "mlflow_exim."):
        assert logged_model_remembered(f"{prefix}logged_model.m-1") == "m-1"
        assert is_provenance(f"{prefix}logged_model.m-1")
    assert not is_provenance("mlflow_exim.run_info.run_id")
