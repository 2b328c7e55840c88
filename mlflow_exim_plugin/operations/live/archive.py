"""An archive as a database that MLflow reads, made by the pipe and kept for the next time.

What it holds is all of the archive but what is large: metric histories, and files. Those are read
out of the archive when somebody asks for them.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sqlite3
import threading
from collections import OrderedDict
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.errors import NotFoundError
from mlflow_exim_plugin.host.open.schema_revisions import at_revision, latest_revision, upgrade
from mlflow_exim_plugin.operations.live.cache import CacheFolder
from mlflow_exim_plugin.schema.tables import HISTORY
from mlflow_exim_plugin.sinks.database.metrics import stored_rows
from mlflow_exim_plugin.sources.archive.archive import Archive
from mlflow_exim_plugin.sources.archive.files import ArchiveFiles

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from sqlalchemy import Engine

    from mlflow_exim_plugin.schema.report import Report

__all__ = ["LEFT_OUT", "LiveArchive", "open_live"]

_log = logging.getLogger(__name__)

LEFT_OUT = "mlflow_exim_left_out"
"""Table of what of an archive could not be read."""
_FORM = 1
"""Counted up when another database would be made of the same archive."""
_ROWS_REMEMBERED = 1_000_000
_NAMED = 3


@dataclass
class LiveArchive:
    """An archive that is open, and a database that has what MLflow asks for.

    Attributes:
        url: Where the archive lies.
        archive: It.
        files: Its files.
        database: A SQLite file with this MLflow's schema; nothing may be written to it.
    """

    url: str
    archive: Archive
    files: ArchiveFiles
    database: Path
    _turn: threading.RLock = field(default_factory=threading.RLock)
    _histories: OrderedDict[str, pa.Table] = field(default_factory=OrderedDict)

    def metric_rows(self, run_ids: Iterable[str], key: str) -> Iterator[pa.Table]:
        """Yield the rows of a metric of some runs, as the columns of MLflow's table have them.

        Raises:
            InvalidArchiveError: The rows of a run are damaged.
        """
        for run_id in dict.fromkeys(run_ids):
            with self._turn:
                rows = self._history(run_id)
            rows = rows.filter(pc.equal(rows.column("key"), key))
            if rows.num_rows:
                whose = pa.repeat(run_id, rows.num_rows)
                yield stored_rows(rows.select(HISTORY.names).add_column(0, "run_uuid", whose))

    def _history(self, run_id: str) -> pa.Table:
        """Return all rows of a run: charts ask for one key after the other."""
        if run_id in self._histories:
            self._histories.move_to_end(run_id)
            return self._histories[run_id]
        try:
            found = self.archive.metric_history(run_id)
        except NotFoundError:  # MLflow says so
            return HISTORY.empty_table()
        self._histories[run_id] = found
        while sum(rows.num_rows for rows in self._histories.values()) > _ROWS_REMEMBERED:
            if len(self._histories) == 1:
                break
            self._histories.popitem(last=False)
        return found


_OPEN: dict[str, LiveArchive] = {}
"""The archives of this process by their URL: MLflow never says that it needs one no more."""
_TURN = threading.RLock()


def open_live(
    url: str,
    *,
    cache: CacheFolder | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> LiveArchive:
    """Open an archive for MLflow: the one that lay there when this process first asked for it.

    Args:
        url: Path or fsspec URL of the archive.
        cache: Where the database is kept.
        storage_options: Given to the fsspec file system.

    Raises:
        NotFoundError: There is nothing at the URL.
        InvalidArchiveError: It is no archive, or damaged.
        UnsupportedFormatError: It needs a newer reader.
        StoreError: The store refused, or the cache cannot be written.
    """
    with _TURN:
        if url not in _OPEN:
            cache = cache or CacheFolder()
            with contextlib.ExitStack() as failing:
                archive = Archive.open(url, storage_options=storage_options)
                failing.callback(archive.close)
                schema = latest_revision()
                name = f"{archive.reader.root}-{schema}-{_FORM}.db"
                database = cache.file(name, lambda path: _make(archive, path, cache, schema))
                failing.pop_all()
            _OPEN[url] = LiveArchive(url, archive, ArchiveFiles(archive), database)
            _say_left_out(_OPEN[url])
        return _OPEN[url]


def _make(archive: Archive, path: Path, cache: CacheFolder, schema: str) -> None:
    """Make the database of an archive at a path."""
    # To open one that is there needs none of these.
    from mlflow_exim_plugin.options import Selection, Writing
    from mlflow_exim_plugin.sinks.database.sink import DatabaseSink
    from mlflow_exim_plugin.sources.archive.source import ArchiveSource
    from mlflow_exim_plugin.stages.in_archive import InArchive
    from mlflow_exim_plugin.transfer import transfer

    shutil.copyfile(cache.file(f"empty-{schema}.db", _make_empty), path)
    with _engine(path) as engine:
        # Nothing else is open: the stores that MLflow has would be waited for by it and us alike.
        sink = DatabaseSink(
            engine,
            Writing(artifact_location="source"),
            source_ids=ArchiveSource(archive, contents=False).experiment_ids,
        )
        with closing(sink):
            report = transfer(
                ArchiveSource(archive, contents=False),
                sink,
                Selection(),
                stages=[InArchive(archive.reader.__contains__)],
            )
        _note_left_out(engine, report)


def _make_empty(path: Path) -> None:
    """Make MLflow's tables, which takes it as long as a thousand runs."""
    with _engine(path) as engine:
        at_revision(engine, "")
        upgrade(engine)


@contextlib.contextmanager
def _engine(path: Path) -> Iterator[Engine]:
    """Open a new database, which nobody needs if it is left half."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(f"sqlite:///{path}")

    @sqlalchemy.event.listens_for(engine, "connect")
    def _without_care(connection: sqlite3.Connection, _record: object) -> None:
        for pragma in ("synchronous=OFF", "journal_mode=MEMORY", "locking_mode=EXCLUSIVE"):
            connection.execute(f"PRAGMA {pragma}")

    try:
        yield engine
    finally:
        engine.dispose()


def _note_left_out(engine: Engine, report: Report) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE TABLE {LEFT_OUT} (kind TEXT, id TEXT, reason TEXT)")
        rows = [(str(failure.kind), failure.id, failure.reason) for failure in report.failures]
        if rows:
            connection.exec_driver_sql(f"INSERT INTO {LEFT_OUT} VALUES (?, ?, ?)", rows)  # noqa: S608


def _say_left_out(live: LiveArchive) -> None:
    """Say each time what of an archive MLflow will not show."""
    query = f"SELECT kind, id, reason FROM {LEFT_OUT}"  # noqa: S608
    with closing(sqlite3.connect(f"{live.database.as_uri()}?mode=ro", uri=True)) as database:
        found = database.execute(query).fetchall()
    if found:
        named = "; ".join(f"{kind} {id_}: {reason}" for kind, id_, reason in found[:_NAMED])
        more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        _log.warning(
            "%s: what is damaged is not shown: %s%s", live.archive.reader.name, named, more
        )
