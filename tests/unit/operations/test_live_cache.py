from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from mlflow_exim_plugin.errors import StoreError
from mlflow_exim_plugin.operations.live.cache import CacheFolder

if TYPE_CHECKING:
    from pathlib import Path


def test_a_file_is_made_once_and_the_oldest_goes_first(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path / "cache", most_bytes=250)
    made = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_bytes(b"x" * 100)

    for number, name in enumerate(("a", "b", "a", "c", "a", "d")):
        path = cache.file(name, make)
        os.utime(path, (number, number))
        assert path.read_bytes() == b"x" * 100

    assert len(made) == 4  # "a" was always there
    left = {path.name for path in cache.folder.iterdir() if not path.name.startswith(".")}
    assert left == {"a", "c", "d"}
    assert not list(cache.folder.glob("*partial*"))
    assert cache.folder.stat().st_mode & 0o077 == 0


def test_who_fails_leaves_nothing_and_who_waits_finds_it(tmp_path: Path) -> None:
    cache = CacheFolder(tmp_path)
    made = []

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise ValueError("broken")

    def make(path: Path) -> None:
        made.append(path)
        path.write_bytes(b"whole")

    with pytest.raises(ValueError, match="broken"):
        cache.file("a", fail)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".turn-")] == []
    threads = [threading.Thread(target=cache.file, args=("a", make)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")

    with pytest.raises(StoreError, match="cannot be written"):
        CacheFolder(tmp_path / "file" / "cache").file("a", lambda path: path.touch())
