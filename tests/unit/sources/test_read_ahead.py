from __future__ import annotations

import gc
import io
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, cast

import pytest

from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.sources import read_ahead
from mlflow_exim_plugin.sources.read_ahead import ReadAhead
from mlflow_exim_plugin.storage.room import Room

if TYPE_CHECKING:
    from collections.abc import Iterator

KILOBYTE = 1 << 10


class Files:
    """A tree of files of one length; one is gone.

    Args:
        owns_threads: Whether it reads by itself, as a bucket does.
    """

    def __init__(self, *, owns_threads: bool) -> None:
        self._owns_threads = owns_threads
        self._lock = threading.Lock()
        self.opened: list[str] = []

    def read(self, path: str, size_bytes: int) -> Future[bytes] | None:
        if not self._owns_threads:
            return None
        coming: Future[bytes] = Future()
        try:
            coming.set_result(self.open(path, size_bytes).read())
        except StoreError as error:
            coming.set_exception(error)
        return coming

    def open(self, path: str, size_bytes: int) -> io.BytesIO:
        with self._lock:
            self.opened.append(path)
        if path == "gone":
            raise StoreError("gone: it is not there")
        return io.BytesIO(path.encode().ljust(size_bytes))


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Room:
    room = Room(100 * KILOBYTE)
    monkeypatch.setattr(read_ahead, "ROOM", room)
    return room


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def ahead(files: Files, names: list[str], pool: ThreadPoolExecutor) -> ReadAhead:
    return ReadAhead(cast("Any", files), [(name, KILOBYTE) for name in names], pool)


NAMES = [str(number) for number in range(300)]


@pytest.mark.parametrize("owns_threads", [True, False])
def test_they_come_in_their_order_some_before_their_turn(
    owns_threads: bool, room: Room, pool: ThreadPoolExecutor
) -> None:
    files = Files(owns_threads=owns_threads)
    reading = ahead(files, [*NAMES[:100], "gone", *NAMES[101:]], pool)
    pool.submit(lambda: None).result()
    # Half of the room is for those who ask.
    assert 50 - 4 <= len(files.opened) <= 50
    for number, name in enumerate(NAMES):
        if number == 100:
            with pytest.raises(StoreError):
                reading.open(number)
        else:
            assert reading.open(number).read() == name.encode().ljust(KILOBYTE)
        assert room.left_bytes >= 0
    assert sorted(files.opened) == sorted([*NAMES[:100], "gone", *NAMES[101:]])
    assert room.left_bytes == room.size_bytes
    assert reading.open(7).read().strip() == b"7"


@pytest.mark.usefixtures("little_to_collect")
def test_what_nobody_asked_for_goes(room: Room, pool: ThreadPoolExecutor) -> None:
    reading = ahead(Files(owns_threads=True), NAMES, pool)
    assert reading.open(3).read()
    assert min(reading._begun) == 0
    assert reading.open(299).read()
    assert min(reading._begun) == 299 - read_ahead._KEPT
    del reading
    gc.collect()
    assert room.left_bytes == room.size_bytes


def test_a_source_that_is_closed_still_opens(room: Room) -> None:
    with ThreadPoolExecutor(1) as pool:
        reading = ahead(Files(owns_threads=False), NAMES, pool)
    for number, name in enumerate(NAMES):
        assert reading.open(number).read().strip() == name.encode()
    assert room.left_bytes == room.size_bytes


def test_what_is_large_is_not_read_whole(room: Room, pool: ThreadPoolExecutor) -> None:
    files = Files(owns_threads=True)
    reading = ReadAhead(cast("Any", files), [("large", 9 << 20), ("a", 1)], pool)
    assert files.opened == ["a"]
    assert len(reading.open(0).read()) == 9 << 20
    assert room.left_bytes == room.size_bytes - 1
