"""What obstore does with the objects of a folder: the same in S3, Azure and Google's XML API."""

from __future__ import annotations

import io
import logging
import os
import re
import uuid
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar, cast

import pytest
from fsspec.config import conf

from mlflow_exim_plugin.errors import ReplacedError, StoreError
from mlflow_exim_plugin.storage import objects
from mlflow_exim_plugin.storage.objects import ObjectFolder, OddKeyError, object_folder
from mlflow_exim_plugin.storage.room import ROOM, Room
from tests import far_stores
from tests.proxy import CUT, CUT_BODY, FaultyProxy, Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.conftest import Bucket
    from tests.far_stores import FarStore

pytest.importorskip("obstore")
pytestmark = pytest.mark.integration

MEGABYTE = 1 << 20


def opened(url: str) -> ObjectFolder:
    folder = object_folder(url)
    assert folder is not None
    return folder


def read_to_end(stream: BinaryIO) -> bytes:
    return b"".join(iter(lambda: stream.read(MEGABYTE), b""))


class Broken(io.RawIOBase):
    """A source that breaks when so many bytes have come."""

    def __init__(self, size_bytes: int) -> None:
        self._left = size_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left:
            raise StoreError("the source broke")
        count = min(self._left, len(buffer))
        buffer[:count] = bytes(count)
        self._left -= count
        return count


