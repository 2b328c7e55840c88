"""What archives on servers cost, and what S3's own files lack."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import NotFoundError, StoreError
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
