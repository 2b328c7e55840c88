"""What killed processes leave is recognised and removed; what somebody works on is not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.storage.folders.new_folder import new_folder
from mlflow_exim_plugin.storage.leftovers import (
    held,
    partial_name,
    remove_held,
    remove_left,
    temporary_folder,
)
from mlflow_exim_plugin.storage.output import atomic_output

if TYPE_CHECKING:
    from pathlib import Path

KILLED = """
import os, signal, sys
from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.storage.leftovers import temporary_folder
from mlflow_exim_plugin.storage.folders.new_folder import new_folder
from mlflow_exim_plugin.storage.output import atomic_output
with (
    temporary_folder() as folder,
    atomic_output(sys.argv[1]) as file,
    new_folder(sys.argv[2]) as files,
):
    (folder / "copy.db").write_bytes(b"half")
    file.write(b"half")
    with files.open("a/b") as one:
        one.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_what_a_killed_process_left_goes_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (temporary := tmp_path / "tmp").mkdir()
    (out := tmp_path / "out").mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    folder = out / ("ö" * 125)  # no name may be longer than 255 bytes
    command = [sys.executable, "-c", KILLED, str(out / "a.zst"), str(folder)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(names(temporary)) == 1
    assert len(names(out)) == 2

    with new_folder(str(folder)) as files, files.open("c") as one:
        one.write(b"whole")
    assert names(folder) == ["c"]
    assert len(names(out)) == 2
    shutil.rmtree(folder)

    (temporary / "mlflow-exim-of another").mkdir()  # it has no lock: nobody knows whose it is
    with temporary_folder() as mine, atomic_output(str(out / "a.zst")) as file:
        assert names(temporary) == sorted(["mlflow-exim-of another", mine.name])
        partial = names(out)
        assert len(partial) == 1
        with temporary_folder() as other, atomic_output(str(out / "a.zst"), overwrite=True):
            assert mine.exists()
            assert other.exists()
            assert partial[0] in names(out)
        file.write(b"whole")
        (out / "a.zst").unlink()
    assert names(out) == ["a.zst"]
    assert (out / "a.zst").read_bytes() == b"whole"
    assert names(temporary) == ["mlflow-exim-of another"]


def test_a_process_that_ends_in_the_middle_takes_its_own_away(tmp_path: Path) -> None:
    with (
        suppress(StoreError),  # there is nothing left to give its name
        temporary_folder() as folder,
        atomic_output(str(tmp_path / "a.zst")) as file,
    ):
        file.write(b"half")
        remove_held()
        assert names(tmp_path) == []
        assert not folder.exists()
    assert names(tmp_path) == []


def test_what_somebody_begins_is_never_taken_for_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def folders(_: int) -> None:
        for _ in range(60):
            with temporary_folder() as folder:
                (folder / "copy").touch()

    def files(number: int) -> None:
        for turn in range(60):
            file = tmp_path / partial_name(f"{number}-{turn}")
            with held(file):
                remove_left(tmp_path.glob(".*.partial-*"))
                assert file.exists()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(folders, range(8)))
        list(pool.map(files, range(8)))
    assert list(tmp_path.iterdir()) == []
