"""A retention or move that was killed loses nothing, and the next one ends as one attempt does.

``EXIM_KILLED_AT_POINTS`` in the environment asks for another number of moments.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.depth import one_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.retention.conftest import OldStore

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="forks and kills processes"),
    pytest.mark.timeout(3600),
]

POINTS = int(os.environ.get("EXIM_KILLED_AT_POINTS", "3"))
KILLED = """
import hashlib, json, os, re, shutil, signal, sqlite3, sys, traceback
from pathlib import Path
import sqlalchemy
import mlflow.tracking, mlflow.store.tracking.sqlalchemy_store
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow_exim_plugin import diff, move, open_archive, restore, retain
from mlflow_exim_plugin.host.files.tree import ArtifactTree
from mlflow_exim_plugin.storage.folders.store_folder import StoreFolder
mode, folder, points, runs = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
place = folder / "mlflow.db"  # always the same, for the places of files are in it
uri, kept = f"sqlite:///{place}", str(folder / "set")

def steps_of(cls, name, step):
    usual = getattr(cls, name)
    def stepping(*arguments, **how):
        step()
        result = usual(*arguments, **how)
        step()
        return result
    setattr(cls, name, stepping)

def doing(dies_at):
    done = {"steps": 0}
    def step():
        done["steps"] += 1
        if done["steps"] == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
    def connected(connection, record):
        connection.set_progress_handler(step, 3_000)
    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", connected)
    for cls, name in (
        (ArtifactTree, "send"), (StoreFolder, "put"), (LocalArtifactRepository, "delete_artifacts"),
        (shutil, "rmtree"),
    ):
        steps_of(cls, name, step)
    if mode == "move":
        report = move(f"sqlite:///{folder}/target.db", runs=runs, tracking_uri=uri,
            artifact_location=str(folder / "moved"), jobs=1)
        assert report.ok, report.failures
    else:
        how = {mode: True} if mode != "archive" else {}
        report = retain(str(folder / "policy.yaml"), kept, tracking_uri=uri, apply=True, **how)
        assert report.ok, report.to_dict()
    (folder / "told.json").write_text(json.dumps(done))

def forked(dies_at=0):
    child = os.fork()
    if not child:
        try:
            doing(dies_at)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1]

def as_before():
    for name in ("files", "set", "moved"):
        shutil.rmtree(folder / name, ignore_errors=True)
    shutil.copytree(folder / "files.before", folder / "files")
    for name in ("mlflow.db", "target.db"):
        shutil.copy(folder / f"{name}.before", folder / name)

NUMBER = re.compile(r"snapshots/\\d+")  # a further attempt makes a further one
CHANGING = ("deleted_time", "creation_time", "last_update_time", "association_id", "dataset_uuid",
    "input_uuid")
def there(of="mlflow.db"):
    with sqlite3.connect(f"file:{folder / of}?mode=ro", uri=True) as database:
        names = "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name"
        database.row_factory = sqlite3.Row
        return {
            name: sorted(
                NUMBER.sub("snapshots/N", repr(sorted(
                    (k, v) for k, v in dict(row).items() if k not in CHANGING
                )))
                for row in database.execute(f'SELECT * FROM "{name}"')
                if not (name in ("inputs", "input_tags") and mode == "move")
            )
            for (name,) in database.execute(names).fetchall()
        }

def files(of="files"):
    found = [p for p in sorted((folder / of).rglob("*")) if p.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}

def marked():
    # Where the marks of runs say that these are.
    marks = "('mlflow.exim.archived', 'mlflow.exim.hollow')"
    asked = f"SELECT run_uuid, value FROM tags WHERE key IN {marks}"
    with sqlite3.connect(f"file:{place}?mode=ro", uri=True) as database:
        return database.execute(asked).fetchall()

def lost():
    for run, where in marked():
        if not diff(str(folder / "whole.tar.zst"), where, runs=[run], rules="moved",
                ignore=["experiment"]).equal:
            return [run, where]
    return [] if is_somewhere(*runs) else [run for run in runs if not is_somewhere(run)]

def is_somewhere(*wanted):
    # What is whole at the source, or else in a snapshot or at the target, is not lost.
    for other in (*sorted((folder / "set").rglob("snapshots/*.json")), folder / "target.db"):
        location = str(other) if other.suffix == ".json" else f"sqlite:///{other}"
        try:
            if diff(str(folder / "whole.tar.zst"), location, runs=wanted, rules="moved",
                    ignore=["experiment"]).equal:
                return True
        except Exception:
            continue
    found = diff(str(folder / "whole.tar.zst"), uri, runs=wanted, rules="exact", ignore=[
        "run.data.tags.mlflow.exim.archived", "run.data.tags.mlflow.exim.moved",
        "run.info.lifecycle_stage"])
    return found.equal

as_before()
assert forked() == 0
once = there(), files(), there("target.db"), files("moved")
steps = json.loads((folder / "told.json").read_text())["steps"]
told = {"steps": steps, "killed": 0, "lost": [], "differing": [], "doubled": []}
for number in range(points):
    as_before()
    dies_at = 1 + (2 * number + 1) * steps // (2 * points)
    status = forked(dies_at)
    told["killed"] += os.WIFSIGNALED(status)
    told["lost"] += [[dies_at, run] for run in lost()]
    assert forked() == 0, dies_at
    again = there(), files(), there("target.db"), files("moved")
    told["differing"] += [
        [dies_at, name, sorted(set(a) ^ set(b))[:4]]
        for one, other in zip(once, again)
        for name in {*one, *other}
        for a, b in [(one.get(name, []), other.get(name, []))]
        if a != b
    ]
    told["lost"] += [[dies_at, run, "in the end"] for run in lost()]
print(json.dumps(told))
"""


@pytest.mark.parametrize("mode", one_of("purge", "hollow", "move", "archive"))
def test_what_was_killed_loses_nothing_and_ends_as_one_attempt(
    mode: str, old_sqlite: OldStore, tmp_path: Path
) -> None:
    import shutil

    from mlflow_exim_plugin import pack
    from tests.servers import new_sqlite_database

    made = old_sqlite.made
    (tmp_path / "policy.yaml").write_text("rules:\n- older_than: 400d\n")
    new_sqlite_database(tmp_path / "target.db")
    for name in ("mlflow.db", "target.db"):
        shutil.copy(tmp_path / name, tmp_path / f"{name}.before")
    shutil.copytree(old_sqlite.files, tmp_path / "files.before")
    assert pack(str(tmp_path / "whole.tar.zst"), tracking_uri=old_sqlite.uri).ok
    runs = [made.runs[role] for role in made.free]

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, mode, str(tmp_path), str(POINTS), *runs],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert told["lost"] == []
    assert told["differing"] == []
    assert told["killed"] >= POINTS - 1  # a few steps more or less are taken each time
