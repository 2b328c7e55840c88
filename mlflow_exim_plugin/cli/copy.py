"""``mlflow exim copy``."""

from __future__ import annotations

from typing import Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import (
    naming_from,
    output_options,
    reading_options,
    selection_from,
    selection_options,
    work_options,
    writing_options,
)
from mlflow_exim_plugin.cli.output import ReportProgress, show_report
from mlflow_exim_plugin.errors import ExitCode


@click.command(cls=Command)
@click.argument("source")
@click.argument("target")
@selection_options
@click.option(
    "--source-registry-uri",
    metavar="URI",
    help="MLflow registry URI to read; SOURCE without it.",
)
@click.option(
    "--target-registry-uri",
    metavar="URI",
    help="MLflow registry URI to write; TARGET without it.",
)
@click.option(
    "--source-artifacts-destination",
    metavar="URI",
    help="Where the server of the database SOURCE keeps the files of mlflow-artifacts:.",
)
@work_options
@reading_options
@writing_options
@output_options
@click.pass_context
def copy(ctx: click.Context, /, source: str, target: str, output: str, **options: Any) -> None:
    """Copy from SOURCE to TARGET, each an MLflow tracking URI, without an archive between them.

    SOURCE is only read. What was copied or unpacked before is recognised. The exit code is 3 when
    an object could not be read or written; the report names it and the rest is copied.

    Example:

      mlflow exim copy sqlite:///mlflow.db http://new-server:5000
    """
    from mlflow_exim_plugin.operations.verbs import copy as run_copy
    from mlflow_exim_plugin.storage.files import redact_url

    selection, naming = selection_from(options), naming_from(options)
    with ReportProgress() as progress:
        report = run_copy(
            source,
            target,
            selection=selection,
            script="mlflow exim copy",
            progress=progress,
            **naming,
            **options,
        )
    done = "Would copy" if report.dry_run else "Copied"
    title = f"{done} {redact_url(source)} to {redact_url(target)}"
    show_report(report, title=title, as_json=output == "json")
    if not report.ok:
        ctx.exit(ExitCode.PARTIAL)
