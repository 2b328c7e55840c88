"""A server whose database is emptied again and again, and what lies in it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import sqlalchemy

from mlflow_exim_plugin import unpack
from tests.answers import answers
from tests.databases import initialise, new_postgres_database
from tests.seed_entities import SERVER_ENV
from tests.servers import start_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report

__all__ = ["EmptiedTarget", "Rows", "opened"]

Rows = dict[str, Counter[tuple[Any, ...]]]


class EmptiedTarget:
    """A server and its database, which can be emptied.

    Args:
        kind: ``sqlite``, ``postgres``, or ``http``, into which is unpacked through the server.
        folder: Where the server keeps all that it keeps in files.
        url: The server.
        uri: Its database.
    """

    def __init__(self, kind: str, folder: Path, url: str, uri: str) -> None:
        self.kind, self.url, self.uri = kind, url, uri
        self.files = folder / "artifacts"
        self.engine = sqlalchemy.create_engine(uri)
        self.schema = sqlalchemy.MetaData()
        self.schema.reflect(self.engine)
        self.columns = {name: [c.name for c in t.columns] for name, t in self._tables()}
        with self.engine.connect() as connection:
            self.at_first = {
                name: [dict(row) for row in connection.execute(sqlalchemy.select(t)).mappings()]
                for name, t in self._tables()
            }

    def _tables(self) -> list[tuple[str, sqlalchemy.Table]]:
        return [(table.name, table) for table in self.schema.sorted_tables]

    def empty(self) -> None:
        """Take back all that was written since it was opened."""
        with self.engine.begin() as connection:
            if self.kind == "postgres":
                names = ", ".join(f'"{name}"' for name, _ in self._tables())
                connection.execute(sqlalchemy.text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
            else:
                connection.execute(sqlalchemy.text("PRAGMA foreign_keys=OFF"))
                for _, table in reversed(self._tables()):
                    connection.execute(table.delete())
            for name, table in self._tables():
                if rows := self.at_first[name]:
                    connection.execute(table.insert(), rows)
        shutil.rmtree(self.files, ignore_errors=True)
        self.files.mkdir()

    def put(self, archive: Path, url: str | None = None) -> Report:
        """Unpack an archive into it.

        Args:
            archive: The archive.
            url: How its server is reached.
        """
        if self.kind == "http":
            return unpack(str(archive), tracking_uri=url or self.url)
        return unpack(
            str(archive),
            tracking_uri=self.uri,
            artifact_location="mlflow-artifacts:/",
            artifacts_destination=str(self.files),
        )

    def rows(self) -> Rows:
        """Return the rows of each table."""
        with self.engine.connect() as connection:
            return {
                name: Counter(
                    tuple(json.dumps(v) if isinstance(v, (dict, list)) else v for v in row)
                    for row in connection.execute(sqlalchemy.select(table))
                )
                for name, table in self._tables()
            }

    def contents(self) -> dict[str, bytes]:
        """Return its files."""
        there = (path for path in self.files.rglob("*") if path.is_file())
        return {str(path.relative_to(self.files)): path.read_bytes() for path in there}

    def errors(self) -> set[str]:
        """Return which questions its server cannot answer."""
        return {asked for asked, (status, _) in answers(self.url).items() if status >= 500}


@contextmanager
def opened(kind: str, folder: Path) -> Iterator[EmptiedTarget]:
    """Start one.

    Args:
        kind: See ``EmptiedTarget``.
        folder: Gets what the server keeps.
    """
    if kind == "postgres":
        with new_postgres_database() as uri:
            initialise(uri)
            with start_server(folder, backend_store_uri=uri, env=SERVER_ENV) as server:
                yield EmptiedTarget(kind, folder, server.url, uri)
        return
    with start_server(folder, env=SERVER_ENV) as server:
        yield EmptiedTarget(kind, folder, server.url, f"sqlite:///{folder}/mlflow.db")
