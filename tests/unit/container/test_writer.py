from __future__ import annotations

import gc
import hashlib
import io
import json
import os
import random
import tarfile
import tracemalloc
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_exim_plugin.container.writer import IN_MEMORY_BYTES, ArchiveWriter
from mlflow_exim_plugin.errors import (
    EximError,
    NotFoundError,
    ServerError,
    StoreError,
    TruncatedArchiveError,
    UnsafePathError,
    UsageError,
)
from mlflow_exim_plugin.schema.rules import LIMITS
from mlflow_exim_plugin.storage.ranges import open_range
from mlflow_exim_plugin.verification.archive import verify_archive
from tests.unit.container.crafting import BASE, build, contents, opened

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.container.member_stream import Member

LARGE = IN_MEMORY_BYTES + 12_345


def mixed(writer: ArchiveWriter) -> None:
    rng = random.Random(1)
    writer.add("exim.json", b"{}")
    for number in range(300):
        writer.add(f"data/runs/{number}.json", b'{"n": %d}' % (number // 2) * 40)
    writer.add("data/middle.parquet", rng.randbytes(700_000))
    writer.add_stream("data/large.bin", LARGE, io.BytesIO(rng.randbytes(LARGE)))
    writer.add_link("data/link.bin", "data/large.bin")


def written(fill: Callable[[ArchiveWriter], Any], **options: Any) -> bytes:
    file = io.BytesIO()
    with ArchiveWriter(file, **{"base_directory": BASE, **options}) as writer:
        fill(writer)
    assert writer.bytes_written == len(file.getvalue())
    assert writer.root == opened(file.getvalue()).root
    return file.getvalue()


def test_a_document_that_is_written_can_be_read_however_repetitive_it_is() -> None:
    documents = [
        b'"%s"' % (b"a" * (LIMITS.free_bytes + 1)),
        b"[\n%s  0\n]\n" % (b"  0,\n" * (LIMITS.free_values + 1)),
        b'{"a": [\n%s    {"b": []}\n]}' % (b'    {\n      "b": []\n    },\n' * LIMITS.free_values),
    ]
    for document in documents:
        data = written(partial(ArchiveWriter.add, path="data/a.json", data=document))
        assert opened(data).read_document("data/a.json") == json.loads(document)


def test_as_many_members_as_one_likes_may_have_one_content() -> None:
    """A run of so many tiny files that are alike is no bomb."""
    paths = [f"data/{'x' * 200}/{number:07d}.txt" for number in range(70_000)]

    def fill(writer: ArchiveWriter) -> None:
        for path in paths:
            writer.add(path, b"the same")

    data = written(fill)
    with opened(data) as reader:
        assert reader.member("manifest-sha256.txt").size_bytes > LIMITS.free_bytes
        assert reader.paths("data/") == paths


def stream_in(size_bytes: int, stream: Any) -> tuple[Member, bytes]:
    """Add one streamed member between two others, which must survive whatever it does."""
    file = io.BytesIO()
    with ArchiveWriter(file, base_directory=BASE, workers=2) as writer:
        writer.add("data/before", b"before")
        member = writer.add_stream("data/x", size_bytes, stream)
        writer.add("data/z", b"after")
    reader = opened(file.getvalue())
    assert verify_archive(reader) == []
    assert (reader.read("data/before"), reader.read("data/z")) == (b"before", b"after")
    assert reader.member("data/x").sha256 == member.sha256
    with reader.open_member("data/x") as stored:
        return member, stored.read()


class Failing(io.RawIOBase):
    """Gives some bytes, then raises."""

    def __init__(self, size_bytes: int, error: Exception) -> None:
        self.left = size_bytes
        self.error = error

    def read(self, size: int = -1) -> bytes:
        if not self.left:
            raise self.error
        count = min(size, self.left, 1000)
        self.left -= count
        return b"f" * count


def test_bytes_do_not_depend_on_the_number_of_workers() -> None:
    assert written(mixed, workers=0) == written(mixed, workers=1) == written(mixed, workers=4)


def test_root_depends_on_paths_and_contents_only() -> None:
    members = {f"data/{n}": os.urandom(n * 3000) for n in range(1, 120, 7)} | {"tag.json": b"{}"}
    root = opened(build(members)).root
    backwards = dict(reversed(members.items()))
    for data in (
        build(members, level=1),
        build(members, level=19),
        build(backwards),
        build(members, base_directory="\u5225"),
        build(members, workers=3),
    ):
        assert opened(data).root == root
    assert opened(build({**members, "data/1": b"other"})).root != root
    assert opened(build({**members, "data/more": b""})).root != root
    assert opened(build(members, bag_info={"Source-Organization": "x"})).root != root


def test_root_is_the_digest_of_the_tag_manifest_and_never_changes() -> None:
    """Golden: a change here breaks every signature made before."""
    reader = opened(build({"data/a.txt": b"alpha", "exim.json": b"{}"}))
    assert reader.root == hashlib.sha256(reader.read("tagmanifest-sha256.txt")).hexdigest()
    assert reader.read("manifest-sha256.txt") == (
        b"8ed3f6ad685b959ead7022518e1af76cd816f8e8ec7ccdda1ed4018e8f2223f8  data/a.txt\n"
    )
    assert reader.read("bag-info.txt") == b"Payload-Oxum: 5.1\n"
    assert reader.root == "771a5f3dc9cdc8387d780daf628bbe52330e73eb89747c4104411a4aa3f38d2b"


def test_equal_members_are_stored_once() -> None:
    body = os.urandom(1 << 20)
    data = build({f"data/{n}": body for n in range(5)})
    assert len(data) < 1.01 * len(body)
    assert set(contents(opened(data))) >= {f"data/{n}" for n in range(5)}
    assert opened(data).read("data/4") == body
    assert verify_archive(opened(data)) == []


def test_empty_members_and_tag_files_are_no_links(tmp_path: Any) -> None:
    archive = build({"data/a": b"", "data/b": b"", "data/c": b"{}", "x.json": b"{}"})
    (tmp_path / "a").write_bytes(archive)
    stream = io.BytesIO(_decompressed(archive))
    with tarfile.open(fileobj=stream) as tar:
        assert not any(member.islnk() for member in tar)


def _decompressed(archive: bytes) -> bytes:
    reader = opened(archive)
    return b"".join(reader.frames.span(0, reader.footer.tar_bytes))


def test_headers_are_the_same_on_every_machine() -> None:
    with tarfile.open(fileobj=io.BytesIO(_decompressed(written(mixed)))) as tar:
        for member in tar:
            facts = (member.mtime, member.uid, member.gid, member.mode, member.uname, member.gname)
            assert facts == (0, 0, 0, 0o644, "", "")
            assert member.name.startswith(f"{BASE}/")


def test_a_link_to_a_link_points_to_the_first_member() -> None:
    file = io.BytesIO()
    with ArchiveWriter(file, base_directory=BASE) as writer:
        writer.add("data/a", b"a")
        writer.add_link("data/b", "data/a")
        assert writer.add_link("data/c", "data/b").size_bytes == 1
        with pytest.raises(NotFoundError):
            writer.add_link("data/d", "data/none")
        with pytest.raises(NotFoundError):
            writer.add_link("data/d", "data/A")
        writer.add("data/d", b"the path of a failed link is free")
    assert opened(file.getvalue()).read("data/c") == b"a"
    assert verify_archive(opened(file.getvalue())) == []


def test_short_large_stream_is_filled_with_zeros() -> None:
    member, data = stream_in(LARGE, io.BytesIO(b"s" * 1000))
    assert (member.complete, member.received_bytes, member.size_bytes) == (False, 1000, LARGE)
    assert "ended" in member.error
    assert data == b"s" * 1000 + bytes(LARGE - 1000)


def test_large_stream_that_grew_is_cut() -> None:
    member, data = stream_in(LARGE, io.BytesIO(b"g" * (LARGE + 1)))
    assert (member.complete, member.size_bytes) == (False, LARGE)
    assert "more" in member.error
    assert data == b"g" * LARGE


@pytest.mark.parametrize("error", [OSError("reset by\npeer"), ServerError("gone")])
def test_large_stream_that_fails_is_filled_with_zeros(error: Exception) -> None:
    member, data = stream_in(LARGE, Failing(5_000_000, error))
    assert (member.complete, member.received_bytes) == (False, 5_000_000)
    assert member.error in {"reset by peer", "gone"}
    assert data == b"f" * 5_000_000 + bytes(LARGE - 5_000_000)


def test_small_stream_has_its_real_size() -> None:
    for body in (b"shorter", b"l" * 5000):
        member, data = stream_in(100, io.BytesIO(body))
        assert (member.complete, member.size_bytes, data) == (True, len(body), body)


def test_small_stream_that_fails_is_not_added() -> None:
    file = io.BytesIO()
    with ArchiveWriter(file, base_directory="a") as writer:
        member = writer.add_stream("data/f", 5000, Failing(1234, OSError("gone")))
        assert not writer.has("data/f")
        writer.add("data/f", b"its path is free")
    assert (member.complete, member.received_bytes, member.error) == (False, 1234, "gone")
    assert opened(file.getvalue()).read("data/f") == b"its path is free"


def test_small_stream_that_grew_beyond_memory_is_cut() -> None:
    member, data = stream_in(100, io.BytesIO(b"g" * (IN_MEMORY_BYTES + 1)))
    assert (member.complete, data) == (False, b"g" * 100)


def test_exact_stream_is_complete() -> None:
    body = os.urandom(LARGE)
    member, data = stream_in(LARGE, io.BytesIO(body))
    assert (member.complete, member.received_bytes, member.error) == (True, None, "")
    assert data == body


def test_streams_that_give_little_at_a_time() -> None:
    class Dripping(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, 70_001))

    body = os.urandom(LARGE)
    member, data = stream_in(LARGE, Dripping(body))
    assert member.complete
    assert data == body


def test_other_errors_of_a_stream_leave_the_archive_unfinished() -> None:
    file = io.BytesIO()
    with (  # noqa: PT012 - the block is what is tested
        pytest.raises(ZeroDivisionError),
        ArchiveWriter(file, base_directory=BASE) as writer,
    ):
        writer.add("data/a", b"a")
        writer.add_stream("data/b", 10, Failing(1, ZeroDivisionError()))
    with pytest.raises(TruncatedArchiveError):
        opened(file.getvalue())
    with pytest.raises(UsageError):
        writer.close()
    with pytest.raises(UsageError):
        _ = writer.root


@pytest.mark.parametrize(
    "path",
    [
        "bagit.txt",
        "bag-info.txt",
        "manifest-sha256.txt",
        "TagManifest-md5.txt",
        "fetch.txt",
        "Data/x",
    ],
)
def test_the_bags_own_files_are_not_for_callers(path: str) -> None:
    with ArchiveWriter(io.BytesIO(), base_directory=BASE) as writer, pytest.raises(UsageError):
        writer.add(path, b"")


def test_collisions_are_refused_and_free_paths_found() -> None:
    with ArchiveWriter(io.BytesIO(), base_directory=BASE) as writer:
        writer.add("data/m/Model.pkl", b"")
        for path in ("data/m/Model.pkl", "data/M/model.PKL", "data/m", "data/m/model.pkl/x"):
            with pytest.raises(UnsafePathError):
                writer.add(path, b"")
        assert writer.has("data/m/Model.pkl")
        assert not writer.has("data/m/model.pkl")
        assert writer.free_path("data/m/other.pkl") == "data/m/other.pkl"
        for taken, free in (
            ("data/m/model.pkl", "data/m/model~2.pkl"),
            ("data/m/MODEL.pkl", "data/m/MODEL~3.pkl"),
            ("data/m", "data/m~2"),
            ("data/m/model.pkl/x", "data/m/model~4.pkl/x"),
            ("data/m/model.pkl/y", "data/m/model~4.pkl/y"),
        ):
            assert writer.free_path(taken) == free
            writer.add(free, b"")
        assert writer.free_path("data/m/model.pkl/x") == "data/m/model~4.pkl/x~2"


def test_free_path_of_the_longest_segment_is_allowed() -> None:
    with ArchiveWriter(io.BytesIO(), base_directory=BASE) as writer:
        path = "data/" + "\u00e9" * 115 + ".parquet"
        writer.add(path, b"")
        writer.add(writer.free_path(path), b"")
        assert writer.free_path(path).endswith("~3.parquet")


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "data/../x", "data/a:b", ""])
def test_unsafe_paths_are_refused(path: str) -> None:
    with ArchiveWriter(io.BytesIO(), base_directory=BASE) as writer:
        with pytest.raises(UnsafePathError):
            writer.add(path, b"")
        with pytest.raises(UnsafePathError):
            writer.add_stream(path, 1, io.BytesIO(b"x"))


