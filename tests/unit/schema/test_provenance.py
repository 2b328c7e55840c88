"""Origins: the same object always has the same, different ones never."""

from __future__ import annotations

import hashlib

from mlflow_exim_plugin.schema.provenance import (
    ORIGIN,
    TAGS,
    chained,
    experiment_origin,
    model_origin,
    newest,
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


def test_tags_have_one_prefix() -> None:
    assert {tag.partition(".")[0] for tag in TAGS} == {"mlflow_exim"}