class Laws:
    """The laws; a subclass has a fixture ``url``, of an empty folder of a bucket."""

    names: ClassVar = ["a", "a.txt", "a/b/c", "a/b.txt", "empty", "é & +%20#?=~'.txt", "z/%41"]
    """In path order within each folder, which is not the order of keys."""

    def test_what_was_written_is_listed_and_read(self, url: str) -> None:
        folder = opened(url)
        large = os.urandom(20 * MEGABYTE + 1)
        content = {name: b"" if name == "empty" else name.encode() for name in self.names}
        for sending in [folder.put(name, data) for name, data in content.items()]:
            sending.result()
        folder.put_stream("large", io.BytesIO(large), len(large))
        opened(f"{url}2").put("neighbour", b"x").result()

        listed = folder.files()

        content["large"] = large
        assert [path for path, _ in listed] == sorted(content, key=lambda path: path.split("/"))
        assert dict(listed) == {path: len(data) for path, data in content.items()}
        for path, size_bytes in listed:
            for told in (size_bytes, None):
                with folder.open(path, told) as stream:
                    assert stream.read() == content[path]
        assert ROOM.left_bytes == ROOM.size_bytes

    def test_a_folder_without_objects_is_empty(self, url: str) -> None:
        assert opened(f"{url}/nothing").files() == []

    def test_what_is_gone_and_what_is_longer_is_said(self, url: str) -> None:
        folder = opened(url)
        folder.put("a", b"12345").result()
        for path, size_bytes in (("b", 1), ("b", None), ("b", 20 * MEGABYTE)):
            with pytest.raises(StoreError, match="not there"):
                folder.open(path, size_bytes)
        # It has other bytes than when it was listed: all of them are taken.
        assert folder.open("a", 3).read() == b"12345"

    def test_a_large_one_that_is_replaced_is_said(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(objects, "_RANGES_AT_ONCE", 1)
        folder = opened(url)
        old, new = bytes(24 * MEGABYTE), os.urandom(24 * MEGABYTE)
        folder.put_stream("a", io.BytesIO(old), len(old))
        with folder.open("a", len(old)) as stream:
            assert stream.read(2 * MEGABYTE)[-1] == 0
            folder.put_stream("a", io.BytesIO(new), len(new))
            self.read_on(stream)
        assert ROOM.left_bytes == ROOM.size_bytes

    def read_on(self, stream: BinaryIO) -> None:
        with pytest.raises(ReplacedError):
            read_to_end(stream)

    def test_of_a_source_that_breaks_nothing_is_written(self, url: str) -> None:
        folder = opened(url)
        for size_bytes in (0, 20 * MEGABYTE):
            with pytest.raises(StoreError, match="the source broke"):
                folder.put_stream("a", cast("BinaryIO", Broken(size_bytes)), 30 * MEGABYTE)
        assert folder.files() == []


class TestS3(Laws):
    @pytest.fixture
    def url(self, s3_bucket: Bucket) -> str:
        return f"{s3_bucket.url}/1/r/artifacts"

    def test_parts_of_a_broken_source_go(self, url: str, s3_bucket: Bucket) -> None:
        import boto3

        with pytest.raises(StoreError):
            opened(url).put_stream("a", cast("BinaryIO", Broken(20 * MEGABYTE)), 30 * MEGABYTE)
        assert "Uploads" not in boto3.client("s3").list_multipart_uploads(Bucket=s3_bucket.name)

    def test_what_stands_for_a_folder_is_no_file(self, url: str, s3_bucket: Bucket) -> None:
        import boto3

        for key in ("", "a/", "b/", "b/c"):
            s3 = boto3.client("s3")
            s3.put_object(Bucket=s3_bucket.name, Key=f"1/r/artifacts/{key}", Body=b"")
        assert opened(url).files() == [("b/c", 0)]

    def test_a_key_that_cannot_be_said_is_told(self, url: str, s3_bucket: Bucket) -> None:
        import boto3

        for key in ("1/r/artifacts/a//b", "1/s/artifacts/b"):
            boto3.client("s3").put_object(Bucket=s3_bucket.name, Key=key, Body=b"x")
        with pytest.raises(OddKeyError):
            opened(url).files()
        assert opened(f"{s3_bucket.url}/1/s/artifacts").files() == [("b", 1)]
        assert object_folder(f"{s3_bucket.url}//1/s") is None
        assert object_folder(s3_bucket.url) is None

    def test_a_bucket_may_lie_in_another_region(
        self, s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import boto3

        monkeypatch.delenv("AWS_DEFAULT_REGION")
        name = f"exim-{uuid.uuid4().hex[:12]}"
        boto3.client("s3", region_name="eu-central-1").create_bucket(
            Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
        )
        folder = opened(f"s3://{name}/a")
        folder.put("b", b"x").result()
        assert folder.files() == [("b", 1)]
        assert folder._store.config["region"] == "eu-central-1"
        assert folder._store.config["endpoint"] == s3_bucket.endpoint_url

    def test_uploads_are_as_mlflow_is_told(
        self, url: str, s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import boto3

        told = '{"ServerSideEncryption": "AES256", "StorageClass": "STANDARD_IA"}'
        monkeypatch.setenv("MLFLOW_S3_UPLOAD_EXTRA_ARGS", told)
        # Newer ones of obstore ask this one first, whatever else they are told.
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        opened(url).put("a.csv.gz", b"x").result()
        s3 = boto3.client("s3", endpoint_url=s3_bucket.endpoint_url)
        there = s3.head_object(Bucket=s3_bucket.name, Key="1/r/artifacts/a.csv.gz")
        assert there["ServerSideEncryption"] == "AES256"
        assert there["StorageClass"] == "STANDARD_IA"
        assert (there["ContentType"], there["ContentEncoding"]) == ("text/csv", "gzip")
        assert opened(url).open("a.csv.gz", 1).read() == b"x"
        monkeypatch.setenv("MLFLOW_S3_UPLOAD_EXTRA_ARGS", '{"ACL": "public-read"}')
        assert "ACL" in opened(url).refusal("a")


class OfRclone(Laws):
    """A server that gives no parts of objects: what comes is all of the version that was opened."""

    names: ClassVar = Laws.names[1:]  # its objects are files, and a folder is none
    serve: ClassVar[staticmethod[[Path], AbstractContextManager[FarStore]]]

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarStore]:
        with cls.serve(tmp_path_factory.mktemp("rclone")) as store:
            yield store

    def read_on(self, stream: BinaryIO) -> None:
        assert not any(read_to_end(stream))


class TestS3OfRclone(OfRclone):
    serve = staticmethod(far_stores.rclone_s3)

    @pytest.fixture
    def url(self, store: FarStore, monkeypatch: pytest.MonkeyPatch) -> str:
        told = {name: store.options[name] for name in ("key", "secret", "endpoint_url")}
        monkeypatch.setitem(conf, "s3", told)
        return f"{store.new_folder()}/1/r/artifacts"


class TestGoogle(OfRclone):
    """What Google's XML API has of S3's is all that obstore asks it for."""

    serve = staticmethod(far_stores.rclone_google)

    @pytest.fixture
    def url(self, store: FarStore, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{store.port}")
        return f"{store.new_folder()}/1/r/artifacts".replace("s3:", "gs:")


class TestAzure(Laws):
    @pytest.fixture(scope="class")
    @classmethod
    def azurite(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FarStore]:
        with far_stores.azure(tmp_path_factory.mktemp("azure")) as store:
            yield store

    @pytest.fixture
    def url(self, azurite: FarStore, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", azurite.options["connection_string"])
        container = azurite.new_folder().rpartition("/")[2]
        return f"wasbs://{container}@devstoreaccount1.blob.core.windows.net/1/r/artifacts"

    def test_a_folder_has_many_names(self, url: str) -> None:
        opened(url).put("b c/d", b"x").result()
        container = url.removeprefix("wasbs://").partition("@")[0]
        for name in (
            url.replace("wasbs:", "wasb:"),
            f"abfss://{container}@devstoreaccount1.dfs.core.windows.net/1/r/artifacts/b%20c",
            f"abfs://{container}/1/r/artifacts",
        ):
            assert opened(name).files() == [("d" if "%20" in name else "b c/d", 1)]


def test_a_forked_process_goes_without(s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{s3_bucket.url}/r/artifacts"
    assert object_folder(url) is not None
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert object_folder(url) is None


@pytest.fixture
def proxy(s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy before S3, which hands everything on until it is told otherwise."""
    with FaultyProxy(s3_bucket.endpoint_url) as proxy:
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def full(proxy: FaultyProxy, s3_bucket: Bucket) -> tuple[ObjectFolder, dict[str, bytes]]:
    """A folder behind the proxy with a small and a large object."""
    folder = opened(f"{s3_bucket.url}/r/artifacts")
    content = {"large": os.urandom(20 * MEGABYTE), "small": os.urandom(100_000)}
    for path, data in content.items():
        folder.put_stream(path, io.BytesIO(data), len(data))
    proxy.seen.clear()
    return folder, content


@pytest.mark.parametrize("fault", [CUT, CUT_BODY, 503, 500])
def test_a_store_that_is_better_soon_is_asked_again(
    fault: int, proxy: FaultyProxy, full: tuple[ObjectFolder, dict[str, bytes]]
) -> None:
    folder, content = full
    proxy.rule = lambda request: fault if request.number % 2 else None
    assert dict(folder.files()) == {path: len(data) for path, data in content.items()}
    for path, data in content.items():
        assert folder.open(path, len(data)).read() == data
    folder.put("small", b"x").result()
    if fault == CUT_BODY:  # no more is known of an upload than what the answer would have said
        return
    folder.put_stream("large", io.BytesIO(content["large"][::-1]), 20 * MEGABYTE)
    proxy.rule = lambda _: None
    assert folder.open("large", 20 * MEGABYTE).read() == content["large"][::-1]
    assert folder.open("small", 1).read() == b"x"


def test_memory_is_bounded(
    full: tuple[ObjectFolder, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, content = full
    room = Room(9 * MEGABYTE)
    monkeypatch.setattr(objects, "ROOM", room)
    streams = [folder.open("large", len(content["large"])) for _ in range(3)]
    came = [b"", b"", b""]
    while not all(len(data) == len(content["large"]) for data in came):
        came = [
            data + stream.read(5 * MEGABYTE) for data, stream in zip(came, streams, strict=True)
        ]
        assert room.left_bytes >= 0
    assert set(came) == {content["large"]}
    assert room.left_bytes == room.size_bytes


def test_what_is_not_what_was_listed_is_refused(
    proxy: FaultyProxy, full: tuple[ObjectFolder, dict[str, bytes]]
) -> None:
    folder, content = full

    def page(request: Request, data: bytes) -> bytes:
        return b"please log in" if request.method == "GET" else data

    proxy.bend = page
    for path, data in content.items():
        with pytest.raises(StoreError):
            read_to_end(folder.open(path, len(data)))
    with pytest.raises(StoreError):
        folder.files()


def test_a_list_without_end_ends(
    proxy: FaultyProxy, full: tuple[ObjectFolder, dict[str, bytes]]
) -> None:
    folder, _ = full

    def endless(_: Request, data: bytes) -> bytes:
        more = b"<IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>"
        return re.sub(rb"<IsTruncated>false</IsTruncated>", more, data)

    proxy.bend, proxy.strip = endless, "continuation-token"
    with pytest.raises(StoreError, match="no end"):
        folder.files()


def test_a_store_that_refuses_is_left_to_others(
    proxy: FaultyProxy, s3_bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.rule = lambda request: 403 if "list-type" in request.path else None
    with caplog.at_level(logging.DEBUG):
        assert object_folder(f"{s3_bucket.url}/r/artifacts") is None
    assert "not by obstore: listing the objects" in caplog.text
    assert "403" in caplog.text
