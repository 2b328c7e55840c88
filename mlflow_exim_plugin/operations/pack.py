"""``pack``: from a deployment, or another archive, into an archive."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.operations.deliver import deliver, redaction_of
from mlflow_exim_plugin.operations.ends import ARCHIVES, DEPLOYMENTS, open_source
from mlflow_exim_plugin.operations.proving.sign import PackedSigner
from mlflow_exim_plugin.operations.targets import open_target
from mlflow_exim_plugin.options import Opening, Packing, Reading, Scaling, Selection, Work, flat
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.stages.lineage import ExportTags

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["dated", "pack"]


@flat()
def pack(
    archive: str | None = None,
    *,
    tracking_uri: str | None = None,
    opening: Opening = Opening(),
    selection: Selection = Selection(),
    reading: Reading = Reading(),
    packing: Packing = Packing(),
    work: Work = Work(),
    scaling: Scaling = Scaling(),
) -> Report:
    """Pack a tracking server or store and its model registry into one archive.

    The source is only read. At ``archive`` there is a complete archive afterwards, or none.

    Args:
        archive: Path or fsspec URL of the archive to write; ``{date}`` and ``{time}`` in it become
            the day and the second (UTC). None where ``set`` is given.
        tracking_uri: MLflow tracking URI, or path or fsspec URL of another archive, of which the
            members that are taken whole are copied as they are; MLflow's own default without it.
        opening: How the two are opened; each option is a keyword of its own too, here and below.
        selection: What to take; everything without it.
        reading: How the source is read.
        packing: How the archive is written.
        work: How much is done at once, and whether at all.
        scaling: What packs into a set in several tasks.

    Returns:
        Counts, failures, and what was seen but not packed; ``ok`` is false when an object failed.

    Raises:
        ArchiveExistsError: There is a file at ``archive`` and ``overwrite`` is false.
        NotFoundError: A name or id in the selection, or a local store, is not there.
        UnsupportedFormatError: A database's schema is newer than this MLflow's, or half-migrated.
        ServerError: The server cannot be listed, or died.
        StoreError: The archive cannot be written.
        SignatureError: The archive is there, and could not be signed.
        PartialTransferError: An object failed and ``strict`` was asked for.
    """
    work = replace(work, script=work.script or "mlflow_exim_plugin.pack")
    if packing.set is not None:
        if archive is not None:
            raise UsageError(f"{redact_url(archive)} is given beside a set", "give one of the two")
        from mlflow_exim_plugin.operations.keeping.pack_set import pack_into_set

        return pack_into_set(
            packing.set, tracking_uri, opening, selection, reading, packing, work, scaling
        )
    if scaling.is_asked:
        raise UsageError("tasks pack into a set", "name one with --set, or leave --engine out")
    if archive is None:
        raise UsageError("there is no archive to write", "name one, or a set with --set")
    archive = dated(archive, packing.as_of_ms)
    signer = PackedSigner(archive, packing)
    redaction = redaction_of(packing)
    if redaction is not None and packing.resume:
        raise UsageError(
            "what an interrupted pack left was packed by other rules, or none",
            "leave --resume or --redact out",
        )
    with (
        open_target(archive, opening, packing, selection, work) as target,
        open_source(
            tracking_uri, opening, reading, jobs=work.jobs, among=(*DEPLOYMENTS, ARCHIVES)
        ) as opened,
    ):
        source = opened.through(redaction)
        system = source.system(work.script, packing.as_of_ms)
        stages = [ExportTags(system)] if packing.export_source_tags else []
        read = source if work.dry_run else source.for_archive()
        report = deliver(read, target, selection, stages, work)
    signer.sign(report, opening)
    return report


def dated(archive: str, as_of_ms: int | None = None) -> str:
    """Return the name of an archive with ``{date}`` and ``{time}`` filled in.

    Args:
        archive: Path or fsspec URL.
        as_of_ms: Now, ms since the Unix epoch; the clock's without it.
    """
    seconds = time.time() if as_of_ms is None else as_of_ms / 1000
    now = datetime.fromtimestamp(seconds, timezone.utc)
    day = now.strftime("%Y-%m-%d")
    return archive.replace("{date}", day).replace("{time}", now.strftime("%Y-%m-%dT%H-%M-%SZ"))
