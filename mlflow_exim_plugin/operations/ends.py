"""Where data lies and how it is opened: one table of all kinds of ends, for every command."""

from __future__ import annotations

import contextlib
import os
import struct
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from mlflow_exim_plugin.container.layout import HEADER
from mlflow_exim_plugin.container.paths import ARCHIVE_SUFFIX, base_directory_for
from mlflow_exim_plugin.container.writer import ArchiveWriter
from mlflow_exim_plugin.errors import NotFoundError, UsageError
from mlflow_exim_plugin.host.open.locations import is_database, store_folder
from mlflow_exim_plugin.options import (
    Opening,
    Packing,
    Reading,
    Selection,
    Work,
    Writing,
)
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.schema.envelope import System
from mlflow_exim_plugin.sources.archive.archive import Archive
from mlflow_exim_plugin.sources.archive.source import ArchiveSource
from mlflow_exim_plugin.sources.exports.layout import FILES
from mlflow_exim_plugin.storage.file_systems import file_system, store_errors
from mlflow_exim_plugin.storage.new_folder import new_folder
from mlflow_exim_plugin.storage.output import atomic_output
from mlflow_exim_plugin.storage.ranges import open_range
from mlflow_exim_plugin.storage.schemes import is_far
from mlflow_exim_plugin.storage.urls import local_path

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from contextlib import AbstractContextManager

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.sinks.sink import Sink
    from mlflow_exim_plugin.sources.source import SearchableSource
    from mlflow_exim_plugin.storage.new_folder import NewFolder

__all__ = [
    "ARCHIVES",
    "DEPLOYMENTS",
    "OpenSource",
    "OpenTarget",
    "open_new_export",
    "open_source",
    "open_target",
]

DEPLOYMENTS = ("database", "server", "folder")
"""The kinds of ends that MLflow opens."""
ARCHIVES = "archive"
"""The kind of end that is an archive."""

_STORE_FILES = ("*/meta.yaml", ".trash/*/meta.yaml", "models/*/meta.yaml", "[0-9]*/*/meta.yaml")
_LOOKED_INTO = 20
_ZSTD_MAGIC = 0xFD2FB528
_SKIPPABLE_MAGICS = range(0x184D2A50, 0x184D2A60)
_SQLITE_MAGIC = b"SQLite format 3\x00"


@dataclass(frozen=True)
class OpenSource:
    """A source that is open.

    Attributes:
        stream: What is read.
        names: The same where only names are looked at: no metric rows and no files are fetched.
        name: What to call it, without secrets.
        archive: The archive that it is, None for a deployment.
        mlflow_version: Version of the MLflow client that reads a deployment.
        read_as: What kind of source was found, where that had to be found out.
        taken_from: Which archive, and which ones that was taken from.
    """

    stream: SearchableSource
    names: SearchableSource
    name: str
    archive: Archive | None = None
    mlflow_version: str = ""
    read_as: str | None = None
    taken_from: tuple[dict[str, Any], ...] = ()
    _told: dict[str, System] = field(default_factory=dict)

    def for_archive(self) -> OpenSource:
        """Return this for a sink that writes an archive: what may stay as it is comes as it is."""
        if self.archive is None:
            return self
        summary = self.archive.summary
        here = {
            "archive": self.name,
            "root": self.archive.reader.root,
            "selection": summary.mlflow.selection,
        }
        return replace(
            self,
            stream=ArchiveSource(self.archive, as_stored=True),
            taken_from=(here, *summary.info.taken_from),
        )

    def system(self, script: str) -> System:
        """Return where and when the objects were read, by which command: each time the same."""
        if self.archive is not None:
            return self.archive.summary.system
        if script not in self._told:  # source tags and envelopes name one moment
            self._told[script] = System.now(script, self.mlflow_version, self.name)
        return self._told[script]


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


@dataclass(frozen=True)
class _End:
    """One kind of end.

    Attributes:
        name: What it is called.
        looks_like: What tells it, for people.
        matches: Whether a location is one.
        source: Opens it to be read.
    """

    name: str
    looks_like: str
    matches: Callable[[str, Opening], bool]
    source: Callable[..., AbstractContextManager[OpenSource]]


