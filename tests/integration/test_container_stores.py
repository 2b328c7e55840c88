"""What archives on servers cost, and what S3's own files lack."""

from __future__ import annotations

import os
import pickle
import time
from typing import TYPE_CHECKING

import pytest

from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import NOTICE, NotFoundError, ReplacedError, StoreError
from mlflow_exim_plugin.storage import retries, web_ranges
from mlflow_exim_plugin.storage.ranges import RangeSource, open_range
from mlflow_exim_plugin.verification.archive import verify_archive
from tests.range_server import RangeServer, serving
from tests.unit.container.crafting import build

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Bucket

pytestmark = [
    pytest.mark.integration,
    # aiohttp's sockets of a session that fsspec keeps for later.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_plain_s3fs_commits_what_we_do_not(s3_bucket: Bucket) -> None:
    """Why atomic_output exists; when this fails, fsspec got better and it may become simpler."""
    s3fs = pytest.importorskip("s3fs")
    file_system = s3fs.S3FileSystem(endpoint_url=s3_bucket.endpoint_url, skip_instance_cache=True)
    path = f"{s3_bucket.name}/plain"
    with pytest.raises(ValueError, match="stop"), file_system.open(path, "wb") as file:  # noqa: PT012
        file.write(b"half")
        raise ValueError("stop")
    assert file_system.cat_file(path) == b"half"


@pytest.fixture
def http() -> Iterator[tuple[str, type[RangeServer]]]:
    pytest.importorskip("aiohttp")
    with serving() as running:
        yield running


def test_opening_and_reading_one_envelope_costs_two_requests(
    http: tuple[str, type[RangeServer]],
) -> None:
    url, server = http
    large = os.urandom(1 << 20)
    members = {f"data/runs/{n:05}/run.json": b'{"run_id": "%d"}' % n for n in range(5000)}
    for number in range(150):
        members[f"data/runs/{number:05}/artifacts/model.bin"] = bytes([number]) + large
    server.data = build(members, level=1)
    with ArchiveReader.open(url) as reader:
        assert reader.read("data/runs/02500/run.json") == b'{"run_id": "2500"}'
    assert len(server.asked) == 2
    assert sum(size for _, size in server.asked) < (1 << 20) + (128 << 10)


def test_a_small_archive_comes_with_the_first_request(http: tuple[str, type[RangeServer]]) -> None:
    url, server = http
    members = {f"data/{n}": os.urandom(9000) for n in range(100)}
    server.data = build(members)
    for server.has_ranges in (True, False):
        server.asked.clear()
        with ArchiveReader.open(url) as reader:
            assert all(reader.read(path) == data for path, data in members.items())
            assert verify_archive(reader) == []
        assert server.asked == [("GET", len(server.data))]


def test_a_server_of_no_ranges_is_asked_for_the_whole_file_once(
    http: tuple[str, type[RangeServer]], caplog: pytest.LogCaptureFixture
) -> None:
    url, server = http
    server.data = build({"data/a": os.urandom(5 << 20)})
    server.has_ranges = False
    with ArchiveReader.open(url) as reader:
        asked = len(server.asked)
        assert verify_archive(reader) == []
        assert len(server.asked) == asked
    assert [record.levelno for record in caplog.records] == [NOTICE]
    assert "all of it is fetched" in caplog.text


def test_a_server_that_knows_no_ranges_from_the_end(http: tuple[str, type[RangeServer]]) -> None:
    url, server = http
    server.data = build({"data/a": os.urandom(5 << 20)})
    server.has_ranges_from_the_end = False
    with ArchiveReader.open(url) as reader:
        opened = len(server.asked)
        assert len(reader.read("data/a", 0, 10)) == 10
    assert server.asked[1:opened] == [("GET", 1), ("GET", 1 << 20)]
    assert len(server.asked) == opened + 1


@pytest.mark.parametrize(
    ("scheme", "has_ranges"), [("http", True), ("http", False), ("webdav", True)]
)
def test_a_server_that_sends_byte_by_byte_is_given_up(
    http: tuple[str, type[RangeServer]],
    scheme: str,
    has_ranges: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, server = http
    address, _, name = url.rpartition("/")
    options = None
    if scheme == "webdav":
        url, options = f"webdav://{name}", {"base_url": address}
    server.data, server.has_ranges = bytes(5 << 20), has_ranges
    monkeypatch.setattr(web_ranges, "seconds_for", lambda _: 0.5)
    monkeypatch.setattr(retries, "_PATIENCE_SECONDS", 0.5)
    # Without ranges it is fetched as it is opened.
    source = open_range(url, options) if has_ranges else None
    server.drips = True
    begun = time.monotonic()
    with pytest.raises(StoreError, match=r"too slow|does not answer in time") as caught:
        source.read_range(0, 1000) if source else open_range(url, options)
    assert "when the store is well" in caught.value.hint
    assert time.monotonic() - begun < 20


@pytest.mark.parametrize("etag", ['"one"', 'W/"one"'])
def test_a_file_that_is_replaced_on_a_web_server(
    http: tuple[str, type[RangeServer]], etag: str
) -> None:
    url, server = http
    server.data, server.etag = bytes(5 << 20), etag
    source = open_range(url)
    kept = pickle.dumps(source)

    def elsewhere() -> RangeSource:
        again: RangeSource = pickle.loads(kept)  # noqa: S301 - our own bytes
        return again

    assert elsewhere().read_range(0, 5) == source.read_range(0, 5) == bytes(5)
    server.etag = etag.replace("one", "two")
    for read in (lambda: source.read_range(0, 5), elsewhere):
        with pytest.raises(ReplacedError, match="it was replaced while being read") as caught:
            read()
        assert (caught.value.exit_code, caught.value.code) == (9, "replaced")


def test_a_server_that_is_busy_is_asked_again(http: tuple[str, type[RangeServer]]) -> None:
    url, server = http
    server.data = os.urandom(2 << 20)
    server.statuses = [503, 429]
    source = open_range(url)
    server.statuses = [500]
    assert source.read_range(5, 10) == server.data[5:10]
    assert len(server.asked) == 5


@pytest.mark.parametrize(
    ("statuses", "said", "asked"),
    [([503] * 9, "503 Service Unavailable", 6), ([403], "403 Forbidden", 1)],
)
def test_what_a_server_refuses_is_one_line(
    http: tuple[str, type[RangeServer]],
    monkeypatch: pytest.MonkeyPatch,
    statuses: list[int],
    said: str,
    asked: int,
) -> None:
    monkeypatch.setattr(retries, "_BACKOFF_SECONDS", 0.01)
    url, server = http
    server.data = bytes(2 << 20)
    source = open_range(url)
    server.asked.clear()
    server.statuses = statuses
    with pytest.raises(StoreError) as caught:
        source.read_range(5, 10)
    assert caught.value.message == f"cannot read {url}: {said}"
    assert len(server.asked) == asked


def test_missing_http_file(http: tuple[str, type[RangeServer]]) -> None:
    url, server = http
    server.statuses = [404]
    with pytest.raises(NotFoundError):
        ArchiveReader.open(url)
    with pytest.raises((NotFoundError, StoreError)):
        ArchiveReader.open(url.replace("127.0.0.1", "127.0.0.1:1/"))
