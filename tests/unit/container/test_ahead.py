"""Frames that are asked for before they are needed: which, when, and how many at once."""

from __future__ import annotations

import random
import threading
import time

import pytest

from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.verification.archive import verify_archive
from tests.unit.container.crafting import MemorySource, build

rng = random.Random(7)
MEGABYTE = 1 << 20
MEMBERS = {f"data/{n:03}.bin": rng.randbytes(3 * MEGABYTE) for n in range(30)}
ARCHIVE = build(MEMBERS, level=1)


class FarSource(MemorySource):
    """It takes a while to answer, and counts how many wait for it."""

    at_once = 8

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.waiting = self.most_waiting = 0
        self.most_bytes = self.bytes_waiting = 0
        self.asked: list[tuple[int, int]] = []
        self.fails_at = -1
        self.lock = threading.Lock()

    def read_range(self, start: int, end: int) -> bytes:
        with self.lock:
            self.waiting += 1
            self.bytes_waiting += end - start
            self.most_waiting = max(self.most_waiting, self.waiting)
            self.most_bytes = max(self.most_bytes, self.bytes_waiting)
            self.asked.append((start, end))
        time.sleep(0.1)
        with self.lock:
            self.waiting -= 1
            self.bytes_waiting -= end - start
        if start <= self.fails_at < end:
            raise StoreError("the store died")
        return super().read_range(start, end)


@pytest.fixture
def source() -> FarSource:
    return FarSource(ARCHIVE)


def test_all_of_an_archive_is_asked_for_once_several_ranges_at_a_time(source: FarSource) -> None:
    with ArchiveReader.from_source(source) as reader:
        opened = len(source.asked)
        assert verify_archive(reader, jobs=2) == []
    assert 4 <= source.most_waiting <= 8
    assert source.most_bytes <= 8 * 6 * MEGABYTE
    assert len(source.asked) - opened <= len(ARCHIVE) // (3 * MEGABYTE) + 2
    assert source.bytes_read <= len(ARCHIVE) + 2 * MEGABYTE


def test_a_stream_asks_ahead_once_it_is_read_in_order() -> None:
    large = rng.randbytes(60 * MEGABYTE)
    source = FarSource(build({"data/x": large, "data/y": large[:100]}, level=1))
    with ArchiveReader.from_source(source) as reader, reader.open_member("data/x") as stream:
        before = source.bytes_read
        assert stream.read(10) == large[:10]
        assert source.bytes_read - before < 2 * MEGABYTE
        assert stream.read() == large[10:]
    assert source.most_waiting >= 4


def test_what_is_expected_comes_before_it_is_asked_for(source: FarSource) -> None:
    wanted = sorted(MEMBERS)[::3]
    with ArchiveReader.from_source(source) as reader:
        before = source.bytes_read
        reader.expect([*wanted, "data/none"])
        for path in wanted:
            assert reader.read(path) == MEMBERS[path]
        read = source.bytes_read - before
    assert 4 <= source.most_waiting <= 8
    # Nothing but the frames that they share with their neighbours.
    assert read < len(wanted) * 3.3 * MEGABYTE


def test_what_was_forgotten_hinders_nobody(source: FarSource) -> None:
    """Streams that are left in the middle do not keep others from reading ahead."""
    with ArchiveReader.from_source(source) as reader:
        left = [reader.open_member(path) for path in sorted(MEMBERS)[:20]]
        for stream in left:
            stream.read(1_500_000)
        source.most_waiting = 0
        assert verify_archive(reader) == []
        assert 4 <= source.most_waiting <= 8
        for stream, path in zip(left, sorted(MEMBERS), strict=False):
            assert stream.read() == MEMBERS[path][1_500_000:]
            stream.close()


def test_many_threads_read_what_they_want(source: FarSource) -> None:
    with ArchiveReader.from_source(source) as reader:
        found: dict[str, bytes] = {}

        def work(paths: list[str]) -> None:
            for path in paths:
                with reader.open_member(path) as stream:
                    found[path] = stream.read()

        paths = sorted(MEMBERS)
        threads = [threading.Thread(target=work, args=(paths[n::12],)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == MEMBERS


def test_a_store_that_dies_is_said_to_whoever_reads_there(source: FarSource) -> None:
    with ArchiveReader.from_source(source) as reader:
        source.fails_at = reader.frames.table.file_offsets[20]
        with pytest.raises(StoreError, match="the store died"):
            verify_archive(reader, jobs=2)
        source.fails_at = -1
        assert verify_archive(reader, jobs=2) == []
