"""Deployments that take long to fill: filled once on a machine, copied whenever one is wanted.

What MLflow itself made of a seed is kept, nothing of this package: a change of it is never hidden.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import pickle
import platform
import shutil
import sqlite3
import time
from contextlib import closing, contextmanager
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tests.servers import CACHE, locked, new_sqlite_database, start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pytest

__all__ = ["copy_of_database", "copy_of_server", "once_a_session"]

Made = TypeVar("Made")
_FORGOTTEN_AFTER_SECONDS = 14 * 24 * 3600
_SEEDS = ("*seed*.py", "everything.py", "filled.py", "servers.py")


def copy_of_server(
    directory: Path,
    fill: Callable[[str], Made],
    *,
    mlflow_version: str | None = None,
    serve_artifacts: bool = True,
    env: Mapping[str, str] | None = None,
) -> Made:
    """Put what a filled server keeps into a directory: one that starts there has all of it.

    Args:
        directory: Made if absent.
        fill: Called with the URL of a server, if none was filled so before.
        mlflow_version: That server's, as in ``start_server``.
        serve_artifacts: False: the absolute locations of files become those in the directory.
        env: What the server is filled with.

    Returns:
        What ``fill`` returned.
    """

    def fill_one(folder: Path) -> Made:
        with start_server(
            folder, mlflow_version=mlflow_version, serve_artifacts=serve_artifacts, env=env
        ) as server:
            made = fill(server.url)
        with closing(sqlite3.connect(folder / "mlflow.db")) as database:
            if any(server.url in line for line in database.iterdump()):
                raise RuntimeError(f"{fill} leaves the server's URL in it, which will be another")
        return made

    way = (mlflow_version, serve_artifacts, sorted((env or {}).items()))
    return _copied(directory, fill, fill_one, way)


def copy_of_database(directory: Path, fill: Callable[[str], Made]) -> Made:
    """Put a filled ``mlflow.db`` into a directory, and what files came with it.

    Args:
        directory: Made if absent.
        fill: Called with the URI of a database, in its folder, if none was filled so before.

    Returns:
        What ``fill`` returned.
    """

    def fill_one(folder: Path) -> Made:
        new_sqlite_database(folder / "mlflow.db")
        with _working_in(folder):
            return fill(f"sqlite:///{folder}/mlflow.db")

    return _copied(directory, fill, fill_one, "database")


def once_a_session(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Made]
) -> Made:
    """Call a function in one of the test processes, with a folder that all of them can read.

    Returns:
        What it returned, in each of them.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder /= name
    told = folder / "made.pickle"
    with locked(folder.with_suffix(".lock")):
        if not told.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of one that failed
            folder.mkdir()
            made = make(folder)
            told.write_bytes(pickle.dumps(made))
            return made
    made_there: Made = _unpickled(told)
    return made_there


def _copied(
    directory: Path, fill: Callable[[str], Made], fill_one: Callable[[Path], Made], way: object
) -> Made:
    name = f"{fill.__module__.rpartition('.')[2]}-{fill.__qualname__}"
    kept = CACHE / "filled" / f"{name}-{_digest(fill, way)}"
    with locked(kept.with_suffix(".lock")):
        if not kept.exists():
            _forget_old(kept.parent)
            unfinished = kept.with_suffix(".new")
            shutil.rmtree(unfinished, ignore_errors=True)
            (unfinished / "data").mkdir(parents=True)
            made = fill_one(unfinished / "data")
            (unfinished / "made.pickle").write_bytes(pickle.dumps(made))
            unfinished.replace(kept)
        os.utime(kept)
    shutil.copytree(kept / "data", directory, dirs_exist_ok=True)
    # It was filled under another name, which stands in the locations of its files.
    _replace_everywhere(
        directory / "mlflow.db", str(kept.with_suffix(".new") / "data"), str(directory)
    )
    made_then: Made = _unpickled(kept / "made.pickle")
    return made_then


def _digest(fill: Callable[[str], object], way: object) -> str:
    """Return what tells apart all that a filled deployment depends on."""
    module = inspect.getsourcefile(fill)
    assert module is not None
    digest = hashlib.sha256(repr((way, platform.python_version())).encode())
    digest.update(installed_version("mlflow").encode())
    seeds = (path for name in _SEEDS for path in Path(__file__).parent.glob(name))
    for path in sorted({Path(module), *seeds}):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _replace_everywhere(database: Path, old: str, new: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        tables = "SELECT name FROM sqlite_master WHERE type = 'table'"
        for (table,) in connection.execute(tables).fetchall():
            for _, column, kind, *_ in connection.execute(f"PRAGMA table_info('{table}')"):
                if kind.startswith(("VARCHAR", "TEXT")):
                    connection.execute(
                        f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?)'
                        f' WHERE instr("{column}", ?)',
                        (old, new, old),
                    )


def _forget_old(folder: Path) -> None:
    """Delete what nobody has copied for long: other versions of the seeds."""
    for path in folder.iterdir():
        if time.time() - path.stat().st_mtime > _FORGOTTEN_AFTER_SECONDS:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def _unpickled(path: Path) -> Any:
    return pickle.loads(path.read_bytes())  # noqa: S301 - we wrote it


@contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
