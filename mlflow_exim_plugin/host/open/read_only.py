"""A database that is only read, however MLflow's stores treat those that they open.

Here its rows are read whatever its schema. MLflow's stores migrate a database of an older schema
when they open it, and write what they miss in it. So where they are needed they never get the
user's database: they get a URI whose connections only read, and where they would have to write, a
private copy.

What they read is one moment of the source, while others go on writing to it: a server's database
is read in one transaction, which all connections share. A SQLite file would make its writers wait
for so long, so it is copied first, by SQLite's own online backup.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy
from sqlalchemy import StaticPool, make_url

from mlflow_exim_plugin.errors import (
    ArchiveExistsError,
    NotFoundError,
    ServerError,
    StoreError,
    UnsupportedFormatError,
)
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.lent import lend, take_back
from mlflow_exim_plugin.host.open.locations import url_of_database
from mlflow_exim_plugin.host.open.schema_revisions import (
    at_revision,
    is_known,
    latest_revision,
    revision_of,
    upgrade,
)
from mlflow_exim_plugin.host.open.sqlite_file import read_only, whole_file
from mlflow_exim_plugin.host.open.unmapped import (
    columns_of,
    columns_there,
    held_unmapped,
    unknown,
)
from mlflow_exim_plugin.kinds.tables import MAPPED, NOT_CARRIED
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.leftovers import temporary_folder
from mlflow_exim_plugin.storage.output import atomic_output

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from sqlalchemy import URL, Connection, Engine

__all__ = [
    "ReadOnlyDatabase",
    "drop_default_experiment",
    "require_current_schema",
]

_LOCKED_S = 20
"""How long a copy waits for whoever is writing, as MLflow's own stores do."""
_SQLITE_BUSY = {5, 6}
"""SQLITE_BUSY and SQLITE_LOCKED, which Python 3.10 does not name."""
_ROWS_AT_ONCE = 5_000
_FIRST_TABLES = {
    "experiments": "experiment_id name artifact_location lifecycle_stage",
    "runs": "run_uuid name user_id status start_time end_time lifecycle_stage artifact_uri"
    " experiment_id",
    "metrics": "run_uuid key value timestamp",
    "params": "run_uuid key value",
    "tags": "run_uuid key value",
}
"""What every schema of MLflow has."""
_UNFINISHED = "_alembic_tmp_"
"""How a migration of SQLite names the table that it puts in the place of another one."""
_COMMIT = "COMMIT"
_BEGIN = {
    "postgresql": (
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
        _COMMIT,
        "SELECT 1",
    ),
    "mysql": (
        "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
        "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
    ),
    "mssql": ("SET TRANSACTION ISOLATION LEVEL SNAPSHOT",),
}
"""What makes a connection read one moment of a database, and nothing but read."""


