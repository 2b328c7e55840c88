"""Archives on real servers: S3 (moto) and HTTP on loopback."""

from __future__ import annotations

import gc
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.container.writer import ArchiveWriter
from mlflow_exim_plugin.errors import ArchiveExistsError, NotFoundError, StoreError
from mlflow_exim_plugin.storage.output import atomic_output
from mlflow_exim_plugin.storage.ranges import open_range
from mlflow_exim_plugin.verification.archive import verify_archive
from tests.unit.container.crafting import BASE, build

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.integration,
    # aiohttp's sockets of a session that fsspec keeps for later.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

PART_BYTES = 5 << 20


@pytest.fixture(scope="module")
def s3() -> Iterator[tuple[Any, dict[str, Any]]]:
    """A file system of its own on an S3 server, with parts small enough for several of them."""
    s3fs = pytest.importorskip("s3fs")
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {
        "key": "test",
        "secret": "test",
        "endpoint_url": f"http://{host}:{port}",
        "default_block_size": PART_BYTES,
        "use_listings_cache": False,
    }
    file_system = s3fs.S3FileSystem(**options)
    file_system.mkdir("bucket")
    yield file_system, options
    server.stop()


def uploads(file_system: Any) -> list[Any]:
    answer = file_system.call_s3("list_multipart_uploads", Bucket="bucket")
    return list(answer.get("Uploads", []))


def test_archive_on_s3(s3: tuple[Any, dict[str, Any]]) -> None:
    _, options = s3
    url = "s3://bucket/good.tar.zst"
    large = os.urandom(12 << 20)
    with (
        atomic_output(url, storage_options=options) as output,
        ArchiveWriter(output, base_directory=BASE) as writer,
    ):
        writer.add("data/a", b"a")
        writer.add("data/large.bin", large)
    with ArchiveReader.open(url, storage_options=options, expected_root=writer.root) as reader:
        assert reader.read("data/a") == b"a"
        assert reader.read("data/large.bin", 5_000_000, 5_000_010) == large[5_000_000:5_000_010]
        assert verify_archive(reader) == []


@pytest.mark.parametrize("size_bytes", [10, 3 * PART_BYTES])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_s3_has_nothing_when_the_block_raises(
    s3: tuple[Any, dict[str, Any]], size_bytes: int, error: type[BaseException]
) -> None:
    file_system, options = s3
    url = f"s3://bucket/raised-{size_bytes}-{error.__name__}"
    with pytest.raises(error), atomic_output(url, storage_options=options) as file:  # noqa: PT012
        file.write(os.urandom(size_bytes))
        raise error
    gc.collect()
    assert not file_system.exists(url)
    assert uploads(file_system) == []


def test_s3_has_nothing_when_an_output_is_garbage(s3: tuple[Any, dict[str, Any]]) -> None:
    file_system, options = s3
    output = atomic_output("s3://bucket/garbage", storage_options=options)
    output.__enter__().write(os.urandom(2 * PART_BYTES))
    del output
    gc.collect()
    assert not file_system.exists("s3://bucket/garbage")
    assert uploads(file_system) == []


def test_plain_s3fs_commits_what_we_do_not(s3: tuple[Any, dict[str, Any]]) -> None:
    """Why atomic_output exists; when this fails, fsspec got better and it may become simpler."""
    file_system, _ = s3
    with pytest.raises(ValueError, match="stop"), file_system.open("bucket/plain", "wb") as file:  # noqa: PT012
        file.write(b"half")
        raise ValueError("stop")
    assert file_system.cat_file("bucket/plain") == b"half"


def test_s3_existing_objects_are_refused_and_replaced(s3: tuple[Any, dict[str, Any]]) -> None:
    file_system, options = s3
    url = "s3://bucket/exists"
    file_system.pipe_file(url, b"old")
    with pytest.raises(ArchiveExistsError), atomic_output(url, storage_options=options):
        pass
    with (  # noqa: PT012
        pytest.raises(ValueError, match="stop"),
        atomic_output(url, overwrite=True, storage_options=options) as file,
    ):
        file.write(b"half")
        raise ValueError("stop")
    assert file_system.cat_file(url) == b"old"
    with atomic_output(url, overwrite=True, storage_options=options) as file:
        file.write(b"new")
    assert file_system.cat_file(url) == b"new"


@pytest.mark.parametrize("size_bytes", [10, 2 * PART_BYTES])
def test_s3_the_slower_of_two_writers_is_refused(
    s3: tuple[Any, dict[str, Any]], size_bytes: int
) -> None:
    file_system, options = s3
    url = f"s3://bucket/race-{size_bytes}"
    with (  # noqa: PT012
        pytest.raises(ArchiveExistsError),
        atomic_output(url, storage_options=options) as file,
    ):
        file.write(bytes(size_bytes))
        file_system.pipe_file(url, b"fast")
    assert file_system.cat_file(url) == b"fast"


def test_s3_errors_are_ours(s3: tuple[Any, dict[str, Any]]) -> None:
    _, options = s3
    with pytest.raises(NotFoundError):
        open_range("s3://bucket/none", options)
    with (
        pytest.raises(StoreError),
        atomic_output("s3://nobucket/a", storage_options=options) as file,
    ):
        file.write(b"x")


class RangeServer(BaseHTTPRequestHandler):
    """A static file with ranges, and a list of what was asked."""

    data = b""
    has_ranges = True
    asked: list[tuple[str, int]]

    def do_HEAD(self) -> None:
        self.asked.append(("HEAD", 0))
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.data)))
        if self.has_ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        body = self.data
        if wanted and self.has_ranges:
            body = self.data[int(wanted[1]) : int(wanted[2]) + 1]
            self.send_response(206)
            span = f"bytes {wanted[1]}-{int(wanted[1]) + len(body) - 1}/{len(self.data)}"
            self.send_header("Content-Range", span)
        else:
            self.send_response(200)
        self.asked.append(("GET", len(body)))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def http() -> Iterator[tuple[str, type[RangeServer]]]:
    pytest.importorskip("aiohttp")
    handler = type("Handler", (RangeServer,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/a.tar.zst", handler
    server.shutdown()
    thread.join()
    server.server_close()


def test_opening_and_reading_one_envelope_costs_three_requests(
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
    assert [method for method, _ in server.asked] == ["HEAD", "GET", "GET"]
    assert sum(size for _, size in server.asked) < 0.005 * len(server.data)


def test_a_server_without_ranges_is_named(http: tuple[str, type[RangeServer]]) -> None:
    url, server = http
    server.data = build({"data/a": os.urandom(1 << 20)})
    server.has_ranges = False
    with pytest.raises(StoreError, match="range"):
        ArchiveReader.open(url)


def test_missing_http_file(http: tuple[str, type[RangeServer]]) -> None:
    url, _ = http
    with pytest.raises((NotFoundError, StoreError)):
        ArchiveReader.open(url.replace("127.0.0.1", "127.0.0.1:1/"))
