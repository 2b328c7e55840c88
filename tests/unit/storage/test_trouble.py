"""Stores that are busy, hang, or let us in no more: a line, a hint, and nothing half done."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import fsspec
import pytest

from mlflow_exim_plugin.errors import ExitCode, StoreError
from mlflow_exim_plugin.storage import bucket_ranges
from mlflow_exim_plugin.storage.output import atomic_output
from mlflow_exim_plugin.storage.ranges import open_range
from mlflow_exim_plugin.storage.upload import s3
from mlflow_exim_plugin.storage.upload.under_way import notes
from tests.proxy import FaultyProxy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Bucket
    from tests.proxy import Request

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

EXPIRED = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>ExpiredToken</Code>'
    b"<Message>The provided token has expired.</Message></Error>"
)
PART = bytes(5 << 20)


@dataclass
class Road:
    """The way to a bucket, which can be blocked after so many parts."""

    proxy: FaultyProxy
    url: str
    options: dict[str, Any] = field(default_factory=dict)

    def block(self, status: int, body: bytes, *, parts: int) -> None:
        sent = [0]

        def rule(request: Request) -> int | None:
            sent[0] += "partNumber" in request.path
            return status if sent[0] > parts else None

        self.proxy.refused, self.proxy.rule = body, rule

    def clear(self) -> None:
        self.proxy.rule = lambda _: None

    def unfinished(self) -> list[str]:
        store, bucket = fsspec.core.url_to_fs(self.url, **self.options)
        listed = store.call_s3("list_multipart_uploads", Bucket=bucket).get("Uploads") or []
        return [upload["Key"] for upload in listed]


def write(url: str, options: dict[str, Any]) -> None:
    with atomic_output(url, storage_options=options) as file:
        for _ in range(40):
            file.write(PART)


@pytest.fixture
def road(s3_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Road]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    with FaultyProxy(s3_bucket.endpoint_url) as proxy:
        options = {"endpoint_url": proxy.url, "use_listings_cache": False}
        yield Road(proxy, s3_bucket.url, options | {"skip_instance_cache": True})


@pytest.mark.parametrize(
    ("status", "body", "said", "hint"),
    [
        (503, b"busy", "Service Unavailable", "when the store is well"),
        (400, EXPIRED, "The provided token has expired.", "renew or check the credentials"),
    ],
    ids=["a storm", "credentials that expire"],
)
def test_half_way_it_ends_with_a_line_and_goes_on_later(
    status: int, body: bytes, said: str, hint: str, road: Road, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"{road.url}/a"
    with atomic_output(f"{road.url}/whole", storage_options=road.options) as file:
        file.write(os.urandom(3 << 20))
    road.block(status, body, parts=2)
    with caplog.at_level(logging.CRITICAL), pytest.raises(StoreError) as written:
        write(url, road.options)
    assert written.value.message == f"cannot write {url}: {said}"
    assert hint in written.value.hint
    assert written.value.exit_code is ExitCode.SERVER
    # What could not be removed is named, and goes when the store lets us.
    (told,) = [
        record.getMessage() for record in caplog.records if "cannot be removed" in record.msg
    ]
    assert f"`mlflow exim leftovers {url} --clear`" in told
    assert [(note.url, note.is_held) for note in notes()] == [(url, False)]
    road.clear()
    assert road.unfinished() == ["a"]
    with contextlib.closing(open_range(f"{road.url}/whole", road.options)) as source:
        road.block(status, body, parts=-1)
        with pytest.raises(StoreError) as read:
            source.read_range(0, 1000)
    assert read.value.message == f"cannot read {road.url}/whole: {said}"
    assert hint in read.value.hint
    road.clear()
    with atomic_output(url, storage_options=road.options) as file:  # nothing was at its name
        file.write(b"whole")
    assert road.unfinished() == []
    assert notes() == []


def test_a_store_that_hangs_is_given_up(road: Road, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte a second is no answer either: a call has its time, whatever comes."""
    with atomic_output(f"{road.url}/whole", storage_options=road.options) as file:
        file.write(os.urandom(3 << 20))
    for module in (s3, bucket_ranges):
        monkeypatch.setattr(module, "seconds_for", lambda _: 2)
    over = threading.Event()

    def hang(request: Request) -> None:
        if "partNumber" in request.path or (request.method == "GET" and "whole" in request.path):
            over.wait(60)

    with contextlib.closing(open_range(f"{road.url}/whole", road.options)) as source:
        road.proxy.after = hang
        begun = time.monotonic()
        with pytest.raises(StoreError, match="it does not answer in time") as written:
            write(f"{road.url}/a", road.options)
        assert "when the store is well" in written.value.hint
        # A range is asked for again, as often as one whose connection broke.
        monkeypatch.setattr("mlflow_exim_plugin.storage.retries._PATIENCE_SECONDS", 1)
        with pytest.raises(StoreError, match="it does not answer in time"):
            source.read_range(0, 1000)
        assert time.monotonic() - begun < 50
        over.set()
    assert not fsspec.core.url_to_fs(road.url, **road.options)[0].exists(f"{road.url}/a")
