"""Where data lies and how it is opened to be read: one table of all kinds, for every command."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.container.paths import ARCHIVE_SUFFIX
from mlflow_exim_plugin.errors import InvalidArchiveError, NotFoundError
from mlflow_exim_plugin.host.open.locations import is_database, require_local_store, store_folder
from mlflow_exim_plugin.operations.recognition import (
    is_archive,
    is_export,
    is_server,
    is_store_folder,
    nothing_at,
    store_below,
)
from mlflow_exim_plugin.operations.slips import require_archive, require_location
from mlflow_exim_plugin.options import Opening, Reading
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.schema.digests import sha256_of
from mlflow_exim_plugin.schema.envelope import System
from mlflow_exim_plugin.sinks.archive.log import Step
from mlflow_exim_plugin.sources.archive.archive import Archive
from mlflow_exim_plugin.sources.archive.log import read_log
from mlflow_exim_plugin.sources.archive.source import ArchiveSource

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from contextlib import AbstractContextManager

    from mlflow_exim_plugin.sources.source import SearchableSource
    from mlflow_exim_plugin.stages.privacy.redact import Redaction

__all__ = [
    "ARCHIVES",
    "DEPLOYMENTS",
    "OpenSource",
    "open_archived",
    "open_source",
    "require_source",
]

DEPLOYMENTS = ("database", "server", "folder")
"""The kinds of ends that MLflow opens."""
ARCHIVES = "archive"
"""The kind of end that is an archive, or a set of them, which is read at one of its snapshots."""


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
        redaction: What takes something out of what is read, the first of all stages.
    """

    stream: SearchableSource
    names: SearchableSource
    name: str
    archive: Archive | None = None
    mlflow_version: str = ""
    read_as: str | None = None
    taken_from: tuple[dict[str, Any], ...] = ()
    redaction: Redaction | None = None
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
            stream=ArchiveSource(
                self.archive, as_stored=True, tables_as_stored=self.redaction is None
            ),
            taken_from=(here, *summary.info.taken_from),
        )

    def through(self, redaction: Redaction | None) -> OpenSource:
        """Return this with something taken out of it, also of what is told of it."""
        return self if redaction is None else replace(self, redaction=redaction)

    @property
    def told(self) -> dict[str, Any]:
        """What an archive is told of this source beside its objects."""
        told = {"mlflow_tracking_uri": self.name, "taken_from": [*self.taken_from]}
        return told if self.redaction is None else self.redaction.system(told)

    @property
    def redacted_before(self) -> tuple[dict[str, Any], ...]:
        """What an archive says to have been taken out of it."""
        return self.archive.summary.info.redacted if self.archive is not None else ()

    def system(self, script: str, as_of_ms: int | None = None) -> System:
        """Return where and when the objects were read, by which command: each time the same.

        Args:
            script: The command.
            as_of_ms: The time that is to be told, None for that of the first call.
        """
        if script not in self._told:  # source tags and envelopes name one moment
            self._told[script] = (
                self.archive.summary.system
                if self.archive is not None
                else System.now(script, self.mlflow_version, self.name, as_of_ms)
            )
        told = self._told[script]
        if self.redaction is None:
            return told
        return System.model_validate(self.redaction.system(told.to_json()))

    def step(self, script: str, as_of_ms: int | None = None) -> Step:
        """Return what the log of an archive tells of taking these objects, now.

        The log of an archive that something is taken out of stays behind, with whoever it names.

        Args:
            script: The command.
            as_of_ms: The time that is to be told as now.
        """
        if self.archive is None:
            return Step(self.system(script, as_of_ms))
        redaction = self.redaction
        now = System.now(script, self.mlflow_version, self.name, as_of_ms)
        if redaction is not None:
            now = System.model_validate(redaction.system(now.to_json()))
        events: tuple[bytes, ...] = ()
        lost = ""
        try:
            events = tuple(stored for _, stored in read_log(self.archive.reader))
        except InvalidArchiveError as error:
            lost = error.message
        info = self.archive.summary.info
        earlier = {"root": self.archive.reader.root}
        if info.content_root is not None:
            earlier["content_root"] = info.content_root
        if events:
            earlier["event"] = sha256_of(events[-1]).hexdigest()
        return Step(now, () if redaction is not None else events, earlier, lost)


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
        UsageError: The location is written as none can be.
        NotFoundError: There is nothing that can be read.
        InvalidArchiveError: The archive cannot be opened.
        UnsupportedFormatError: The archive needs a newer reader, or a database a newer MLflow.
        ServerError: MLflow cannot open the store.
    """
    if location is None and (folder := _default_folder()):
        location = folder
    end = _end_of(location, opening, among)
    return end.source(location, opening, reading, jobs=jobs, contents=contents)


def require_source(
    location: str | None, opening: Opening = Opening(), among: Collection[str] = ()
) -> None:
    """Refuse what cannot be opened to be read, as far as can be told without opening it.

    Args:
        location: As for ``open_source``.
        opening: How it will be opened.
        among: Kinds of ends that it may be; any without it.

    Raises:
        UsageError: The location is written as none can be.
        NotFoundError: There is nothing that can be read.
    """
    end = _end_of(location, opening, among)
    if location is not None and end.name in {"database", "folder"}:
        require_local_store(location)


def open_archived(location: str, opening: Opening) -> Archive:
    """Open an archive, or a set at the snapshot that is asked for.

    Args:
        location: Path or fsspec URL.
        opening: How it is opened.

    Raises:
        EximError: See ``Archive.open``.
    """
    options = opening.storage_options
    return Archive.open(location, storage_options=options, snapshot=opening.snapshot)


@contextlib.contextmanager
def _read_archive(
    location: str, opening: Opening, _: Reading, **_how_read: object
) -> Iterator[OpenSource]:
    with Archive.open(
        location, storage_options=opening.storage_options, snapshot=opening.snapshot
    ) as archive:
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
            ServerSource(host, jobs=jobs, contents=contents, marks=reading.marks),
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

    try:
        export = Export(location, opening.storage_options)
    except NotFoundError as error:
        hint = store_below(location, opening)
        raise NotFoundError(error.message, hint or error.hint) from error
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


_ENDS = (
    _End("database", "sqlite:///…, postgresql://…", _is_database, _read_deployment),
    _End(ARCHIVES, f"a name ending {ARCHIVE_SUFFIX}, or a set", is_archive, _read_archive),
    _End("folder", "the folder of a file store", is_store_folder, _read_folder),
    _End("export", "the folder of an export", is_export, _read_export),
    _End("server", "http://…", is_server, _read_deployment),
)
"""The first that matches is it."""


def _default_folder() -> str | None:
    """Return the folder that is MLflow's own default, None where that is something else."""
    if not (uri := os.environ.get("MLFLOW_TRACKING_URI")):
        import mlflow

        uri = str(mlflow.get_tracking_uri())
    return uri if is_store_folder(uri) else None


def _end_of(location: str | None, opening: Opening, among: Collection[str]) -> _End:
    if location is not None and among and not {*DEPLOYMENTS} & {*among}:
        require_archive(location)
    elif location is not None:
        require_location(location)
    ends = [end for end in _ENDS if not among or end.name in among]
    if location is None or len(ends) == 1:
        return ends[0]
    for end in ends:
        if end.matches(location, opening):
            return end
    kinds = {end.name: end.looks_like for end in ends}
    if store_folder(location) is None and "server" not in kinds:
        return next(end for end in ends if end.name == ARCHIVES)  # only opening can tell more
    raise nothing_at(location, opening, kinds)
