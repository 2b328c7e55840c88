"""Opening what is to be written: a new archive or export, a deployment, or nothing at all."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mlflow_exim_plugin.container.paths import base_directory_for
from mlflow_exim_plugin.container.tail import FORMAT_VERSION
from mlflow_exim_plugin.container.writer import ArchiveWriter
from mlflow_exim_plugin.errors import NOTICE, NotFoundError, UsageError
from mlflow_exim_plugin.host.open.locations import is_database
from mlflow_exim_plugin.operations.slips import (
    require_deployment,
    require_new_archive,
    require_replaceable,
)
from mlflow_exim_plugin.options import Opening, Packing, Selection, Work, Writing
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.schema.envelope import System
from mlflow_exim_plugin.storage.folders.new_folder import new_folder
from mlflow_exim_plugin.storage.output import atomic_output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from mlflow_exim_plugin.container.earlier import Earlier
    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.operations.ends import OpenSource
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.archive.place import PlaceInSet
    from mlflow_exim_plugin.sinks.archive.sink import ArchiveSink
    from mlflow_exim_plugin.sinks.sink import Sink
    from mlflow_exim_plugin.storage.folders.new_folder import NewFolder

__all__ = [
    "NewArchive",
    "OpenTarget",
    "new_archive",
    "open_new_export",
    "open_target",
]

_log = logging.getLogger(__name__)

_TIMES = ("export_time", "export_time_ms", "_export_time")
"""What two attempts say differently of themselves."""


class OpenTarget(Protocol):
    """A target that is open; each transfer into it has a sink of its own."""

    @property
    def looks_first(self) -> bool:
        """Whether what is to be refused must be known before the first object is written."""

    @property
    def files_at(self) -> str | None:
        """Where the files of new experiments go, without secrets; None for an archive."""

    def sink(self, source: OpenSource, *, dry_run: bool) -> AbstractContextManager[Sink]:
        """Give a sink for what comes from a source."""

    def tell(self, report: Report) -> None:
        """Say in a report what has been made."""


def open_target(
    location: str | None, opening: Opening, how: Packing | Writing, selection: Selection, work: Work
) -> AbstractContextManager[OpenTarget]:
    """Open what is to be written.

    Args:
        location: Path or fsspec URL of an archive, or a tracking URI; None is MLflow's default.
        opening: How it is opened.
        how: ``Packing`` for an archive, ``Writing`` for a deployment.
        selection: What will come.
        work: How much is done at once, and whether at all.

    Raises:
        ArchiveExistsError: There is a file at the archive's name, which is to stay.
        StoreError: The archive cannot be written.
        UsageError: The location is written as none can be, or ids are to be kept and the target is
            none that can keep them.
        ServerError: MLflow cannot open the store.
    """
    if isinstance(how, Packing):
        where = redact_url(str(location))
        require_new_archive(str(location), f"write pack ARCHIVE --tracking-uri {where}")
        if work.dry_run:
            return contextlib.nullcontext(_Nothing())
        return new_archive(str(location), opening, how, selection, work)
    asked = replace(
        how,
        dry_run=work.dry_run,
        marks_content=selection.takes_all_artifacts,
        sends_files=selection.artifacts,
        is_strict=work.strict,
    )
    return _written_deployment(location, opening, asked, work)


class _Nothing:
    """Stands for the archive of a dry run."""

    looks_first = False
    files_at = None

    def sink(self, source: OpenSource, *, dry_run: bool) -> AbstractContextManager[Sink]:
        from mlflow_exim_plugin.sinks.counting import CountingSink

        del source, dry_run
        return contextlib.nullcontext(CountingSink())

    def tell(self, report: Report) -> None:
        pass


@dataclass(frozen=True)
class NewArchive:
    """An archive that is being written; see ``OpenTarget``."""

    file: Any
    location: str
    packing: Packing
    selection: Selection
    work: Work
    place: PlaceInSet | None = None
    written: list[ArchiveWriter] = field(default_factory=list)
    looks_first = False
    files_at = None

    @contextlib.contextmanager
    def sink(self, source: OpenSource, *, dry_run: bool) -> Iterator[ArchiveSink]:
        """Give a sink for what comes from a source."""
        from mlflow_exim_plugin.sinks.archive.sink import ArchiveSink

        del dry_run
        base_directory = base_directory_for(self.location)
        told = source.system(self.work.script, self.packing.as_of_ms)
        system, earlier = self._begun(told, base_directory)
        with ArchiveWriter(
            self.file,
            base_directory=base_directory,
            level=self.packing.level,
            bag_info={
                "Source-Organization": source.told["mlflow_tracking_uri"],
                "Bag-Software-Agent": f"mlflow-exim-plugin {system.package_version}",
            },
            earlier=earlier,
        ) as writer:
            self.written.append(writer)
            asked, redaction = self.selection.to_json(), source.redaction
            if redaction is not None:
                asked = redaction.system({"selection": asked})["selection"]
            step = source.step(self.work.script, self.packing.as_of_ms)
            if source.archive is None:
                step = replace(step, system=system)  # of an attempt that goes on the first time
            yield ArchiveSink(
                writer,
                system,
                asked,
                step=step,
                taken_from=source.told["taken_from"],
                redacted=lambda: [
                    *(redaction.record() if redaction else ()),
                    *source.redacted_before,
                ],
                place=self.place,
            )

    def tell(self, report: Report) -> None:
        """Say which archive was written."""
        writer = self.written[-1]
        where = redact_url(self.location)
        report.told_archive(where, writer.bytes_written, writer.members, FORMAT_VERSION)
        report.archive_was_there = False

    def _begun(self, system: System, base_directory: str) -> tuple[System, Earlier | None]:
        """Return what an earlier attempt said of itself and left, if it was of the same source."""
        if self.file.earlier is None:
            return system, None
        from mlflow_exim_plugin.container.earlier import Earlier

        earlier = Earlier(self.file.earlier, base_directory)
        now = system.to_json()
        said = now | {name: earlier.system.get(name, now[name]) for name in _TIMES}
        if not earlier.members or said != earlier.system:
            earlier.go_on(0)
            return system, None
        _log.log(
            NOTICE,
            "%s: %d members are there already.",
            redact_url(self.location),
            len(earlier.members),
        )
        return System.model_validate(said), earlier


@contextlib.contextmanager
def new_archive(
    location: str,
    opening: Opening,
    packing: Packing,
    selection: Selection,
    work: Work,
    place: PlaceInSet | None = None,
) -> Iterator[NewArchive]:
    """Open an archive that is to be written.

    Args:
        location: Path or fsspec URL.
        opening: How it is opened.
        packing: How it is written.
        selection: What will come.
        work: How much is done at once.
        place: What others of its set have taken, if it belongs to one.

    Raises:
        ArchiveExistsError: There is a file at its name, which is to stay.
        StoreError: It cannot be written.
    """
    options = opening.storage_options
    if packing.overwrite:
        require_replaceable(location, options)
    with atomic_output(
        location,
        overwrite=packing.overwrite,
        resume=packing.resume,
        storage_options=options,
    ) as file:
        yield NewArchive(file, location, packing, selection, work, place)


@dataclass(frozen=True)
class _NewExport:
    folder: NewFolder
    work: Work
    looks_first = False
    files_at = None

    @contextlib.contextmanager
    def sink(self, source: OpenSource, *, dry_run: bool) -> Iterator[Sink]:
        from mlflow_exim_plugin.sinks.exports.sink import ExportSink

        del dry_run
        yield ExportSink(self.folder, source.system(self.work.script))

    def tell(self, report: Report) -> None:
        pass


@contextlib.contextmanager
def open_new_export(location: str, opening: Opening, work: Work) -> Iterator[OpenTarget]:
    """Open a folder that an export is to be written to.

    Args:
        location: Path or fsspec URL of a folder that is empty or not there.
        opening: How it is opened.
        work: How much is done at once, and whether at all.

    Raises:
        ArchiveExistsError: There is something.
        StoreError: It cannot be written.
    """
    if work.dry_run:
        yield _Nothing()
        return
    with new_folder(location, opening.storage_options) as folder:
        yield _NewExport(folder, work)


@dataclass(frozen=True)
class _Deployment:
    host: Host
    writing: Writing
    work: Work

    @property
    def keeps_ids(self) -> bool:
        """Whether it is a database that is written to directly."""
        can = self.host.engine is not None and self.host.registry_engine is not None
        return can and self.writing.preserve_ids is not False

    @property
    def looks_first(self) -> bool:
        # ... and of a database, what it cannot hold.
        return self.writing.on_conflict == "fail" or (self.work.strict and self.keeps_ids)

    @property
    def files_at(self) -> str:
        root = self.writing.artifact_location
        if self.writing.keeps_locations and self.keeps_ids:
            return "where the source has them"
        if root is None and self.host.is_http:
            return f"where {self.host.display_uri} keeps them"
        return redact_url(root or str(getattr(self.host.tracking, "artifact_root_uri", "")))

    @contextlib.contextmanager
    def sink(self, source: OpenSource, *, dry_run: bool) -> Iterator[Sink]:
        writing = replace(self.writing, dry_run=dry_run)
        sink: Any
        host, ids, jobs = self.host, source.names.experiment_ids, self.work.jobs
        if self.keeps_ids and host.engine is not None:
            from mlflow_exim_plugin.sinks.database.sink import DatabaseSink

            sink = DatabaseSink(host.engine, writing, source_ids=ids, host=host, jobs=jobs)
        else:
            from mlflow_exim_plugin.sinks.server.sink import ServerSink

            sink = ServerSink(host, writing, jobs=jobs)
        with closing(sink):
            sink.reach()
            yield sink

    def tell(self, report: Report) -> None:
        pass


@contextlib.contextmanager
def _without_an_empty_file(uri: str) -> Iterator[Callable[[], None]]:
    """Take away the SQLite file that was made for what turns out not to be there.

    Yields:
        What is to be called once the file is made; one that has other rows later stays.
    """
    made = _file_of_new_database(uri)
    as_made: dict[str, int] = {}

    def remember() -> None:
        if made is not None:
            as_made.update(_row_counts(made))

    try:
        yield remember
    except NotFoundError:
        if made is not None and as_made and _row_counts(made) == as_made:
            made.unlink()
        raise


def _file_of_new_database(uri: str) -> Path | None:
    if not is_database(uri) or not uri.startswith("sqlite"):
        return None
    from mlflow_exim_plugin.host.open.locations import url_of_database

    path = Path(url_of_database(uri).database or "")
    return None if path.exists() else path


def _row_counts(path: Path) -> dict[str, int]:
    if not path.exists():
        return {}
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
        tables = [
            name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        count = 'SELECT count(*) FROM "{}"'
        return {name: db.execute(count.format(name)).fetchone()[0] for name in tables}


@contextlib.contextmanager
def _written_deployment(
    location: str | None, opening: Opening, writing: Writing, work: Work
) -> Iterator[OpenTarget]:
    from mlflow_exim_plugin.host.open.host import Host

    if location is None:
        import mlflow

    uri = location or str(mlflow.get_tracking_uri())
    require_deployment(uri)
    if writing.artifact_location is None and is_database(uri) and not uri.startswith("sqlite"):
        raise UsageError(
            f"{redact_url(uri)} does not say where its server keeps files, and this folder is none "
            "that others can read",
            "give the server's artifact root as --artifact-location, or its http://… as target",
        )
    with (
        _without_an_empty_file(uri) as is_made,
        Host(
            location,
            opening.registry_uri,
            create=not work.dry_run,
            artifacts_destination=opening.artifacts_destination,
            artifact_root=writing.artifact_location,
        ) as host,
    ):
        is_made()
        target = _Deployment(host, writing, work)
        if writing.preserve_ids and not target.keeps_ids:
            raise UsageError(
                f"{host.display_uri} cannot keep ids: MLflow's API makes its own",
                "write to the database of the server, or leave --preserve-ids out",
            )
        yield target
