"""What killed packs left is told from what is in use, and only that goes."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import fsspec
import pytest
from click.testing import CliRunner

from mlflow_exim_plugin import leftovers
from mlflow_exim_plugin.cli.main import exim
from mlflow_exim_plugin.errors import StoreError, UsageError
from mlflow_exim_plugin.host.files.local import LocalFiles
from mlflow_exim_plugin.storage.leftovers import FOLDER_PREFIX, half_name, held
from mlflow_exim_plugin.storage.output import atomic_output
from tests import far_stores
from tests.killed import kill_a_writer

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_exim_plugin import Leftovers
    from tests.conftest import Bucket

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="kills processes"),
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def seen(result: Leftovers) -> dict[str, str]:
    """Return the state of what is there, by the name of its archive."""
    assert result.ok
    return {one.url.rpartition("/")[2]: one.state for one in result.found if not one.removed}


def test_on_s3_what_is_in_use_and_what_is_another_machines_stays(s3_bucket: Bucket) -> None:
    url, options = s3_bucket.url, {"use_listings_cache": False}
    for name in ("a.tar.zst", "b.tar.zst", "below/c.tar.zst"):
        kill_a_writer(f"{url}/{name}", options)
    store, bucket = fsspec.core.url_to_fs(url, **options)
    store.call_s3("create_multipart_upload", Bucket=bucket, Key="foreign")
    with atomic_output(f"{url}/alive.tar.zst", storage_options=options) as file:
        file.write(bytes(20 << 20))
        killed = {"a.tar.zst": "left", "b.tar.zst": "left", "c.tar.zst": "left"}
        others = {"alive.tar.zst": "in use", "foreign": "unknown"}
        assert seen(leftovers(url, storage_options=options)) == killed | others
        assert seen(leftovers(f"{url}/a.tar.zst", storage_options=options)) == {"a.tar.zst": "left"}
        assert seen(leftovers(f"{url}/a.tar", storage_options=options)) == {}
        (one,) = leftovers(f"{url}/a.tar.zst", storage_options=options).found
        assert one.age_s is not None
        assert one.age_s < 600
        assert one.size_bytes is not None
        assert 0 <= one.size_bytes <= 40 << 20
        # Those of this machine are known without any store.
        listed = CliRunner().invoke(exim, ["leftovers", "--output", "json"])
        assert listed.exit_code == 0
        noted = json.loads(listed.stdout)["leftovers"]
        assert {one["url"].rpartition("/")[2] for one in noted} == {*killed, "alive.tar.zst"}
        told: list[str] = []
        cleared = leftovers(
            f"{url}/below",
            storage_options=options,
            clear=True,
            removing=lambda one: told.append(one.url),
        )
        assert (
            told == [one.url for one in cleared.found if one.removed] == [f"{url}/below/c.tar.zst"]
        )
        assert seen(leftovers(url, storage_options=options, clear=True)) == others
        assert seen(leftovers(url, storage_options=options)) == others
        # moto begins every upload in 2010.
        younger = leftovers(url, storage_options=options, clear=True, older_than_s=10**9)
        assert seen(younger) == others
        assert seen(leftovers(url, storage_options=options, clear=True, older_than_s=0)) == {
            "alive.tar.zst": "in use"
        }
        file.write(b"the end")
    assert seen(leftovers(url, storage_options=options)) == {}
    assert store.cat_file(f"{bucket}/alive.tar.zst").endswith(b"the end")
    with pytest.raises(UsageError):
        leftovers(clear=True, older_than_s=0)


def test_what_is_noted_goes_without_a_url(s3_bucket: Bucket) -> None:
    kill_a_writer(f"{s3_bucket.url}/a.tar.zst", {})
    cleared = CliRunner().invoke(exim, ["leftovers", "--clear"])
    assert cleared.exit_code == 0
    assert f"Removing {s3_bucket.url}/a.tar.zst: upload" in cleared.stdout
    assert "1 found, 1 removed" in cleared.stdout
    assert seen(leftovers()) == seen(leftovers(s3_bucket.url)) == {}


def test_of_a_folder_of_this_machine(tmp_path: Path) -> None:
    (folder := tmp_path / "folder").mkdir()
    (folder / ".mine.partial-notes").write_text("not ours")
    kill_a_writer(str(folder / "a"), {})
    kill_a_writer(str(folder / "b"), {})
    with atomic_output(str(folder / "alive")) as file:
        file.write(b"half")
        assert seen(leftovers(str(folder))) == {"a": "left", "b": "left", "alive": "in use"}
        assert seen(leftovers(str(folder / "a"))) == {"a": "left"}
        assert [one.size_bytes for one in leftovers(str(folder / "a")).found] == [40 << 20]
        assert seen(leftovers(str(folder), clear=True)) == {"alive": "in use"}
    assert sorted(path.name for path in folder.iterdir()) == [".mine.partial-notes", "alive"]


def test_over_ssh_what_nothing_here_tells_of_goes_by_its_age_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder := tmp_path / "ssh").mkdir()
    with far_stores.sftp(folder) as store:
        url, options = store.url.rstrip("/"), store.options
        kill_a_writer(f"{url}/a", options)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another machine"))
        kill_a_writer(f"{url}/b", options)
        assert seen(leftovers(url, storage_options=options)) == {"a": "unknown", "b": "left"}
        assert seen(leftovers(url, storage_options=options, clear=True)) == {"a": "unknown"}
        assert store.root is not None
        (path,) = store.root.iterdir()
        os.utime(path, (1, 1))
        by_name = leftovers(f"{url}/a", storage_options=options, clear=True, older_than_s=86_400)
        assert [one.removed for one in by_name.found] == [True]
        assert list(store.root.iterdir()) == []


@pytest.mark.exhaustive
def test_azure_tells_of_blocks_and_google_of_nothing(tmp_path: Path) -> None:
    (folder := tmp_path / "azure").mkdir()
    with far_stores.azure(folder) as store:
        url = store.new_folder()
        kill_a_writer(f"{url}/a", store.options)
        result = leftovers(url, storage_options=store.options, clear=True, older_than_s=0)
        (one,) = result.found
        assert not result.ok
        assert one.failure.endswith("Azure does not remove blocks")
        assert (one.url, one.kind, one.state, one.removed) == (
            f"{url}/a",
            "blocks",
            "unknown",
            False,
        )
        assert one.size_bytes
        assert one.size_bytes % (5 << 20) == 0
    with pytest.raises(StoreError, match="does not tell"):
        leftovers("gs://bucket", storage_options={"token": "anon"})


def test_halves_of_files_are_found_below(tmp_path: Path) -> None:
    """Where runs have their files, on this machine and over FTP; whose they are nothing tells."""
    half = half_name("model/weights.bin")
    with far_stores.ftp(tmp_path) as store:
        assert store.root is not None
        (below := store.root / "1" / "run" / "artifacts" / "model").mkdir(parents=True)
        (below / half).write_bytes(b"half")
        (below / ".exim-notes").write_bytes(b"of a user")
        os.utime(below / half, (1, 1))
        for url, options in ((str(store.root), {}), (store.url.rstrip("/"), store.options)):
            (one,) = leftovers(url, storage_options=options, clear=True).found
            assert one.url == f"{url}/1/run/artifacts/model"
            assert (one.state, one.removed, one.begun_ms, one.size_bytes) == (
                "unknown",
                False,
                1000,
                4,
            )
        files = LocalFiles(store.root, follows_links=False)
        assert [path for path, _ in files.walk()] == ["1/run/artifacts/model/.exim-notes"]
        assert "leftovers" in files.problems[f"1/run/artifacts/model/{half}"]
        url = store.url.rstrip("/")
        cleared = leftovers(url, storage_options=store.options, clear=True, older_than_s=60)
        assert [one.removed for one in cleared.found] == [True]
        assert [path.name for path in below.iterdir()] == [".exim-notes"]


def test_what_a_killed_extract_left_is_found(tmp_path: Path) -> None:
    left, alive = (tmp_path / f"{FOLDER_PREFIX}{name}" for name in ("left", "alive"))
    for folder in (left, alive):
        folder.mkdir()
    (left / ".lock").touch()
    (left / "0").write_bytes(b"half")
    with held(alive):
        found = leftovers(str(tmp_path), clear=True).found
        assert {(one.name, one.state, one.removed) for one in found} == {
            (str(left), "left", True),
            (str(alive), "in use", False),
        }
    assert not left.exists()
