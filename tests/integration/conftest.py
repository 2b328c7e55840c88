"""A server with everything, databases of each kind, and a way to look into a database."""

from __future__ import annotations

import sqlite3
import uuid
import zlib
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_exim_plugin import pack
from tests.compare import assert_count_law
from tests.depth import one_of
from tests.filled import copy_of_server, once_a_session
from tests.servers import new_sqlite_database, start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.folder_seed import Store


@pytest.fixture(scope="session")
def everything_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server of ``everything`` keeps what it has."""
    from tests.everything import SERVER_ENV, fill  # MLflow 2 cannot import it

    folder = tmp_path_factory.mktemp("everything")
    copy_of_server(folder, fill, env=SERVER_ENV)
    return folder


@pytest.fixture(scope="session")
def everything(
    everything_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """A server with every kind and every hard case, which nobody changes, and an archive of it."""
    from tests.everything import SERVER_ENV  # MLflow 2 cannot import it

    with start_server(everything_folder, env=SERVER_ENV) as server:

        def make(shared: Path) -> str:
            archive = str(shared / "everything.tar.zst")
            packed = pack(archive, tracking_uri=server.url)
            assert packed.failures == []
            assert_count_law(packed)
            return archive

        yield server.url, once_a_session(tmp_path_factory, "everything", make)


@pytest.fixture(scope="session")
def filled_folder(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A folder with one of everything that MLflow keeps in files, which nobody changes."""
    from tests.folder_seed import fill_folder  # MLflow 2 cannot import it

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        return once_a_session(
            tmp_path_factory, "filled-folder", lambda shared: fill_folder(shared / "mlruns")
        )


@pytest.fixture(scope="session")
def everything_answers(
    everything: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the server with every kind answers to who reads all of it."""
    from tests.answers import answers

    url, _ = everything
    return once_a_session(tmp_path_factory, "answers", lambda _: answers(url))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow retries a failed call for minutes; what becomes of it in the end is the same."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")


@pytest.fixture(params=one_of("PostgreSQL", "MariaDB", "SQLite"))
def database_uri(request: pytest.FixtureRequest) -> str:
    """An empty database of each kind; PostgreSQL by the one or the other of its drivers."""
    drivers = ["postgres_uri", "psycopg_uri"]
    names = {"SQLite": "sqlite_uri", "MariaDB": "mariadb_uri"}
    names["PostgreSQL"] = drivers[zlib.crc32(request.node.originalname.encode()) % len(drivers)]
    uri: str = request.getfixturevalue(names[request.param])
    return uri


@pytest.fixture
def make_sqlite(tmp_path: Path) -> Callable[[], str]:
    """Make further empty SQLite backends."""

    def make() -> str:
        path = tmp_path / f"more-{uuid.uuid4().hex[:8]}.db"
        new_sqlite_database(path)
        return f"sqlite:///{path}"

    return make


def rows_of(database: Path | str) -> list[str]:
    """Return every row of every table of a SQLite file, as SQL."""
    path = str(database).removeprefix("sqlite:///")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return list(connection.iterdump())
