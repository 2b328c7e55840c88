"""A pack that was killed goes on: what was safe is not read again, and the archive is the same."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_exim_plugin import diff, pack, unpack, verify

if TYPE_CHECKING:
    from tests.conftest import Bucket

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks and kills processes"),
    # aiohttp's sockets of a session that fsspec keeps for later.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

POINTS = int(os.environ.get("EXIM_KILLED_AT_POINTS", "8"))
POINTS_ON_A_STORE = int(os.environ.get("EXIM_KILLED_AT_POINTS", "2"))
WHOLE = ("first", "later")
BIG_BYTES = (9 << 20) + 17
"""More than is read before it is written."""
PACKED = """
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
            if hasattr(self._file, "flush"):
                self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return write(self, data)
    OutputFile.write = counted
    pack(str(target), tracking_uri=uri, resume=True)

def resumed(target, told_in):
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
    import fsspec
    with fsspec.open(str(target)) as file:
        told["sha256"] = hashlib.sha256(file.read()).hexdigest()
    told_in.write_text(json.dumps(told))
"""
KILLED = (
    PACKED
    + """
for name, now_ms in (("first", FIRST_MS), ("later", LATER_MS)):
    (folder / name).mkdir()
    place = folder / name
    assert forked(lambda: resumed(place / "a.tar.zst", place / "a.tar.json"), now_ms) == 0
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
    assert forked(lambda: resumed(target, place / "a.tar.json"), LATER_MS) == 0, (number, limit)
    assert sorted(path.name for path in place.iterdir()) == ["a.tar.json", "a.tar.zst"]
"""
)
KILLED_ON_A_STORE = (
    PACKED
    + """
bucket, size_bytes = sys.argv[4], int(sys.argv[5])
kept = Path(os.environ["XDG_STATE_HOME"])

def files():
    return [path for path in kept.rglob("*") if path.is_file()]

def resumed_there(target, told_in):
    from mlflow_exim_plugin.storage.upload import s3
    call, go_on, sent, there = s3._S3Upload._call, s3._S3Upload.go_on, [0], [0]
    def counted(self, operation, size_bytes=0, **what):
        sent[0] += len(what.get("Body", b""))
        return call(self, operation, size_bytes, **what)
    def watched(self, left):
        has = go_on(self, left)
        there[0] = sum(part["Size"] for part in self._there.values())
        return has
    s3._S3Upload._call, s3._S3Upload.go_on = counted, watched
    resumed(target, told_in)
    told = json.loads(told_in.read_text())
    told_in.write_text(json.dumps(told | {"sent_bytes": sent[0], "there_bytes": there[0]}))

chance = random.Random(17)
for number in range(points):
    target = f"{bucket}/{number}/a.tar.zst"
    limit = chance.randrange(1, size_bytes)
    status = forked(lambda: killed_after(target, limit), FIRST_MS)
    assert os.WIFSIGNALED(status), (number, limit, status)
    assert files()
    told_in = folder / f"store-{number}.json"
    assert forked(lambda: resumed_there(target, told_in), LATER_MS) == 0, (number, limit)
    assert files() == []
    told_in.write_text(json.dumps(json.loads(told_in.read_text()) | {"limit": limit}))
"""
)


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
    for of_this_command in ("start_time", "end_time", "duration_s"):
        del told["report"][of_this_command]
    del told["report"]["archive"]["location"]
    return told


def test_killed_anywhere_it_ends_with_the_same_archive(results: Path, source: str) -> None:
    wholes = [told_of(results / name) for name in WHOLE]
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


def test_killed_anywhere_on_a_store_it_ends_with_the_same_archive(
    results: Path, source: str, s3_bucket: Bucket, tmp_path: Path
) -> None:
    size_bytes = (results / "first" / "a.tar.zst").stat().st_size
    arguments = [source, str(tmp_path), str(POINTS_ON_A_STORE), s3_bucket.url, str(size_bytes)]
    done = subprocess.run(
        [sys.executable, "-c", KILLED_ON_A_STORE, *arguments],
        check=False,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"XDG_STATE_HOME": str(tmp_path / "state")},
    )
    assert done.returncode == 0, done.stderr
    whole = {told["begun_ms"]: told for told in map(told_of, map(results.joinpath, WHOLE))}
    for number in range(POINTS_ON_A_STORE):
        told = json.loads((tmp_path / f"store-{number}.json").read_text())
        assert told["sha256"] == whole[told["begun_ms"]]["sha256"], number
        share = told["limit"] / size_bytes
        if told["begun_ms"] != min(whole):
            assert share < 0.1, number
            continue
        assert told["sent_bytes"] == size_bytes - told["there_bytes"], number
        assert told["read"][1] / whole[min(whole)]["read"][1] < 1.3 - share, number
