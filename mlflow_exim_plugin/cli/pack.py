"""``mlflow exim pack``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import archive_argument, asks, output_options
from mlflow_exim_plugin.cli.output import ReportProgress, show_report
from mlflow_exim_plugin.errors import ExitCode
from mlflow_exim_plugin.options import Opening, Packing, Reading, Selection, Work


@click.command(cls=Command)
@archive_argument
@click.option(
    "--tracking-uri",
    metavar="URI",
    help="MLflow tracking URI; MLFLOW_TRACKING_URI or MLflow's own default without it.",
)
@asks(selection=Selection, opening=Opening, work=Work, reading=Reading, packing=Packing)
@output_options
@click.pass_context
def pack(
    ctx: click.Context,
    /,
    archive: str,
    output: str,
    work: Work,
    **asked: Any,
) -> None:
    """Pack a tracking server and its model registry into ARCHIVE, a path or any fsspec URL.

    The source is only read. At ARCHIVE there is a complete archive afterwards, or none. The exit
    code is 3 when an object could not be packed; the report names it and the rest is packed.

    Example:

      mlflow exim pack backup.tar.zst --tracking-uri http://localhost:5000 -e "churn*"
    """
    from mlflow_exim_plugin.operations.pack import pack as run_pack
    from mlflow_exim_plugin.storage.urls import redact_url

    with ReportProgress() as progress:
        work = replace(work, script="mlflow exim pack", progress=progress)
        report = run_pack(archive, work=work, **asked)
    done = "Would pack into" if report.dry_run else "Packed into"
    show_report(report, title=f"{done} {redact_url(archive)}", as_json=output == "json")
    if not report.ok:
        ctx.exit(ExitCode.PARTIAL)