@pytest.mark.parametrize(
    "options",
    [
        {"base_directory": "a/b"},
        {"level": 99},
        {"level": 1 << 40},
        {"workers": -1},
        {"bag_info": {"A": "two\nlines"}},
        {"bag_info": {"Payload-Oxum": "1.1"}},
        {"bag_info": {"a:b": "x"}},
        {"bag_info": {"a": "\ud800"}},
    ],
)
def test_wrong_options_are_usage_errors(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ArchiveWriter(io.BytesIO(), **{"base_directory": BASE, **options})


def test_required_features_and_bag_info_are_written() -> None:
    data = build({}, bag_info={"Bagging-Date": "2026-11-21"})
    assert opened(data).read("bag-info.txt") == b"Bagging-Date: 2026-11-21\nPayload-Oxum: 0.0\n"
    with pytest.raises(EximError, match="holes"):
        opened(build({}, required_features=["holes"]))


def test_errors_of_the_file_are_store_errors() -> None:
    class Full(io.BytesIO):
        def write(self, _data: Any) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="No space left"):  # noqa: SIM117
        with ArchiveWriter(Full(), base_directory=BASE) as writer:
            writer.add("data/a", os.urandom(1 << 20))


def test_a_file_that_writes_less_than_asked_loses_nothing() -> None:
    class Partial(io.BytesIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data)[:777])

    file = Partial()
    with ArchiveWriter(file, base_directory=BASE) as writer:
        mixed(writer)
    assert file.getvalue() == written(mixed)


