"""What a target lists newest first is made oldest first."""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from mlflow_exim_plugin.schema.objects import (
    Experiment,
    Failure,
    Kind,
    LoggedModel,
    ModelVersion,
    RegisteredModel,
)
from mlflow_exim_plugin.sinks.server.in_turn import InTurn
from mlflow_exim_plugin.stages import oldest_first as stage

if TYPE_CHECKING:
    import pytest

    from mlflow_exim_plugin.schema.objects import StreamItem


def logged(name: str, made_ms: int | None) -> LoggedModel:
    return LoggedModel({"info": {"model_id": name, "creation_timestamp_ms": made_ms}})


def model(name: str, made_ms: int, kind: Kind = Kind.REGISTERED_MODEL) -> RegisteredModel:
    return RegisteredModel({"name": name, "creation_timestamp": str(made_ms)}, kind)


def version(name: str, number: str) -> ModelVersion:
    return ModelVersion({"name": name, "version": number})


def names(*items: StreamItem) -> list[str]:
    return [getattr(item, "id", "?") for item in stage.oldest_first(iter(items))]


def test_neighbours_of_a_kind_are_sorted_and_versions_stay_with_their_model() -> None:
    one, two = (Experiment({"experiment_id": e, "name": e}) for e in "12")
    unread = Failure(Kind.MODEL_VERSION, "a/2", "unread")
    prompts = model("p", 9, Kind.PROMPT), model("q", 8, Kind.PROMPT)
    of_one = logged("m-a", 5), logged("m-b", 3), logged("m-c", None)
    models = model("a", 7), version("a", "1"), unread, version("a", "3"), model("b", 2)

    assert names(one, *of_one, two, logged("m-d", 1), *prompts, *models, version("b", "1")) == [
        *("1", "m-c", "m-b", "m-a", "2", "m-d"),
        *("q", "p", "a/2", "b", "b/1", "a", "a/1", "a/3"),
    ]


def test_not_all_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_HELD", 2)
    assert names(*(logged(f"m-{n}", 9 - n) for n in range(5))) == [
        "m-1",
        "m-0",
        "m-3",
        "m-2",
        "m-4",
    ]


def test_who_comes_first_goes_first() -> None:
    gate, went = InTurn(), list[int]()

    def go(number: int) -> None:
        time.sleep(number / 50)
        with suppress(ZeroDivisionError), gate:
            time.sleep(random.random() / 10)
            went.append(number)
            assert 1 / 0

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(go, range(8)))
    assert went == list(range(8))
