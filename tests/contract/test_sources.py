"""All that a source can be opened on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from tests.compare import snapshot
from tests.contract.source import Readable, SourceContract
from tests.databases import new_mariadb_database, new_postgres_database, rows_of_tables
from tests.seed import T0, Seeded, log_files, log_metrics, new_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.sources import Source

pytestmark = pytest.mark.integration


class TestArchive(SourceContract):
    @pytest.fixture(scope="class")
    @classmethod
    def readable(cls, sqlite_source: Source) -> Readable:
        archive = Path(sqlite_source.archive)
        return Readable(str(archive), sqlite_source.snapshot, archive.read_bytes)


class TestServer(SourceContract):
    @pytest.fixture(scope="class")
    @classmethod
    def readable(cls, server_source: Source) -> Readable:
        folder = server_source.database.parent
        return Readable(
            server_source.uri,
            server_source.snapshot,
            lambda: (rows_of_tables(f"sqlite:///{folder}/mlflow.db"), files_in(folder)),
        )


class TestSQLite(SourceContract):
    @pytest.fixture(scope="class")
    @classmethod
    def readable(cls, sqlite_source: Source) -> Readable:
        folder = sqlite_source.database.parent
        return Readable(sqlite_source.uri, sqlite_source.snapshot, lambda: files_in(folder))


class TestPostgreSQL(SourceContract):
    @pytest.fixture(scope="class")
    @classmethod
    def readable(
        cls, _postgres_template: str, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Readable]:
        with new_postgres_database(_postgres_template) as uri:
            yield filled_database(uri, tmp_path_factory.mktemp("files"))


class TestMariaDB(SourceContract):
    @pytest.fixture(scope="class")
    @classmethod
    def readable(
        cls, _mariadb_template: str, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Readable]:
        with new_mariadb_database(_mariadb_template) as uri:
            yield filled_database(uri, tmp_path_factory.mktemp("files"))


class TestFolder(SourceContract):
    @pytest.fixture(scope="class")
    @classmethod
    def readable(cls, tmp_path_factory: pytest.TempPathFactory) -> Readable:
        folder = tmp_path_factory.mktemp("file-store") / "mlruns"
        with pytest.MonkeyPatch.context() as allowed:
            allowed.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
            fill(str(folder), folder.parent / "files")
            found = snapshot(str(folder))
        return Readable(str(folder), found, lambda: files_in(folder.parent))


def filled_database(uri: str, files: Path) -> Readable:
    fill(uri, files)
    return Readable(uri, snapshot(uri), lambda: (rows_of_tables(uri), files_in(files)))


def fill(uri: str, files: Path) -> None:
    """Make two experiments, three runs with rows and files, and two models."""
    client = MlflowClient(uri, uri)
    made = Seeded()
    for name in ("one", "two"):
        made.experiments[name] = client.create_experiment(name, (files / name).as_uri())
    for role, name in (("a", "one"), ("b", "one"), ("c", "two")):
        run_id = new_run(client, made, role, made.experiments[name])
        log_metrics(client, run_id, {"loss": [(1.0, T0, 0), (0.5, T0, 1)], "acc": [(0.5, T0, 0)]})
        client.log_param(run_id, "lr", role)
        log_files(client, run_id, {"note.txt": role.encode(), "model/MLmodel": b"flavors: {}"})
    for name in ("net", "tree"):
        client.create_registered_model(name, {"of": name})
        for role in ("a", "c"):
            run_id = made.runs[role]
            client.create_model_version(name, f"runs:/{run_id}/model", run_id)
        client.set_registered_model_alias(name, "champion", "1")


def files_in(folder: Path) -> dict[str, str]:
    """Return the digest of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "server.log"
    }
