"""The file system ``exim``: what fsspec asks of every one, and what an archive adds."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import posixpath
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import fsspec
import pytest
from fsspec.tests.abstract import AbstractFixtures, AbstractGetTests

from mlflow_exim_plugin.container import frame_reader
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import (
    DigestMismatchError,
    InvalidArchiveError,
    NotFoundError,
    StoreError,
    UsageError,
)
from mlflow_exim_plugin.plugins.file_system import EximFileSystem
from tests.unit.container.crafting import build

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

rng = random.Random(7)
LARGE = rng.randbytes((5 << 20) + 11)
MEMBERS = {
    "exim.json": b"{}",
    "data/a": b"alpha\nbeta\n",
    "data/folder-1/x.json": b"[1]",
    "data/folder/inner/y": b"y",
    "data/folder/x.json": b"[2]",
    "data/folder0/x.json": b"[3]",
    "data/large.bin": LARGE,
}


def written(path: Path, members: dict[str, bytes]) -> str:
    path.write_bytes(build(members, level=1))
    return str(path)


@pytest.fixture
def archive(tmp_path: Path) -> str:
    return written(tmp_path / "a.tar.zst", MEMBERS)


@pytest.fixture
def fs(archive: str) -> EximFileSystem:
    return EximFileSystem(archive, skip_instance_cache=True)


def test_a_member_is_opened_by_a_chained_url(archive: str) -> None:
    with fsspec.open(f"exim://data/a::{archive}") as file:
        assert file.read() == b"alpha\nbeta\n"
    with fsspec.open(f"exim://data/a::file://{archive}", "rt") as file:
        assert file.readlines() == ["alpha\n", "beta\n"]
    file_system, path = fsspec.core.url_to_fs(f"exim://data/a::simplecache::file://{archive}")
    assert (type(file_system), file_system.cat(path)) == (EximFileSystem, b"alpha\nbeta\n")
    (found,) = fsspec.open_files(f"exim://data/folder/*.json::{archive}")
    assert found.path == "data/folder/x.json"


def test_folders_are_listed(fs: EximFileSystem) -> None:
    bag = ["bag-info.txt", "bagit.txt", "manifest-sha256.txt", "tagmanifest-sha256.txt"]
    assert fs.ls("", detail=False) == sorted(["data", "exim.json", *bag])
    folders = ["data/folder", "data/folder-1", "data/folder0"]
    assert fs.ls("exim://data/", detail=False) == sorted(["data/a", *folders, "data/large.bin"])
    assert fs.ls("data/a") == [fs.info("data/a")]
    assert [fs.isdir(path) for path in ("", "data", "data/folder", "data/a", "data/fold")] == (
        [True, True, True, False, False]
    )
    for missing in ("data/fold", "data/a/b", "nothing"):
        with pytest.raises(FileNotFoundError):
            fs.ls(missing)
        assert not fs.exists(missing)


def test_a_file_has_its_size_and_digest(fs: EximFileSystem) -> None:
    info = fs.info("data/large.bin")
    assert (info["name"], info["size"], info["type"]) == ("data/large.bin", len(LARGE), "file")
    assert info["sha256"] == fs.ukey("data/large.bin") == fs.checksum("data/large.bin")
    assert fs.du("data/folder") == len(b"y[2]")


def test_files_are_found(fs: EximFileSystem) -> None:
    payload = sorted(path for path in MEMBERS if path.startswith("data/"))
    assert fs.find("data") == payload
    assert fs.find("data/a") == ["data/a"]
    assert fs.find("data/folder", detail=True).keys() == {
        "data/folder/inner/y",
        "data/folder/x.json",
    }
    assert fs.find("data", maxdepth=1) == ["data/a", "data/large.bin"]
    assert fs.glob("data/*/x.json") == [path for path in payload if path.endswith("x.json")]
    assert fs.glob("data/**/y") == ["data/folder/inner/y"]
    walked = {root: (sorted(dirs), sorted(files)) for root, dirs, files in fs.walk("data/folder")}
    assert walked == {"data/folder": (["inner"], ["x.json"]), "data/folder/inner": ([], ["y"])}


def test_slices_are_those_of_python(fs: EximFileSystem) -> None:
    for start, end in ((None, None), (3, None), (-5, None), (None, -2), (10, 5), (0, 1 << 40)):
        assert fs.cat_file("data/a", start, end) == MEMBERS["data/a"][start:end]


def test_ranges_come_in_the_order_asked_for_and_failures_beside_them(fs: EximFileSystem) -> None:
    places = [rng.randrange(len(LARGE)) for _ in range(50)]
    paths = ["data/large.bin"] * 50 + ["data/a", "data/none", "data/folder/x.json"]
    starts = [*places, None, 0, -2]
    ends = [*(start + 1000 for start in places), None, 1, None]

    found = fs.cat_ranges(paths, starts, ends)

    assert found[:50] == [LARGE[start : start + 1000] for start in places]
    assert (found[50], found[52]) == (MEMBERS["data/a"], b"2]"[-2:])
    assert isinstance(found[51], NotFoundError)
    with pytest.raises(NotFoundError):
        fs.cat_ranges(paths, starts, ends, on_error="raise")
    assert fs.cat_ranges(["data/a", "data/folder/inner/y"], 0, 1) == [b"a", b"y"]


def test_an_open_file_is_read_from_any_place(fs: EximFileSystem) -> None:
    with fs.open("data/large.bin") as file:
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
        for _ in range(30):
            place, size = rng.randrange(len(LARGE)), rng.randrange(1 << 20)
            file.seek(place)
            assert file.read(size) == LARGE[place : place + size]
        assert file.seek(-7, 2) == len(LARGE) - 7
        assert file.read() == LARGE[-7:]


def test_only_frames_that_are_needed_are_fetched(fs: EximFileSystem) -> None:
    source = fs._reader._source
    opened = source.requests
    with fs.open("data/large.bin") as file:
        file.seek(1 << 20)
        file.read(3 << 20)
    assert source.requests - opened == 1
    assert source.bytes_read < 4.2 * (1 << 20)
    fs.cat_ranges(["data/large.bin"] * 2, [1 << 20, (2 << 20) + 5], [(1 << 20) + 9, (2 << 20) + 9])
    assert source.requests - opened == 1  # of the cache


def test_the_cache_is_bounded_and_many_threads_read(
    fs: EximFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_reader, "CACHE_BYTES", 2 << 20)

    def read(place: int) -> bool:
        with fs.open("data/large.bin") as file:
            file.seek(place)
            return bool(file.read(5000) == LARGE[place : place + 5000])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, [rng.randrange(len(LARGE)) for _ in range(300)]))
    frames = fs._reader.frames
    assert frames._cached_bytes == sum(map(len, frames._cache.values())) <= 2 << 20


def test_nothing_can_be_written(fs: EximFileSystem, tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"x")
    new = str(tmp_path / "new")
    attempts: list[Callable[[], Any]] = [
        *(partial(fs.open, "data/new", mode) for mode in ("wb", "ab", "xb", "r+b", "w")),
        partial(fs.pipe, "data/a", b"x"),
        partial(fs.pipe_file, "data/a", b"x"),
        partial(fs.put, new, "data/new"),
        partial(fs.put_file, new, "data/new"),
        partial(fs.rm, "data/a"),
        partial(fs.rm_file, "data/a"),
        partial(fs.delete, "data/a"),
        partial(fs.mv, "data/a", "data/b"),
        partial(fs.cp, "data/a", "data/b"),
        partial(fs.cp_file, "data/a", "data/b"),
        partial(fs.touch, "data/a"),
        partial(fs.mkdir, "data/new"),
        partial(fs.makedirs, "data/new"),
        partial(fs.rmdir, "data/folder"),
        partial(fs.write_text, "data/a", "x"),
    ]
    for attempt in attempts:
        with pytest.raises(StoreError, match="read only") as caught:
            attempt()
        assert isinstance(caught.value, OSError)
        assert len(str(caught.value).splitlines()) == 1


def test_what_is_no_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="archive"):
        fsspec.filesystem("exim")
    with pytest.raises(FileNotFoundError):
        fsspec.filesystem("exim", fo=str(tmp_path / "none.tar.zst"))
    (tmp_path / "text").write_text("no archive")
    with pytest.raises(InvalidArchiveError):
        fsspec.filesystem("exim", fo=str(tmp_path / "text"))


def test_it_can_be_pickled(fs: EximFileSystem, archive: str) -> None:
    cached = EximFileSystem(archive)
    assert pickle.loads(pickle.dumps(cached)) is cached  # noqa: S301 - our own bytes
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(fs.cat_file, ["data/a", "data/large.bin"]) == [MEMBERS["data/a"], LARGE]


def test_a_pickled_one_reads_the_same_archive_or_none(tmp_path: Path, archive: str) -> None:
    before = EximFileSystem(archive)
    pickled = pickle.dumps(before)
    written(tmp_path / "other.tar.zst", {"data/a": b"other"})
    (tmp_path / "other.tar.zst").replace(archive)
    assert pickle.loads(pickled).cat("data/a") == MEMBERS["data/a"]  # noqa: S301 - still open
    EximFileSystem.clear_instance_cache()
    with pytest.raises(DigestMismatchError, match="root is"):
        pickle.loads(pickled)  # noqa: S301
    now = EximFileSystem(archive)
    assert pickle.loads(pickle.dumps(now)).cat("data/a") == b"other"  # noqa: S301


def test_one_that_was_open_before_is_opened_anew(tmp_path: Path, archive: str) -> None:
    other = written(tmp_path / "other.tar.zst", {"data/a": b"other"})
    new = EximFileSystem(other, skip_instance_cache=True)
    open_before = EximFileSystem(archive)
    (tmp_path / "other.tar.zst").replace(archive)
    function, (cls, _, options, root) = new.__reduce__()
    again = function(cls, (archive,), options, root)
    assert (again.cat("data/a"), open_before.cat("data/a")) == (b"other", MEMBERS["data/a"])


def test_bytes_that_are_not_what_they_should_be_never_stay(tmp_path: Path) -> None:
    from tests.unit.container.crafting import Forgery, manifest_of

    payload = {"data/a": b"alpha", "data/archive.json": b"{}"}
    manifest = manifest_of({**payload, "data/a": b"other"})
    path = tmp_path / "forged.tar.zst"
    path.write_bytes(Forgery(payload=payload, manifest=manifest).data())
    fs = EximFileSystem(str(path))
    with pytest.raises(DigestMismatchError):
        fs.cat("data/a")
    with pytest.raises(DigestMismatchError):
        fs.get("data/a", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    found = fs.cat_ranges(["data/a", "data/archive.json"], None, None)
    assert isinstance(found[0], DigestMismatchError)
    assert found[1] == b"{}"


def test_a_damaged_frame_costs_its_own_ranges(archive: str) -> None:
    with ArchiveReader.open(archive) as reader:
        table = reader.frames.table
        hurt = table.file_offsets[table.frame_at(reader.data_offset(_place(reader)) + (2 << 20))]
    with open(archive, "r+b") as file:  # noqa: PTH123
        file.seek(hurt + 1000)
        file.write(b"\0" * 50)
    fs = EximFileSystem(archive, skip_instance_cache=True)
    starts = [0, 1 << 20, (2 << 20) + 5, 3 << 20]
    found = fs.cat_ranges(["data/large.bin"] * 4, starts, [start + 9 for start in starts])
    assert [isinstance(data, bytes) for data in found] == [True, True, False, True]


def _place(reader: ArchiveReader) -> int:
    place = reader.position("data/large.bin")
    assert place is not None
    return place


def test_times_are_those_of_the_archive(tmp_path: Path) -> None:
    from mlflow_exim_plugin.schema.envelope import System

    system = System.now("test", "3.17.0", "nowhere")
    info = {
        **dict.fromkeys(("num_total_runs", "num_ok_runs", "num_failed_runs"), 0),
        **dict.fromkeys(("metric_rows", "artifact_bytes"), 0),
        "counts": {},
    }
    document = {"system": system.to_json(), "info": info, "mlflow": {}}
    path = written(tmp_path / "b.tar.zst", {"data/archive.json": json.dumps(document).encode()})
    modified = EximFileSystem(path).modified("data/archive.json")
    assert modified.timestamp() == system.export_time


def test_mlflow_is_not_imported(archive: str) -> None:
    program = (
        "import fsspec, sys\n"
        f"assert fsspec.open('exim://data/a::{archive}').open().read()\n"
        "print([name for name in ('mlflow', 'sqlalchemy', 'click') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


class TestWhatFsspecAsksOfGet(AbstractGetTests, AbstractFixtures):  # type: ignore[misc]
    """fsspec's own tests; those of copy, open, pipe and put are of file systems that write."""

    @pytest.fixture
    def fs(
        self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> EximFileSystem:
        recorder = _Recorder()
        recorder.touch("data/src/file")  # what one of the tests makes itself
        for scenario in (
            "bulk_operations_scenario_0",
            "glob_edge_cases_files",
            "dir_and_file_with_same_name_prefix",
            "10_files_with_hashed_names",
        ):
            getattr(self, f"_{scenario}")(recorder, posixpath.join, f"data/{scenario}")
        path = tmp_path_factory.mktemp("fsspec") / "a.tar.zst"
        fs = EximFileSystem(written(path, recorder.members))
        monkeypatch.setattr(fs, "mkdir", recorder.makedirs)
        monkeypatch.setattr(fs, "touch", recorder.touch)
        return fs

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return posixpath.join

    @pytest.fixture
    def fs_path(self) -> str:
        return "data"

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self) -> str:
        return "data/bulk_operations_scenario_0/source"

    @pytest.fixture
    def fs_glob_edge_cases_files(self) -> str:
        return "data/glob_edge_cases_files/source"

    @pytest.fixture
    def fs_dir_and_file_with_same_name_prefix(self) -> str:
        return "data/dir_and_file_with_same_name_prefix/source"

    @pytest.fixture
    def fs_10_files_with_hashed_names(self) -> str:
        return "data/10_files_with_hashed_names/source"


class _Recorder:
    """Takes what fsspec's scenarios write."""

    def __init__(self) -> None:
        self.members: dict[str, bytes] = {}

    def makedirs(self, path: str) -> None:
        """Do nothing: folders are those of their files."""

    def touch(self, path: str) -> None:
        self.members[path] = b""

    def pipe(self, path: str, value: bytes) -> None:
        self.members[path] = value
