"""Where a root is now: where it is said to be, where the user says, or in the store itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mlflow_exim_plugin.host.open.roots import ArtifactRoots

if TYPE_CHECKING:
    from pathlib import Path

RUN = "0123456789abcdef0123456789abcdef"
MODEL = f"m-{RUN}"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Return a store with the files of a run and of a model."""
    folder = tmp_path / "new" / "mlruns"
    for owner in (f"1/{RUN}", f"1/models/{MODEL}"):
        (folder / owner / "artifacts").mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("root", "place"),
    [
        (f"file:///old/mlruns/1/{RUN}/artifacts", f"1/{RUN}/artifacts"),
        (f"/old/mlruns/1/models/{MODEL}/artifacts", f"1/models/{MODEL}/artifacts"),
        (f"file:///C:/Users/ana/mlruns/1/{RUN}/artifacts", f"1/{RUN}/artifacts"),
        (rf"C:\Users\ana\mlruns\1\{RUN}\artifacts", f"1/{RUN}/artifacts"),
        (f"./1/{RUN}/artifacts", f"1/{RUN}/artifacts"),
        (f"file:///old/elsewhere/{RUN}/artifacts", None),
        ("file:///old/mlruns/1", None),
        (f"s3://bucket/1/{RUN}/artifacts", None),
    ],
)
def test_a_root_in_a_store_that_was_moved(store: Path, root: str, place: str | None) -> None:
    found = ArtifactRoots(store=store).found(root)

    assert found == (root if place is None else str(store / place))


def test_a_root_that_is_there_stays(store: Path) -> None:
    root = (store / "1" / RUN / "artifacts").as_uri()
    roots = ArtifactRoots(store=store.parent)

    assert roots.found(root) == root
    assert roots.moved == 0


def test_an_empty_folder_is_told_from_one_with_files(store: Path) -> None:
    roots = ArtifactRoots(store=store)
    (store / "1" / "models" / MODEL / "artifacts" / "MLmodel").touch()

    for owner in (RUN, f"models/{MODEL}"):
        assert roots.found(f"/old/1/{owner}/artifacts") == str(store / "1" / owner / "artifacts")

    assert (roots.moved, roots.bare) == (1, 1)


def test_a_relative_root_may_lie_beside_the_store(store: Path) -> None:
    (store.parent / "files" / "1").mkdir(parents=True)

    assert ArtifactRoots(store=store).found("files/1") == str(store.parent / "files" / "1")


@pytest.mark.parametrize(
    ("root", "found"),
    [
        ("s3://old/a/1/x", "s3://new/b/1/x"),
        ("s3://older/1", "s3://older/1"),
        ("file:///data/1/x", "/mnt/1/x"),
        ("/data/1", "/mnt/1"),
        ("/data", "/mnt"),
        ("/data/inner/1", "gs://inner/1"),
        ("/database/1", "/database/1"),
        ("mlflow-artifacts:/1/x", "/srv/files/1/x"),
    ],
)
def test_what_the_user_says(root: str, found: str) -> None:
    mapped = {
        "s3://old/a/": "s3://new/b",
        "/data": "/mnt",
        "file:///data/inner": "gs://inner",
        "mlflow-artifacts:": "/srv/files/",
    }

    assert ArtifactRoots(mapped).found(root) == found


def test_what_is_missing_and_what_never_was(tmp_path: Path) -> None:
    roots = ArtifactRoots()
    (tmp_path / "there").mkdir()

    def missing(path: str) -> bool:
        return roots.missing(tmp_path / path, path) is not None

    assert not missing(f"there/{RUN}/artifacts")  # MLflow makes it for the first file
    assert not missing(f"there/1/{RUN}/artifacts")  # likewise that of an experiment
    assert not missing(f"there/1/models/{MODEL}/artifacts")
    assert missing(f"gone/deeper/{RUN}/artifacts")
    assert missing(f"gone/deeper/1/{RUN}/artifacts")
    assert roots.unsure == set()
    assert not missing(f"there/custom/{RUN}/artifacts")
    assert not missing(f"mlruns/1/{RUN}/artifacts")
    assert roots.unsure == {str(tmp_path / "there" / "custom"), str(tmp_path / "mlruns")}
    assert missing("there/anything")


def test_a_store_without_its_empty_folders(store: Path) -> None:
    other = RUN[::-1]
    (store / "1" / other).mkdir()
    roots = ArtifactRoots(store=store)

    assert roots.missing(store.parents[2] / f"old/mlruns/1/{other}/artifacts", "") is None
    reason, hint = roots.missing(store.parents[2] / f"old/1/{MODEL[2:]}x/artifacts", "r") or (
        "",
        "",
    )
    assert reason == "its artifact root r is not there"
    assert "--artifact-root OLD=NEW" in hint
