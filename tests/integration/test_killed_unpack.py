"""An unpack that was killed goes on: the target is that of one attempt, and what is safe stays.

``EXIM_KILLED_AT_POINTS`` in the environment asks for another number of moments.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.pinned import ARCHIVE
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks and kills processes"),
]

KINDS = {"run": "runs", "logged_model": "models", "trace": "traces"}
POINTS = int(os.environ.get("EXIM_KILLED_AT_POINTS", "3"))
KILLED = """
import hashlib, json, os, random, shutil, signal, sqlite3, sys, traceback
from pathlib import Path
import sqlalchemy
import mlflow.tracking, mlflow.store.tracking.sqlalchemy_store
from mlflow_exim_plugin import unpack
from mlflow_exim_plugin.host.files.tree import ArtifactTree
archive, folder, points = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
send = ArtifactTree.send

def target(place):
    shutil.copy(folder / "empty.db", place / "mlflow.db")

def unpacked(place, dies_at):
    # So many instructions of SQLite are a step, and so are beginning and end of a file.
    done = {"steps": 0, "files": []}
    def step():
        done["steps"] += 1
        if done["steps"] == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
    def connected(connection, record):
        connection.set_progress_handler(step, 2_000)
    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", connected)
    def sent(self, path, stream, size_bytes):
        step()
        done["files"].append(f"{self.root}/{path}")
        result = send(self, path, stream, size_bytes)
        step()
        return result
    ArtifactTree.send = sent
    report = unpack(
        archive, tracking_uri=f"sqlite:///{place}/mlflow.db", artifact_location=f"{place}/files",
        jobs=1,
    )
    assert not report.failures, report.failures
    (place / "told.json").write_text(json.dumps(done | {"report": report.to_dict()}))

def forked(place, dies_at=0):
    child = os.fork()
    if not child:
        try:
            unpacked(place, dies_at)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1]

def there(place):
    with sqlite3.connect(f"file:{place}/mlflow.db?mode=ro", uri=True) as database:
        names = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
        database.row_factory = sqlite3.Row
        tables = {
            name: [dict(row) for row in database.execute(f'SELECT * FROM "{name}"')]
            for (name,) in database.execute(names).fetchall()
        }
    files = [path for path in sorted(place.rglob("files/**/*")) if path.is_file()]
    digests = {
        str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    return {"tables": tables, "files": digests}

def tell(place):
    found = there(place)
    text = json.dumps(found, default=lambda data: data.hex()).replace(str(place), "PLACE")
    (folder / f"{place.name}.json").write_text(text)

for name in ("whole", "again"):
    (place := folder / name).mkdir()
    target(place)
    assert forked(place) == 0
    tell(place)
steps = json.loads((folder / "whole" / "told.json").read_text())["steps"]
chance = random.Random(3)
for number in range(points):
    (place := folder / str(number)).mkdir()
    target(place)
    dies_at = chance.randrange(1, steps)
    status = forked(place, dies_at)
    assert os.WIFSIGNALED(status), (number, dies_at, status)
    left = there(place)
    assert forked(place) == 0, (number, dies_at)
    tell(place)
    told = json.loads((place / "told.json").read_text())
    told["left"] = {
        "runs": [row["run_uuid"] for row in left["tables"]["runs"]],
        "models": [row["model_id"] for row in left["tables"]["logged_models"]],
        "traces": [row["request_id"] for row in left["tables"]["trace_info"]],
        "files": [f"{place}/{path}" for path in left["files"]],
    }
    (place / "told.json").write_text(json.dumps(told | {"dies_at": dies_at}))
"""
RANDOM_IDS = {
    "datasets": "dataset_uuid",
    "inputs": "input_uuid",
    "entity_associations": "association_id",
}
"""What is made up anew each time, and what a row is otherwise."""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    new_sqlite_database(folder / "empty.db")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(ARCHIVE), str(folder), str(POINTS)],
        check=False,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"MLFLOW_ENABLE_WORKSPACES": "true", "MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    assert done.returncode == 0, done.stderr
    return folder


def there(results: Path, name: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Return the rows of each table as text, with what an id stands for in its place; the files."""
    found: dict[str, Any] = json.loads((results / f"{name}.json").read_text())
    tables: dict[str, list[dict[str, Any]]] = found["tables"]
    means: dict[str, str] = {}
    for table, made_up in RANDOM_IDS.items():
        for row in tables[table]:
            identity = row.pop(made_up)
            means[identity] = f"{table}: {json.dumps(_without_ids(row, means), sort_keys=True)}"
    rows = {
        table: sorted(json.dumps(_without_ids(row, means), sort_keys=True) for row in of_table)
        for table, of_table in tables.items()
    }
    return rows, found["files"]


def _without_ids(row: dict[str, Any], means: dict[str, str]) -> dict[str, Any]:
    return {key: means.get(value, value) for key, value in row.items()}


def told_of(results: Path, name: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((results / name / "told.json").read_text())
    return told


def test_killed_anywhere_it_ends_with_the_same_rows_and_files(results: Path) -> None:
    whole = there(results, "whole")
    assert there(results, "again") == whole
    for number in range(POINTS):
        assert there(results, str(number)) == whole, told_of(results, str(number))["dies_at"]


def test_what_is_safe_is_not_written_again(results: Path) -> None:
    whole = told_of(results, "whole")["report"]["counts"]
    for number in range(POINTS):
        told = told_of(results, str(number))
        left, counts = told["left"], told["report"]["counts"]
        for kind, ids in KINDS.items():
            # Of what came in another experiment, links may be missing still.
            completed = told["report"]["completed"].get(kind, 0)
            assert counts[kind]["skipped"] + completed == len(left[ids]), (number, kind)
            assert counts[kind]["written"] - completed == whole[kind]["written"] - len(left[ids])
        # Files are sent again only of what was not committed: nothing vouches for them.
        again = set(told["files"]) & set(left["files"])
        safe = {*left["runs"], *left["models"], *left["traces"]}
        assert not [path for path in again if safe & set(path.split("/"))]
