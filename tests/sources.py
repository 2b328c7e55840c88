"""Deployments that many tests read, with what MLflow says of them and an archive of all of it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow import MlflowClient

from mlflow_exim_plugin import pack
from mlflow_exim_plugin.container.reader import ArchiveReader
from tests.compare import Snapshot, snapshot
from tests.filled import copy_of_database, copy_of_server, once_a_session
from tests.seed import Seeded, seed
from tests.servers import start_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

    from mlflow_exim_plugin.schema.report import Report

__all__ = ["Source", "seed_old_server", "seed_server", "server_with_all", "sqlite_file_with_all"]


@dataclass(frozen=True)
class Source:
    """A filled deployment, what its API says, and an archive of all of it."""

    uri: str
    database: Path
    made: Seeded
    snapshot: Snapshot
    archive: str
    report: Report

    def damaged(self, path: Path) -> Path:
        """Write the archive with some bytes lost where a run's envelope is, and return its path."""
        run = f"data/experiments/{self.made.experiments['plain']}/runs/{self.made.runs['parent']}"
        data = bytearray(Path(self.archive).read_bytes())
        with ArchiveReader.open(self.archive) as reader:
            position = reader.position(f"{run}/run.json")
            assert position is not None
            table = reader.frames.table
            place = table.file_offsets[table.frame_at(reader.data_offset(position))]
        data[place + 100 : place + 120] = bytes(20)
        path.write_bytes(data)
        return path


@contextmanager
def server_with_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    """Start a server with every hard case, artifacts through the server."""
    folder = tmp_path_factory.mktemp("server-source")
    made = copy_of_server(folder, seed_server)
    with start_server(folder) as server:

        def make(shared: Path) -> Source:
            return _packed(server.url, folder / "mlflow.db", made, shared)

        # Each process has a server of its own, and what is in them is the same.
        source = once_a_session(tmp_path_factory, "server-source", make)
        yield replace(source, uri=server.url, database=folder / "mlflow.db")


def sqlite_file_with_all(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Return a SQLite file with every hard case, artifacts in a folder."""

    def make(folder: Path) -> Source:
        made = copy_of_database(folder, seed_database)
        return _packed(f"sqlite:///{folder}/mlflow.db", folder / "mlflow.db", made, folder)

    return once_a_session(tmp_path_factory, "sqlite-source", make)


def seed_server(uri: str) -> Seeded:
    """Fill a server with every hard case."""
    return seed(MlflowClient(uri, uri))


def seed_old_server(uri: str) -> Seeded:
    """Fill a server of MLflow 2 with every hard case that it takes."""
    return seed(MlflowClient(uri), old_server=True)


def seed_database(uri: str) -> Seeded:
    """Fill a database with every hard case, also with names of files that a server refuses."""
    return seed(MlflowClient(uri, uri), local_artifacts=True)


def _packed(uri: str, database: Path, made: Seeded, folder: Path) -> Source:
    archive = str(folder / "all.tar.zst")
    found = snapshot(uri)
    report = pack(archive, tracking_uri=uri)
    return Source(uri, database, made, found, archive, report)
