"""From an open source to an open target: through which stages, and what is looked at before."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import NOTICE
from mlflow_exim_plugin.options import (
    SALT_VARIABLE,
    Rename,
    Selection,
    TakingOut,
    Work,
    Writing,
)
from mlflow_exim_plugin.schema.report import Report
from mlflow_exim_plugin.stages.default_experiment import marks_unused_default
from mlflow_exim_plugin.stages.digest import Digests
from mlflow_exim_plugin.stages.lineage import ImportTags
from mlflow_exim_plugin.stages.oldest_first import oldest_first
from mlflow_exim_plugin.stages.rename import Renaming
from mlflow_exim_plugin.transfer import transfer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_exim_plugin.operations.ends import OpenSource
    from mlflow_exim_plugin.operations.targets import OpenTarget
    from mlflow_exim_plugin.schema.envelope import System
    from mlflow_exim_plugin.stages.privacy.redact import Redaction
    from mlflow_exim_plugin.transfer import Stage

__all__ = ["deliver", "redaction_of", "to_deployment"]

_log = logging.getLogger(__name__)


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
    redaction = source.redaction
    stages = [redaction, *stages] if redaction is not None else stages
    if target.looks_first and not work.dry_run:
        # Every name, and what a database cannot hold, is known before the first object is written.
        with target.sink(source, dry_run=True) as looking:
            transfer(source.names, looking, selection, stages=stages, strict=work.strict)
    report = Report(dry_run=work.dry_run)
    report.source = source.name
    report.planned = source.stream.planned
    if source.archive is not None:
        reader = source.archive.reader
        version = reader.format_version
        report.told_archive(source.name, reader.size_bytes, len(reader), version)
        report.root = reader.root
        report.content_root = source.archive.summary.info.content_root
    report.read_as = source.read_as
    report.files_at = target.files_at
    with target.sink(source, dry_run=work.dry_run) as sink:
        if not sink.capabilities.keeps_times:
            selection = replace(selection, oldest_first=True)
            stages = [oldest_first, *stages]
        transfer(
            source.stream,
            sink,
            selection,
            stages=stages,
            report=report,
            strict=work.strict,
            progress=work.progress,
        )
    if redaction is not None:
        report.redacted = redaction.record()
        for rule in redaction.without_effect():
            _log.log(NOTICE, "Nothing was taken out by %s.", rule)
    target.tell(report)
    report.ended()
    return report


def redaction_of(taking_out: TakingOut) -> Redaction | None:
    """Return what takes out what is asked for, None where nothing is.

    Raises:
        NotFoundError: There is no such file of rules, or of a salt.
        UsageError: A rule says what cannot be, or hashes without a salt.
    """
    if not taking_out.redact:
        return None
    from mlflow_exim_plugin.stages.privacy.redact import Redaction
    from mlflow_exim_plugin.stages.privacy.rules import load_rules, load_salt

    salt = load_salt(os.environ.get(SALT_VARIABLE), taking_out.salt_file)
    return Redaction(load_rules(taking_out.redact), salt)


def to_deployment(system: System, writing: Writing) -> list[Stage]:
    """Return the stages that objects pass on their way to a deployment."""
    stages: list[Stage] = [ImportTags(system)] if writing.import_source_tags else []
    if writing.experiment_name is not None or writing.rename is not None:
        stages.append(Renaming(writing.rename or Rename(), writing.experiment_name))
    return [*stages, marks_unused_default, Digests()]
