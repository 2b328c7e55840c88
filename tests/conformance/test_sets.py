"""Every sample of a set gives its code, and every code of spec/v1/set.md has a sample."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import open_archive, pack, verify
from mlflow_exim_plugin.errors import DigestMismatchError, InvalidArchiveError
from mlflow_exim_plugin.sets.state import SetState
from mlflow_exim_plugin.sets.stored_rows import rows_of
from mlflow_exim_plugin.sources.archive.snapshot.layered import LayeredReader
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder
from samples.sets import BAD, GOOD, IN_LAYERS, break_samples

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "spec" / "v1" / "set.md").read_text("utf-8")
SAMPLES = sorted((ROOT / "samples" / "v1" / "sets" / "bad").iterdir())


def _codes(folder: Path) -> set[str]:
    try:
        return {finding.code for finding in verify(str(folder)).findings}
    except InvalidArchiveError as error:
        return {finding.code for finding in error.findings}


@pytest.mark.parametrize("folder", SAMPLES, ids=lambda folder: folder.name)
def test_a_sample_breaks_what_its_name_says(folder: Path) -> None:
    assert _codes(folder) == {folder.name.partition("_")[0]}


def test_every_code_has_a_row_an_anchor_and_a_sample() -> None:
    listed = re.findall(r"^\| (N\d{3}) \|", TEXT, re.MULTILINE)
    assert listed == sorted(set(listed))
    for code in listed:
        assert f"({code})" in TEXT or code == "N003", f"{code} is in no sentence"
    assert {folder.name.partition("_")[0] for folder in SAMPLES} == {*listed} - {"N003"}
    assert {folder.name for folder in SAMPLES} == {*BAD}


def test_samples_are_what_their_script_writes(tmp_path: Path) -> None:
    break_samples(tmp_path)
    for folder in SAMPLES:
        files = {file.relative_to(folder) for file in folder.rglob("*") if file.is_file()}
        made = tmp_path / folder.name
        assert files == {file.relative_to(made) for file in made.rglob("*") if file.is_file()}
        for file in files:
            assert (folder / file).read_bytes() == (made / file).read_bytes()


def test_another_root_than_expected_is_refused() -> None:
    with pytest.raises(DigestMismatchError) as refused:
        verify(str(GOOD), expected_root="0" * 64)
    assert [finding.code for finding in refused.value.findings] == ["N003"]


def test_a_set_that_was_written_stays_readable() -> None:
    shown = {}
    for number in ("1", "2", "3"):
        result = verify(str(GOOD), snapshot=number)
        assert result.findings == []
        with open_archive(str(GOOD), snapshot=number) as state:
            assert state.content_root == result.content_root
            names = {
                run.mlflow.run["info"]["run_name"]: state.metric_history(run).num_rows
                for run in state.runs()
            }
            shown[number] = names, [m.mlflow.registered_model["name"] for m in state.models()]
            for run in state.runs():
                with state.open_artifact(run, "notes.txt") as file:
                    name = run.mlflow.run["info"]["run_name"]
                    assert file.read() == f"notes of {name}\n".encode()
    assert shown == {
        "1": ({"run 0": 3, "run 1": 3, "run 2": 3}, []),
        "2": ({"run 0": 4, "run 1": 3}, []),
        "3": ({"run 0": 4, "run 1": 3}, ["churn"]),
    }


def test_members_are_those_of_its_archives() -> None:
    for number in ("1", "2", "3"):
        with open_archive(str(GOOD), snapshot=number) as state:
            reader = state.reader
            members = [member.path for member in reader.members()]
            assert members == reader.paths() == sorted(set(members))
            assert len(members) == len(reader) > 0
            for path in members:
                assert path in reader
                with reader.open_member(path) as file:
                    assert file.read() == reader.read(path)


def test_archives_say_what_the_table_of_the_state_says() -> None:
    folder = SetFolder(str(GOOD))
    for number in (1, 2, 3):
        snapshot = folder.snapshot(number)
        state = SetState.load(folder, snapshot.document.info)
        assert state is not None
        with open_archive(str(GOOD), snapshot=str(number)) as archive:
            told = rows_of(archive.reader)
        assert told == {path: replace(row, mark=b"") for path, row in state.rows.items()}


def test_a_set_in_layers_that_was_written_stays_readable() -> None:
    for number, runs, last_loss in (("1", 24, 3), ("2", 23, 4), ("3", 23, 4)):
        assert verify(str(IN_LAYERS), snapshot=number).findings == []
        with open_archive(str(IN_LAYERS), snapshot=number) as state:
            names = {run.mlflow.run["info"]["run_name"]: run for run in state.runs()}
            assert len(names) == runs
            assert ("run 2" in names) is (number == "1")
            assert state.metric_history(names["run 0"]).num_rows == last_loss
            assert len([*state.models()]) == (number == "3")
    folder = SetFolder(str(IN_LAYERS))
    assert len(folder.snapshot(3).document.info.layers) > 1


def test_layers_hold_what_archives_say_of_themselves() -> None:
    folder = SetFolder(str(IN_LAYERS))
    for number in (1, 2, 3):
        snapshot = folder.snapshot(number)
        layered = SetState.load(folder, snapshot.document.info)
        assert layered is not None
        with open_archive(str(IN_LAYERS), snapshot=str(number)) as state:
            told = SetState(rows_of(state.reader))
            assert isinstance(state.reader, LayeredReader)
            told.place(state.reader.whole.block_of)
        assert {path: replace(row, mark=b"") for path, row in layered.rows.items()} == told.rows
        assert None not in {row.block for row in told.rows.values()}


def test_a_set_of_version_1_0_goes_on_in_layers(tmp_path: Path) -> None:
    place = str(shutil.copytree(GOOD, tmp_path / "set"))
    source = f"sqlite:///{tmp_path}/mlflow.db"
    MlflowClient(source, source).create_experiment("another")
    pack(set=place, tracking_uri=source, experiments=["another"], source_moved=True)
    folder = SetFolder(place)
    info = folder.snapshot(4).document.info
    assert info.state is None
    state = SetState.load(folder, info)
    assert state is not None
    kinds = Counter(str(row.kind) for row in state.rows.values())
    assert kinds == {"experiment": 2, "run": 2, "registered_model": 1, "model_version": 1}
    assert None not in {row.block for row in state.rows.values()}
    for number in ("3", "4"):
        assert verify(place, snapshot=number).findings == []
