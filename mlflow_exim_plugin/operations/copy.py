"""``copy``: from one deployment, or an archive, to another deployment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import NotFoundError, UsageError
from mlflow_exim_plugin.operations.deliver import deliver, redaction_of, to_deployment
from mlflow_exim_plugin.operations.ends import ARCHIVES, DEPLOYMENTS, open_source, require_source
from mlflow_exim_plugin.operations.targets import open_target
from mlflow_exim_plugin.options import Opening, Reading, Selection, Work, Writing, flat
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.stages.changes import Changes
from mlflow_exim_plugin.stages.traces_anew import traces_anew

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sets.mirror import Mirror

__all__ = ["copy", "is_same_place"]


@flat(artifacts_destination="target_artifacts_destination")
def copy(
    source: str,
    target: str,
    *,
    source_opening: Opening = Opening(),
    target_opening: Opening = Opening(),
    selection: Selection = Selection(),
    reading: Reading = Reading(),
    writing: Writing = Writing(),
    work: Work = Work(),
) -> Report:
    """Copy from a tracking server, store or archive to another server or store.

    The source is only read. What was copied or unpacked before is recognised and not doubled; runs
    and logged models are read whole to tell whether they changed.

    Args:
        source: MLflow tracking URI to read, or path or fsspec URL of an archive.
        target: MLflow tracking URI to write; the source itself where names become others, for a
            copy with new ids into another experiment or model.
        source_opening: How the source is opened; each option is a keyword of its own too, here
            ``source_registry_uri`` and so on, below without the ``source_``.
        target_opening: How the target is opened.
        selection: What to take; everything without it.
        reading: How the source is read.
        writing: How objects are put onto the target.
        work: How much is done at once, and whether at all.

    Returns:
        Counts, failures and losses; ``ok`` is false when an object failed.

    Raises:
        UsageError: Source and target are the same, or the target is an archive.
        NotFoundError: The source, or a name or id in the selection, is not there.
        UnsupportedFormatError: The schema of a database can not be read, or not be written.
        ConflictError: ``fail`` was asked for and a name is taken; nothing was written.
        ServerError: One of the two cannot be reached, or died.
        PartialTransferError: An object failed and ``strict`` was asked for.
    """
    inside = is_same_place(source, target)
    if inside:
        if writing.experiment_name is None and writing.rename is None:
            raise UsageError(
                f"source and target are both {redact_url(source)}",
                "give --experiment-name or --rename for a copy inside one place",
            )
        if writing.preserve_ids:
            raise UsageError(
                f"what stays at {redact_url(source)} cannot keep its ids in a copy there",
                "leave --preserve-ids out",
            )
        writing = replace(writing, preserve_ids=False)
    among = (*DEPLOYMENTS, ARCHIVES)
    require_source(source, source_opening, among)
    work = replace(work, script=work.script or "mlflow_exim_plugin.copy")
    redaction = redaction_of(writing)
    from_, to = source_opening.at(source), target_opening.at(target)
    mirror = None
    if writing.since_last:
        if redaction is not None:
            raise UsageError("what is taken out is not remembered", "leave --since-last out")
        mirror = _mirror(redact_url(source), redact_url(target), selection, writing)
        reading = replace(reading, marks=mirror.marks(_experiments(target, to)))
    with (
        # The target first: reading a database may switch workspaces on for what is opened later.
        open_target(target, to, writing, selection, work) as written,
        open_source(source, from_, reading, jobs=work.jobs, among=among) as opened,
    ):
        read = opened.through(redaction)
        stages = to_deployment(read.system(work.script), writing)
        if inside:
            stages.append(traces_anew)
        if mirror is None:
            return deliver(read, written, selection, stages, work)
        changes = Changes(reading.marks)
        report = deliver(read, written, selection, [changes, *stages], work)
    for kind, count in changes.unchanged().items():
        report.skipped(kind, "*", "unchanged since the last copy", count)
    if not work.dry_run:
        mirror.remember(changes, report, _experiments(target, to))
    return report


def _mirror(*what: object) -> Mirror:
    from mlflow_exim_plugin.sets.mirror import Mirror

    return Mirror.of(*what)


def _experiments(target: str, opening: Opening) -> list[str]:
    """Return the ids of the experiments that a target has, none where it is not there yet."""
    try:
        with open_source(target, opening, contents=False, among=DEPLOYMENTS) as opened:
            return list(opened.names.experiment_ids())
    except NotFoundError:
        return []


def is_same_place(a: str, b: str) -> bool:
    """Whether two tracking URIs are of one deployment, however they are written."""
    return _file_or_uri(a) == _file_or_uri(b)


def _file_or_uri(uri: str) -> str:
    """Return what is the same for every way to write where a store is."""
    file = uri.removeprefix("sqlite:///")
    return str(Path(file).resolve()) if file != uri else uri.rstrip("/")
