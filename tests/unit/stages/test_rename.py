"""New names on the way: of each kind, by prefix and suffix, and what was called nothing."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest

from mlflow_exim_plugin.errors import NotFoundError, UsageError
from mlflow_exim_plugin.options import Rename
from mlflow_exim_plugin.schema.objects import (
    Entity,
    Experiment,
    Kind,
    ModelVersion,
    RegisteredModel,
)
from mlflow_exim_plugin.stages.rename import Renaming

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_exim_plugin.schema.objects import StreamItem


def renamed(*names: str, typed: Rename) -> list[str]:
    items = [Experiment({"experiment_id": "1", "name": name}) for name in names]
    return [item.name for item in Renaming(typed)(iter(items)) if isinstance(item, Experiment)]


def test_every_kind_that_people_name() -> None:
    dataset = Entity(Kind.EVALUATION_DATASET, {"dataset_id": "d-1", "name": "old"})
    items: list[StreamItem] = [
        Experiment({"experiment_id": "1", "name": "old"}),
        RegisteredModel({"name": "old"}),
        RegisteredModel({"name": "old"}, Kind.PROMPT),
        ModelVersion({"name": "old", "version": "1"}),
        dataset,
        Entity(Kind.SCORER, {"scorer_name": "old", "name": "old"}),
    ]

    came = [*Renaming(Rename.read(["old=new"]))(iter(items))]

    names = [getattr(item, "document")["name"] for item in came]  # noqa: B009 - of any kind
    assert names == ["new", "new", "new", "new", "new", "old"]
    assert [getattr(item, "document")["name"] for item in items] == ["old"] * 6  # noqa: B009


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("/Users/a/*=/Users/b/*", {"/Users/a/x/y": "/Users/b/x/y", "/Users/ab/x": "/Users/ab/x"}),
        ("*-dev=*-prod", {"net-dev": "net-prod", "-dev": "-prod", "dev": "dev"}),
        ("a*a=b*", {"aa": "b", "a": "a", "axa": "bx"}),
        ("*=archive/*", {"x": "archive/x"}),
        ("x*=one", {"x1": "one"}),
        ("a=b=c", {"a": "b=c"}),
    ],
)
def test_a_star_stands_for_the_same_text(typed: str, names: dict[str, str]) -> None:
    assert renamed(*names, typed=Rename.read([typed])) == [*names.values()]


def test_a_name_that_is_spelled_out_wins_and_a_file_says_the_same(tmp_path: Path) -> None:
    file = tmp_path / "names.json"
    file.write_text(json.dumps({"experiments": {"a1": "first"}, "names": {"b": "c"}}))

    assert renamed("a1", "a2", "b", typed=Rename.read(["a*=z*", str(file)])) == ["first", "z2", "c"]


@pytest.mark.parametrize("typed", ["=new", "old=", "a**=b*", "a=b*", "a*=**"])
def test_what_is_no_new_name(typed: str) -> None:
    with pytest.raises(UsageError):
        Rename.read([typed])
    with pytest.raises(NotFoundError, match="no file"):
        Rename.read(["names.json"])


def test_a_name_that_nothing_has_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "mlflow_exim_plugin"):
        renamed("a", typed=Rename.read(["a=b", "c=d", "e*=f*"]))

    told = [record.getMessage() for record in caplog.records]
    assert told == [
        f"Nothing was called {name!r}, which was to be renamed." for name in ("c", "e*")
    ]