class ReadOnlyDatabase:
    """A database with MLflow's tables.

    Args:
        uri: SQLAlchemy URI.
        snapshot: Whether all that is read is to be of one moment.
        force: Whether a schema that is newer than this MLflow's is read as far as it is known.

    Attributes:
        uri: What is to be opened in its place, until it is closed: its connections only read.
        workspaces: REST's ``Workspace`` of each, none where there is the default one alone.
        unread: Tables and columns of a newer schema, which are left out.
        unmapped: Tables and columns that hold something which no kind is made of.
        lacks_default: Whether MLflow will make up the default experiment in its copy.

    Raises:
        NotFoundError: There is no such database, or it is not MLflow's.
        UnsupportedFormatError: Its schema is newer than this MLflow's.
        ServerError: It cannot be opened.
        StoreError: There is no room for a copy.
    """

    def __init__(self, uri: str, *, snapshot: bool, force: bool = False) -> None:
        self._held = contextlib.ExitStack()
        self._name = redact_url(uri)
        self._force = force
        self._is_newer = self._is_latest = False
        self.workspaces: list[dict[str, Any]] = []
        self.unread: list[str] = []
        self.unmapped: list[str] = []
        self.lacks_default = False
        self._make_copy: Callable[[], Path]
        self._copy: str | None = None
        url = url_of_database(uri)
        with contextlib.ExitStack() as failing:
            failing.callback(self.close)
            if url.get_backend_name() == "sqlite":
                self.uri = self._of_file(url, snapshot=snapshot)
            else:
                self.uri = self._of_server(uri)
            failing.pop_all()

    def close(self) -> None:
        """End the transaction and remove the copy."""
        self._held.close()

    def for_mlflow(self) -> str:
        """Return what MLflow's stores are to open: the same, or a copy where they would write.

        Raises:
            UnsupportedFormatError: It is half-migrated.
            ServerError: It cannot be copied or migrated.
            StoreError: There is no room for a copy.
        """
        # In workspaces its store always tries to make a default experiment.
        is_left_alone = self._is_latest and not self.lacks_default and not self.workspaces
        if is_left_alone or self._is_newer:
            return self.uri
        if self._copy is None:
            self._copy = f"sqlite:///{self._make_copy()}"
        return self._copy

    def _of_file(self, url: URL, *, snapshot: bool) -> str:
        with translated(f"opening {self._name}"):
            path = whole_file(Path(url.database or "").absolute(), self._folder)

        def connect() -> sqlite3.Connection:
            return sqlite3.connect(read_only(path), uri=True, check_same_thread=False)

        with translated(f"opening {self._name}"):
            engine = sqlalchemy.create_engine("sqlite://", creator=connect, poolclass=StaticPool)
            with closing(_Disposing(engine)), engine.connect() as connection:
                connection.exec_driver_sql("BEGIN")
                self._check(connection)
                if self._is_newer:
                    return self._known_part(connection)
        self._make_copy = lambda: self._migrated(self._copied(path))
        if not snapshot:
            return self._lent(url, connect)
        path = self._copied(path)
        return f"sqlite:///{path}"

    def _migrated(self, copy: Path) -> Path:
        if not self._is_latest:
            engine = sqlalchemy.create_engine(f"sqlite:///{copy}")
            with translated(f"migrating a copy of {self._name}"), closing(_Disposing(engine)):
                upgrade(engine)
                self._require_whole(engine)
        return copy

    def _of_server(self, uri: str) -> str:
        with translated(f"opening {self._name}"):
            engine = _engine_of_server(uri)
            self._held.callback(engine.dispose)
            backend = engine.dialect.name
            shared = engine.raw_connection()
            self._held.callback(shared.invalidate)
            connection: Any = shared.dbapi_connection
            with closing(connection.cursor()) as cursor:
                for statement in _BEGIN.get(backend, ()):
                    if statement == _COMMIT:  # drivers must know that their transaction ended
                        connection.commit()
                    else:
                        cursor.execute(statement)
        turn = threading.RLock()
        lent = self._lent(make_url(uri), lambda: connection, lock=turn)
        reader = sqlalchemy.create_engine(lent)

        def copy() -> Path:
            # Rows come as they are asked for: nobody else may ask meanwhile.
            with translated(f"reading {self._name}"), turn, reader.connect() as reading:
                return self._copied_by_rows(reading)

        self._make_copy = copy
        with translated(f"reading {self._name}"), reader.connect() as reading:
            self._check(reading)
            return self._known_part(reading) if self._is_newer else lent

    def _known_part(self, reading: Connection) -> str:
        """Return a copy of what this MLflow knows of a newer schema."""
        engine = sqlalchemy.create_engine(f"sqlite:///{self._copied_by_rows(reading)}")
        with closing(_Disposing(engine)), engine.connect() as copy:
            self.workspaces = _workspaces_of(copy, columns_there(copy))
        return str(engine.url)

    def _check(self, connection: Connection) -> None:
        """Look at what database it is.

        Raises:
            NotFoundError: It is not MLflow's.
            UnsupportedFormatError: This MLflow does not know its schema, or it is half-migrated.
        """
        revision = revision_of(connection)
        if revision is None:
            raise NotFoundError(
                f"{self._name} has no tables of MLflow", "check the name of the database"
            )
        self._is_newer = not is_known(revision)
        if self._is_newer and not self._force:
            raise UnsupportedFormatError(
                f"{self._name} has schema {revision}, which is newer than this MLflow's",
                "pip install --upgrade mlflow, or --force to read what this one knows of it",
            )
        self._is_latest = revision == latest_revision()
        there = columns_there(connection)
        self._require_first_tables(there)
        self.unmapped = held_unmapped(connection, there)
        default = sqlalchemy.text("SELECT count(*) FROM experiments WHERE experiment_id = 0")
        self.lacks_default = not connection.execute(default).scalar_one()
        if not self._is_newer:
            self.workspaces = _workspaces_of(connection, there)

    def _lent(
        self,
        url: URL,
        connect: Callable[[], Any],
        lock: threading.RLock | None = None,
    ) -> str:
        """Return a URI that MLflow's stores open by ``connect``, while this database is open."""
        lent = lend(url, connect, lock)
        self._held.callback(take_back, lent)
        return lent.render_as_string(hide_password=False)

    def _folder(self, size_bytes: int) -> Path:
        """Return a private folder with room for a copy."""
        folder = self._held.enter_context(temporary_folder())
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes < size_bytes:
            raise StoreError(
                f"a copy of {self._name} needs {size_bytes >> 20} MB, and there are "
                f"{free_bytes >> 20} MB in {folder.parent}",
                "set TMPDIR to a folder with more room",
            )
        return folder

    def _copied(self, path: Path) -> Path:
        """Copy a file as it is now: whoever writes to it waits for that long."""
        location = read_only(path)
        copy = self._copied_from(path, location)
        # Somebody has begun to write meanwhile, and did not wait.
        return copy if location == read_only(path) else self._copied(path)

    def _copied_from(self, path: Path, location: str) -> Path:
        copy = self._folder(path.stat().st_size) / "mlflow.db"
        waited_until = time.monotonic() + _LOCKED_S

        def watch(status: int, _left: int, _pages: int) -> None:
            if status in _SQLITE_BUSY and time.monotonic() > waited_until:
                raise ServerError(
                    f"{self._name} is locked by another process", "try again when it has finished"
                )

        with (
            translated(f"copying {self._name}"),
            closing(sqlite3.connect(location, uri=True)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            target.execute("PRAGMA synchronous=OFF")
            source.backup(target, progress=watch)
        return copy

    def _copied_by_rows(self, reading: Connection) -> Path:
        """Copy all rows into a file of the same schema, and let MLflow migrate that."""
        copy = self._folder(1 << 30) / "mlflow.db"
        engine = sqlalchemy.create_engine(f"sqlite:///{copy}")
        sqlalchemy.event.listen(engine, "connect", _without_care)
        with closing(_Disposing(engine)):
            at_revision(engine, "head" if self._is_newer else str(revision_of(reading)))
            wanted, there = sqlalchemy.MetaData(), sqlalchemy.MetaData()
            wanted.reflect(engine)
            there.reflect(reading)
            with closing(sqlite3.connect(copy)) as target:
                _without_care(target)
                for name in sorted(set(wanted.tables) - NOT_CARRIED):
                    self._copy_table(reading, there, wanted.tables[name], target)
                target.commit()
            upgrade(engine)
        if self._is_newer:
            self.unread = unknown(columns_of(there), columns_of(wanted))
        return copy

    def _require_whole(self, copy: Engine) -> None:
        """Refuse a copy in which columns are missing although it has been migrated."""
        from mlflow.store.db.base_sql_model import Base

        there = sqlalchemy.MetaData()
        there.reflect(copy)
        for wanted in Base.metadata.tables.values():
            found = there.tables.get(wanted.name)
            if found is None:
                raise self._half_migrated(wanted.name, [])
            if missing := [c.name for c in wanted.columns if c.name not in found.columns]:
                raise self._half_migrated(wanted.name, missing)

    def _require_first_tables(self, there: Mapping[str, Collection[str]]) -> None:
        """Refuse a database without what every schema has, or with what a migration left."""
        for table, columns in _FIRST_TABLES.items():
            if table not in there:
                raise self._half_migrated(table, [])
            if missing := [name for name in columns.split() if name not in there[table]]:
                raise self._half_migrated(table, missing)
        for table in there:
            if table.startswith(_UNFINISHED):
                raise self._half_migrated(table.removeprefix(_UNFINISHED), ["rows"])

    def _half_migrated(self, table: str, missing: list[str]) -> UnsupportedFormatError:
        return UnsupportedFormatError(
            f"{self._name} is half-migrated: {table} lacks {', '.join(missing) or 'the table'}",
            "finish `mlflow db upgrade` on it, or restore it from a backup",
        )

    def _copy_table(
        self,
        reading: Connection,
        there: sqlalchemy.MetaData,
        wanted: sqlalchemy.Table,
        target: sqlite3.Connection,
    ) -> None:
        source = there.tables.get(wanted.name)
        missing = [c.name for c in wanted.columns if source is None or c.name not in source.columns]
        if self._is_newer and source is None:
            return
        if source is None or (missing and not self._is_newer):
            raise self._half_migrated(wanted.name, missing if source is not None else [])
        names = [c.name for c in wanted.columns if c.computed is None and c.name not in missing]
        into = ", ".join(f'"{name}"' for name in names)
        marks = ", ".join("?" * len(names))
        insert = f'INSERT INTO "{wanted.name}" ({into}) VALUES ({marks})'  # noqa: S608 - MLflow's
        # Without their types: SQLAlchemy would round the doubles of MySQL to decimals.
        columns: list[sqlalchemy.ColumnClause[Any]] = [sqlalchemy.column(name) for name in names]
        query = sqlalchemy.select(*columns).select_from(source)
        rows = reading.execution_options(yield_per=_ROWS_AT_ONCE).execute(query)
        target.execute(f'DELETE FROM "{wanted.name}"')  # noqa: S608 - what migrations put there
        for some in rows.partitions():
            target.executemany(insert, [[_plain(value) for value in row] for row in some])


def _engine_of_server(uri: str) -> Engine:
    """Return an engine as MLflow would make it."""
    if any(name.startswith(_ENGINE_OPTIONS) for name in os.environ):
        from mlflow.store.db.utils import create_sqlalchemy_engine  # which knows all of them

        engine: Engine = create_sqlalchemy_engine(uri)
        return engine
    return sqlalchemy.create_engine(uri, pool_pre_ping=True)


def _workspaces_of(
    connection: Connection, there: Mapping[str, Collection[str]]
) -> list[dict[str, Any]]:
    """Return REST's ``Workspace`` of each in a database, none where it has the default alone.

    A provider may keep them elsewhere: then those are returned that objects lie in.
    """
    found: dict[str, dict[str, Any]] = {}
    if "workspaces" in there:
        for row in connection.execute(sqlalchemy.text("SELECT * FROM workspaces")).mappings():
            document = {name: row.get(name) for name in _OF_WORKSPACE}
            archival = {name: row.get(f"trace_archival_{name}") for name in _OF_ARCHIVAL}
            document["trace_archival_config"] = _given(archival) or None
            found[row["name"]] = _given(document)
    for table in sorted(MAPPED.keys() & there.keys()):
        if "workspace" in there[table]:
            name: sqlalchemy.ColumnClause[str] = sqlalchemy.column("workspace")
            query = sqlalchemy.select(name).select_from(sqlalchemy.table(table)).distinct()
            for workspace in connection.execute(query).scalars():
                found.setdefault(workspace, {"name": workspace})
    return list(found.values()) if set(found) - {_DEFAULT_WORKSPACE} else []


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def drop_default_experiment(copy: Engine) -> None:
    """Drop the default experiment that MLflow made up when it opened a copy without one."""
    with copy.begin() as connection:
        connection.execute(sqlalchemy.text("DELETE FROM experiments WHERE experiment_id = 0"))


_TABLES_LOCK = {
    "postgresql": "SELECT pg_advisory_lock(7203174511)",
    "mysql": "SELECT GET_LOCK('mlflow_exim.tables', 600)",
}
"""Held by the connection of whoever makes MLflow's tables, for as long as it is open."""


def require_current_schema(uri: str) -> list[dict[str, Any]]:
    """Refuse to write to a database that MLflow would migrate, while a server may run on it.

    MLflow's tables are made in an empty one, by one process at a time. A server that does not
    answer is asked only once: MLflow itself waits two minutes for it to come up.

    Returns:
        REST's ``Workspace`` of each, none where there is the default one alone.

    Raises:
        UnsupportedFormatError: Its schema is not that of this MLflow.
        ServerError: It cannot be opened.
    """
    from mlflow.store.db.utils import create_sqlalchemy_engine

    url = url_of_database(uri)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        if url.database and not url.query:
            _make_database(url.database)
        return []
    with translated(f"opening {redact_url(uri)}"):
        engine = create_sqlalchemy_engine(uri)
        with closing(_Disposing(engine)), engine.connect() as connection:
            revision = revision_of(connection)
            if revision != latest_revision() and (lock := _TABLES_LOCK.get(engine.dialect.name)):
                # Whoever makes the tables of an empty database is waited for.
                connection.exec_driver_sql(lock)
                connection.commit()
                revision = revision_of(connection)
                if revision is None:
                    at_revision(engine, "")
                    upgrade(engine)
                    return []
            if revision == latest_revision():
                return _workspaces_of(connection, columns_there(connection))
    if revision is not None:
        how = "older" if is_known(revision) else "newer"
        raise UnsupportedFormatError(
            f"{redact_url(uri)} has a schema that is {how} than this MLflow's: {revision}",
            "write to its server, use the server's version of MLflow, or migrate it with "
            "`mlflow db upgrade`",
        )
    return []


def _make_database(path: str) -> None:
    """Make a SQLite file with MLflow's tables: a full disk leaves none rather than half of them."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "new.db")
        engine = sqlalchemy.create_engine(f"sqlite:///{made}")
        with closing(_Disposing(engine)):
            at_revision(engine, "")
            upgrade(engine)
        with (
            contextlib.suppress(ArchiveExistsError),  # another was faster, and made the same
            atomic_output(path) as file,
        ):
            file.write(made.read_bytes())


_DEFAULT_WORKSPACE = "default"
_OF_WORKSPACE = ("name", "description", "default_artifact_root")
_OF_ARCHIVAL = ("location", "retention")
_ENGINE_OPTIONS = ("MLFLOW_SQLALCHEMYSTORE_", "MLFLOW_MYSQL_SSL_")


class _Disposing:
    """Disposes of an engine when it is closed."""

    def __init__(self, engine: Engine) -> None:
        self.close = engine.dispose


def _without_care(connection: Any, _record: Any = None) -> None:
    """Let SQLite write as fast as it can: nobody needs a copy that is left half."""
    for pragma in ("synchronous=OFF", "journal_mode=OFF", "foreign_keys=OFF"):
        connection.execute(f"PRAGMA {pragma}")


def _plain(value: Any) -> Any:
    """Return a value as SQLite keeps it."""
    import json

    if isinstance(value, dict | list):
        return json.dumps(value)
    if isinstance(value, memoryview):
        return bytes(value)
    return value
