from __future__ import annotations

import gc
import gzip
import io
import random
import shutil
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
import zstandard

from mlflow_exim_plugin.container.frames import compress_frame
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.container.tail import FORMAT_VERSION
from mlflow_exim_plugin.errors import (
    DigestMismatchError,
    InvalidArchiveError,
    NotFoundError,
    TruncatedArchiveError,
    UsageError,
)
from mlflow_exim_plugin.verification.archive import verify_archive
from tests.unit.container.crafting import BASE, Entry, Forgery, MemorySource, build, opened

if TYPE_CHECKING:
    from pathlib import Path

rng = random.Random(3)
LARGE = rng.randbytes((3 << 20) + 77)
MEMBERS = {
    "exim.json": b"{}",
    "data/a/1.json": b"one",
    "data/a/2.json": b"two",
    "data/a-b": b"",
    "data/b/\u65e5.json": b"three",
    "data/large.bin": LARGE,
}
ARCHIVE = build(MEMBERS)


def test_what_the_archive_says() -> None:
    reader = opened(ARCHIVE)
    assert (reader.base_directory, reader.format_version) == (BASE, FORMAT_VERSION)
    assert (reader.required_features, reader.size_bytes) == ((), len(ARCHIVE))
    assert len(reader) == len(MEMBERS) + 4


def test_members_are_sorted_and_have_their_sizes_and_digests() -> None:
    reader = opened(ARCHIVE)
    members = list(reader.members())
    assert [member.path for member in members] == sorted(reader.paths())
    for path, data in MEMBERS.items():
        assert reader.member(path).size_bytes == len(data)
        assert reader.read(path) == data
        assert path in reader


def test_paths_with_a_prefix() -> None:
    reader = opened(ARCHIVE)
    for prefix in (
        "",
        "data/",
        "data/a",
        "data/a/",
        "data/b/\u65e5",
        "exim.json",
        "z",
        "!",
        "data/a0",
    ):
        assert reader.paths(prefix) == [path for path in reader.paths() if path.startswith(prefix)]


def test_unknown_members() -> None:
    reader = opened(ARCHIVE)
    for path in ("data/a", "data/a/3.json", "", "zzz", "data/A/1.json"):
        assert path not in reader
        for method in (reader.member, reader.read, reader.open_member):
            with pytest.raises(NotFoundError):
                method(path)
    assert 7 not in reader


def test_ranges_are_python_slices() -> None:
    reader = opened(ARCHIVE)
    for start, end in [
        (0, 1),
        (5, 2_000_000),
        (-7, None),
        (1 << 20, (1 << 20) + 1),
        (9, 3),
        (0, 1 << 40),
    ]:
        assert reader.read("data/large.bin", start, end) == LARGE[start:end]


def test_one_request_opens_a_small_archive_and_one_more_reads_a_member() -> None:
    small = MemorySource(build({"data/a": b"a"}))
    assert ArchiveReader.from_source(small).read("data/a") == b"a"
    assert small.requests == 1
    source = MemorySource(ARCHIVE)
    reader = ArchiveReader.from_source(source)
    assert source.requests == 1
    reader.read("data/a/1.json")
    reader.read("data/a/2.json")
    assert source.requests == 2


def test_two_requests_open_an_archive_with_a_large_manifest() -> None:
    source = MemorySource(build({f"data/{rng.random()}": b"%d" % n for n in range(50_000)}))
    reader = ArchiveReader.from_source(source)
    assert source.requests == 2
    reader.read(reader.paths("data/")[500])
    assert source.requests == 3


def test_a_large_seek_table_comes_with_two_requests() -> None:
    from tests.unit.container.crafting import manifest_of

    payload = {f"data/{n:05}": b"%d" % n for n in range(12_000)}
    source = MemorySource(Forgery(payload=payload).data())
    reader = ArchiveReader.from_source(source)
    assert reader.read("manifest-sha256.txt") == manifest_of(payload)
    assert source.requests <= 5


