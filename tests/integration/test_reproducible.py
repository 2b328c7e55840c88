"""The same state gives the same content root, and with a time that is given the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from mlflow_exim_plugin import open_archive, pack

if TYPE_CHECKING:
    from pathlib import Path

    from tests.sources import Source

pytestmark = pytest.mark.integration


def test_a_server_and_its_database_have_one_content_root(
    everything: tuple[str, str], everything_folder: Path, tmp_path: Path
) -> None:
    _, by_server = everything
    by_database = pack(
        str(tmp_path / "by-database.tar.zst"),
        tracking_uri=f"sqlite:///{everything_folder}/mlflow.db",
        artifacts_destination=str(everything_folder / "artifacts"),
        level=9,
        jobs=1,
    )
    with open_archive(by_server) as archive:
        assert by_database.content_root == archive.content_root
        assert by_database.root != archive.reader.root


def packed_in_another_way(
    folder: Path, out: Path, umask: int, *options: str, **environment: str
) -> bytes:
    """Pack from a process of its own, in a folder of its own, and return the archive's bytes."""
    out.mkdir()
    asked = ["--tracking-uri", f"sqlite:///{folder}/mlflow.db"]
    asked += ["--artifacts-destination", str(folder / "artifacts"), *options]
    command = [sys.executable, "-m", "mlflow_exim_plugin", "pack", "state.tar.zst", *asked]
    env = os.environ | {"SOURCE_DATE_EPOCH": "1790000000", **environment}
    subprocess.run(command, cwd=out, env=env, check=True, capture_output=True, umask=umask)
    return (out / "state.tar.zst").read_bytes()


def test_with_a_time_that_is_given_the_same_state_is_the_same_bytes(
    everything_folder: Path, tmp_path: Path
) -> None:
    first = packed_in_another_way(
        everything_folder, tmp_path / "a", 0o077, "--jobs", "1", TZ="Asia/Kathmandu", LC_ALL="C"
    )
    second = packed_in_another_way(
        everything_folder,
        tmp_path / "b",
        0o022,
        "--jobs",
        "4",
        PYTHONHASHSEED="7",
        LC_ALL="C.UTF-8",
    )
    assert first == second
    with open_archive(str(tmp_path / "a" / "state.tar.zst")) as archive:
        assert archive.summary.system.export_time_ms == 1_790_000_000_000


def test_a_server_gives_the_same_bytes_however_much_is_asked_for_at_once(
    server_source: Source, tmp_path: Path
) -> None:
    for jobs in (1, 8):
        (tmp_path / str(jobs)).mkdir()
        archive = str(tmp_path / str(jobs) / "state.tar.zst")
        pack(archive, tracking_uri=server_source.uri, jobs=jobs, as_of_ms=1_790_000_000_000)
    one, eight = ((tmp_path / jobs / "state.tar.zst").read_bytes() for jobs in ("1", "8"))
    assert one == eight
