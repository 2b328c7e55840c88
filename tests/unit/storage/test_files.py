"""Files on disk beyond what every store must do (tests/contract), and what is said of URLs."""

from __future__ import annotations

import gc
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import fsspec
import pytest
from fsspec.registry import _registry

from mlflow_exim_plugin.errors import (
    ArchiveExistsError,
    EximError,
    MissingDependencyError,
    ReplacedError,
    StoreError,
)
from mlflow_exim_plugin.storage.output import atomic_output
from mlflow_exim_plugin.storage.ranges import open_range

if TYPE_CHECKING:
    from collections.abc import Callable


def names(folder: str) -> list[str]:
    file_system, path = fsspec.core.url_to_fs(folder)
    return sorted(Path(name).name for name in file_system.ls(path, detail=False))


def content(url: str) -> bytes:
    file_system, path = fsspec.core.url_to_fs(url)
    return bytes(file_system.cat_file(path))


def write(url: str, data: bytes, *, overwrite: bool = False) -> None:
    with atomic_output(url, overwrite=overwrite) as file:
        assert file.write(data[:3]) == len(data[:3])
        file.write(data[3:])
    assert file.bytes_written == len(data)


@pytest.mark.usefixtures("little_to_collect")
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_forgotten_source_leaves_no_open_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"data")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(50):
        open_range(str(tmp_path / "a")).read_range(0, 4)
    gc.collect()
    # Sockets that other tests left may be closed meanwhile.
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(100))
    source = open_range(str(path))
    os.truncate(path, 50)
    with pytest.raises(ReplacedError, match="it was replaced while being read"):
        source.read_range(0, 100)
    source.close()


def test_store_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    write(str(tmp_path / "a"), b"data")
    with pytest.raises(ArchiveExistsError), atomic_output(str(tmp_path / "b")) as file:  # noqa: PT012
        file.write(b"slow")
        (tmp_path / "b").write_bytes(b"fast")
    assert (names(str(tmp_path)), content(str(tmp_path / "b"))) == (["a", "b"], b"fast")


def test_folder_that_is_missing_or_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "none" / "a", tmp_path / "file" / "a"):
        with pytest.raises(StoreError, match="folder"), atomic_output(str(path)):
            pass


def test_data_are_on_disk_before_the_name_and_the_name_before_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut cannot be had here: the order of the calls stands for it."""
    order = []

    def fsync(descriptor: int, real: Callable[[int], None] = os.fsync) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        order.append(("folder" if is_folder else "file", (tmp_path / "a").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write(str(tmp_path / "a"), b"data")
    assert order == [("file", False), ("folder", True)]


def test_devices_and_folders_are_not_replaced(tmp_path: Path) -> None:
    for path in ("/dev/null", str(tmp_path)):
        with pytest.raises(StoreError, match="regular"), atomic_output(path, overwrite=True):
            pass
    assert Path("/dev/null").is_char_device()


def test_symbolic_links_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "link").symlink_to("real")
    write(str(tmp_path / "link"), b"new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk: the kernel refuses the write."""
    script = f"""
import resource, signal
from mlflow_exim_plugin.storage.output import atomic_output
from mlflow_exim_plugin.errors import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    with atomic_output({str(tmp_path / "a")!r}) as file:
        for _ in range(40):
            file.write(bytes(100_000))
except StoreError as error:
    print(error.message)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == f"cannot write {tmp_path / 'a'}: File too large\n"
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_nothing_at_the_name(tmp_path: Path) -> None:
    script = f"""
import os, signal
from mlflow_exim_plugin.storage.output import atomic_output
with atomic_output({str(tmp_path / "a")!r}) as file:
    file.write(bytes(5_000_000))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    run = subprocess.run([sys.executable, "-c", script], check=False)
    assert run.returncode == -9
    assert not (tmp_path / "a").exists()
    write(str(tmp_path / "a"), b"next time")


def test_errors_of_stores_show_no_credentials() -> None:
    url = "http://user:SECRET@127.0.0.1:9/a.tar.zst?sig=SECRET"
    with pytest.raises(EximError) as caught:
        open_range(url)
    assert "SECRET" not in caught.value.message
    assert "127.0.0.1" in caught.value.message
    assert "\n" not in caught.value.message


def test_unknown_protocols_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="nosuch"):
        open_range("nosuch://bucket/a")
    for protocol in ("gs", "gcs"):  # as another test may have loaded it
        monkeypatch.delitem(_registry, protocol, raising=False)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingDependencyError) as caught:
        open_range("gs://bucket/a")
    assert caught.value.hint == "pip install 'mlflow-exim-plugin[gcs]'"


def test_only_errors_of_ours_leave(tmp_path: Path) -> None:
    calls: list[Callable[[], object]] = [
        lambda: open_range(str(tmp_path / "nul\0")),
        lambda: open_range("x" * 5000),
        lambda: open_range(""),
        lambda: open_range("memory://"),
        lambda: atomic_output(str(tmp_path / "nul\0")).__enter__(),
        lambda: atomic_output("").__enter__(),
        lambda: open_range("::"),
        lambda: open_range("s3://"),
    ]
    for call in calls:
        with pytest.raises(EximError):
            call()
