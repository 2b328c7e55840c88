"""A pack that was killed goes on: what was safe is not read again, and the archive is the same."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mlflow_exim_plugin import diff, pack, unpack, verify
from mlflow_exim_plugin.errors import UsageError

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks and kills processes"),
]

POINTS = int(os.environ.get("EXIM_KILLED_AT_POINTS", "8"))
BIG_BYTES = (9 << 20) + 17
"""More than is read before it is written."""
KILLED = """
import hashlib, json, os, random, signal, sys, traceback
from pathlib import Path
from types import SimpleNamespace
import mlflow.tracking, mlflow.store.tracking.sqlalchemy_store
from mlflow_exim_plugin import open_archive, pack
from mlflow_exim_plugin.schema import envelope
from mlflow_exim_plugin.container.writer import ArchiveWriter
from mlflow_exim_plugin.storage.output import OutputFile
uri, folder, points = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
write, add_stream = OutputFile.write, ArchiveWriter.add_stream
FIRST_MS, LATER_MS = 1_800_000_000_000, 1_800_000_100_000

def forked(work, now_ms):
    envelope.time = SimpleNamespace(time_ns=lambda: now_ms * 1_000_000)
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1]

def killed_after(target, limit):
    def counted(self, data):
        left = limit - self.bytes_written
        if len(data) >= left:
            write(self, data[:left])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, data)
    OutputFile.write = counted
    pack(str(target), tracking_uri=uri, resume=True)

def resumed(target):
    read = [0, 0]
    def watched(self, path, size_bytes, stream):
        read[0] += 1
        read[1] += size_bytes
        return add_stream(self, path, size_bytes, stream)
    ArchiveWriter.add_stream = watched
    report = pack(str(target), tracking_uri=uri, resume=True)
    with open_archive(str(target)) as archive:
        begun_ms = archive.summary.system.export_time_ms
    told = {"read": read, "report": report.to_dict(), "begun_ms": begun_ms}
    told["sha256"] = hashlib.sha256(target.read_bytes()).hexdigest()
    target.with_suffix(".json").write_text(json.dumps(told))

for name, now_ms in (("first", FIRST_MS), ("later", LATER_MS)):
    (folder / name).mkdir()
    assert forked(lambda: resumed(folder / name / "a.tar.zst"), now_ms) == 0
size_bytes = (folder / "first" / "a.tar.zst").stat().st_size
chance = random.Random(20)
for number in range(points):
    place = folder / str(number)
    place.mkdir()
    target = place / "a.tar.zst"
    for _ in range(chance.choice([1, 1, 1, 3])):
        there = sum(path.stat().st_size for path in place.iterdir())
        limit = chance.randrange(1, size_bytes - there)
        status = forked(lambda: killed_after(target, limit), FIRST_MS)
        assert os.WIFSIGNALED(status), (number, limit, status)
        (left,) = place.iterdir()
    (folder / f"{number}.left").write_text(str(left.stat().st_size))
    assert forked(lambda: resumed(target), LATER_MS) == 0, (number, limit)
    assert sorted(path.name for path in place.iterdir()) == ["a.tar.json", "a.tar.zst"]
"""


@pytest.fixture(scope="module")
def source(everything: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database of every kind, with files that are larger than what is kept in memory."""
    _, archive = everything
    folder = tmp_path_factory.mktemp("source")
    uri = f"sqlite:///{folder}/mlflow.db"
    unpack(archive, tracking_uri=uri, artifact_location=f"{folder}/files")
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        rows = database.execute("SELECT artifact_uri FROM runs ORDER BY run_uuid").fetchall()
    for number, (root,) in enumerate(rows[::4]):
        place = Path(str(root).removeprefix("file://"))
        place.mkdir(parents=True, exist_ok=True)
        (place / "weights.bin").write_bytes(os.urandom(BIG_BYTES) if number < 4 else b"small")
    return uri


@pytest.fixture(scope="module")
def results(source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, source, str(folder), str(POINTS)],
        check=False,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def told_of(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / "a.tar.json").read_text())
    return told


def test_killed_anywhere_it_ends_with_the_same_archive(results: Path, source: str) -> None:
    wholes = [told_of(results / name) for name in ("first", "later")]
    whole = {told["begun_ms"]: told for told in wholes}
    first_ms = min(whole)
    shares = []
    for number in range(POINTS):
        told = told_of(results / str(number))
        # Byte for byte what one attempt would have written at the time of the first.
        assert told["report"] == whole[told["begun_ms"]]["report"], number
        assert told["sha256"] == whole[told["begun_ms"]]["sha256"], number
        archive = results / str(number) / "a.tar.zst"
        share = int((results / f"{number}.left").read_text()) / archive.stat().st_size
        assert told["begun_ms"] == first_ms or share < 0.1
        shares.append((share, told["read"][1] / whole[first_ms]["read"][1]))
    # The later it was killed, the fewer files are read again: at most the one that was under way.
    assert all(read < 1.3 - share for share, read in shares), sorted(shares)
    assert verify(str(archive)).ok
    assert diff(source, str(archive), rules="exact").equal


def test_what_is_no_beginning_of_this_archive_is_written_anew(source: str, tmp_path: Path) -> None:
    target = tmp_path / "a.tar.zst"
    for damage in (b"", b"no archive at all" * 100, (Path(__file__).read_bytes())):
        (tmp_path / f".a.tar.zst.partial-{'0' * 32}").write_bytes(damage)
        assert pack(str(target), tracking_uri=source, resume=True, overwrite=True).ok
        assert verify(str(target)).ok
        assert [path.name for path in tmp_path.iterdir()] == ["a.tar.zst"]


def test_on_a_store_nothing_is_resumed(source: str) -> None:
    with pytest.raises(UsageError, match="cannot be resumed"):
        pack("memory://a.tar.zst", tracking_uri=source, resume=True)
