"""The state of a set in layers: what is read is what was written, however it came about."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

import pytest

from mlflow_exim_plugin.errors import DigestMismatchError, NotFoundError
from mlflow_exim_plugin.kinds import Kind
from mlflow_exim_plugin.options.part import SelectionPart
from mlflow_exim_plugin.sets.layers import first_layer, next_layers
from mlflow_exim_plugin.sets.state import Row, SetState
from mlflow_exim_plugin.sources.archive.snapshot.layers import StateLayers
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder
from samples.sets import IN_LAYERS

if TYPE_CHECKING:
    from pathlib import Path


def _path(number: int) -> str:
    return f"data/experiments/{number % 3}/runs/{number:032x}/run.json"


def _row(seed: int) -> Row:
    return Row(Kind.RUN, seed.to_bytes(32, "big"), b"mark", parts=(seed,) * 7, block=seed % 5)


def _grown(state: SetState, choice: random.Random, count: int) -> SetState:
    rows = dict(state.rows)
    for _ in range(count):
        path = _path(choice.randrange(200))
        if rows and choice.random() < 0.3:
            del rows[choice.choice([*rows])]
        rows[path] = _row(choice.randrange(1 << 30))
    return SetState(rows)


@pytest.mark.parametrize("seed", range(5))
def test_what_changed_over_and_over_is_found_again(seed: int, tmp_path: Path) -> None:
    choice = random.Random(seed)
    folder = SetFolder(str(tmp_path))
    state = _grown(SetState(), choice, 150)
    layers = first_layer(folder, state)
    for _ in range(25):
        before, state = state, _grown(state, choice, choice.randrange(8))
        layers = next_layers(folder, layers, before, state)
        read = StateLayers(folder, layers)
        assert SetState.of_table(read.table()).rows == state.rows
        for number in range(200):
            path, placed = _path(number), read.place(_path(number))
            row = state.rows.get(path)
            assert (placed and placed.content_digest) == (row and row.content_digest)
            if row is not None:
                assert f"data/experiments/{number % 3}/runs/" in read.folders(f"{number:032x}")
        sizes = [layer.rows for layer in layers]
        assert all(small * 4 < large for large, small in itertools.pairwise(sizes))


def test_nothing_is_written_where_nothing_changed(tmp_path: Path) -> None:
    folder = SetFolder(str(tmp_path))
    state = SetState({_path(number): _row(number) for number in range(40)})
    layers = first_layer(folder, state)
    there = folder.sizes("states") | folder.sizes("ids")
    assert next_layers(folder, layers, state, SetState(dict(state.rows))) == layers
    assert folder.sizes("states") | folder.sizes("ids") == there


def test_a_change_is_written_alone(tmp_path: Path) -> None:
    folder = SetFolder(str(tmp_path))
    state = SetState({_path(number): _row(number) for number in range(20_000)})
    layers = first_layer(folder, state)
    assert [part.rows for part in layers[0].states] == [8192, 8192, 3616]
    changed = SetState(state.rows | {_path(7): _row(1)})
    assert next_layers(folder, layers, state, changed)[:-1] == layers
    grown = next_layers(folder, layers, state, changed)
    assert grown[-1].rows == 1
    read = StateLayers(folder, grown)
    assert SetState.of_table(read.table()).rows == changed.rows
    for number in range(0, 20_000, 1999):
        placed = read.place(_path(number))
        assert placed is not None
        assert placed.content_digest == changed.rows[_path(number)].content_digest
        assert read.folders(f"{number:032x}") == [f"data/experiments/{number % 3}/runs/"]


def test_one_object_takes_one_part(tmp_path: Path) -> None:
    folder = SetFolder(str(tmp_path))
    state = SetState({_path(number): _row(number) for number in range(20_000)})
    layers = first_layer(folder, state)
    for part in layers[0].states[1:]:
        folder.remove(part.path)
    read = StateLayers(folder, layers)
    path = min(state.rows)
    placed = read.place(path)
    assert placed is not None
    assert placed.content_digest == state.rows[path].content_digest
    with pytest.raises(NotFoundError):
        read.place(max(state.rows))


def test_a_part_of_the_work_takes_its_part_of_the_state(tmp_path: Path) -> None:
    folder = SetFolder(str(tmp_path))
    rows = {_path(number): _row(number) for number in range(30_000)}
    model = Row(Kind.REGISTERED_MODEL, bytes(32), name="churn")
    state = SetState({**rows, "data/models/churn/model.json": model})
    layers = first_layer(folder, state)
    sample = SetFolder(str(IN_LAYERS)).snapshot(1).document.info
    info = sample.model_copy(update={"layers": layers})
    first = SelectionPart(experiments=("0",), beside_experiments=False)
    rest = SelectionPart(experiments=("2",), beside_experiments=True)
    for part, needless in ((rest, layers[0].states[0]), (first, layers[0].states[-2])):
        data = folder.table(needless)
        folder.remove(needless.path)
        found = SetState.load(folder, info, part)
        assert found is not None
        of = f"/experiments/{part.experiments[0]}/"
        beside = {"data/models/churn/model.json"} if part.beside_experiments else set()
        assert found.rows.keys() == {path for path in rows if of in path} | beside
        with pytest.raises(NotFoundError):
            SetState.load(folder, info)
        folder.put(needless.path, data)


def test_a_damaged_part_is_refused(tmp_path: Path) -> None:
    folder = SetFolder(str(tmp_path))
    state = SetState({_path(number): _row(number) for number in range(10)})
    layers = first_layer(folder, state)
    file = tmp_path / layers[0].states[0].path
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DigestMismatchError):
        StateLayers(folder, layers).place(min(state.rows))


def test_a_state_without_anything_is_one(tmp_path: Path) -> None:
    folder = SetFolder(str(tmp_path))
    layers = first_layer(folder, SetState())
    assert len(layers) == 1
    assert StateLayers(folder, layers).table().num_rows == 0
    assert StateLayers(folder, layers).place("data/x") is None
    grown = SetState({_path(1): _row(1)})
    assert len(next_layers(folder, layers, SetState(), grown)) == 1
