"""Sources that many tests pack, each packed once a session, and ways to look into a database."""

from __future__ import annotations

import sqlite3
import uuid
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import pack
from tests.compare import Snapshot, assert_count_law, snapshot
from tests.filled import copy_of_database, copy_of_server, once_a_session
from tests.seed import Seeded, seed
from tests.servers import new_sqlite_database, start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report


@dataclass(frozen=True)
class Source:
    """A filled deployment, what its API says, and an archive of all of it."""

    uri: str
    database: Path
    made: Seeded
    snapshot: Snapshot
    archive: str
    report: Report


@pytest.fixture(scope="session")
def server_source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """A server with every hard case, artifacts through the server."""
    folder = tmp_path_factory.mktemp("server-source")
    made = copy_of_server(folder, seed_server)
    with start_server(folder) as server:
        source = once_a_session(
            tmp_path_factory,
            "server-source",
            lambda shared: _packed(server.url, folder, made, shared),
        )
        # Each process has a server of its own, and all of these have the same.
        yield replace(source, uri=server.url, database=folder / "mlflow.db")


@pytest.fixture(scope="session")
def sqlite_source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A SQLite file with every hard case, artifacts in a folder."""

    def make(folder: Path) -> Source:
        made = copy_of_database(folder, seed_database)
        return _packed(f"sqlite:///{folder}/mlflow.db", folder, made, folder)

    return once_a_session(tmp_path_factory, "sqlite-source", make)


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A server with every kind and every hard case, which nobody changes, and an archive of it."""
    from tests.everything import SERVER_ENV, fill  # MLflow 2 cannot import it

    folder = tmp_path_factory.mktemp("everything")
    copy_of_server(folder, fill, env=SERVER_ENV)
    with start_server(folder, env=SERVER_ENV) as server:

        def make(shared: Path) -> str:
            archive = str(shared / "everything.tar.zst")
            packed = pack(archive, tracking_uri=server.url)
            assert packed.failures == []
            assert_count_law(packed)
            return archive

        yield server.url, once_a_session(tmp_path_factory, "everything", make)


@pytest.fixture(params=["sqlite_uri", "postgres_uri", "psycopg_uri", "mariadb_uri"])
def database_uri(request: pytest.FixtureRequest) -> str:
    """An empty database of each kind."""
    uri: str = request.getfixturevalue(request.param)
    return uri


@pytest.fixture
def make_sqlite(tmp_path: Path) -> Callable[[], str]:
    """Make further empty SQLite backends."""

    def make() -> str:
        path = tmp_path / f"more-{uuid.uuid4().hex[:8]}.db"
        new_sqlite_database(path)
        return f"sqlite:///{path}"

    return make


def seed_server(uri: str) -> Seeded:
    """Fill a server with every hard case."""
    return seed(MlflowClient(uri, uri))


def seed_database(uri: str) -> Seeded:
    """Fill a database with every hard case, also of names that a server refuses."""
    return seed(MlflowClient(uri, uri), local_artifacts=True)


def _packed(uri: str, folder: Path, made: Seeded, shared: Path) -> Source:
    archive = str(shared / "all.tar.zst")
    found = snapshot(uri)
    report = pack(archive, tracking_uri=uri)
    return Source(uri, folder / "mlflow.db", made, found, archive, report)


def rows_of(database: Path | str) -> list[str]:
    """Return every row of every table of a SQLite file, as SQL."""
    path = str(database).removeprefix("sqlite:///")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return list(connection.iterdump())
