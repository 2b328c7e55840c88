"""Where a file of an archive may land, on machines other than this one too."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from mlflow_exim_plugin.container.unicode import folded
from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.host.files.gate import local_path_problem
from mlflow_exim_plugin.schema.objects import Artifact
from mlflow_exim_plugin.sinks.files.folder import FileFolder

if TYPE_CHECKING:
    from pathlib import Path

NOT_ON_WINDOWS = {
    **dict.fromkeys(("CON", "a/nul.txt", "aux", "COM1", "lpt\xb9.log", "conin$"), "device"),
    **dict.fromkeys(("ab:c", "a?", "x/<y", 'q"', "p|", "star*"), "Windows has no"),
    "new\nline": "Windows has no",
    **dict.fromkeys(("dot.", "space ", "a./b"), "Windows drops"),
}


@pytest.mark.parametrize("path", NOT_ON_WINDOWS)
def test_names_that_windows_does_not_have(path: str) -> None:
    assert NOT_ON_WINDOWS[path] in local_path_problem(path, on_windows=True)
    assert local_path_problem(path, on_windows=False) == ""


@pytest.mark.parametrize(
    "path", ["cond/COM10", "a.b/.c", "console", "..a", "a b/\u00fc", "x" * 300]
)
def test_names_that_windows_has(path: str) -> None:
    assert local_path_problem(path, on_windows=True) == ""


def test_names_that_are_one_where_case_and_form_do_not_count(tmp_path: Path) -> None:
    (tmp_path / ".partial").mkdir()
    folder = FileFolder(tmp_path, tmp_path / ".partial", overwrite=True, key=folded)
    paths = ["Model/a", "model/A", "MODEL/b", "Caf\u00e9", "cafe\u0301", "Stra\u00dfe", "STRASSE"]
    paths += ["model", "Model/B/c"]

    refused = {}
    for path in paths:
        try:
            folder.claim(path)
        except StoreError as error:
            refused[path] = error.message
        else:
            assert folder.put(path, Artifact(path, 1, lambda: io.BytesIO(b"1")))

    assert refused.keys() == {"model/A", "cafe\u0301", "STRASSE", "model", "Model/B/c"}
    assert "model/A is Model/a to this file system" in refused["model/A"]
    assert "is the folder of another" in refused["model"]
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()} == {
        path for path in paths if path not in refused
    }


def test_a_full_disk_ends_all(tmp_path: Path) -> None:
    folder = FileFolder(tmp_path, tmp_path / "gone", overwrite=False, key=str)

    class Full(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError(28, "No space left on device")

    (tmp_path / "gone").mkdir()
    folder.claim("a")
    with pytest.raises(StoreError, match="No space left"):
        folder.put("a", Artifact("a", 1, Full))
    assert folder.lost is not None
    folder.claim("b")
    with pytest.raises(StoreError, match="the command ended"):
        folder.put("b", Artifact("b", 1, lambda: io.BytesIO(b"1")))
