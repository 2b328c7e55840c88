"""Whatever goes wrong on the way to a store, what is read is what was written, or an error says so.

Each trial spoils calls that a seed chooses, between an archive on a store and who reads or writes
it. The truth is the bytes that were written, and those that lie there, read without the proxy.
``TEST_STORE_FAULTS`` in the environment asks for another number of trials on each store,
``TEST_STORE_FAULTS_SEED`` for others.
"""

from __future__ import annotations

import gc
import json
import os
import random
import re
import warnings
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import fsspec
import pytest

from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.container.writer import ArchiveWriter
from mlflow_exim_plugin.errors import EximError
from mlflow_exim_plugin.storage.output import atomic_output
from tests import far_stores
from tests.depth import one_of
from tests.proxy import CUT, CUT_BODY, SWALLOWED, FaultyProxy, Reply, Request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from tests.far_stores import FarStore

pytestmark = [
    pytest.mark.integration,
    # What fsspec's clients keep open for later.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

COUNT = int(os.environ.get("TEST_STORE_FAULTS", "12"))
SEED = int(os.environ.get("TEST_STORE_FAULTS_SEED", "7"))
STORES = {"S3": far_stores.rclone_s3, "WebDAV": far_stores.webdav, "Azure": far_stores.azure}
LOGIN = b"<!DOCTYPE html><html><body>Log in</body></html>"
ACTIONS: dict[str, int | bytes] = {
    "no answer": CUT,
    "half an answer": CUT_BODY,
    "busy": 503,
    "a refusal": 403,
    "not found": 404,
    "nothing": b"",
    "a login page": LOGIN,
    "taken and forgotten": SWALLOWED,
}


def _shorter(reply: Reply) -> Reply:
    return replace(reply, body=reply.body[: len(reply.body) // 2])


def _flipped(reply: Reply) -> Reply:
    middle = len(reply.body) // 2
    body = bytearray(reply.body)
    body[middle : middle + 1] = bytes([body[middle] ^ 1]) if body else b""
    return replace(reply, body=bytes(body))


def _as_whole(reply: Reply) -> Reply:
    """A part that is called all of the file."""
    headers = [(n, v) for n, v in reply.headers if n.lower() != "content-range"]
    return Reply(200 if reply.status == 206 else reply.status, headers, reply.body)


BENT = {"shorter, as its length says": _shorter, "another byte": _flipped, "as a whole": _as_whole}


def _before(asked: str) -> str:
    """Another range, which begins a few bytes before."""
    found = re.search(r"(\d+)-(\d+)", asked)
    start, end = (int(found[1]), int(found[2])) if found else (0, 0)
    return f"bytes={start - 7}-{end - 7}" if start >= 7 else asked


def _all(_: str) -> str:
    return ""


SENT = {"the range before": _before, "no range": _all}
FAULTS = [*ACTIONS, *BENT, *SENT]


class Spoiled:
    """A store behind a proxy that spoils some calls.

    Args:
        store: The store.
        fault: How.
        first: Number of the first of those calls.
        count: How many.
    """

    def __init__(self, store: FarStore, fault: str, first: int, count: int) -> None:
        spoiled = range(first, first + count)

        def rule(request: Request) -> int | bytes | None:
            return ACTIONS.get(fault) if request.number in spoiled else None

        self.proxy = proxy = FaultyProxy(f"http://127.0.0.1:{store.port}", rule)
        if fault in BENT:
            proxy.reply = lambda r, reply: BENT[fault](reply) if r.number in spoiled else reply
        if fault in SENT:
            proxy.range = lambda r, asked: SENT[fault](asked) if r.number in spoiled else asked
        port = int(proxy.url.rpartition(":")[2])
        told = json.dumps(store.options).replace(f":{store.port}", f":{port}")
        self.options = json.loads(told)


@pytest.fixture(scope="module", params=one_of(*STORES))
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FarStore]:
    serve: AbstractContextManager[FarStore] = STORES[request.param](
        tmp_path_factory.mktemp(request.param)
    )
    with serve as served:
        yield served
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()  # a client may leave sockets open


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")


def _contents(chance: random.Random) -> dict[str, bytes]:
    sizes = {"a.json": 30, "small": 2_000, "large": 1_500_000, "deep/one": 70_000}
    return {f"data/{name}": chance.randbytes(size) for name, size in sizes.items()}


def _write(url: str, options: dict[str, object], members: dict[str, bytes]) -> None:
    with (
        atomic_output(url, storage_options=options) as file,
        ArchiveWriter(file, base_directory="a") as writer,
    ):
        for path, content in members.items():
            writer.add(path, content)


def _read(url: str, options: dict[str, object]) -> dict[str, bytes]:
    with ArchiveReader.open(url, storage_options=options) as reader:
        return {path: reader.read(path) for path in reader.paths() if path.startswith("data/")}


def _lies_there(store: FarStore, url: str) -> bytes | None:
    file_system, path = fsspec.core.url_to_fs(url, **store.options)
    file_system.invalidate_cache()
    return bytes(file_system.cat_file(path)) if file_system.exists(path) else None


def _trials(calls: int) -> Iterator[tuple[random.Random, str, int, int]]:
    chance = random.Random(SEED)
    for trial in range(COUNT):
        fault = FAULTS[(SEED + trial) % len(FAULTS)]
        yield chance, fault, chance.randrange(calls) + 1, chance.choice((1, 1, 3))


@pytest.mark.timeout(max(300, 60 * COUNT))
def test_what_is_read_is_what_lies_there(store: FarStore) -> None:
    url = f"{store.new_folder()}/a.tar.zst"
    members = _contents(random.Random(SEED))
    _write(url, store.options, members)
    with (whole := Spoiled(store, "", 0, 0)).proxy as proxy:
        assert _read(url, whole.options) == members
        calls = len(proxy.seen)
    wrong, became = [], Counter[str]()
    for _, fault, first, count in _trials(calls):
        told = f"{fault} at call {first}, {count} times"
        with (spoiled := Spoiled(store, fault, first, count)).proxy:
            try:
                found = _read(url, spoiled.options)
            except EximError:
                became["refused"] += 1
            except Exception as error:  # noqa: BLE001 - none of another kind may leave
                wrong.append(f"{told}: {error!r}")
            else:
                became["read"] += 1
                wrong += [f"{told}: {path}" for path in members if found.get(path) != members[path]]
    assert wrong == []
    assert became["read"]


@pytest.mark.timeout(max(300, 60 * COUNT))
def test_what_is_written_lies_there_or_nothing_does(store: FarStore) -> None:
    folder = store.new_folder()
    with (whole := Spoiled(store, "", 0, 0)).proxy as proxy:
        _write(f"{folder}/whole", whole.options, _contents(random.Random(SEED)))
        calls = len(proxy.seen)
    wrong, became = [], Counter[str]()
    for number, (chance, fault, first, count) in enumerate(_trials(calls)):
        told = f"{fault} at call {first}, {count} times"
        url, members = f"{folder}/{number}.tar.zst", _contents(chance)
        is_done = False
        with (spoiled := Spoiled(store, fault, first, count)).proxy:
            try:
                _write(url, spoiled.options, members)
                is_done = True
            except EximError:
                became["refused"] += 1
            except Exception as error:  # noqa: BLE001 - none of another kind may leave
                wrong.append(f"{told}: {error!r}")
        became["written"] += is_done
        there = _lies_there(store, url)
        if is_done and there is None:
            wrong.append(f"{told}: nothing is there")
        elif there is not None:
            try:
                if _read(url, store.options) != members:
                    wrong.append(f"{told}: other bytes are there")
            except EximError as error:
                wrong.append(f"{told}: no archive is there: {error}")
    assert wrong == []
    assert became["written"]
