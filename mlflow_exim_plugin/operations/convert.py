"""``convert``: between an archive and an export of mlflow-export-import."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.paths import ARCHIVE_SUFFIX
from mlflow_exim_plugin.errors import InvalidArchiveError, PartialTransferError, UsageError
from mlflow_exim_plugin.operations.deliver import deliver, redaction_of
from mlflow_exim_plugin.operations.ends import open_source
from mlflow_exim_plugin.operations.proving.sign import PackedSigner
from mlflow_exim_plugin.operations.targets import open_new_export, open_target
from mlflow_exim_plugin.options import Opening, Packing, Selection, Work, flat
from mlflow_exim_plugin.redaction import redact_url

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["convert"]


@flat()
def convert(
    source: str,
    target: str,
    *,
    opening: Opening = Opening(),
    selection: Selection = Selection(),
    packing: Packing = Packing(),
    work: Work = Work(),
) -> Report:
    """Make an archive of an export of mlflow-export-import, of any generation, or the reverse.

    What is converted is only read. What an export had lost when it was made, and what an archive
    holds that exports do not know, is said in the report.

    Args:
        source: The export's folder or an archive, a path or any fsspec URL.
        target: Where to write: the archive, or the folder of the export, which must be empty or not
            there.
        opening: How the two are opened; each option is a keyword of its own too, here and below.
        selection: What to take; everything without it.
        packing: How the archive is written.
        work: How much is done at once, and whether at all.

    Returns:
        Counts, failures and losses; ``ok`` is false when an object failed.

    Raises:
        UsageError: Both are archives, or neither is.
        ArchiveExistsError: There is something at ``target``, which is to stay.
        NotFoundError: There is nothing to convert, or a name or id in the selection is not in it.
        StoreError: One of the two cannot be listed, read or written.
        InvalidArchiveError: It cannot be opened; or an object of it is damaged, and ``strict`` was
            asked for.
    """
    work = replace(work, script=work.script or "mlflow_exim_plugin.convert")
    redaction = redaction_of(packing)
    makes_archive = target.endswith(ARCHIVE_SUFFIX)
    with open_source(source, opening, among=("archive", "export")) as read:
        if makes_archive == (read.archive is not None):
            what = "archives" if makes_archive else "folders"
            raise UsageError(
                f"{redact_url(source)} and {redact_url(target)} are both {what}",
                f"the name of an archive ends {ARCHIVE_SUFFIX}, that of a folder does not",
            )
        opened = (
            open_target(target, opening, packing, selection, work)
            if makes_archive
            else open_new_export(target, opening, work)
        )
        signer = PackedSigner(target, packing)
        try:
            with opened as written:
                report = deliver(read.through(redaction), written, selection, [], work)
        except PartialTransferError as error:
            raise InvalidArchiveError(error.message, error.hint) from error
    if makes_archive:
        signer.sign(report, opening)
    return report
