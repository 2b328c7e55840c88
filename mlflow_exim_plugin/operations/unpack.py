"""``unpack``: from an archive, or an old export, into a deployment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.operations.keeping.unpack_tasks import (
    UnpackTask,
    unpacked,
    unpacked_in_tasks,
)
from mlflow_exim_plugin.operations.slips import require_archive
from mlflow_exim_plugin.options import Opening, Scaling, Selection, Work, Writing, flat
from mlflow_exim_plugin.redaction import redact_url

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["unpack"]


@flat()
def unpack(
    archive: str,
    *,
    tracking_uri: str | None = None,
    opening: Opening = Opening(),
    selection: Selection = Selection(),
    writing: Writing = Writing(),
    work: Work = Work(),
    scaling: Scaling = Scaling(),
) -> Report:
    """Put an archive's objects back on a tracking server or store.

    What came from the same source object before is recognised and not doubled; what an interrupted
    unpack left unfinished is finished.

    Args:
        archive: Path or fsspec URL of the archive, or of the folder of an export of
            mlflow-export-import.
        tracking_uri: MLflow tracking URI of the target; MLflow's own default without it.
        opening: How the two are opened; each option is a keyword of its own too, here and below.
        selection: What to take; everything without it.
        writing: How objects are put onto the target.
        work: How much is done at once, and whether at all.
        scaling: What unpacks into a database in several tasks.

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
    where = redact_url(archive)
    require_archive(archive, f"write unpack ARCHIVE --tracking-uri {where}, or use copy")
    if writing.since_last:
        raise UsageError("--since-last is of copies: an archive does not change", "leave it out")
    task = UnpackTask(archive, tracking_uri, opening, selection, writing, work)
    if scaling.is_asked and not work.dry_run:
        return unpacked_in_tasks(task, scaling)
    return unpacked(task)
