"""What the package does, as functions: ``pack``, ``unpack``, ``copy``, ``diff``, ``verify``.

Only the functions that need MLflow import it: that takes seconds.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.container.paths import ARCHIVE_SUFFIX, base_directory_for
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.container.writer import ArchiveWriter
from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.operations.delivery import deliver, tags_and_names, write_options
from mlflow_exim_plugin.schema.envelope import System
from mlflow_exim_plugin.schema.report import Report
from mlflow_exim_plugin.sinks.policy import OnConflict
from mlflow_exim_plugin.sources.archive.archive import Archive
from mlflow_exim_plugin.sources.archive.source import ArchiveSource
from mlflow_exim_plugin.stages.digest import Digests
from mlflow_exim_plugin.stages.lineage import ExportTags
from mlflow_exim_plugin.stages.select import Selection
from mlflow_exim_plugin.storage.files import atomic_output, redact_url
from mlflow_exim_plugin.transfer import transfer
from mlflow_exim_plugin.verification.archive import verify_archive
from mlflow_exim_plugin.verification.objects import verify_objects

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlflow_exim_plugin.comparison.result import Comparison, Difference
    from mlflow_exim_plugin.schema.rules import Finding
    from mlflow_exim_plugin.stages.rename import Rename

__all__ = ["Verification", "copy", "diff", "open_archive", "pack", "unpack", "verify"]

DEFAULT_JOBS = 4
DEFAULT_LEVEL = 3


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found.

    Attributes:
        root: Root digest, hex; compare it with one you trust.
        members: Number of members checked.
        size_bytes: Size of the archive.
        authentic: True when the root equals the expected one, None when none was given.
        findings: Broken rules of the spec, in the order of the file.
    """

    root: str
    members: int
    size_bytes: int
    authentic: bool | None
    findings: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when no MUST of the spec is broken."""
        return not any(finding.code.startswith("E") for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "ok": self.ok,
            "root": self.root,
            "members": self.members,
            "size_bytes": self.size_bytes,
            "authentic": self.authentic,
            "findings": [asdict(finding) for finding in self.findings],
        }


def pack(
    archive: str,
    *,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
    selection: Selection | None = None,
    jobs: int = DEFAULT_JOBS,
    level: int = DEFAULT_LEVEL,
    overwrite: bool = False,
    export_source_tags: bool = False,
    artifacts_destination: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    strict: bool = False,
    script: str = "mlflow_exim_plugin.pack",
    storage_options: dict[str, Any] | None = None,
    progress: Callable[[Report], None] | None = None,
) -> Report:
    """Pack a tracking server or store and its model registry into one archive.

    The source is only read. At ``archive`` there is a complete archive afterwards, or none.

    Args:
        archive: Path or fsspec URL of the archive to write.
        tracking_uri: MLflow tracking URI; MLflow's own default without it.
        registry_uri: MLflow registry URI; the tracking URI without it.
        selection: What to take; everything without it.
        jobs: Calls to the server that may be under way at once.
        level: zstd level, 1 to 22.
        overwrite: Replace an archive that is there.
        export_source_tags: Give packed runs the tags ``mlflow_export_import.*`` (spec, "Source
            tags").
        artifacts_destination: Where the source's server keeps the files of ``mlflow-artifacts:``,
            for a database, as ``mlflow server`` is told by its option of that name.
        force: Read a database whose schema is newer than this MLflow's, as far as it is known.
        dry_run: Only count what would be packed.
        strict: Stop at the first object that fails, and leave no archive.
        script: Name of the command, kept in the envelopes.
        storage_options: Given to the fsspec file system.
        progress: Called with the report after each object.

    Returns:
        Counts, failures, and what was seen but not packed; ``ok`` is false when an object failed.

    Raises:
        ArchiveExistsError: There is a file at ``archive`` and ``overwrite`` is false.
        NotFoundError: A name or id in the selection, or a local store, is not there.
        UnsupportedFormatError: A database's schema is newer than this MLflow's, or half-migrated.
        ServerError: The server cannot be listed, or died.
        StoreError: The archive cannot be written.
        PartialTransferError: An object failed and ``strict`` was asked for.
    """
    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.sinks.archive.sink import ArchiveSink
    from mlflow_exim_plugin.sinks.counting import CountingSink
    from mlflow_exim_plugin.sources.server.source import ServerSource

    selection = selection or Selection()
    _check_jobs(jobs)
    report = Report(dry_run=dry_run)
    files = artifacts_destination
    if dry_run:
        with Host(
            tracking_uri, registry_uri, create=False, force=force, artifacts_destination=files
        ) as host:
            source = ServerSource(host, jobs=jobs, contents=False)
            return transfer(
                source, CountingSink(), selection, report=report, strict=strict, progress=progress
            )
    with (
        atomic_output(archive, overwrite=overwrite, storage_options=storage_options) as file,
        Host(
            tracking_uri,
            registry_uri,
            create=False,
            snapshot=True,
            force=force,
            artifacts_destination=files,
        ) as host,
    ):
        system = System.now(script, host.mlflow_version, host.display_uri)
        with ArchiveWriter(
            file,
            base_directory=base_directory_for(archive),
            level=level,
            bag_info={
                "Source-Organization": host.display_uri,
                "Bag-Software-Agent": f"mlflow-exim-plugin {system.package_version}",
            },
        ) as writer:
            sink = ArchiveSink(writer, system, _plain_selection(selection))
            transfer(
                ServerSource(host, jobs=jobs),
                sink,
                selection,
                stages=(ExportTags(system),) if export_source_tags else (),
                report=report,
                strict=strict,
                progress=progress,
            )
    return report


def unpack(
    archive: str,
    *,
    tracking_uri: str | None = None,
    registry_uri: str | None = None,
    selection: Selection | None = None,
    on_conflict: OnConflict | str = OnConflict.MERGE,
    experiment_name: str | None = None,
    rename: Rename | None = None,
    importer: str | None = None,
    artifact_location: str | None = None,
    artifacts_destination: str | None = None,
    preserve_ids: bool | None = None,
    import_source_tags: bool = False,
    jobs: int = DEFAULT_JOBS,
    dry_run: bool = False,
    strict: bool = False,
    storage_options: dict[str, Any] | None = None,
    progress: Callable[[Report], None] | None = None,
) -> Report:
    """Put an archive's objects back on a tracking server or store.

    What came from the same source object before is recognised and not doubled; what an interrupted
    unpack left unfinished is finished.

    Args:
        archive: Path or fsspec URL of the archive.
        tracking_uri: MLflow tracking URI of the target; MLflow's own default without it.
        registry_uri: MLflow registry URI of the target; the tracking URI without it.
        selection: What to take; everything without it.
        on_conflict: ``merge``, ``skip``, ``rename`` or ``fail`` for namesakes under the same name.
        experiment_name: Put all runs into one experiment of this name.
        rename: Other names for experiments and registered models.
        importer: Make this user the owner of runs; the source's users are kept without it.
        artifact_location: Artifact root for new experiments; the target's own without it. In a
            database ``source`` leaves all files where the source has them.
        artifacts_destination: Where the target's server keeps the files of ``mlflow-artifacts:``,
            for a database, as ``mlflow server`` is told by its option of that name.
        preserve_ids: Whether objects keep ids and times. Only a database that is written to
            directly can do so, and does by default.
        import_source_tags: Keep what the target sets anew as tags ``mlflow_exim.*`` (spec, "Source
            tags").
        jobs: Runs that may be written at once.
        dry_run: Only say what would be done.
        strict: Stop at the first object that fails.
        storage_options: Given to the fsspec file system.
        progress: Called with the report after each object.

    Returns:
        Counts, failures and losses; ``ok`` is false when an object failed.

    Raises:
        NotFoundError: The archive, or a name or id in the selection, is not there.
        InvalidArchiveError: The archive cannot be opened.
        UnsupportedFormatError: The archive needs a newer reader.
        ConflictError: ``fail`` was asked for and a name is taken; nothing was written.
        ServerError: The server cannot be reached, or died.
        PartialTransferError: An object failed and ``strict`` was asked for.
    """
    from mlflow_exim_plugin.host.open.host import Host

    _check_jobs(jobs)
    options = write_options(
        on_conflict, importer, artifact_location, selection, import_source_tags, dry_run=dry_run
    )
    with (
        Archive.open(archive, storage_options=storage_options) as opened,
        Host(
            tracking_uri,
            registry_uri,
            create=not dry_run,
            artifacts_destination=artifacts_destination,
        ) as host,
    ):
        report = Report(dry_run=dry_run)
        report.root = opened.reader.root
        source, system = ArchiveSource(opened), opened.summary.system
        return deliver(
            source,
            source,
            host,
            options,
            selection or Selection(),
            tags_and_names(system, options, experiment_name, rename),
            preserve_ids=preserve_ids,
            jobs=jobs,
            report=report,
            strict=strict,
            progress=progress,
        )


def copy(
    source: str,
    target: str,
    *,
    source_registry_uri: str | None = None,
    source_artifacts_destination: str | None = None,
    target_registry_uri: str | None = None,
    selection: Selection | None = None,
    on_conflict: OnConflict | str = OnConflict.MERGE,
    experiment_name: str | None = None,
    rename: Rename | None = None,
    importer: str | None = None,
    artifact_location: str | None = None,
    artifacts_destination: str | None = None,
    preserve_ids: bool | None = None,
    import_source_tags: bool = False,
    jobs: int = DEFAULT_JOBS,
    force: bool = False,
    dry_run: bool = False,
    strict: bool = False,
    script: str = "mlflow_exim_plugin.copy",
    progress: Callable[[Report], None] | None = None,
) -> Report:
    """Copy from one tracking server or store to another, without an archive between them.

    The source is only read. What was copied or unpacked before is recognised and not doubled; runs
    and logged models are read whole to tell whether they changed.

    Args:
        source: MLflow tracking URI to read.
        target: MLflow tracking URI to write.
        source_registry_uri: MLflow registry URI to read; ``source`` without it.
        source_artifacts_destination: Where the source's server keeps the files of
            ``mlflow-artifacts:``, for a database.
        target_registry_uri: MLflow registry URI to write; ``target`` without it.
        selection: What to take; everything without it.
        on_conflict: ``merge``, ``skip``, ``rename`` or ``fail`` for namesakes under the same name.
        experiment_name: Put all runs into one experiment of this name.
        rename: Other names for experiments and registered models.
        importer: Make this user the owner of runs; the source's users are kept without it.
        artifact_location: Artifact root for new experiments; the target's own without it. In a
            database ``source`` leaves all files where the source has them.
        artifacts_destination: Where the target's server keeps the files of ``mlflow-artifacts:``,
            for a database, as ``mlflow server`` is told by its option of that name.
        preserve_ids: Whether objects keep ids and times. Only a database that is written to
            directly can do so, and does by default.
        import_source_tags: Keep what the target sets anew as tags ``mlflow_exim.*`` (spec, "Source
            tags").
        jobs: Calls to the source, and runs at the target, that may be under way at once.
        force: Read a database whose schema is newer than this MLflow's, as far as it is known.
        dry_run: Only say what would be done.
        strict: Stop at the first object that fails.
        script: Name of the command, for source tags.
        progress: Called with the report after each object.

    Returns:
        Counts, failures and losses; ``ok`` is false when an object failed.

    Raises:
        UsageError: Source and target are the same place, or one is an archive.
        NotFoundError: The source, or a name or id in the selection, is not there.
        UnsupportedFormatError: The schema of a database can not be read, or not be written.
        ConflictError: ``fail`` was asked for and a name is taken; nothing was written.
        ServerError: One of the two cannot be reached, or died.
        PartialTransferError: An object failed and ``strict`` was asked for.
    """
    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.sources.server.source import ServerSource

    _check_jobs(jobs)
    _check_ends(source, target)
    options = write_options(
        on_conflict, importer, artifact_location, selection, import_source_tags, dry_run=dry_run
    )
    with (
        # The target first: reading a database may switch workspaces on for what is opened later.
        Host(
            target,
            target_registry_uri or target,
            create=not dry_run,
            artifacts_destination=artifacts_destination,
        ) as written,
        Host(
            source,
            source_registry_uri or source,
            create=False,
            snapshot=not dry_run,
            force=force,
            artifacts_destination=source_artifacts_destination,
        ) as read,
    ):
        system = System.now(script, read.mlflow_version, read.display_uri)
        stages = tags_and_names(system, options, experiment_name, rename)
        return deliver(
            ServerSource(read, jobs=jobs, contents=not dry_run),
            ServerSource(read, jobs=jobs, contents=False),
            written,
            options,
            selection or Selection(),
            stages if dry_run else [*stages, Digests()],
            preserve_ids=preserve_ids,
            jobs=jobs,
            report=Report(dry_run=dry_run),
            strict=strict,
            progress=progress,
        )


def diff(
    a: str,
    b: str,
    *,
    selection: Selection | None = None,
    rules: str = "rest",
    ignore: Sequence[str] = (),
    limit: int | None = None,
    jobs: int = DEFAULT_JOBS,
    storage_options: dict[str, Any] | None = None,
    found: Callable[[Difference], None] | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> Comparison:
    """Compare two sides object by object and field by field, histories and files included.

    Copies are known by where they came from, so ids may differ; each id inside a value is compared
    by what it stands for. Nothing is written but a temporary index.

    Args:
        a: Tracking URI of a server or store, or path or fsspec URL of an archive.
        b: The other side.
        selection: What to take of both sides; everything without it.
        rules: ``rest`` does not count what MLflow's REST API cannot keep; ``exact`` counts all,
            ids too.
        ignore: Paths of fields to leave out, with globs, such as ``*.tags.mlflow.user``.
        limit: How many differences to keep; all without it.
        jobs: Calls to a server that may be under way at once.
        storage_options: Given to the fsspec file system of archives.
        found: Called with each difference that is kept.
        progress: Called with the side that is read and its objects so far.

    Returns:
        Counts, differences and what could not be read; ``equal`` when there is none of the last
        two.

    Raises:
        UsageError: The rules or a path cannot be understood.
        NotFoundError: A side, or a name or id in the selection, is not there.
        InvalidArchiveError: An archive cannot be opened.
        UnsupportedFormatError: An archive needs a newer reader.
        ServerError: A server cannot be reached, or died.
    """
    from mlflow_exim_plugin.comparison.compare import compare
    from mlflow_exim_plugin.comparison.result import Comparison
    from mlflow_exim_plugin.comparison.rules import RuleSet
    from mlflow_exim_plugin.operations.ends import opened

    _check_jobs(jobs)
    rule_set = RuleSet(rules, ignore)
    with (
        opened(a, jobs=jobs, storage_options=storage_options) as (source_a, name_a),
        opened(b, jobs=jobs, storage_options=storage_options) as (source_b, name_b),
    ):
        result = Comparison(name_a, name_b, rule_set)
        compare(
            source_a,
            source_b,
            result,
            selection or Selection(),
            limit=limit,
            found=found,
            progress=progress,
        )
    return result


def verify(
    archive: str,
    *,
    expected_root: str | None = None,
    jobs: int = DEFAULT_JOBS,
    storage_options: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Verification:
    """Check an archive's bytes and documents against every rule of the spec.

    Args:
        archive: Path or fsspec URL.
        expected_root: Root digest it must have, hex; without it authenticity is not checked.
        jobs: Threads that decompress.
        storage_options: Given to the fsspec file system.
        progress: Called with the bytes of the file done and their total.

    Raises:
        NotFoundError: There is nothing at ``archive``.
        InvalidArchiveError: It cannot be opened at all; ``findings`` say why.
        UnsupportedFormatError: It needs a newer reader.
        StoreError: It cannot be read.
    """
    _check_jobs(jobs)
    if expected_root is not None:
        expected_root = expected_root.removeprefix("sha256:").lower()
    with ArchiveReader.open(
        archive, storage_options=storage_options, expected_root=expected_root
    ) as reader:
        findings = verify_archive(reader, jobs=min(jobs, os.cpu_count() or 1), progress=progress)
        damaged = {finding.path for finding in findings if finding.code.startswith("E")}
        findings += verify_objects(reader, damaged)
        return Verification(
            root=reader.root,
            members=sum(1 for _ in reader.members()),
            size_bytes=reader.size_bytes,
            authentic=None if expected_root is None else True,
            findings=findings,
        )


def open_archive(
    archive: str,
    *,
    expected_root: str | None = None,
    storage_options: dict[str, Any] | None = None,
) -> Archive:
    """Open an archive where it lies, to read its objects.

    Args:
        archive: Path or fsspec URL.
        expected_root: Root digest it must have, hex.
        storage_options: Given to the fsspec file system.

    Returns:
        The archive; use it as a context manager.

    Raises:
        NotFoundError: There is nothing at ``archive``.
        InvalidArchiveError: It is no archive, or damaged.
        UnsupportedFormatError: It needs a newer reader.
        StoreError: It cannot be read.
    """
    return Archive.open(archive, storage_options=storage_options, expected_root=expected_root)


def _check_ends(source: str, target: str) -> None:
    """Refuse a copy onto itself, and archives, for which there are other verbs."""
    if _place(source) == _place(target):
        raise UsageError(f"source and target are both {redact_url(source)}")
    for end, verb in ((source, "unpack"), (target, "pack")):
        if end.endswith(ARCHIVE_SUFFIX):
            raise UsageError(f"{redact_url(end)} is an archive", f"use {verb}")


def _place(uri: str) -> str:
    """Return what is the same for every way to write where a store is."""
    file = uri.removeprefix("sqlite:///")
    return str(Path(file).resolve()) if file != uri else uri.rstrip("/")


def _check_jobs(jobs: int) -> None:
    if jobs < 1:
        raise UsageError(f"jobs is at least 1, not {jobs}")


def _plain_selection(selection: Selection) -> dict[str, Any]:
    """Return what was asked for, without what was left at its default."""
    default = asdict(Selection())
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(selection).items()
        if value != default[key]
    }
