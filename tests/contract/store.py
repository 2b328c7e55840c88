"""What every store must do that archives are written to and read from."""

from __future__ import annotations

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.container.writer import ArchiveWriter
from mlflow_exim_plugin.errors import ArchiveExistsError, NotFoundError, StoreError
from mlflow_exim_plugin.storage.output import atomic_output
from mlflow_exim_plugin.storage.ranges import open_range
from mlflow_exim_plugin.verification.archive import verify_archive
from tests.unit.container.crafting import BASE

__all__ = ["MEGABYTE", "Folder", "StoreContract"]

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


class StoreContract:
    """The laws of a store; a subclass has a fixture ``folder``."""

    def test_ranges(self, folder: Folder) -> None:
        folder.write("a", bytes(range(100)))
        source = folder.open("a")
        assert source.size_bytes == 100
        assert source.read_range(10, 20) == bytes(range(10, 20))
        assert source.read_range(5, 5) == b""
        assert (source.requests, source.bytes_read) == (1, 10)
        for start, end in ((-1, 5), (5, 101), (9, 3)):
            with pytest.raises(StoreError):
                source.read_range(start, end)
        with ThreadPoolExecutor(8) as pool:
            ranges = [(n, n + 50) for n in range(50)] * 10
            assert all(
                data == bytes(range(start, end))
                for (start, end), data in zip(
                    ranges, pool.map(lambda r: source.read_range(*r), ranges), strict=True
                )
            )
        source.close()
        source.close()

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

    def test_missing_files_and_folders(self, folder: Folder) -> None:
        folder.write("there", b"")
        for name in ("none", "none/none", ""):
            with pytest.raises(NotFoundError):
                folder.open(name)

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
