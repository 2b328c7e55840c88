"""What an end is: decided by its name, or by what lies there."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import fsspec
import pytest

from mlflow_exim_plugin.errors import InvalidArchiveError, NotFoundError
from mlflow_exim_plugin.operations.ends import open_source
from mlflow_exim_plugin.sources.archive.source import ArchiveSource

MINIMAL = Path(__file__).parents[3] / "samples" / "v1" / "good" / "minimal.tar.zst"


def test_an_archive_by_name_and_by_content(tmp_path: Path) -> None:
    without_suffix = tmp_path / "backup"
    shutil.copyfile(MINIMAL, without_suffix)

    for location in (str(MINIMAL), MINIMAL.as_uri(), str(without_suffix)):
        with open_source(location) as opened:
            assert isinstance(opened.stream, ArchiveSource)
            assert opened.name == location


def test_what_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no archive")
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_bytes(b"\x28\xb5")
    (tmp_path / "mlflow.db").write_bytes(b"SQLite format 3\x00 and so on")
    nothing = [
        *(str(tmp_path / name) for name in ("text", "empty", "short", "mlflow.db", "nowhere")),
        str(tmp_path),
        str(tmp_path / "nowhere.tar.zst"),
        f"sqlite:///{tmp_path}/nowhere.db",
        "",
    ]

    for location in nothing:
        with pytest.raises(NotFoundError), open_source(location):
            pass


def test_a_database_is_told_how_to_be_given(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"SQLite format 3\x00 and so on")

    with pytest.raises(NotFoundError) as caught, open_source(str(path)):
        pass
    assert caught.value.hint == f"write sqlite:///{path}"


def test_a_damaged_archive_is_no_missing_one(tmp_path: Path) -> None:
    damaged = tmp_path / "x.tar.zst"
    damaged.write_bytes(MINIMAL.read_bytes()[:100])

    with pytest.raises(InvalidArchiveError), open_source(str(damaged)):
        pass


def test_a_folder_that_is_no_store_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").touch()
    (tmp_path / "empty").mkdir()

    with pytest.raises(NotFoundError, match=r"there is no \*/meta.yaml") as caught:
        open_source(str(tmp_path))
    assert caught.value.hint == f"did you mean {tmp_path / 'mlruns'}?"
    (tmp_path / "runs.zip").touch()
    with pytest.raises(NotFoundError, match="it does not start with a zstd frame") as caught:
        open_source(str(tmp_path / "runs.zip"))
    assert caught.value.hint == f"write zip://FOLDER::{tmp_path}/runs.zip for a folder in it"
    with pytest.raises(NotFoundError, match=r"there is no \*/meta.yaml") as caught:
        open_source((tmp_path / "empty").as_uri())
    assert caught.value.hint == ""


def test_a_place_above_a_store_is_told_where_that_lies(tmp_path: Path) -> None:
    path = tmp_path / "mlruns.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("sub/mlruns/0/meta.yaml", "")
        packed.writestr("sub/mlruns/7/0123/meta.yaml", "")
    (tmp_path / "0").mkdir()
    asked = {
        f"zip://sub::{path}": f"zip://sub/mlruns::{path}",
        f"zip://sub/mlruns/0::{path}": "",
        f"memory://{tmp_path}/": f"memory://{tmp_path}/moved",
    }
    store = fsspec.filesystem("memory")
    store.pipe_file(f"memory://{tmp_path}/moved/models/m/meta.yaml", b"")

    for among in ((), ("database", "server", "folder")):
        for location, meant in asked.items():
            with pytest.raises(NotFoundError) as caught, open_source(location, among=among):
                pass
            hint = f"did you mean {meant}?"
            assert (
                (caught.value.hint == hint) if meant else ("did you mean" not in caught.value.hint)
            )
    # A level lower is one.
    with open_source(f"zip://sub/mlruns::{path}"):
        pass
