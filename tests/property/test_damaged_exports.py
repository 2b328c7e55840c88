"""Whatever stands in an old export's files costs what it is in, and ends in an archive."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_exim_plugin import convert, verify
from tests.old_exports import GENERATIONS, Export

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.property

SEEDS = range(int(os.environ.get("TEST_DAMAGED_EXPORTS", "20")))
ARCHIVE = Path(__file__).parents[2] / "samples" / "v1" / "good" / "mlflow3.tar.zst"
JUNK: tuple[Any, ...] = (
    *(None, 0, -1, 1.5, 2**70, float("inf"), True, "", "x", "NaN", "\ud800", "a\0b", "../../etc"),
    *([], {}, [1], [{}], [None], {"a": 1}, {"key": 1}),
)


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "all"
    convert(str(ARCHIVE), str(folder))
    return folder


@pytest.mark.parametrize("seed", SEEDS)
def test_damage_costs_what_it_is_in(seed: int, every_kind: Path, tmp_path: Path) -> None:
    chance = random.Random(seed)
    folder = tmp_path / "export"
    if seed % 2:
        shutil.copytree(every_kind, folder)
    else:
        Export(folder, chance.choice(GENERATIONS)).write_all()
    for _ in range(chance.choice([1, 1, 2, 3])):
        damage(chance.choice(sorted(folder.rglob("*.json"))), chance)

    report = convert(str(folder), str(tmp_path / "a.tar.zst"))

    assert [f for f in verify(str(tmp_path / "a.tar.zst")).findings if f.code[0] == "E"] == []
    for counts in report.counts.values():
        assert counts.found == counts.written + counts.skipped + counts.failed


def damage(file: Path, chance: random.Random) -> None:
    document = json.loads(file.read_text())
    *way, last = chance.choice([path for path in paths(document) if path])
    place = document
    for step in way:
        place = place[step]
    if isinstance(place, dict) and chance.random() < 0.2:
        del place[last]
    else:
        place[last] = chance.choice(JUNK)
    file.write_text(json.dumps(document))


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inside = list(value.items()) if isinstance(value, dict) else []
    inside += enumerate(value) if isinstance(value, list) else []
    for key, inner in inside:
        yield from paths(inner, (*path, key))
