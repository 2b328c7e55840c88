"""One object of a snapshot is read without the others, and as it is read with them."""

from __future__ import annotations

import contextlib
import json
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from mlflow_exim_plugin import open_archive
from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.errors import InvalidArchiveError, NotFoundError
from mlflow_exim_plugin.sets.layers import first_layer
from mlflow_exim_plugin.sets.state import SetState
from mlflow_exim_plugin.sources.archive.snapshot.layered import LayeredReader
from mlflow_exim_plugin.sources.archive.snapshot.reader import SnapshotReader
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder
from samples.sets import IN_LAYERS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlflow_exim_plugin.sources.archive.archive import Archive


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return shutil.copytree(IN_LAYERS, tmp_path / "set")


@contextlib.contextmanager
def _opened(place: Path) -> Iterator[tuple[Archive, LayeredReader]]:
    with open_archive(str(place)) as archive:
        assert isinstance(archive.reader, LayeredReader)
        yield archive, archive.reader


def _damage_but(place: Path, kept: int) -> None:
    for number, pack in enumerate(SetFolder(str(place)).snapshot(3).document.info.packs):
        if number != kept:
            (place / pack.path).write_bytes(b"damaged")


def _run_ids(place: Path) -> dict[str, str]:
    with open_archive(str(place)) as archive:
        return {run.mlflow.run["info"]["run_name"]: run.id for run in archive.runs()}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_each_member_is_what_it_is_among_all(number: int) -> None:
    folder = SetFolder(str(IN_LAYERS))
    snapshot = folder.snapshot(number)
    with contextlib.closing(SnapshotReader(folder, snapshot)) as whole:
        for path in [*whole.paths(), layout.ARCHIVE]:
            with contextlib.closing(LayeredReader(folder, snapshot)) as alone:
                if path.endswith(".json"):
                    assert alone.read_document(path) == whole.read_document(path)
                if path != layout.ARCHIVE:
                    assert path in alone
                    assert alone.read(path) == whole.read(path)
                    assert alone.member(path) == whole.member(path)
                    assert alone.holder(path).root == whole.holder(path).root


def test_a_run_is_read_where_all_other_archives_are_damaged(place: Path) -> None:
    ids = _run_ids(place)
    _damage_but(place, 0)
    with _opened(place) as (archive, reader):
        run = archive.run(ids["run 5"])
        assert archive.metric_history(run).num_rows == 3
        with archive.open_artifact(run, "notes.txt") as file:
            assert file.read() == b"notes of run 5\n"
        assert archive.has_run(ids["run 0"]) is False  # its archive is damaged
        assert [lost.path.split("/")[-2] for lost in reader.lost if lost.path.endswith("run.json")]


def test_what_left_the_state_is_not_read(place: Path) -> None:
    with open_archive(str(place), snapshot="1") as first:
        ids = {run.mlflow.run["info"]["run_name"]: run.id for run in first.runs()}
    with _opened(place) as (archive, _):
        assert not archive.has_run(ids["run 2"])
        with pytest.raises(NotFoundError):
            archive.run(ids["run 2"])
        assert archive.metric_history(archive.run(ids["run 0"])).num_rows == 4
        with pytest.raises(NotFoundError):
            archive.logged_model("no such model")


@pytest.mark.parametrize("folder", ["states", "ids"])
def test_without_layers_all_archives_are_asked(folder: str, place: Path) -> None:
    ids = _run_ids(place)
    shutil.rmtree(place / folder)
    with _opened(place) as (archive, _):
        assert archive.run(ids["run 0"]).id == ids["run 0"]
        assert len(archive.run_ids()) == 23


def test_an_object_that_layers_do_not_mean_is_refused(place: Path) -> None:
    ids = _run_ids(place)
    folder = SetFolder(str(place))
    state = SetState.load(folder, folder.snapshot(3).document.info)
    assert state is not None
    path = next(path for path in state.rows if ids["run 5"] in path)
    state.rows[path] = replace(state.rows[path], content_digest=bytes(32))
    file = place / "snapshots" / "00000003.json"
    document = json.loads(file.read_text())
    document["info"]["layers"] = [layer.to_json() for layer in first_layer(folder, state)]
    file.write_text(json.dumps(document))
    with _opened(place) as (archive, _):
        with pytest.raises(InvalidArchiveError) as refused:
            archive.run(ids["run 5"])
        assert [finding.code for finding in refused.value.findings] == ["N009"]
        assert archive.run(ids["run 6"]).id == ids["run 6"]
