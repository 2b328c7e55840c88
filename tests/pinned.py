"""What becomes of one archive of everything, as text that can be compared line by line.

``golden/everything.tar.zst`` holds every kind with hard values, in three workspaces. It is unpacked
into an empty SQLite file, unpacked again, and the file is packed, all by a clock that stands and
with ids that repeat (``samples/frozen``). What is kept of it are the reports, each row of each
table, each file, and each member of the new archive. ``python -m tests.pinned`` writes what the
code makes of it now to ``golden/``; a change of these files is a change of behaviour, to be read.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from mlflow_exim_plugin import pack, unpack
from mlflow_exim_plugin.container.reader import ArchiveReader

__all__ = ["ARCHIVE", "WAYS", "golden", "made_now"]

_HERE = Path(__file__).resolve().parent
_GOLDEN = _HERE / "golden"
ARCHIVE = _GOLDEN / "everything.tar.zst"
WAYS = {"by-ids": True, "by-api": False}
"""How it is unpacked: whether ids are kept."""
_NOW_MS = 1_790_000_000_000
_DIGEST = re.compile(r"[0-9a-f]{64}")


def golden(way: str) -> list[str]:
    """Return the lines that were kept."""
    return gzip.decompress(_kept(way).read_bytes()).decode().splitlines()


def made_now(way: str, folder: Path) -> list[str]:
    """Return the lines that the code makes now.

    Args:
        way: One of ``WAYS``.
        folder: An empty folder; its path is part of no line.
    """
    from tests.servers import new_sqlite_database

    new_sqlite_database(folder / "mlflow.db")
    clock = folder / "clock"
    clock.write_text(str(_NOW_MS))
    environment = {
        name: text for name, text in os.environ.items() if not name.startswith("MLFLOW_")
    } | {
        "FROZEN_CLOCK": str(clock),
        "PYTHONPATH": os.pathsep.join(
            [str(_HERE.parent / "samples" / "frozen"), str(_HERE.parent)]
        ),
        "PYTHONHASHSEED": "0",
        # A server has workspaces by API, a file only by ids.
        "MLFLOW_ENABLE_WORKSPACES": str(WAYS[way]).lower(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "LOGNAME": "pinned",
    }
    command = [sys.executable, "-W", "ignore", "-m", "tests.pinned", way, str(folder)]
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.splitlines()


def _kept(way: str) -> Path:
    return _GOLDEN / f"everything-{way}.txt.gz"


def _tell(way: str, folder: Path) -> None:
    """Print the lines, in a process that has the clock."""
    uri = f"sqlite:///{folder}/mlflow.db"
    again = folder / "again.tar.zst"

    def put_back() -> dict[str, Any]:
        return unpack(
            str(ARCHIVE),
            tracking_uri=uri,
            artifact_location=str(folder / "files"),
            preserve_ids=WAYS[way],
            jobs=1,
        ).to_dict()

    reports = {"unpack": put_back(), "unpack again": put_back()}
    reports["pack"] = pack(str(again), tracking_uri=uri, jobs=1).to_dict()
    for root in ("root", "content_root"):  # they hold the folder's name
        del reports["pack"][root]
    for report in reports.values():
        for name in ("files_at", "source", "archive", "start_time", "end_time", "duration_s"):
            report.pop(name, None)  # so do these, or the time
        assert report.pop("completed") == {}
    lines = [
        f"{name}: {key}: {json.dumps(entry, ensure_ascii=False)}"
        for name, report in reports.items()
        for key, value in report.items()
        for entry in (value if isinstance(value, list) else [value])
    ]
    lines += _rows(folder / "mlflow.db")
    for path in sorted((folder / "files").rglob("*")):
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lines.append(f"file: {path.relative_to(folder)} {digest}")
    lines += _members(again)
    for line in lines:
        told = json.dumps(line.replace(str(folder), "FOLDER"), ensure_ascii=False)
        sys.stdout.write(told[1:-1] + "\n")


def _rows(database: Path) -> list[str]:
    """Return each row of each table, without what MLflow's own version decides."""
    lines = []
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        joined = "SELECT input_uuid, source_id || ' in ' || destination_id FROM inputs"
        links = dict(connection.execute(joined).fetchall())  # ids made at random
        names = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
        for (table,) in connection.execute(names).fetchall():
            if table in ("alembic_version", "sqlite_sequence"):
                continue
            found = [dict(row) for row in connection.execute(f'SELECT * FROM "{table}"')]
            for row in found:
                if row.get("input_uuid") in links:
                    row["input_uuid"] = links[row["input_uuid"]]
            lines += sorted(f"{table}: {_text(row)}" for row in found)
    return lines


def _text(row: dict[str, Any]) -> str:
    return json.dumps(
        {k: v.hex() if isinstance(v, bytes) else v for k, v in row.items()}, ensure_ascii=False
    )


def _members(archive: Path) -> list[str]:
    """Return each document without digests, which hold the folder's name, and those of files."""
    lines = []
    with ArchiveReader.open(str(archive)) as reader:
        for member in reader.members():
            if not member.path.startswith("data/"):
                continue
            with reader.open_member(member.path) as stream:
                content = stream.read()
            if "/artifacts/" in member.path:
                told = hashlib.sha256(content).hexdigest()
            elif member.path.endswith(".json"):
                document = json.loads(content)
                for name in ("mlflow_version", "package_version", "platform"):
                    del document["system"][name]
                told = _DIGEST.sub("DIGEST", json.dumps(document, ensure_ascii=False))
            else:
                told = ""  # a table: its rows stand in the database
            lines.append(f"member: {member.path} {told}".rstrip())
    return lines


if __name__ == "__main__":
    if len(sys.argv) == 3:
        _tell(sys.argv[1], Path(sys.argv[2]))
    else:
        for name in WAYS:
            with tempfile.TemporaryDirectory() as new:
                made = "\n".join(made_now(name, Path(new)))
            _kept(name).write_bytes(gzip.compress(made.encode(), mtime=0))
