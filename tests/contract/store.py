"""What every store must do that archives are written to and read from."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.container.writer import ArchiveWriter
from mlflow_exim_plugin.errors import ArchiveExistsError, NotFoundError, ReplacedError, StoreError
from mlflow_exim_plugin.storage.output import atomic_output
from mlflow_exim_plugin.storage.ranges import open_range
from mlflow_exim_plugin.verification.archive import verify_archive
from tests.unit.container.crafting import BASE, build

__all__ = ["MEGABYTE", "Folder", "ReadingContract", "StoreContract"]

MEGABYTE = 1 << 20
SIZES = [10, 15 * MEGABYTE]
"""Of what fits into one request of any store, and of what fits into none."""


@dataclass(frozen=True)
class Folder:
    """An empty folder of a store.

    Attributes:
        url: Its URL.
        options: Of the store's file system.
    """

    url: str
    options: dict[str, Any] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Return all that lies there, and what is still on its way there."""
        file_system, path = fsspec.core.url_to_fs(self.url, **self.options)
        if not file_system.exists(path):
            return []
        return sorted(Path(name).name for name in file_system.ls(path, detail=False))

    def content(self, name: str) -> bytes:
        """Return the bytes of a file."""
        file_system, path = fsspec.core.url_to_fs(f"{self.url}/{name}", **self.options)
        return bytes(file_system.cat_file(path))

    def put(self, name: str, data: bytes) -> None:
        """Write a file past the package."""
        file_system, path = fsspec.core.url_to_fs(f"{self.url}/{name}", **self.options)
        file_system.pipe_file(path, data)

    def remove(self, name: str) -> None:
        """Remove a file past the package."""
        file_system, path = fsspec.core.url_to_fs(f"{self.url}/{name}", **self.options)
        file_system.rm_file(path)

    def output(self, name: str, *, overwrite: bool = False) -> Any:
        """Open a file for writing, as the package does."""
        url = f"{self.url}/{name}"
        return atomic_output(url, overwrite=overwrite, storage_options=self.options)

    def open(self, name: str) -> Any:
        """Open a file for reading, as the package does."""
        return open_range(f"{self.url}/{name}", self.options)

    def write(self, name: str, data: bytes, *, overwrite: bool = False) -> None:
        """Write a file in two parts."""
        with self.output(name, overwrite=overwrite) as file:
            assert file.write(data[:3]) == len(data[:3])
            file.write(data[3:])
        assert file.bytes_written == len(data)


class ReadingContract:
    """The laws on reading of a store; a subclass has a fixture ``folder``."""

    def test_ranges(self, folder: Folder) -> None:
        folder.put("a", bytes(range(100)))
        source = folder.open("a")
        assert source.size_bytes == 100
        assert source.read_range(10, 20) == bytes(range(10, 20))
        assert source.read_range(5, 5) == b""
        assert source.requests <= 3
        assert 10 <= source.bytes_read <= 100
        for start, end in ((-1, 5), (5, 101), (9, 3)):
            with pytest.raises(StoreError):
                source.read_range(start, end)
        source.close()
        source.close()

    def test_many_ranges_at_once(self, folder: Folder) -> None:
        data = os.urandom(3 * MEGABYTE)
        folder.put("a", data)
        source = folder.open("a")
        ranges = [(n * 50_000, n * 50_000 + 40_000) for n in range(40)] * 2
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda span: source.read_range(*span), ranges))
        assert found == [data[start:end] for start, end in ranges]
        # Not one more byte than was asked for, but what came when it was opened.
        assert source.bytes_read <= 80 * 40_000 + MEGABYTE
        source.close()

    @pytest.mark.parametrize("size_bytes", [0, 1])
    def test_files_of_hardly_anything(self, folder: Folder, size_bytes: int) -> None:
        folder.put("a", bytes(size_bytes))
        source = folder.open("a")
        assert source.read_range(0, source.size_bytes) == bytes(size_bytes)
        source.close()

    def test_missing_files_and_folders(self, folder: Folder) -> None:
        folder.put("there", b"")
        for name in ("none", "none/none", ""):
            with pytest.raises(NotFoundError):
                folder.open(name)

    @pytest.mark.parametrize("size_bytes", [2 * MEGABYTE, 2 * MEGABYTE + 1])
    def test_of_a_replaced_file_one_version_is_read(self, folder: Folder, size_bytes: int) -> None:
        old = bytes(2 * MEGABYTE)
        folder.put("a", old)
        source = folder.open("a")
        kept = pickle.dumps(source)
        elsewhere = pickle.loads(kept)  # noqa: S301 - our own bytes
        assert source.read_range(0, 10) == elsewhere.read_range(0, 10) == bytes(10)
        # A time of change has whole seconds on some stores, and half of those of memory.
        time.sleep(1.1 if size_bytes == len(old) else 0.01)
        folder.put("a", b"x" * size_bytes)
        for reader in (source, elsewhere):
            with contextlib.suppress(ReplacedError):  # or the store still has the old one
                assert reader.read_range(100, 110) == bytes(10)
        with contextlib.suppress(ReplacedError):
            again = pickle.loads(kept)  # noqa: S301 - our own bytes
            assert again.read_range(100, 110) == bytes(10)
        source.close()
        elsewhere.close()

    def test_of_a_replaced_archive_that_is_what_is_said(self, folder: Folder) -> None:
        for content in (b"a", b"b"):
            members = {f"data/{n}": os.urandom(MEGABYTE) + content for n in range(4)}
            folder.put("a.tar.zst", build(members))
            if content == b"a":
                url = f"{folder.url}/a.tar.zst"
                reader = ArchiveReader.open(url, storage_options=folder.options)
                time.sleep(1.1)
        with reader:
            try:
                assert reader.read("data/0")[-1:] == b"a"
                assert verify_archive(reader, jobs=2) == []
            except StoreError as error:
                assert isinstance(error, ReplacedError)  # noqa: PT017 - the old one may be there
                assert "it was replaced while being read" in error.message  # noqa: PT017

    def test_a_removed_file(self, folder: Folder) -> None:
        folder.put("a", bytes(2 * MEGABYTE))
        source = folder.open("a")
        folder.remove("a")
        with contextlib.suppress(ReplacedError):
            assert source.read_range(0, 10) == bytes(10)
        source.close()


