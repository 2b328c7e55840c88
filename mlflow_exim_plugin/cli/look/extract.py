"""``mlflow exim extract``."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import archive_argument, asks, output_options
from mlflow_exim_plugin.cli.output import named, say, show_json, size_text
from mlflow_exim_plugin.cli.progress import StatusLine
from mlflow_exim_plugin.errors import ExitCode
from mlflow_exim_plugin.options import Extracting, Opening, Selection, Work
from mlflow_exim_plugin.redaction import redact_url

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.report import ExtractedFile, Extraction

_SHOWN = 20
"""How many folders the text report spells out; JSON has each file."""


@click.command(cls=Command)
@archive_argument
@click.argument("globs", metavar="[GLOB]...", nargs=-1)
@click.option(
    "-o",
    "--output-dir",
    metavar="DIR",
    required=True,
    help="Folder that the files are written to; made if it is not there.",
)
@asks(
    *("traces", "artifacts", "include", "registry_uri", "artifacts_destination"),
    selection=Selection,
    opening=Opening,
    work=Work,
    extracting=Extracting,
)
@output_options
@click.pass_context
def extract(
    ctx: click.Context,
    /,
    archive: str,
    globs: tuple[str, ...],
    output_dir: str,
    output: str,
    selection: Selection,
    work: Work,
    **asked: Any,
) -> None:
    """Write artifacts of ARCHIVE, a path or any fsspec URL, as files below a folder.

    A GLOB is of paths as MLflow shows them, and one that is a folder takes all in it; without any
    all artifacts are taken. The files of one run that is named lie directly in DIR, otherwise each
    run has a folder of its own there. Nothing is replaced without --overwrite; what is there
    already is skipped. The exit code is 3 when a file could not be written; the report names it and
    the rest is written.

    Example:

      mlflow exim extract backup.tar.zst -e churn "*.png" -o plots
    """
    from mlflow_exim_plugin.operations.extract import extract as run_extract

    with StatusLine(_growing_text) as progress:
        report = run_extract(
            archive,
            output_dir,
            selection=replace(selection, include=globs),
            work=replace(work, progress=progress),
            **asked,
        )
    if output == "json":
        show_json(report.to_dict())
    else:
        _show(report, output_dir)
    if not report.ok:
        ctx.exit(ExitCode.PARTIAL)


def _growing_text(report: Extraction) -> str:
    return f"{len(report.files):,} files, {size_text(report.artifact_bytes)}"


def _show(report: Extraction, folder: str) -> None:
    did = "Would extract" if report.dry_run else "Extracted"
    new = [file for file in report.files if not file.was_there]
    where = redact_url(folder)
    say(f"{did} {_counted(len(new))}, {size_text(report.artifact_bytes)}, to {where}")
    owners = groupby(sorted(new, key=lambda file: file.path), _owner)
    folders = [(_top(files := list(of)), owner, files) for owner, of in owners]
    for top, (kind, owner), files in folders[:_SHOWN]:
        of = f" of {kind.replace('_', ' ')} {owner}" if kind else ""
        size_bytes = sum(file.size_bytes for file in files)
        say(f"  {top}: {_counted(len(files))}{of}, {size_text(size_bytes)}")
    if len(folders) > _SHOWN:
        say(f"  and {len(folders) - _SHOWN} more folders, see --output json")
    if there := len(report.files) - len(new):
        say(f"{_counted(there)} {'was' if there == 1 else 'were'} there already")
    named("Lossy", [(str(x.kind), x.id, x.what) for x in report.losses])
    named("Failed", [(str(x.kind), x.id, x.reason) for x in report.failures])


def _owner(file: ExtractedFile) -> tuple[str, str]:
    return (str(file.kind) if file.kind else "", file.id)


def _top(files: list[ExtractedFile]) -> str:
    """Return the folder of an object's files, from what they are called there and here."""
    first = files[0]
    return first.path.removesuffix(first.artifact).rstrip("/") or "."


def _counted(files: int) -> str:
    return f"{files:,} file{'' if files == 1 else 's'}"
