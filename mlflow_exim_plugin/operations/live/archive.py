"""Archives as one database that MLflow reads, made by the pipe and kept for the next time.

What it holds is all of the archives but what is large: files, and metric histories unless they are
few. Those are read out of the archives when somebody asks for them.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import sqlite3
import threading
from collections import OrderedDict
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.container.paths import decode_segment
from mlflow_exim_plugin.errors import NotFoundError
from mlflow_exim_plugin.host.open.schema_revisions import at_revision, latest_revision, upgrade
from mlflow_exim_plugin.operations.live.cache import CacheFolder
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.schema.tables import HISTORY
from mlflow_exim_plugin.sinks.database.metrics import stored_rows
from mlflow_exim_plugin.sources.archive.archive import Archive
from mlflow_exim_plugin.sources.archive.files import ArchiveFiles
from mlflow_exim_plugin.stages.in_archive import PLACE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from sqlalchemy import Engine

    from mlflow_exim_plugin.schema.report import Report

__all__ = ["LEFT_OUT", "LiveArchives", "OpenArchive", "open_live"]

_log = logging.getLogger(__name__)

LEFT_OUT = "mlflow_exim_left_out"
"""Table of what of an archive could not be read."""
_FORM = 3
"""Counted up when another database would be made of the same archives."""
_ROWS_KEPT = 100_000
"""Up to so many metric rows of an archive stand in its database: they cost less there."""
_ROWS_REMEMBERED = 1_000_000
_NAMED = 3


@dataclass(frozen=True)
class OpenArchive:
    """One archive that is open.

    Attributes:
        archive: It.
        files: Its files.
    """

    archive: Archive
    files: ArchiveFiles


@dataclass
class LiveArchives:
    """Archives that are open, and a database that has what MLflow asks for.

    Attributes:
        parts: The archives, the one that was packed last first, by what paths in them begin with:
            nothing where it is one, else its root.
        database: A SQLite file with this MLflow's schema; nothing may be written to it.
        has_histories: Whether it has all metric rows too.
    """

    parts: Mapping[str, OpenArchive]
    database: Path
    has_histories: bool
    _turn: threading.RLock = field(default_factory=threading.RLock)
    _histories: OrderedDict[str, pa.Table] = field(default_factory=OrderedDict)

    @property
    def archives(self) -> list[Archive]:
        """The archives, the one that was packed last first."""
        return [part.archive for part in self.parts.values()]

    @property
    def name(self) -> str:
        """What to call them, without secrets."""
        return ", ".join(archive.reader.name for archive in self.archives)

    @property
    def has_workspaces(self) -> bool:
        """Whether there is more than the default workspace."""
        return any(len(archive.trees) > 1 for archive in self.archives)

    def at(self, folder: str) -> tuple[OpenArchive, str]:
        """Return which archive a folder is in, and its path there.

        Raises:
            NotFoundError: It begins with no archive's root.
        """
        for start, part in self.parts.items():
            if folder.startswith(start):
                return part, folder.removeprefix(start)
        raise NotFoundError(f"none of {self.name} has the root that {folder!r} begins with")

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
            archive, name_there = self._holder(run_id)
            found = archive.metric_history(name_there)
        except NotFoundError:  # MLflow says so
            return HISTORY.empty_table()
        self._histories[run_id] = found
        while sum(rows.num_rows for rows in self._histories.values()) > _ROWS_REMEMBERED:
            if len(self._histories) == 1:
                break
            self._histories.popitem(last=False)
        return found

    def _holder(self, run_id: str) -> tuple[Archive, str]:
        """Return which archive has a run, and its id there: where the run's files are.

        Raises:
            NotFoundError: None has it.
        """
        if len(self.parts) == 1:
            return self.archives[0], run_id
        query = "SELECT artifact_uri FROM runs WHERE run_uuid = ?"
        for (place,) in _rows(self.database, query, run_id):
            part, folder = self.at(place.removeprefix(PLACE))
            return part.archive, str(decode_segment(folder.split("/")[-2]))
        raise NotFoundError(f"there is no run {run_id!r}")


_OPEN: dict[tuple[str, ...], LiveArchives] = {}
"""The archives of this process by their URLs: MLflow never says that it needs one no more."""
_TURN = threading.RLock()


def open_live(
    *urls: str,
    cache: CacheFolder | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> LiveArchives:
    """Open archives for MLflow: those that lay there when this process first asked for them.

    Args:
        urls: Path or fsspec URL of each archive.
        cache: Where the database is kept.
        storage_options: Given to the fsspec file system.

    Raises:
        NotFoundError: There is nothing at a URL.
        InvalidArchiveError: It is no archive, or damaged.
        UnsupportedFormatError: It needs a newer reader.
        StoreError: The store refused, or the cache cannot be written.
    """
    with _TURN:
        if urls not in _OPEN:
            cache = cache or CacheFolder()
            with contextlib.ExitStack() as failing:
                parts = _parts(urls, storage_options, failing)
                schema = latest_revision()
                name = f"{_root_of_all(parts)}-{schema}-{_FORM}.db"
                database = cache.file(name, lambda path: _make(parts, path, cache, schema))
                failing.pop_all()
            has_histories = bool(_rows(database, "SELECT 1 FROM metrics LIMIT 1"))
            _OPEN[urls] = LiveArchives(parts, database, has_histories)
            _say_left_out(_OPEN[urls])
        return _OPEN[urls]


def _parts(
    urls: Iterable[str], storage_options: Mapping[str, Any] | None, failing: contextlib.ExitStack
) -> dict[str, OpenArchive]:
    """Open archives, each that is another one, the one that was packed last first."""
    there: dict[str, Archive] = {}
    for url in urls:
        archive = Archive.open(url, storage_options=storage_options)
        failing.callback(archive.close)
        there.setdefault(archive.reader.root, archive)
    if len(there) == 1:
        (archive,) = there.values()
        return {"": OpenArchive(archive, ArchiveFiles(archive))}
    packed = {root: archive.summary.system.export_time_ms for root, archive in there.items()}
    last_first = [there[root] for root in sorted(there, key=lambda root: (-packed[root], root))]
    return {f"{a.reader.root}/": OpenArchive(a, ArchiveFiles(a)) for a in last_first}


def _root_of_all(parts: Mapping[str, OpenArchive]) -> str:
    roots = [part.archive.reader.root for part in parts.values()]
    return roots[0] if len(roots) == 1 else hashlib.sha256("\n".join(roots).encode()).hexdigest()


def _make(parts: Mapping[str, OpenArchive], path: Path, cache: CacheFolder, schema: str) -> None:
    """Make the database of archives at a path."""
    archives = [part.archive for part in parts.values()]
    # Which rows a run has that more than one archive holds is for each of them to say, and what
    # is damaged is said to who asks for it.
    is_small = len(archives) == 1 and archives[0].summary.info.metric_rows <= _ROWS_KEPT
    shutil.copyfile(cache.file(f"empty-{schema}.db", _make_empty), path)
    if not _fill(parts, path, histories=is_small):
        shutil.copyfile(cache.file(f"empty-{schema}.db", _make_empty), path)
        _fill(parts, path, histories=False)


def _fill(parts: Mapping[str, OpenArchive], path: Path, *, histories: bool) -> bool:
    """Put archives into MLflow's tables: what an earlier one has joins what is there.

    Returns:
        Whether all metric rows that were to be there are.
    """
    # To open one that is there needs none of these.
    from mlflow_exim_plugin.options import Selection, Writing
    from mlflow_exim_plugin.sinks.database.sink import DatabaseSink
    from mlflow_exim_plugin.sources.archive.source import ArchiveSource
    from mlflow_exim_plugin.stages.in_archive import InArchive
    from mlflow_exim_plugin.transfer import transfer

    sources = {
        start: ArchiveSource(part.archive, contents=histories) for start, part in parts.items()
    }

    def experiment_ids() -> Iterable[str]:
        return chain.from_iterable(source.experiment_ids() for source in sources.values())

    with _engine(path) as engine:
        left_out: list[tuple[str, ...]] = []
        for start, source in sources.items():
            reader = parts[start].archive.reader
            # Nothing else is open: the stores that MLflow has would be waited for by it and us.
            writing = Writing(artifact_location="source")
            with closing(DatabaseSink(engine, writing, source_ids=experiment_ids)) as sink:
                in_archive = InArchive(reader.__contains__, start)
                report = transfer(source, sink, Selection(), stages=[in_archive])
            if any(failure.kind is Kind.METRIC_HISTORY for failure in report.failures):
                return False
            left_out += ((reader.name, *entry) for entry in _left_out(report))
        _note_left_out(engine, left_out)
    return True


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


def _left_out(report: Report) -> Iterator[tuple[str, str, str]]:
    """Yield kind and id of what of an archive is not there, or not as it is there, and why."""
    for failure in report.failures:
        yield str(failure.kind), failure.id, failure.reason
    for loss in report.losses:
        if loss.kind is not Kind.METRIC_HISTORY:  # infinities, as in each database of MLflow's
            yield str(loss.kind), loss.id, loss.what


def _note_left_out(engine: Engine, rows: list[tuple[str, ...]]) -> None:
    with engine.begin() as connection:
        columns = "archive TEXT, kind TEXT, id TEXT, reason TEXT"
        connection.exec_driver_sql(f"CREATE TABLE {LEFT_OUT} ({columns})")
        if rows:
            connection.exec_driver_sql(f"INSERT INTO {LEFT_OUT} VALUES (?, ?, ?, ?)", rows)  # noqa: S608


def _say_left_out(live: LiveArchives) -> None:
    """Say each time what of an archive MLflow will not show."""
    found = _rows(live.database, f"SELECT * FROM {LEFT_OUT}")  # noqa: S608
    if found:
        named = "; ".join(f"{kind} {id_} of {at}: {why}" for at, kind, id_, why in found[:_NAMED])
        more = f"; and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        _log.warning("not all is shown as it is: %s%s", named, more)


def _rows(database: Path, query: str, *values: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        return connection.execute(query, values).fetchall()