@pytest.mark.usefixtures("little_to_collect")
class StoreContract(ReadingContract):
    """The laws of a store; a subclass has a fixture ``folder``."""

    def test_an_archive_is_written_and_read(self, folder: Folder) -> None:
        large = os.urandom(12 * MEGABYTE)
        with (
            folder.output("a.tar.zst") as output,
            ArchiveWriter(output, base_directory=BASE) as writer,
        ):
            writer.add("data/a", b"a")
            writer.add("data/large.bin", large)
        url = f"{folder.url}/a.tar.zst"
        with ArchiveReader.open(
            url, storage_options=folder.options, expected_root=writer.root
        ) as reader:
            assert reader.read("data/a") == b"a"
            assert reader.read("data/large.bin", 5_000_000, 5_000_010) == large[5_000_000:5_000_010]
            assert verify_archive(reader) == []

    def test_the_file_appears_when_it_is_complete(self, folder: Folder) -> None:
        with folder.output("a") as file:
            file.write(b"data")
            assert "a" not in folder.names()
        assert folder.names() == ["a"]
        assert folder.content("a") == b"data"

    @pytest.mark.parametrize("size_bytes", SIZES)
    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
    def test_nothing_appears_when_the_block_raises(
        self, folder: Folder, size_bytes: int, error: type[BaseException]
    ) -> None:
        with pytest.raises(error), folder.output("a") as file:  # noqa: PT012
            file.write(os.urandom(size_bytes))
            raise error
        gc.collect()
        assert folder.names() == []

    def test_an_older_file_stays_when_the_block_raises(self, folder: Folder) -> None:
        folder.write("a", b"old")
        with (  # noqa: PT012
            pytest.raises(ValueError, match="stop"),
            folder.output("a", overwrite=True) as file,
        ):
            file.write(b"half")
            raise ValueError("stop")
        assert folder.names() == ["a"]
        assert folder.content("a") == b"old"

    def test_existing_files_are_refused_before_anything_is_written(self, folder: Folder) -> None:
        folder.write("a", b"old")
        entered = False
        with pytest.raises(ArchiveExistsError), folder.output("a"):
            entered = True
        assert not entered
        folder.write("a", b"new", overwrite=True)
        assert (folder.content("a"), folder.names()) == (b"new", ["a"])

    @pytest.mark.parametrize("size_bytes", SIZES)
    def test_the_slower_of_two_writers_is_refused(self, folder: Folder, size_bytes: int) -> None:
        with pytest.raises(ArchiveExistsError), folder.output("a") as file:  # noqa: PT012
            file.write(bytes(size_bytes))
            folder.write("a", b"fast")
        assert (folder.content("a"), folder.names()) == (b"fast", ["a"])

    @pytest.mark.parametrize("size_bytes", SIZES)
    def test_an_abandoned_output_is_not_committed(self, folder: Folder, size_bytes: int) -> None:
        output = folder.output("a")
        output.__enter__().write(os.urandom(size_bytes))
        del output  # as when a generator that holds it is garbage-collected
        gc.collect()
        assert folder.names() == []
