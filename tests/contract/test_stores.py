"""The stores that are here, and an S3 server on loopback."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import fsspec
import pytest

from mlflow_exim_plugin.errors import StoreError
from tests.contract.store import MEGABYTE, Folder, StoreContract

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Bucket

PART_BYTES = 5 * MEGABYTE


class TestPath(StoreContract):
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Folder:
        return Folder(str(tmp_path))


class TestFileURL(StoreContract):
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Folder:
        return Folder(tmp_path.as_uri())


class TestMemory(StoreContract):
    @pytest.fixture
    def folder(self) -> Folder:
        url = f"memory://{uuid4().hex}"
        fsspec.filesystem("memory").mkdirs(url)
        return Folder(url)


@dataclass(frozen=True)
class BucketFolder(Folder):
    """A bucket, whose files come in parts."""

    def names(self) -> list[str]:
        """Return the objects, and the uploads that have no end."""
        file_system, path = fsspec.core.url_to_fs(self.url, **self.options)
        under_way = file_system.call_s3("list_multipart_uploads", Bucket=path).get("Uploads", [])
        return [*super().names(), *(upload["Key"] for upload in under_way)]


@pytest.mark.integration
# aiohttp's sockets of a session that fsspec keeps for later.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestS3(StoreContract):
    @pytest.fixture
    def folder(self, s3_bucket: Bucket) -> Folder:
        pytest.importorskip("s3fs")
        options = {
            "key": "testing",
            "secret": "testing",
            "endpoint_url": s3_bucket.endpoint_url,
            "default_block_size": PART_BYTES,
            "use_listings_cache": False,
        }
        return BucketFolder(s3_bucket.url, options)

    def test_a_bucket_that_is_not_there(self, folder: Folder) -> None:
        nowhere = Folder("s3://nobucket", folder.options)
        with pytest.raises(StoreError), nowhere.output("a") as file:
            file.write(b"x")
