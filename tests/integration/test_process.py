"""What a program that uses the package finds as it was, and what our own command sets up."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import mlflow
import pytest
from packaging.version import Version

from tests.depth import one_of
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.compat]

STATE = """
import atexit, gc, logging, os, signal, sys, tempfile, threading
import fsspec, mlflow, pyarrow.parquet, sqlalchemy, zstandard
from click.testing import CliRunner

# What MLflow and the standard library keep once they are used is theirs.
mlflow.MlflowClient(sys.argv[2]).search_registered_models()
with tempfile.TemporaryDirectory():
    pass


def state():
    return {
        "environment": dict(os.environ),
        "collector": (gc.isenabled(), gc.get_threshold(), gc.get_freeze_count()),
        "logging": (logging.root.manager.disable, logging.root.level, list(logging.root.handlers)),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "path": list(sys.path),
        "finders": list(sys.meta_path),
        "at exit": atexit._ncallbacks(),
        "hooks": (sys.excepthook, threading.excepthook),
        "limits": (sys.getrecursionlimit(), sys.getswitchinterval()),
        "folder": os.getcwd(),
    }


def look():
    for key, found in state().items():
        if found != before[key]:
            both = [before[key], found]
            if key == "environment":  # the rest may be secret
                both = [set(one.items()) - set(other.items()) for one, other in (both, both[::-1])]
            changed[key] = both


def watch():
    while not done.wait(0.005):
        look()


before, changed, done = state(), {}, threading.Event()
# This one is documented: it waits for `mlflow.cli`.
assert any(type(finder).__name__ == "_HostFinder" for finder in before["finders"])
sampler = threading.Thread(target=watch)
sampler.start()
try:
"""
END = """
finally:
    done.set()
    sampler.join()
look()
assert not changed, changed
"""
LIBRARY = """
    import mlflow_exim_plugin as exim

    from mlflow_exim_plugin.cli.main import exim as commands

    archive = "a.tar.zst"
    report = exim.pack(archive, tracking_uri=sys.argv[1])
    assert report.ok and report.counts["run"].written == 1, report
    report = exim.unpack(archive, tracking_uri=sys.argv[2])
    assert report.ok, report.failures
    assert exim.diff(archive, sys.argv[1]).equal
    result = CliRunner().invoke(commands, ["verify", archive])
    assert result.exit_code == 0, result.output
"""
OWN = """
import atexit, gc, os, sys

sys.argv[1:] = [*sys.argv[1].split(), "ls", "none.tar.zst"]
atexit.register(lambda: print(gc.get_freeze_count()))
{enter}
try:
    main()
except SystemExit as end:
    assert end.code == 4, end.code
assert gc.get_threshold()[0] == 500_000
assert os.environ["ARROW_DEFAULT_MEMORY_POOL"] == "system"
"""


def python(code: str, *arguments: str, cwd: Path) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    kept = {k: v for k, v in os.environ.items() if k != "ARROW_DEFAULT_MEMORY_POOL"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        # MLflow's telemetry keeps a variable and a callback of its own.
        env=kept | {"GIT_PYTHON_REFRESH": "quiet", "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def fill(uri: str) -> None:
    client = mlflow.MlflowClient(uri)
    client.log_metric(client.create_run("0").info.run_id, "loss", 0.5)


def move_into_a_workspace(uri: str) -> None:
    """Move the runs of a database into an experiment of a workspace that is not the default one."""
    with sqlite3.connect(uri.removeprefix("sqlite:///")) as database:
        database.execute("INSERT INTO workspaces (name) VALUES ('team-a')")
        columns = [row[1] for row in database.execute("PRAGMA table_info(experiments)")]
        values = {"experiment_id": "7", "name": "'ours'", "workspace": "'team-a'"}
        wanted = ", ".join(values.get(column, column) for column in columns)
        database.execute(f"INSERT INTO experiments SELECT {wanted} FROM experiments LIMIT 1")
        database.execute("UPDATE runs SET experiment_id = 7")


@pytest.fixture(params=one_of("database", "folder", "workspaces"))
def source(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    sqlite_uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The URI of a deployment with one run."""
    if request.param == "folder":
        uri = (tmp_path / "mlruns").as_uri()
        with monkeypatch.context() as allowed:
            allowed.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
            fill(uri)
        (tmp_path / "mlruns" / ".trash").rmdir()  # old ones have none
        return uri
    fill(sqlite_uri)
    if request.param == "workspaces":
        if Version(mlflow.__version__) < Version("3.10"):
            pytest.skip("no workspaces before")
        move_into_a_workspace(sqlite_uri)
    return sqlite_uri


def test_a_program_stays_as_it_was_that_calls_us_or_embeds_our_commands(
    source: str, tmp_path: Path
) -> None:
    new_sqlite_database(tmp_path / "target.db")
    folder = tmp_path / "mlruns"
    before = sorted(folder.rglob("*"))

    python(STATE + LIBRARY + END, source, "sqlite:///target.db", cwd=tmp_path)

    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "enter"),
    [
        ("", "from mlflow_exim_plugin.entrypoints import main"),
        ("exim", "from mlflow.cli import cli as main"),
    ],
)
def test_our_own_command_sets_its_process_up(arguments: str, enter: str, tmp_path: Path) -> None:
    frozen = python(OWN.replace("{enter}", enter), arguments, cwd=tmp_path)
    assert int(frozen) > 0
