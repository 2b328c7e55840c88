"""Stores that moved: files are found, or each root that is not there is named."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import copy, diff, open_archive, pack, unpack
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.storage.urls import path_of_uri
from tests.compare import as_default
from tests.seed import Seeded, log_files, new_run
from tests.seed_logged_models import log_model_files
from tests.servers import new_sqlite_database, start_server

pytestmark = pytest.mark.integration


@pytest.fixture
def moved(tmp_path: Path) -> tuple[str, str, Path]:
    """Make a database, a run with a file and one without; returns URI, run and where files are."""
    (tmp_path / "store").mkdir()
    new_sqlite_database(tmp_path / "store" / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/store/mlflow.db"
    client = MlflowClient(uri, uri)
    made = Seeded()
    location = tmp_path / "old" / "files"
    made.experiments["e"] = client.create_experiment("e", location.as_uri())
    for role in ("with", "without"):
        new_run(client, made, role, made.experiments["e"])
    log_files(client, made.runs["with"], {"w.txt": b"weights", "deep/er.bin": b"\x00"})
    model = client.create_registered_model("m")
    client.create_model_version(model.name, f"{location.as_uri()}/{made.runs['with']}/artifacts")
    shutil.move(tmp_path / "old", tmp_path / "new")
    return uri, made.runs["with"], tmp_path / "new" / "files"


def test_a_root_that_is_gone_is_a_failure_of_each_owner(
    moved: tuple[str, str, Path], tmp_path: Path
) -> None:
    uri, run_id, _ = moved

    report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=uri)

    named = {f.id: f.reason for f in report.failures}
    assert set(named) >= {f"{run_id}/", "m/1/"}
    assert f"{tmp_path}/old/files/{run_id}/artifacts is not there" in named[f"{run_id}/"]
    assert "--artifact-root OLD=NEW" in named[f"{run_id}/"]
    assert report.counts[Kind.RUN].written == 2
    result = diff(uri, str(tmp_path / "a.tar.zst"))
    assert {side for side, _ in result.unreadable} == {"a"}


def test_the_user_says_where_they_are(moved: tuple[str, str, Path], tmp_path: Path) -> None:
    uri, run_id, files = moved
    roots = {f"file://{tmp_path}/old/files": str(files)}

    report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=uri, artifact_roots=roots)

    assert report.failures == []
    assert report.counts[Kind.ARTIFACT].written == 4  # the version names no run
    with open_archive(str(tmp_path / "a.tar.zst")) as archive:
        paths = sorted(entry.path for entry in archive.artifacts(run_id))
    assert paths == ["deep/er.bin", "w.txt"]
    assert diff(uri, str(tmp_path / "a.tar.zst"), artifact_roots=roots).equal
    target = f"sqlite:///{tmp_path}/t.db"
    copied = copy(uri, target, artifact_roots=roots, artifact_location=str(tmp_path / "t"))
    assert copied.failures == []
    assert (tmp_path / "t" / "1" / run_id / "artifacts" / "w.txt").read_bytes() == b"weights"


def test_files_beside_a_database_are_found(moved: tuple[str, str, Path], tmp_path: Path) -> None:
    uri, _, files = moved
    shutil.move(files, tmp_path / "store" / "files")

    report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=uri)

    assert report.failures == []
    assert report.counts[Kind.ARTIFACT].written == 4
    (loss,) = [loss for loss in report.losses if loss.kind is Kind.ARTIFACT]
    assert "the store has the files" in loss.what


def test_what_was_unpacked_without_files_misses_none(tmp_path: Path) -> None:
    new_sqlite_database(tmp_path / "a.db")
    uri = f"sqlite:///{tmp_path}/a.db"
    client = MlflowClient(uri, uri)
    client.create_run(client.create_experiment("e", (tmp_path / "never").as_uri() + "/1"))
    (tmp_path / "never").mkdir()
    archive, target = str(tmp_path / "a.tar.zst"), f"sqlite:///{tmp_path}/b.db"
    assert pack(archive, tracking_uri=uri).failures == []
    for keeps_ids in (True, False):
        to = str(tmp_path / f"files-{keeps_ids}")
        unpack(archive, tracking_uri=target, artifact_location=to, preserve_ids=keeps_ids)
        assert pack(archive, tracking_uri=target, overwrite=True).failures == []


def test_odd_files_are_named_and_the_others_arrive(tmp_path: Path) -> None:
    new_sqlite_database(tmp_path / "a.db")
    uri = f"sqlite:///{tmp_path}/a.db"
    client = MlflowClient(uri, uri)
    made = Seeded()
    files = tmp_path / "files"
    made.experiments["e"] = client.create_experiment("e", files.as_uri())
    run_id = new_run(client, made, "odd", made.experiments["e"])
    log_files(client, run_id, {"w.txt": b"weights"})
    root = files / run_id / "artifacts"
    os.mkfifo(root / "pipe")
    (root / "loop").symlink_to(".")
    (root / "out").symlink_to(tmp_path / "a.db")
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9.txt")).write_bytes(b"au lait")
    archive = str(tmp_path / "a.tar.zst")

    report = pack(archive, tracking_uri=uri)

    assert {f.id for f in report.failures} == {
        f"{run_id}/{name}" for name in ("pipe", "loop", "out")
    }
    assert report.counts[Kind.ARTIFACT].written == 2
    (loss,) = [loss for loss in report.losses if loss.kind is Kind.ARTIFACT]
    assert loss.id == f"{run_id}/caf!E9.txt"
    target = f"sqlite:///{tmp_path}/t.db"
    assert unpack(archive, tracking_uri=target, artifact_location=str(tmp_path / "t")).ok
    there = tmp_path / "t" / "1" / run_id / "artifacts" / "caf!E9.txt"
    assert there.read_bytes() == b"au lait"
    followed = pack(archive, tracking_uri=uri, overwrite=True, follow_links=True)
    assert followed.counts[Kind.ARTIFACT].written == 3


@pytest.mark.parametrize("keeps_ids", [True, False])
@pytest.mark.parametrize("of_model", [True, False], ids=["of a logged model", "of a run"])
def test_a_version_that_was_copied_from_another_brings_its_files(
    tmp_path: Path, keeps_ids: bool, of_model: bool
) -> None:
    new_sqlite_database(tmp_path / "a.db")
    uri = f"sqlite:///{tmp_path}/a.db"
    client = MlflowClient(uri, uri)
    made = Seeded()
    made.experiments["e"] = client.create_experiment("e", (tmp_path / "files").as_uri())
    run_id = new_run(client, made, "r", made.experiments["e"])
    log_files(client, run_id, {"m/MLmodel": b"flavors: {}"})
    source, model_id = f"{client.get_run(run_id).info.artifact_uri}/m", None
    if of_model:
        logged = client.create_logged_model(made.experiments["e"], "m", run_id)
        model_id = logged.model_id
        log_model_files(client, model_id, {"MLmodel": "flavors: {}"})
        source = f"models:/{model_id}"
    client.create_registered_model("dev")
    with as_default(uri):
        client.create_model_version("dev", source, run_id, model_id=model_id)
        client.copy_model_version("models:/dev/1", "copy")
    archive, target = str(tmp_path / "a.tar.zst"), f"sqlite:///{tmp_path}/t.db"

    assert pack(archive, tracking_uri=uri, models=("copy",)).failures == []
    to = str(tmp_path / "t")
    report = unpack(archive, tracking_uri=target, artifact_location=to, preserve_ids=keeps_ids)

    assert report.failures == []
    there = MlflowClient(target, target)
    root = there.get_model_version_download_uri("copy", "1")
    if root.startswith("models:/"):
        root = there.get_logged_model(root.removeprefix("models:/")).artifact_location
    found = Path(path_of_uri(root) or "") / "MLmodel"
    assert found.read_bytes() == b"flavors: {}"
    assert found.is_relative_to(tmp_path / "t")


def test_a_name_that_mlflow_calls_unsafe_costs_itself_alone(tmp_path: Path) -> None:
    with start_server(tmp_path / "server") as server:
        client = MlflowClient(server.url, server.url)
        run_id = client.create_run("0").info.run_id
        log_files(client, run_id, {f"many/{n}.txt": b"x" for n in range(3)})
        (folder,) = (tmp_path / "server").rglob(f"{run_id}/artifacts/many")
        (folder / "odd#name.txt").write_bytes(b"x")

        report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=server.url)

    assert report.counts[Kind.ARTIFACT].written == 3
    assert [failure.id for failure in report.failures] == [f"{run_id}/many/odd#name.txt"]