def open_source(
    location: str | None,
    opening: Opening = Opening(),
    reading: Reading = Reading(),
    *,
    jobs: int = 1,
    contents: bool = True,
    among: Collection[str] = (),
) -> AbstractContextManager[OpenSource]:
    """Open what is to be read.

    Args:
        location: URI of a tracking server or store, or path or fsspec URL of an archive; None is
            MLflow's own default.
        opening: How it is opened.
        reading: How it is read.
        jobs: Calls to a server that may be under way at once.
        contents: False reads no metric rows and no files from a deployment.
        among: Kinds of ends that it may be; any without it.

    Raises:
        NotFoundError: There is nothing that can be read.
        InvalidArchiveError: The archive cannot be opened.
        UnsupportedFormatError: The archive needs a newer reader, or a database a newer MLflow.
        ServerError: MLflow cannot open the store.
    """
    if location is None and (folder := _default_folder()):
        location = folder
    end = _end_of(location, opening, among)
    return end.source(location, opening, reading, jobs=jobs, contents=contents)


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
        UsageError: Ids are to be kept and the target is none that can keep them.
        ServerError: MLflow cannot open the store.
    """
    if isinstance(how, Packing):
        if work.dry_run:
            return contextlib.nullcontext(_Nothing())
        return _new_archive(str(location), opening, how, selection, work)
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


@dataclass(frozen=True)
class _NewArchive:
    file: Any
    location: str
    packing: Packing
    selection: Selection
    work: Work
    looks_first = False
    files_at = None

    @contextlib.contextmanager
    def sink(self, source: OpenSource, *, dry_run: bool) -> Iterator[Sink]:
        from mlflow_exim_plugin.sinks.archive.sink import ArchiveSink

        del dry_run
        system = source.system(self.work.script)
        with ArchiveWriter(
            self.file,
            base_directory=base_directory_for(self.location),
            level=self.packing.level,
            bag_info={
                "Source-Organization": source.name,
                "Bag-Software-Agent": f"mlflow-exim-plugin {system.package_version}",
            },
        ) as writer:
            yield ArchiveSink(writer, system, _plain(self.selection), source.taken_from)


@contextlib.contextmanager
def _new_archive(
    location: str, opening: Opening, packing: Packing, selection: Selection, work: Work
) -> Iterator[OpenTarget]:
    options = opening.storage_options
    with atomic_output(location, overwrite=packing.overwrite, storage_options=options) as file:
        yield _NewArchive(file, location, packing, selection, work)


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
        can = self.host.engine is not None and self.host.has_one_store
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
        if self.keeps_ids:
            from mlflow_exim_plugin.sinks.database.sink import DatabaseSink

            ids = source.names.experiment_ids
            sink = DatabaseSink(self.host, writing, source_ids=ids, jobs=self.work.jobs)
        else:
            from mlflow_exim_plugin.sinks.server.sink import ServerSink

            sink = ServerSink(self.host, writing, jobs=self.work.jobs)
        with closing(sink):
            sink.reach()
            yield sink


@contextlib.contextmanager
def _written_deployment(
    location: str | None, opening: Opening, writing: Writing, work: Work
) -> Iterator[OpenTarget]:
    from mlflow_exim_plugin.host.open.host import Host

    if location is None:
        import mlflow

    uri = location or str(mlflow.get_tracking_uri())
    if writing.artifact_location is None and is_database(uri) and not uri.startswith("sqlite"):
        raise UsageError(
            f"{redact_url(uri)} does not say where its server keeps files, and this folder is none "
            "that others can read",
            "give the server's artifact root as --artifact-location, or its http://… as target",
        )
    with Host(
        location,
        opening.registry_uri,
        create=not work.dry_run,
        artifacts_destination=opening.artifacts_destination,
    ) as host:
        target = _Deployment(host, writing, work)
        if writing.preserve_ids and not target.keeps_ids:
            raise UsageError(
                f"{host.display_uri} cannot keep ids: MLflow's API makes its own",
                "write to the database of the server, or leave --preserve-ids out",
            )
        yield target


@contextlib.contextmanager
def _read_archive(
    location: str, opening: Opening, _: Reading, **_how_read: object
) -> Iterator[OpenSource]:
    with Archive.open(location, storage_options=opening.storage_options) as archive:
        names = ArchiveSource(archive, contents=False)
        yield OpenSource(ArchiveSource(archive), names, redact_url(location), archive)


@contextlib.contextmanager
def _read_deployment(
    location: str | None, opening: Opening, reading: Reading, *, jobs: int, contents: bool
) -> Iterator[OpenSource]:
    from mlflow_exim_plugin.host.open.generations import TODAY
    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.host.open.locations import folder_of_database
    from mlflow_exim_plugin.host.open.roots import ArtifactRoots
    from mlflow_exim_plugin.sources.server.source import ServerSource

    roots = ArtifactRoots(
        reading.artifact_roots, folder_of_database(location), follows_links=reading.follow_links
    )
    with Host(
        location,
        opening.registry_uri,
        create=False,
        snapshot=contents,
        force=reading.force,
        artifacts_destination=opening.artifacts_destination,
        roots=roots,
    ) as host:
        yield OpenSource(
            ServerSource(host, jobs=jobs, contents=contents),
            ServerSource(host, jobs=jobs, contents=False),
            host.display_uri,
            mlflow_version=host.mlflow_version,
            read_as=None if host.generation is TODAY else host.generation.name,
        )


@contextlib.contextmanager
def _read_folder(
    location: str, opening: Opening, reading: Reading, *, jobs: int, contents: bool
) -> Iterator[OpenSource]:
    from mlflow_exim_plugin.host.open.roots import ArtifactRoots
    from mlflow_exim_plugin.sources.file_tree import FileTree
    from mlflow_exim_plugin.sources.folder.far import FarStoreFiles
    from mlflow_exim_plugin.sources.folder.files import StoreFiles
    from mlflow_exim_plugin.sources.folder.registry import registry_elsewhere
    from mlflow_exim_plugin.sources.folder.source import FolderDeployment, FolderSource

    elsewhere = opening.registry_uri or os.environ.get("MLFLOW_REGISTRY_URI")
    folder = store_folder(location)
    tree = FileTree(location, opening.storage_options) if folder is None else None
    with registry_elsewhere(None if elsewhere == location else elsewhere) as registry:

        def source(*, contents: bool) -> FolderSource:
            roots = ArtifactRoots(
                reading.artifact_roots, folder, follows_links=reading.follow_links
            )
            files = (
                FarStoreFiles(tree)
                if tree is not None
                else StoreFiles(str(folder), follows_links=reading.follow_links)
            )
            deployment = FolderDeployment(location, files, roots)
            return FolderSource(deployment, registry, jobs=jobs, contents=contents)

        stream = source(contents=contents)
        names = source(contents=False)
        yield OpenSource(stream, names, stream.uri, mlflow_version=stream.mlflow_version)


@contextlib.contextmanager
def _read_export(
    location: str, opening: Opening, _: Reading, *, contents: bool, **_how_read: object
) -> Iterator[OpenSource]:
    from mlflow_exim_plugin.sources.exports.source import Export, ExportSource

    export = Export(location, opening.storage_options)
    names = ExportSource(export, contents=False)
    yield OpenSource(
        ExportSource(export) if contents else names,
        names,
        export.uri,
        mlflow_version=export.mlflow_version,
        read_as=export.described,
    )


def _is_database(location: str, _: Opening) -> bool:
    return is_database(location)


def _is_archive(location: str, opening: Opening) -> bool:
    url = urlsplit(location)
    if location.endswith(ARCHIVE_SUFFIX) or (url.scheme and url.path.endswith(ARCHIVE_SUFFIX)):
        return True
    if is_far(location):  # whatever its name is, it is a file
        try:
            open_range(location, opening.storage_options).close()
        except NotFoundError:
            return False
        return True
    path = store_folder(location)
    return path is not None and path.is_file() and _starts_as_archive(path)


def _is_server(location: str, _: Opening) -> bool:
    # MLflow's plugins have schemes of their own.
    return store_folder(location) is None and not is_far(location)


def _is_store_folder(location: str, opening: Opening = Opening()) -> bool:
    if is_far(location):
        return _is_far_store(location, opening)
    path = store_folder(location)
    return path is not None and any(found for glob in _STORE_FILES for found in path.glob(glob))


def _is_far_store(location: str, opening: Opening) -> bool:
    """Whether a folder of another store has folders of experiments or models; asks for few."""
    store, root = file_system(location, opening.storage_options)
    with store_errors(location, "list"):
        if not store.isdir(root):
            return False
        inner = [
            entry["name"] for entry in store.ls(root, detail=True) if entry["type"] == "directory"
        ]
        return any(
            store.exists(f"{folder.rstrip('/')}/{name}")
            for folder in inner[:_LOOKED_INTO]
            for name in ("meta.yaml", "0/meta.yaml")
        )


def _is_export(location: str, _: Opening) -> bool:
    """Whether it is a folder with files of an export; a far store is not looked into for that."""
    if (folder := local_path(location)) is None:
        return is_far(location)
    path = Path(folder)
    if not path.is_dir() or (path / HEADER).exists():  # an archive that was extracted
        return False
    return any(True for name in FILES for _ in path.rglob(name))


_ENDS = (
    _End("database", "sqlite:///…, postgresql://…", _is_database, _read_deployment),
    _End(ARCHIVES, f"a name ending {ARCHIVE_SUFFIX}", _is_archive, _read_archive),
    _End("folder", "the folder of a file store", _is_store_folder, _read_folder),
    _End("export", "the folder of an export", _is_export, _read_export),
    _End("server", "http://…", _is_server, _read_deployment),
)
"""The first that matches is it."""


def _default_folder() -> str | None:
    """Return the folder that is MLflow's own default, None where that is something else."""
    if not (uri := os.environ.get("MLFLOW_TRACKING_URI")):
        import mlflow

        uri = str(mlflow.get_tracking_uri())
    return uri if _is_store_folder(uri) else None


