"""Files of an archive land in a folder as MLflow gives them, and never beside it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from mlflow_exim_plugin import extract, open_archive, unpack
from mlflow_exim_plugin.cli.main import exim
from mlflow_exim_plugin.errors import PartialTransferError, UsageError
from mlflow_exim_plugin.schema.objects import Kind
from samples.forging import Forgery
from tests.compare import as_default, assert_count_law
from tests.crafted import GENERATED

if TYPE_CHECKING:
    from collections.abc import Callable

EVERYTHING = str(Path(__file__).parents[1] / "golden" / "everything.tar.zst")
pytestmark = pytest.mark.integration

Hostile = tuple[str, str]
"""An archive, and the id of its run whose files say that they have other paths."""


def files_in(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def hostile(tmp_path: Path) -> Callable[..., Hostile]:
    def make(paths: list[str], root: str = "mlflow-artifacts:") -> Hostile:
        with open_archive(EVERYTHING) as archive:
            known = {*archive.reader.paths()} - GENERATED
            members = {
                path: archive.reader.read(path).replace(b"mlflow-artifacts:", root.encode())
                for path in known
            }
        runs = {path: json.loads(data) for path, data in members.items() if "/run.json" in path}
        name, run = next((p, r) for p, r in runs.items() if len(r["info"].get("artifacts", ())) > 1)
        first, second = run["info"]["artifacts"][:2]
        renamed = [{**second, "path": path} for path in paths]
        run["info"]["artifacts"] = [{**first, "path": "neighbour.txt"}, *renamed]
        members[name] = json.dumps(run).encode()
        payload = {p: d for p, d in members.items() if p.startswith("data/")}
        tags = {p: d for p, d in members.items() if not p.startswith("data/")}
        (tmp_path / "hostile.tar.zst").write_bytes(Forgery(payload, tags=tags).data())
        return str(tmp_path / "hostile.tar.zst"), run["mlflow"]["run"]["info"]["run_id"]

    return make


def test_files_are_those_that_mlflow_downloads(
    everything: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, path = everything
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with open_archive(path) as archive:
        of_default = {run for runs in archive.trees[0].runs.values() for run in runs}
        runs = [
            run.mlflow.run["info"]["run_id"]
            for run in archive.runs()
            if run.mlflow.run["info"]["run_id"] in of_default
            and run.mlflow.run["info"]["lifecycle_stage"] == "active"
        ]
        stages = {
            model.mlflow.logged_model["info"]["model_id"]: model.mlflow.logged_model["info"].get(
                "lifecycle_stage"
            )
            for model in archive.logged_models()
        }
    deleted = {model_id for model_id, stage in stages.items() if stage == "deleted"}
    active = stages.keys() - deleted

    def download(where: Path, **what: str) -> None:
        with as_default(url):
            mlflow.artifacts.download_artifacts(**what, dst_path=str(where))
        for note in where.rglob("registered_model_meta"):  # MLflow's, not of the server
            note.unlink()

    whole = extract(path, str(tmp_path), models=("*",))
    assert_count_law(whole)
    theirs = tmp_path / "theirs"
    for version in whole.files:
        place = f"models/{version.id.replace('/', '/versions/')}"
        download(theirs / place, artifact_uri=f"models:/{version.id}")
        assert files_in(tmp_path / place) == files_in(theirs / place), version
    models = 0
    for run_id in runs:
        report = extract(path, str(tmp_path / run_id), runs=run_id)
        assert report.ok
        download(theirs / run_id, run_id=run_id)
        logged = {file.path.partition("/")[0] for file in report.files if file.id in active}
        for name in logged:
            download(theirs / run_id, artifact_uri=f"runs:/{run_id}/{name}")
        models += len(logged)
        gone = {file.path for file in report.files if file.id in deleted}
        found = files_in(tmp_path / run_id)
        assert {name: data for name, data in found.items() if name not in gone} == files_in(
            theirs / run_id
        )
    assert len(whole.files) > 10
    assert models > 2


def test_what_was_packed_on_windows_arrives(
    hostile: Callable[..., Hostile], tmp_path: Path, sqlite_uri: str
) -> None:
    """Its roots are drives, and a source may have names with backslashes."""
    refused = {"C:\\Temp\\x": "absolute", "..\\x": "leads out"}
    fine = {"sub\\note.txt", "a\\b\\c.bin", "Case", "case"}
    root = "file:///C:/Users/Ada%20B/mlruns"
    archive, run_id = hostile([*refused, *fine], root)

    extracted = extract(archive, str(tmp_path / "out"), runs=run_id)
    unpacked = unpack(
        archive, tracking_uri=sqlite_uri, runs=run_id, artifact_location=str(tmp_path / "files")
    )

    for report in (extracted, unpacked):
        assert_count_law(report)
        told = {failure.id.partition("/")[2]: failure.reason for failure in report.failures}
        assert told.keys() == refused.keys()
        assert all(refused[path] in reason for path, reason in told.items())
    assert files_in(tmp_path / "out").keys() == {*fine, "neighbour.txt"}
    (files,) = {path.parent for path in (tmp_path / "files").rglob("neighbour.txt")}
    assert files_in(files) == files_in(tmp_path / "out")
    info = MlflowClient(sqlite_uri).get_run(run_id).info
    assert info.artifact_uri.endswith(str(files))


def test_nothing_leaves_the_folder_and_neighbours_arrive(
    hostile: Callable[..., Hostile], tmp_path: Path
) -> None:
    folder, outside = tmp_path / "deep" / "out", tmp_path / "outside"
    folder.mkdir(parents=True)
    outside.mkdir()
    (folder / "link").symlink_to(outside)
    (folder / "target").symlink_to(outside / "target")
    (folder / "a folder").mkdir()
    (folder / "a folder" / "x").write_text("mine")
    refused = {
        **dict.fromkeys(("../../stolen", "..", "a/../../stolen", "%2e%2e/stolen"), "leads out"),
        **dict.fromkeys(("..\\..\\stolen", "a/..%5c..%5cstolen"), "leads out"),
        **dict.fromkeys(("C:\\stolen", "c:/stolen", "\\\\host\\stolen"), "absolute"),
        **dict.fromkeys(("", "/etc/stolen", "a//b", "./a", "a/."), "empty segment"),
        "nul\0": "NUL",
        "link/stolen": "a link here, which is not followed",
        "target": "a link is there; --overwrite",
        "a folder": "a folder of its name is there",
        "n" * 300: "name too long",
        "d/" * 2500 + "x": "name too long",
        "neighbour.txt": "is neighbour.txt to this file system",
        "neighbour.txt/below": "a folder that is a member",
    }
    fine = {
        *("aux.txt", "what?", "trailing.", "Case", "case", "C\u00e9", "Ce\u0301", "..a", "a\\b"),
        *("neighbour", "z" * 255, "b folder/y"),
    }
    archive, run_id = hostile([*refused, *fine])

    report = extract(archive, str(folder), runs=run_id)

    assert_count_law(report)
    told = {failure.id.partition("/")[2]: failure.reason for failure in report.failures}
    assert told.keys() == refused.keys()
    for path, what in refused.items():
        assert what.lower() in told[path].lower()
    assert files_in(folder).keys() == {*fine, "neighbour.txt", "a folder/x"}
    assert (folder / "a folder" / "x").read_text() == "mine"
    assert list(outside.iterdir()) == []
    assert {p.name for p in tmp_path.iterdir()} >= {"deep", "hostile.tar.zst", "outside"}
    assert not [p for p in tmp_path.rglob("*stolen*") if "\\" not in p.name]

    again = extract(archive, str(folder), runs=run_id, overwrite=True)
    assert (folder / "target").is_file()
    assert not (folder / "target").is_symlink()
    assert list(outside.iterdir()) == []
    assert again.counts[Kind.ARTIFACT].written == 1  # in the place of the link


def test_what_is_there_stays_and_an_interrupted_extraction_goes_on(tmp_path: Path) -> None:
    def call(*arguments: str) -> tuple[int, dict[str, Any]]:
        command = ["extract", EVERYTHING, "-o", str(tmp_path / "out"), "--output", "json"]
        result = CliRunner().invoke(exim, [*command, *arguments])
        return result.exit_code, json.loads(result.stdout)

    exit_code, would = call("--dry-run")
    assert exit_code == 0
    assert not (tmp_path / "out").exists()
    exit_code, first = call()
    assert exit_code == 0
    assert [*would["files"]] == [*first["files"]]
    there = files_in(tmp_path / "out")
    assert there.keys() == {file["path"] for file in first["files"]}
    gone, changed, *_ = sorted(path for path, data in there.items() if data)
    (tmp_path / "out" / gone).unlink()
    (tmp_path / "out" / changed).write_text("mine")
    left = tmp_path / "out" / ".mlflow-exim-partial-killed"
    left.mkdir()
    (left / ".lock").touch()
    (left / "7").write_text("half")

    exit_code, second = call()

    assert exit_code == 3
    (failure,) = second["failures"]
    assert "another file is there; --overwrite" in failure["reason"]
    assert {file["path"] for file in second["files"] if not file["was_there"]} == {gone}
    assert second["counts"]["artifact"]["skipped"] == len(there) - 2
    assert files_in(tmp_path / "out") == {**there, changed: b"mine"}
    exit_code, _ = call("--overwrite")
    assert exit_code == 0
    assert files_in(tmp_path / "out") == there
    (tmp_path / "out" / changed).write_text("mine")
    with pytest.raises(PartialTransferError):
        extract(EVERYTHING, str(tmp_path / "out"), strict=True)


def test_globs_are_of_paths_as_mlflow_shows_them(tmp_path: Path) -> None:
    def taken(*arguments: str) -> set[str]:
        where = str(tmp_path / str(len(list(tmp_path.iterdir()))))
        command = ["extract", EVERYTHING, "-o", where, "--output", "json", *arguments]
        result = CliRunner().invoke(exim, command)
        document = json.loads(result.stdout)
        assert result.exit_code == (0 if document.get("ok") else 3 if "files" in document else 4)
        return {file["artifact"] for file in document.get("files", ())}

    every = taken()
    assert taken("MLmodel") == {"MLmodel"}
    assert taken("net") == taken("net/*") == {p for p in every if p in NET} == NET
    assert taken("net", "--exclude", "*.bin") == {p for p in NET if not p.endswith(".bin")}
    assert taken("net", "nothing") == NET
    assert taken("nothing") == set()
    members = taken("--members", "data/models", "exim.json")
    with open_archive(EVERYTHING) as archive:
        assert members == {"exim.json", *archive.reader.paths("data/models/")}
    with pytest.raises(UsageError):
        extract(EVERYTHING, str(tmp_path / "none"), members=True, experiments="plain")


NET = {"MLmodel", "empty", "data/a b+1.txt", "data/deep/weights.bin"}
"""Files of the logged model ``net``."""


def test_all_members_are_the_bag_and_damage_is_named(tmp_path: Path) -> None:
    data = bytearray(Path(EVERYTHING).read_bytes())
    data[len(data) // 3] ^= 1
    (tmp_path / "damaged.tar.zst").write_bytes(data)

    whole = extract(EVERYTHING, str(tmp_path / "bag"), members=True)
    some = extract(str(tmp_path / "damaged.tar.zst"), str(tmp_path / "rest"), members=True)

    assert whole.ok
    if shutil.which("sha256sum"):
        check = ["sha256sum", "-c", "--quiet", "tagmanifest-sha256.txt", "manifest-sha256.txt"]
        subprocess.run(check, cwd=tmp_path / "bag", check=True)
    bag, rest = files_in(tmp_path / "bag"), files_in(tmp_path / "rest")
    lost = {failure.id for failure in some.failures}
    assert lost
    assert rest == {path: data for path, data in bag.items() if path not in lost}


def test_a_folder_is_one_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for where in (str(tmp_path / "file"), "s3://bucket/folder"):
        with pytest.raises(UsageError):
            extract(EVERYTHING, where)
