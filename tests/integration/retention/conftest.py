"""Databases of each kind with old runs, filled once and copied for each test."""

from __future__ import annotations

import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import sqlalchemy

from tests.databases import new_mariadb_database, new_postgres_database
from tests.depth import one_of
from tests.old_runs import OldRuns, seed_old_runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_PLACES = {
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "trace_tags": ("value",),
    "model_versions": ("source", "storage_location"),
}


@dataclass
class OldStore:
    """A database with old runs.

    Attributes:
        uri: The database.
        files: Folder of its files.
        made: What is in it.
    """

    uri: str
    files: Path
    made: OldRuns


@pytest.fixture(scope="session")
def seeded(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[[str], OldStore]]:
    """Fills a database of a kind once for each process."""
    stores: dict[str, OldStore] = {}
    with ExitStack() as open_:

        def of(kind: str) -> OldStore:
            if kind not in stores:
                folder = tmp_path_factory.mktemp(f"old-{kind}")
                if kind == "SQLite":
                    from tests.servers import new_sqlite_database

                    new_sqlite_database(folder / "mlflow.db")
                    uri = f"sqlite:///{folder}/mlflow.db"
                elif kind == "PostgreSQL":
                    template = request.getfixturevalue("_postgres_template")
                    uri = open_.enter_context(new_postgres_database(template))
                else:
                    template = request.getfixturevalue("_mariadb_template")
                    uri = open_.enter_context(new_mariadb_database(template))
                stores[kind] = OldStore(uri, folder / "files", seed_old_runs(uri, folder / "files"))
                _let_go(uri)
            return stores[kind]

        yield of


@pytest.fixture(params=one_of("PostgreSQL", "MariaDB", "SQLite"))
def old_store(
    request: pytest.FixtureRequest, seeded: Callable[[str], OldStore], tmp_path: Path
) -> Iterator[OldStore]:
    """A database with old runs that a test may change."""
    with _copied(request.param, seeded(request.param), tmp_path) as store:
        yield store


@pytest.fixture(params=["SQLite", "PostgreSQL", "MariaDB"])
def each_store(
    request: pytest.FixtureRequest, seeded: Callable[[str], OldStore], tmp_path: Path
) -> Iterator[OldStore]:
    """One of each kind."""
    with _copied(request.param, seeded(request.param), tmp_path) as store:
        yield store


@pytest.fixture
def old_sqlite(seeded: Callable[[str], OldStore], tmp_path: Path) -> Iterator[OldStore]:
    """The same of SQLite alone."""
    with _copied("SQLite", seeded("SQLite"), tmp_path) as store:
        yield store


@contextmanager
def _copied(kind: str, seeded: OldStore, tmp_path: Path) -> Iterator[OldStore]:
    files = tmp_path / "files"
    shutil.copytree(seeded.files, files)
    with ExitStack() as open_:
        if kind == "SQLite":
            uri = f"sqlite:///{tmp_path}/mlflow.db"
            shutil.copyfile(seeded.uri.removeprefix("sqlite:///"), tmp_path / "mlflow.db")
        elif kind == "PostgreSQL":
            uri = open_.enter_context(new_postgres_database(seeded.uri.rpartition("/")[2]))
        else:
            uri = open_.enter_context(new_mariadb_database(seeded.uri.rpartition("/")[2]))
        engine = sqlalchemy.create_engine(uri)
        with engine.begin() as connection:
            for table, columns in _PLACES.items():
                for column in columns:
                    moved = f"UPDATE {table} SET {column} = REPLACE({column}, :old, :new)"
                    places = {"old": str(seeded.files), "new": str(files)}
                    connection.execute(sqlalchemy.text(moved), places)
        engine.dispose()
        yield OldStore(uri, files, seeded.made)


def _let_go(uri: str) -> None:
    """End the connections that MLflow's stores keep: a database that is in use is no template."""
    if not uri.startswith("postgresql"):
        return
    server, _, name = uri.rpartition("/")
    engine = sqlalchemy.create_engine(f"{server}/postgres")
    ending = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(ending), {"name": name})
    engine.dispose()