def _end_of(location: str | None, opening: Opening, among: Collection[str]) -> _End:
    ends = [end for end in _ENDS if not among or end.name in among]
    if location is None or len(ends) == 1:
        return ends[0]
    for end in ends:
        if end.matches(location, opening):
            return end
    kinds = {end.name: end for end in ends}
    if (path := store_folder(location)) is None and "server" not in kinds:
        return kinds["archive"]  # some URL that only opening can tell more of
    if path is not None and path.is_dir():
        missing = []
        if "folder" in kinds:
            missing.append(f"no store of files: there is no {', '.join(_STORE_FILES)} in it")
        if "export" in kinds:
            missing.append(f"no export: there is no {', '.join([*FILES][:3])} and such in it")
        inner = path / "mlruns"
        raise NotFoundError(
            f"{path} is {', and '.join(missing)}",
            f"did you mean {inner}?" if _is_store_folder(str(inner)) else "",
        )
    raise NotFoundError(
        f"there is no {', '.join(end.name for end in ends)} at {redact_url(location)}",
        _zip_hint(path) or f"write {', '.join(end.looks_like for end in ends)}",
    )


def _zip_hint(path: Path | None) -> str:
    is_zip = path is not None and path.suffix == ".zip"
    return f"write zip://FOLDER::{path} for a folder in it" if is_zip else ""


def _starts_as_archive(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(len(_SQLITE_MAGIC))
    if start == _SQLITE_MAGIC:
        raise NotFoundError(
            f"{path} is a database, which is given by its URI", f"write sqlite:///{path}"
        )
    magic = struct.unpack("<I", start[:4])[0] if len(start) >= 4 else 0
    if magic != _ZSTD_MAGIC and magic not in _SKIPPABLE_MAGICS:
        what = f"{path} is no archive: it does not start with a zstd frame"
        raise NotFoundError(what, _zip_hint(path))
    return True


def _plain(selection: Selection) -> dict[str, Any]:
    """Return what was asked for, without what was left at its default."""
    default = asdict(Selection())
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(selection).items()
        if value != default[key]
    }