def test_close_twice_gives_the_same_root_and_add_after_close_is_refused() -> None:
    writer = ArchiveWriter(io.BytesIO(), base_directory=BASE)
    assert writer.close() == writer.close() == writer.root
    with pytest.raises(UsageError):
        writer.add("data/a", b"")


class Synthetic:
    """A large stream that is never in memory."""

    def __init__(self, size_bytes: int) -> None:
        self.left = size_bytes
        self.block = os.urandom(1 << 20)

    def read(self, size: int) -> bytes:
        count = min(size, self.left, len(self.block))
        self.left -= count
        return bytes(memoryview(self.block)[:count])  # a slice of all would be no copy


@pytest.mark.usefixtures("little_to_collect")
def test_memory_does_not_grow_with_a_member(tmp_path: Any) -> None:
    size_bytes = 200 << 20
    with (tmp_path / "a.tar.zst").open("wb") as file:
        gc.collect()
        tracemalloc.start()
        try:
            with ArchiveWriter(file, base_directory=BASE, workers=2) as writer:
                writer.add_stream("data/x", size_bytes, Synthetic(size_bytes))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 24 << 20
    assert open_range(str(tmp_path / "a.tar.zst")).size_bytes > size_bytes


@pytest.mark.usefixtures("little_to_collect")
def test_a_member_costs_less_than_a_kilobyte() -> None:
    class Sink:
        def write(self, data: bytes) -> int:
            return len(data)

    count = 20_000
    gc.collect()
    tracemalloc.start()
    try:
        writer = ArchiveWriter(Sink(), base_directory=BASE, workers=0)
        for number in range(count):
            writer.add(f"data/experiments/1/runs/{number:032x}/run.json", b"%d" % number)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < count * 1000