def test_expected_root() -> None:
    root = opened(ARCHIVE).root
    assert opened(ARCHIVE, expected_root=root.upper()).root == root
    with pytest.raises(DigestMismatchError, match=root):
        opened(ARCHIVE, expected_root="0" * 64)


def test_whole_reads_are_verified() -> None:
    def change(entries: list[Entry]) -> list[Entry]:
        entries[0].data = b"ALPHA"
        return entries

    reader = opened(Forgery(entries=change).data())
    assert reader.read("data/a.txt", 0, 2) == b"AL"
    with pytest.raises(DigestMismatchError):
        reader.read("data/a.txt")
    with reader.open_member("data/a.txt") as stream, pytest.raises(DigestMismatchError):
        stream.read(5)
    with reader.open_member("data/a.txt") as stream, pytest.raises(DigestMismatchError):
        shutil.copyfileobj(stream, io.BytesIO(), 1)


def test_a_manifest_that_is_not_the_tag_manifests_is_refused_when_opened() -> None:
    def change(entries: list[Entry]) -> list[Entry]:
        for entry in entries:
            if entry.path == "manifest-sha256.txt":
                entry.data = entry.data.replace(entry.data[:64], b"0" * 64)
        return entries

    with pytest.raises(DigestMismatchError, match=r"manifest-sha256\.txt"):
        opened(Forgery(entries=change).data())


@pytest.mark.usefixtures("little_to_collect")
def test_memory_does_not_grow_with_a_member() -> None:
    size_bytes = 96 << 20
    source = MemorySource(build({"data/x": rng.randbytes(size_bytes)}, level=1))
    gc.collect()
    tracemalloc.start()
    try:
        with ArchiveReader.from_source(source).open_member("data/x") as stream:
            while stream.read(1 << 20):
                pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 56 << 20


def test_wrong_index_never_gives_other_bytes() -> None:
    def swap(places: dict[str, tuple[int, int]]) -> None:
        places["data/b/c.json"], places["data/b/d.bin"] = (
            places["data/b/d.bin"],
            places["data/b/c.json"],
        )

    reader = opened(Forgery(rows=swap).data())
    for path in ("data/b/c.json", "data/b/d.bin"):
        with pytest.raises(DigestMismatchError):
            reader.read(path)

    def empty(places: dict[str, tuple[int, int]]) -> None:
        places["data/b/d.bin"] = (0, 0)

    reader = opened(Forgery(rows=empty).data())
    with pytest.raises(DigestMismatchError):
        reader.read("data/b/d.bin")
    with reader.open_member("data/b/d.bin") as stream, pytest.raises(DigestMismatchError):
        stream.read()

    def outside(places: dict[str, tuple[int, int]]) -> None:
        places["data/b/d.bin"] = (1 << 40, 600)

    reader = opened(Forgery(rows=outside).data())
    for method in (reader.read, reader.open_member):
        with pytest.raises(InvalidArchiveError) as caught:
            method("data/b/d.bin")
        assert caught.value.findings[0].code == "E026"


def test_member_that_claims_more_than_can_be_read_at_once() -> None:
    zeros = bytes(32 << 20)
    frame = compress_frame(zeros, 3)

    def many(frames: list[bytes], sizes: list[int]) -> None:
        frames[1:1] = [frame] * 40
        sizes[1:1] = [len(zeros)] * 40

    def claim(places: dict[str, tuple[int, int]]) -> None:
        shift = 40 * len(zeros)
        for path, (offset, size_bytes) in places.items():
            places[path] = (offset + shift, size_bytes)
        places["data/a.txt"] = (512, shift)

    reader = opened(Forgery(frames=many, rows=claim).data())
    with pytest.raises(UsageError):
        reader.read("data/a.txt")
    with reader.open_member("data/a.txt") as stream:
        assert stream.read(100)[-1:] == b"\0"


