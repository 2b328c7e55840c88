"""Fixtures that all tests share: a clean environment, servers, databases and a bucket."""

from __future__ import annotations

import gc
import os
import sys
import uuid
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import pytest
from sqlalchemy import Engine, event

from tests.databases import initialise, new_mariadb_database, new_postgres_database
from tests.forked_server import remember_schema_revision, write_later
from tests.servers import Server, new_sqlite_database, start_server

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from tests.sources import Source


class MakeServer(Protocol):
    """The factory that ``make_server`` gives; see ``tests.servers.start_server``."""

    def __call__(
        self,
        directory: Path | None = None,
        *,
        mlflow_version: str | None = None,
        backend_store_uri: str | None = None,
        serve_artifacts: bool = True,
        artifacts_destination: str | None = None,
        env: Mapping[str, str] | None = None,
        workers: int = 1,
    ) -> Server: ...


@dataclass(frozen=True)
class Bucket:
    """An empty S3 bucket; the environment already points every client to it."""

    name: str
    endpoint_url: str

    @property
    def url(self) -> str:
        """The bucket as ``s3://NAME``."""
        return f"s3://{self.name}"


@pytest.fixture(scope="session", autouse=True)
def _clean_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the user's: no servers, no credentials, no files left in the checkout."""
    gc.set_threshold(20_000, 20, 20)  # MLflow's modules are large and stay
    event.listen(Engine, "connect", write_later)
    event.listen(Engine, "first_connect", _mlflow_may_be_there)
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(("MLFLOW_", "_MLFLOW_", "DATABRICKS_", "AWS_")):
                patch.delenv(name)
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)  # hundreds of processes start
        patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        patch.setenv("DO_NOT_TRACK", "true")
        patch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE", "DATABRICKS_CONFIG_FILE"):
            patch.setenv(name, os.devnull)
        for name in ("NO_PROXY", "no_proxy"):
            patch.setenv(name, "127.0.0.1,localhost")
        patch.chdir(tmp_path_factory.mktemp("cwd"))
        yield


@pytest.fixture
def little_to_collect() -> Iterator[None]:
    """``gc.collect`` goes through what the test made, not through a million objects before it."""
    gc.freeze()
    yield
    gc.unfreeze()


def _mlflow_may_be_there(_: object, __: object) -> None:
    if "mlflow.store.db.utils" in sys.modules:  # many tests do without
        remember_schema_revision()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of a process: SQLite, artifacts through the server."""
    with start_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def make_server(tmp_path: Path) -> Iterator[MakeServer]:
    """Start servers that stop with the test; without a directory each has one of its own."""
    with ExitStack() as running:

        def make(
            directory: Path | None = None,
            *,
            mlflow_version: str | None = None,
            backend_store_uri: str | None = None,
            serve_artifacts: bool = True,
            artifacts_destination: str | None = None,
            env: Mapping[str, str] | None = None,
            workers: int = 1,
        ) -> Server:
            new = start_server(
                directory or tmp_path / f"server-{uuid.uuid4().hex[:8]}",
                mlflow_version=mlflow_version,
                backend_store_uri=backend_store_uri,
                serve_artifacts=serve_artifacts,
                artifacts_destination=artifacts_destination,
                env=env,
                workers=workers,
            )
            return running.enter_context(new)

        yield make


@pytest.fixture
def sqlite_uri(tmp_path: Path) -> str:
    """An empty SQLite backend with the schema of this interpreter's MLflow."""
    path = tmp_path / f"mlflow-{uuid.uuid4().hex[:8]}.db"
    new_sqlite_database(path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_uri(_postgres_template: str) -> Iterator[str]:
    """A PostgreSQL database like ``sqlite_uri`` that goes with the test."""
    with new_postgres_database(_postgres_template) as uri:
        yield uri


@pytest.fixture
def psycopg_uri(postgres_uri: str) -> str:
    """The same by the driver that SQLAlchemy 2.1 takes where none is named."""
    return postgres_uri.replace("+psycopg2", "+psycopg")


@pytest.fixture
def mariadb_uri(_mariadb_template: str) -> Iterator[str]:
    """A MariaDB database like ``sqlite_uri`` that goes with the test."""
    with new_mariadb_database(_mariadb_template) as uri:
        yield uri


@pytest.fixture(params=["SQLite", "PostgreSQL", "MariaDB"])
def untouched_uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database of each kind in which nothing is yet, that goes with the test."""
    if request.param == "SQLite":
        yield f"sqlite:///{tmp_path}/untouched.db"
        return
    new = new_postgres_database if request.param == "PostgreSQL" else new_mariadb_database
    with new() as uri:
        yield uri


@pytest.fixture(scope="session")
def server_source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """A server with every hard case, artifacts through the server."""
    from tests.sources import server_with_all

    with server_with_all(tmp_path_factory) as source:
        yield source


@pytest.fixture(scope="session")
def sqlite_source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A SQLite file with every hard case, artifacts in a folder."""
    from tests.sources import sqlite_file_with_all

    return sqlite_file_with_all(tmp_path_factory)


@pytest.fixture(scope="session")
def _postgres_template() -> Iterator[str]:
    with new_postgres_database() as uri:
        initialise(uri)
        yield uri.rpartition("/")[2]


@pytest.fixture(scope="session")
def _mariadb_template() -> Iterator[str]:
    with new_mariadb_database() as uri:
        initialise(uri)
        yield uri.rpartition("/")[2]


@pytest.fixture(scope="session")
def _s3_endpoint() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    endpoint = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    endpoint.start()
    host, port = endpoint.get_host_and_port()
    yield f"http://{host}:{port}"
    endpoint.stop()


@pytest.fixture
def s3_bucket(_s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket of an S3 server on loopback, with the environment set for all clients."""
    for name in ("AWS_ENDPOINT_URL", "MLFLOW_S3_ENDPOINT_URL"):
        monkeypatch.setenv(name, _s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import boto3

    bucket = Bucket(f"exim-{uuid.uuid4().hex[:12]}", _s3_endpoint)
    boto3.client("s3").create_bucket(Bucket=bucket.name)
    return bucket
