"""An ``mlruns`` folder in a bucket or a zip file holds what it held on disk."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import fsspec
import pytest

from mlflow_exim_plugin import diff, open_archive, pack
from mlflow_exim_plugin.errors import NotFoundError
from mlflow_exim_plugin.schema.objects import Kind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Bucket
    from tests.folder_seed import Store

pytestmark = pytest.mark.integration


def put_into_memory(folder: Path, tmp_path: Path) -> str:
    url = f"memory://far/{tmp_path.name}/mlruns"
    fsspec.filesystem("memory").put(str(folder), url, recursive=True)
    return url


def put_into_zip(folder: Path, tmp_path: Path) -> str:
    with zipfile.ZipFile(tmp_path / "mlruns.zip", "w") as packed:
        for file in folder.rglob("*"):
            if file.is_file():  # as most tools do: without empty folders
                packed.write(file, file.relative_to(folder))
    return f"zip://::{tmp_path / 'mlruns.zip'}"


@pytest.mark.filterwarnings("ignore:Exception ignored in")  # fsspec closes no zip file
@pytest.mark.parametrize("put", [put_into_memory, put_into_zip])
def test_it_holds_what_it_held_on_disk(
    put: Callable[[Path, Path], str], filled_folder: Store, tmp_path: Path
) -> None:
    near, far = str(tmp_path / "near.tar.zst"), str(tmp_path / "far.tar.zst")
    store = filled_folder.copied(tmp_path / "store" / "mlruns", says_so=True)
    url = put(store.folder, tmp_path)
    by_disk = pack(near, tracking_uri=store.uri)
    assert by_disk.counts[Kind.ARTIFACT].written
    # Nothing of the disk may be asked: the roots that were written down are there no more.
    store.folder.rename(tmp_path / "gone")

    report = pack(far, tracking_uri=url)

    assert report.failures == by_disk.failures == []
    assert {k: c.written for k, c in report.counts.items()} == {
        k: c.written for k, c in by_disk.counts.items()
    }
    found = diff(near, far)
    assert found.differences == []
    with open_archive(far) as archive:
        assert archive.summary.system.mlflow_tracking_uri == url


def test_it_may_lie_in_a_bucket(filled_folder: Store, s3_bucket: Bucket, tmp_path: Path) -> None:
    near, far = str(tmp_path / "near.tar.zst"), str(tmp_path / "far.tar.zst")
    store = filled_folder.copied(tmp_path / "store" / "mlruns", says_so=True)
    pack(near, tracking_uri=store.uri)
    url = f"{s3_bucket.url}/mlruns"
    fsspec.filesystem("s3").put(str(store.folder), url, recursive=True)
    store.folder.rename(tmp_path / "gone")

    report = pack(far, tracking_uri=url)

    assert report.failures == []
    assert diff(near, far).differences == []


def test_a_far_folder_that_is_no_store_is_said(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe_file("memory://far/nothing/a.txt", b"x")

    with pytest.raises(NotFoundError, match="there is no database, archive, folder, server at"):
        pack(str(tmp_path / "a.tar.zst"), tracking_uri="memory://far/nothing")
