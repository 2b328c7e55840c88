"""The stores that are here, and servers of the others on loopback."""

from __future__ import annotations

import gc
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar
from uuid import uuid4

import fsspec
import pytest

from mlflow_exim_plugin.errors import StoreError
from tests import far_stores
from tests.contract.store import MEGABYTE, Folder, ReadingContract, StoreContract

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Bucket
    from tests.far_stores import FarStore

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
        try:
            answer = file_system.call_s3("list_multipart_uploads", Bucket=path)
        except FileNotFoundError:  # as some servers say that there is none
            answer = {}
        under_way = answer.get("Uploads") or []
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


@pytest.mark.integration
# What fsspec's clients keep open for later.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
class Served:
    """A server of tests/far_stores.py for all laws, and a folder of it for each."""

    serve: ClassVar[staticmethod[[Path], AbstractContextManager[FarStore]]]
    kind: ClassVar[type[Folder]] = Folder

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarStore]:
        with cls.serve(tmp_path_factory.mktemp("store")) as store:
            yield store
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            gc.collect()  # a client may leave sockets open

    @pytest.fixture
    def folder(self, store: FarStore) -> Folder:
        return self.kind(store.new_folder(), store.options)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestRcloneS3(Served, StoreContract):
    """A server that knows no conditions, and answers ranges with the checksum of the whole."""

    serve = staticmethod(far_stores.rclone_s3)
    kind = BucketFolder


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestAzure(Served, StoreContract):
    serve = staticmethod(far_stores.azure)


class TestGoogle(Served, ReadingContract):
    """The emulator has no conditions, and an upload is never given up: so it is only read."""

    serve = staticmethod(far_stores.google)


class TestSSH(Served, StoreContract):
    serve = staticmethod(far_stores.sftp)


class TestWebDAV(Served, StoreContract):
    serve = staticmethod(far_stores.webdav)


class TestFtp(Served, StoreContract):
    serve = staticmethod(far_stores.ftp)
