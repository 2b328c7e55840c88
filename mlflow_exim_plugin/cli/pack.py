"""``mlflow exim pack``."""

from __future__ import annotations

from typing import Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import (
    archive_argument,
    files_options,
    output_options,
    reading_options,
    selection_from,
    selection_options,
    server_options,
    work_options,
)
from mlflow_exim_plugin.cli.output import ReportProgress, show_report
from mlflow_exim_plugin.errors import ExitCode


@click.command(cls=Command)
@archive_argument
@selection_options
@server_options
@work_options
@reading_options
@files_options
@click.option(
    "--level",
    type=click.IntRange(1, 22),
    default=3,
    show_default=True,
    help="zstd compression level.",
)
@click.option("--overwrite", is_flag=True, help="Replace an archive that is there.")
@click.option(
    "--export-source-tags",
    is_flag=True,
    help="Give packed runs their ids, times, users and mlflow. tags again as tags "
    "mlflow_export_import.*.",
)
@output_options
@click.pass_context
def pack(ctx: click.Context, /, archive: str, output: str, **options: Any) -> None:
    """Pack a tracking server and its model registry into ARCHIVE, a path or any fsspec URL.

    The source is only read. At ARCHIVE there is a complete archive afterwards, or none. The exit
    code is 3 when an object could not be packed; the report names it and the rest is packed.

    Example:

      mlflow exim pack backup.tar.zst --tracking-uri http://localhost:5000 -e "churn*"
    """
    from mlflow_exim_plugin.operations.verbs import pack as run_pack
    from mlflow_exim_plugin.storage.files import redact_url

    selection = selection_from(options)
    with ReportProgress() as progress:
        report = run_pack(
            archive, selection=selection, script="mlflow exim pack", progress=progress, **options
        )
    done = "Would pack into" if report.dry_run else "Packed into"
    show_report(report, title=f"{done} {redact_url(archive)}", as_json=output == "json")
    if not report.ok:
        ctx.exit(ExitCode.PARTIAL)
