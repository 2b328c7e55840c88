"""What is on its way to a store when its process is killed, and stores that cannot publish."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING

import fsspec
import pytest

from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.storage.output import atomic_output
from mlflow_exim_plugin.storage.upload.under_way import note, notes, remove_noted
from mlflow_exim_plugin.storage.upload.unfinished import (
    LeftoverState,
    remove_unfinished,
    unfinished,
)
from tests import far_stores
from tests.killed import kill_a_writer
from tests.proxy import FaultyProxy

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Bucket
    from tests.proxy import Request


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
@pytest.mark.integration
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_parts_of_a_killed_writer_go_with_the_next_to_that_name(s3_bucket: Bucket) -> None:
    options = {"endpoint_url": s3_bucket.endpoint_url, "use_listings_cache": False}
    store, bucket = fsspec.core.url_to_fs(s3_bucket.url, **options)

    def under_way() -> list[str]:
        uploads = store.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads") or []
        return sorted(upload["Key"] for upload in uploads)

    for name in ("a", "b"):
        kill_a_writer(f"{s3_bucket.url}/{name}", options)
    foreign = store.call_s3("create_multipart_upload", Bucket=bucket, Key="a")["UploadId"]
    assert under_way() == ["a", "a", "b"]
    with atomic_output(f"{s3_bucket.url}/a", storage_options=options) as file:
        file.write(b"whole")
    assert under_way() == ["a", "b"]
    assert store.cat_file(f"{bucket}/a") == b"whole"
    store.call_s3("abort_multipart_upload", Bucket=bucket, Key="a", UploadId=foreign)


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
@pytest.mark.integration
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_file_of_a_killed_writer_goes_with_the_next_to_that_name(tmp_path: Path) -> None:
    (folder := tmp_path / "ssh").mkdir()
    with far_stores.sftp(folder) as store:
        assert store.root is not None
        kill_a_writer(f"{store.url}a", store.options)
        left = [path.name for path in store.root.iterdir()]
        assert len(left) == 1
        assert left[0].startswith(".a.partial-")
        with atomic_output(f"{store.url}a", storage_options=store.options) as file:
            file.write(b"whole")
        assert [path.name for path in store.root.iterdir()] == ["a"]


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    removed: list[str] = []
    with note("s3://bucket/a", "upload 1"):
        remove_noted("s3://bucket/a", removed.append)
    assert removed == []
    assert list((tmp_path / "state").rglob("*.json")) == []


def test_a_note_keeps_no_password(tmp_path: Path) -> None:
    with note("sftp://user:secret@host/a", ".a.partial-1"):
        (file,) = (tmp_path / "state").rglob("*.json")
        assert "secret" not in file.read_text("utf-8")


def test_a_store_that_cannot_publish_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """A cache in front of a store renames by a copy, of which half could be seen."""
    url = f"simplecache::{(tmp_path / 'a').as_uri()}"
    with pytest.raises(StoreError, match="neither commit"), atomic_output(url):
        pass
    assert not (tmp_path / "a").exists()


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("size_bytes", [100, 12 << 20], ids=["at once", "in parts"])
@pytest.mark.parametrize("kind", ["s3", "azure"])
def test_a_file_whose_last_answer_was_lost_is_there(
    kind: str, size_bytes: int, tmp_path: Path, s3_bucket: Bucket
) -> None:
    """The client asks again, and hears that there is a file: it is the one that was written."""
    with contextlib.ExitStack() as stack:
        if kind == "s3":
            url, near, options = s3_bucket.url, s3_bucket.endpoint_url, {}
        else:
            (folder := tmp_path / "azure").mkdir()
            store = stack.enter_context(far_stores.azure(folder))
            url, options = store.new_folder(), store.options
            near = f"http://127.0.0.1:{store.port}"
        proxy = stack.enter_context(FaultyProxy(near))
        told = json.dumps(options | ({"endpoint_url": near} if kind == "s3" else {}))
        options = json.loads(told.replace(near, proxy.url))
        written = os.urandom(size_bytes)
        lost: list[str] = []

        def lose(request: Request) -> None:
            is_last = (
                "uploadId" in request.path
                if request.method == "POST"
                else ("comp=blocklist" in request.path or request.path.endswith("/a"))
            )
            if is_last and request.method in {"POST", "PUT"} and not lost:
                lost.append(request.path)
                raise OSError("the answer is lost")

        proxy.after = lose
        with atomic_output(f"{url}/a", storage_options=options) as file:
            file.write(written)
        assert len(lost) == 1
        reading, path = fsspec.core.url_to_fs(f"{url}/a", **options)
        assert reading.cat_file(path) == written
        assert notes() == []


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["s3", "azure", "ssh"])
def test_what_was_written_is_here_and_parts_that_are_there_are_not_sent_again(
    kind: str, tmp_path: Path, s3_bucket: Bucket
) -> None:
    first, second = os.urandom(16 << 20), os.urandom(6 << 20)
    with contextlib.ExitStack() as stack:
        if kind == "s3":
            url, near, options = s3_bucket.url, s3_bucket.endpoint_url, {}
            options = {"endpoint_url": near, "use_listings_cache": False}
        else:
            (folder := tmp_path / kind).mkdir()
            served = far_stores.azure if kind == "azure" else far_stores.sftp
            store = stack.enter_context(served(folder))
            url, options = store.new_folder(), store.options
            near = f"http://127.0.0.1:{store.port}"
        if kind != "ssh":
            proxy = stack.enter_context(FaultyProxy(near))
            options = json.loads(json.dumps(options).replace(near, proxy.url))

        def sent() -> list[Request]:
            """Return the parts that came since the last time."""
            if kind == "ssh":
                return []
            came, proxy.seen = proxy.seen, []
            return [r for r in came if "partNumber=" in r.path or "comp=block&" in r.path]

        url = f"{url}/a"
        broken_off = atomic_output(url, resume=True, storage_options=options)
        with pytest.raises(KeyError), broken_off as file:  # noqa: PT012
            assert file.earlier is None
            file.write(first)
            raise KeyError
        there = sum(len(request.body) for request in sent())
        assert {one.is_here for one in notes(url)} == {"s3": {True, False}}.get(kind, {True})
        with atomic_output(url, resume=True, storage_options=options) as file:
            assert file.earlier is not None
            assert file.earlier.read() == first
            file.write(second)
        if kind != "ssh":
            assert there >= 10 << 20
            assert sum(len(request.body) for request in sent()) <= len(first + second) - there
        reading, path = fsspec.core.url_to_fs(url, **options)
        assert reading.cat_file(path) == first + second
        assert notes() == []
        assert [path for path in (tmp_path / "state").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("goes", ["with the next", "by leftovers"])
def test_what_is_kept_of_a_file_for_a_store_goes(goes: str, tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}-a"
    with pytest.raises(KeyError), atomic_output(url, resume=True) as file:  # noqa: PT012
        file.write(b"half")
        (one,) = unfinished(url)
        assert one.state is LeftoverState.IN_USE
        assert not remove_unfinished(one, url)
        raise KeyError
    (one,) = unfinished(url)
    assert (one.state, one.kind, one.size_bytes) == (LeftoverState.LEFT, "file", 4)
    (kept,) = (tmp_path / "state" / "mlflow-exim" / "kept").iterdir()
    assert one.name == str(kept)
    if os.name == "posix":  # it is as private as what was packed
        assert kept.parent.stat().st_mode & 0o077 == 0
    if goes == "by leftovers":
        assert remove_unfinished(one, url)
    else:
        with atomic_output(url) as file:  # which does not go on
            assert file.earlier is None
            file.write(b"whole")
        fsspec.filesystem("memory").rm(url)
    assert unfinished(url) == []
    assert not kept.exists()
