"""All that a sink can be opened on."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import diff
from mlflow_exim_plugin.errors import ArchiveExistsError
from mlflow_exim_plugin.options import Packing, Writing
from mlflow_exim_plugin.schema.objects import Kind
from tests.compare import assert_same, snapshot
from tests.contract.sink import SinkContract, Writable, Written
from tests.databases import new_mariadb_database, new_postgres_database, rows_of_tables
from tests.servers import new_sqlite_database, start_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.sources import Source

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(900),  # the first test of a class waits for all that is transferred
]
LOCATIONS = ["*.artifact_*", "*.source", "*.storage_location"]


class TestArchive(SinkContract):
    @pytest.fixture(scope="class")
    @classmethod
    def writable(cls, sqlite_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Writable:
        path = tmp_path_factory.mktemp("archive") / "a.tar.zst"
        return Writable(
            str(path),
            Packing(overwrite=True),
            lambda: path.exists() and diff(sqlite_source.uri, str(path), rules="exact").equal,
            sqlite_source.uri,
            sqlite_source.snapshot,
        )

    def test_again_writes_nothing(self, written: Written) -> None:
        before = Path(written.to.location).read_bytes()
        with pytest.raises(ArchiveExistsError):
            written.to.write(how=Packing())
        assert Path(written.to.location).read_bytes() == before

    def test_it_is_what_the_source_has(self, written: Written) -> None:
        assert written.states == [False, False, True, True]


class ByAPI(SinkContract):
    """MLflow's API is written to, which makes new ids."""

    def test_mlflow_says_the_same_of_both(self, written: Written) -> None:
        assert_same(written.to.found, snapshot(written.to.location), written.report)

    def test_nothing_differs_but_what_the_api_cannot_keep(self, written: Written) -> None:
        result = diff(written.to.source, written.to.location)
        assert result.equal, result.differences[:5]


def by_api(location: str, database: str, source: Source) -> Writable:
    MlflowClient(location, location)  # MLflow makes its default experiment when it opens it
    writing = Writing(preserve_ids=False)
    state = lambda: rows_of_tables(database)  # noqa: E731
    return Writable(location, writing, state, source.archive, source.snapshot)


class TestServer(ByAPI):
    serves_artifacts = True

    @classmethod
    @contextmanager
    def database(cls, folder: Path, request: pytest.FixtureRequest) -> Iterator[str]:
        del request
        new_sqlite_database(folder / "mlflow.db")
        yield f"sqlite:///{folder}/mlflow.db"

    @pytest.fixture(scope="class")
    @classmethod
    def writable(
        cls,
        server_source: Source,
        tmp_path_factory: pytest.TempPathFactory,
        request: pytest.FixtureRequest,
    ) -> Iterator[Writable]:
        folder = tmp_path_factory.mktemp("target")
        with (
            cls.database(folder, request) as database,
            start_server(
                folder, backend_store_uri=database, serve_artifacts=cls.serves_artifacts
            ) as server,
        ):
            yield by_api(server.url, database, server_source)

    def test_only_what_the_api_cannot_keep_is_lossy_and_is_said_once(
        self, written: Written, server_source: Source
    ) -> None:
        gone = server_source.made.runs["child of gone"]
        assert {(loss.kind, loss.id) for loss in written.report.losses} == {
            (Kind.EXPERIMENT, "*"),
            (Kind.RUN, "*"),
            (Kind.REGISTERED_MODEL, "*"),
            (Kind.MODEL_VERSION, "*"),
            (Kind.RUN, gone),
        }


class TestServerThatShowsItsFiles(TestServer):
    serves_artifacts = False


class TestServerOnPostgreSQL(TestServer):
    @classmethod
    @contextmanager
    def database(cls, folder: Path, request: pytest.FixtureRequest) -> Iterator[str]:
        del folder
        with new_postgres_database(request.getfixturevalue("_postgres_template")) as uri:
            yield uri


class TestSQLiteByAPI(ByAPI):
    @pytest.fixture(scope="class")
    @classmethod
    def writable(cls, server_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Writable:
        path = tmp_path_factory.mktemp("target") / "mlflow.db"
        new_sqlite_database(path)
        return by_api(f"sqlite:///{path}", f"sqlite:///{path}", server_source)


class TestSQLiteToSQLiteByAPI(ByAPI):
    @pytest.fixture(scope="class")
    @classmethod
    def writable(cls, sqlite_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Writable:
        path = tmp_path_factory.mktemp("target") / "mlflow.db"
        new_sqlite_database(path)
        return by_api(f"sqlite:///{path}", f"sqlite:///{path}", sqlite_source)


class ByIds(SinkContract):
    """A database is written to directly: ids, times and states are those of the source."""

    def test_it_is_exactly_what_the_source_has(
        self, written: Written, sqlite_source: Source
    ) -> None:
        to = written.to.location
        exact = diff(sqlite_source.uri, to, rules="exact", ignore=LOCATIONS)
        assert exact.equal, exact.differences[:5]
        moved = diff(sqlite_source.archive, to)
        assert moved.equal, moved.differences[:5]
        assert moved.rules.name == "moved"

    def test_files_lie_where_they_were_sent(self, written: Written) -> None:
        assert isinstance(written.to.how, Writing)
        uris = [row["artifact_uri"] for row in rows_of_tables(written.to.location)["runs"]]
        assert uris
        assert all(uri.startswith(f"{written.to.how.artifact_location}/") for uri in uris)


def by_ids(uri: str, source: Source, tmp_path_factory: pytest.TempPathFactory) -> Writable:
    MlflowClient(uri, uri)  # MLflow makes its default experiment when it opens it
    files = str(tmp_path_factory.mktemp("target") / "new files")
    writing = Writing(artifact_location=files, preserve_ids=True)
    return Writable(uri, writing, lambda: rows_of_tables(uri), source.uri, source.snapshot)


class TestSQLite(ByIds):
    @pytest.fixture(scope="class")
    @classmethod
    def writable(cls, sqlite_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Writable:
        path = tmp_path_factory.mktemp("database") / "mlflow.db"
        new_sqlite_database(path)
        return by_ids(f"sqlite:///{path}", sqlite_source, tmp_path_factory)


class TestPostgreSQL(ByIds):
    driver = "psycopg2"

    @pytest.fixture(scope="class")
    @classmethod
    def writable(
        cls,
        sqlite_source: Source,
        _postgres_template: str,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Iterator[Writable]:
        with new_postgres_database(_postgres_template) as uri:
            yield by_ids(uri.replace("psycopg2", cls.driver), sqlite_source, tmp_path_factory)


class TestPostgreSQLByPsycopg(TestPostgreSQL):
    driver = "psycopg"


class TestMariaDB(ByIds):
    @pytest.fixture(scope="class")
    @classmethod
    def writable(
        cls,
        sqlite_source: Source,
        _mariadb_template: str,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Iterator[Writable]:
        with new_mariadb_database(_mariadb_template) as uri:
            yield by_ids(uri, sqlite_source, tmp_path_factory)
