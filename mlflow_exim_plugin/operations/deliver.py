"""From an open source to an open target: through which stages, and what is looked at before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.options import Rename, Selection, Work, Writing
from mlflow_exim_plugin.schema.report import Report
from mlflow_exim_plugin.stages.default_experiment import marks_unused_default
from mlflow_exim_plugin.stages.digest import Digests
from mlflow_exim_plugin.stages.lineage import ImportTags
from mlflow_exim_plugin.stages.rename import Renaming
from mlflow_exim_plugin.transfer import transfer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_exim_plugin.operations.ends import OpenSource
    from mlflow_exim_plugin.operations.targets import OpenTarget
    from mlflow_exim_plugin.schema.envelope import System
    from mlflow_exim_plugin.transfer import Stage

__all__ = ["deliver", "to_deployment"]


def deliver(
    source: OpenSource,
    target: OpenTarget,
    selection: Selection,
    stages: Sequence[Stage],
    work: Work,
) -> Report:
    """Write what is selected of a source to a target.

    Raises:
        ConflictError: ``fail`` was asked for and a name or id is taken; nothing was written.
        PartialTransferError: An object failed and ``strict`` was asked for.
        ServerError: One of the two cannot be reached, or died.
    """
    if target.looks_first and not work.dry_run:
        # Every name, and what a database cannot hold, is known before the first object is written.
        with target.sink(source, dry_run=True) as looking:
            transfer(source.names, looking, selection, stages=stages, strict=work.strict)
    report = Report(dry_run=work.dry_run)
    if source.archive is not None:
        report.root = source.archive.reader.root
        report.content_root = source.archive.summary.info.content_root
    report.read_as = source.read_as
    report.files_at = target.files_at
    with target.sink(source, dry_run=work.dry_run) as sink:
        return transfer(
            source.stream,
            sink,
            selection,
            stages=stages,
            report=report,
            strict=work.strict,
            progress=work.progress,
        )


def to_deployment(system: System, writing: Writing) -> list[Stage]:
    """Return the stages that objects pass on their way to a deployment."""
    stages: list[Stage] = [ImportTags(system)] if writing.import_source_tags else []
    if writing.experiment_name is not None or writing.rename is not None:
        stages.append(Renaming(writing.rename or Rename(), writing.experiment_name))
    return [*stages, marks_unused_default, Digests()]
