"""``mlflow exim unpack``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import archive_argument, asks, output_options
from mlflow_exim_plugin.cli.output import ReportProgress, show_report
from mlflow_exim_plugin.errors import ExitCode
from mlflow_exim_plugin.options import Opening, Selection, Work, Writing


@click.command(cls=Command)
@archive_argument
@click.option(
    "--tracking-uri",
    metavar="URI",
    help="MLflow tracking URI; MLFLOW_TRACKING_URI or MLflow's own default without it.",
)
@asks(selection=Selection, opening=Opening, work=Work, writing=Writing)
@output_options
@click.pass_context
def unpack(
    ctx: click.Context,
    /,
    archive: str,
    output: str,
    work: Work,
    **asked: Any,
) -> None:
    """Put the objects of ARCHIVE, a path or any fsspec URL, onto a tracking server.

    What is there already is recognised, what an interrupted unpack left is finished. The exit code
    is 3 when an object could not be written; the report names it and the rest is written.

    Example:

      mlflow exim unpack backup.tar.zst --tracking-uri http://new-server:5000
    """
    from mlflow_exim_plugin.operations.unpack import unpack as run_unpack
    from mlflow_exim_plugin.storage.urls import redact_url

    with ReportProgress() as progress:
        work = replace(work, progress=progress)
        report = run_unpack(archive, work=work, **asked)
    done = "Would unpack" if report.dry_run else "Unpacked"
    show_report(report, title=f"{done} {redact_url(archive)}", as_json=output == "json")
    if not report.ok:
        ctx.exit(ExitCode.PARTIAL)