def test_stream_is_an_ordinary_file() -> None:
    reader = opened(ARCHIVE)
    with reader.open_member("data/large.bin") as stream:
        assert stream.readable()
        assert stream.seekable()
        plain = io.BytesIO(LARGE)
        moves = random.Random(5)
        for _ in range(200):
            position = moves.randrange(len(LARGE) + 100)
            assert stream.seek(position) == plain.seek(position)
            count = moves.choice([0, 1, 17, 70_000, 2_000_000])
            assert stream.read(count) == plain.read(count)
            assert stream.tell() == plain.tell()
        assert stream.seek(-3, io.SEEK_END) == len(LARGE) - 3
        assert stream.read() == LARGE[-3:]
        with pytest.raises(UsageError):
            stream.seek(-1)
    with reader.open_member("data/a-b") as stream:
        assert stream.read() == b""


def test_sequential_reading_needs_few_requests_and_seeking_little_data() -> None:
    large = rng.randbytes(40 << 20)
    archive = build({"data/x": large, "data/z": b"end"}, level=1)
    source = MemorySource(archive)
    with ArchiveReader.from_source(source).open_member("data/x") as stream:
        opening = source.requests
        while stream.read(100_000):
            pass
    assert source.requests - opening <= 9
    source = MemorySource(archive)
    with ArchiveReader.from_source(source).open_member("data/x") as stream:
        before = source.bytes_read
        for position in (30 << 20, 1 << 20, 20 << 20):
            stream.seek(position + 5)
            assert stream.read(10) == large[position + 5 : position + 15]
        assert source.bytes_read - before < 3.2 * (1 << 20)


def test_many_threads_read_at_once() -> None:
    reader = opened(ARCHIVE)
    barrier = threading.Barrier(8)

    def work(number: int) -> bool:
        barrier.wait()
        path = list(MEMBERS)[number % len(MEMBERS)]
        return all(reader.read(path) == MEMBERS[path] for _ in range(30))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


@pytest.mark.parametrize(
    ("kind", "words", "data"),
    [
        (TruncatedArchiveError, "empty", b""),
        (TruncatedArchiveError, "cut short", ARCHIVE[: len(ARCHIVE) // 2]),
        (TruncatedArchiveError, "cut short", ARCHIVE[:3]),
        (InvalidArchiveError, "not an archive", b"<html>404</html>"),
        (InvalidArchiveError, "not an archive", gzip.compress(b"x", mtime=0)),
        (InvalidArchiveError, "another program", zstandard.ZstdCompressor().compressobj().flush()),
        (InvalidArchiveError, "before", ARCHIVE[1:]),
    ],
)  # fmt: skip
def test_what_is_no_archive_is_told_apart(kind: type[Exception], words: str, data: bytes) -> None:
    with pytest.raises(kind, match=words) as caught:
        opened(data)
    assert type(caught.value) is kind
    assert isinstance(caught.value, InvalidArchiveError)
    assert "\n" not in caught.value.message
    assert words in caught.value.message or words in caught.value.hint


def test_open_closes_the_source_of_a_broken_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.zst"
    path.write_bytes(b"junk")
    with pytest.raises(InvalidArchiveError, match=str(path)):
        ArchiveReader.open(str(path))
    path.write_bytes(ARCHIVE)
    with ArchiveReader.open(str(path)) as reader:
        assert reader.read("data/a/1.json") == b"one"


@pytest.mark.parametrize("jobs", [1, 3])
def test_verification_reports_progress_up_to_the_end(jobs: int) -> None:
    seen: list[tuple[int, int]] = []
    reader = opened(ARCHIVE)
    assert verify_archive(reader, jobs=jobs, progress=lambda *now: seen.append(now)) == []
    assert seen == sorted(seen)
    assert seen[-1][0] > 0.9 * len(ARCHIVE)
    assert {total for _, total in seen} == {len(ARCHIVE)}


def test_findings_are_bounded() -> None:
    from mlflow_exim_plugin.verification.findings import MAX_FINDINGS

    more = [Entry(f"data/unlisted-{n}") for n in range(MAX_FINDINGS + 234)]
    forgery = Forgery(entries=lambda entries: [*entries, *more])
    findings = verify_archive(opened(forgery.data()))
    assert len(findings) == MAX_FINDINGS + 1
    assert "234 more" in findings[-1].message
