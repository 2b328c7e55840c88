"""``mlflow exim report``."""

from __future__ import annotations

from typing import Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import archive_argument, asks, output_options
from mlflow_exim_plugin.cli.output import say, show_json, size_text
from mlflow_exim_plugin.errors import ExitCode
from mlflow_exim_plugin.options import Opening, Publishing, Selection
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.schema.report import plain


@click.command(cls=Command)
@archive_argument
@click.option(
    "-o", "--output-file", required=True, metavar="FILE", help="The page, a path or fsspec URL."
)
@asks(
    "registry_uri",
    "artifacts_destination",
    "traces",
    "artifacts",
    "include",
    "exclude",
    opening=Opening,
    selection=Selection,
    publishing=Publishing,
)
@output_options
@click.pass_context
def report(
    ctx: click.Context, /, archive: str, output_file: str, output: str, **asked: Any
) -> None:
    """Tell what ARCHIVE holds on one HTML page, which can be mailed and fetches nothing.

    It says where the archive is from, what failed or was left out, and shows the runs of each
    experiment as a table with their main curves, and models with their versions. The exit code is 3
    when something of the archive could not be read.

    Example:

      mlflow exim report backup.tar.zst -o backup.html
    """
    from mlflow_exim_plugin.pages.report import report as write_report

    done = write_report(archive, output_file, **asked)
    if output == "json":
        show_json(
            {
                "ok": done.ok,
                "size_bytes": done.size_bytes,
                "experiments": done.experiments,
                "runs": done.runs,
                "unreadable": [plain(failure) for failure in done.unreadable],
            }
        )
    else:
        for failure in done.unreadable:
            say(f"Unreadable: {failure.kind.words} {failure.id}: {failure.reason}")
        held = f"{done.experiments:,} experiments, {done.runs:,} runs"
        say(f"Wrote {redact_url(output_file)}: {held}, {size_text(done.size_bytes)}")
    if not done.ok:
        ctx.exit(ExitCode.PARTIAL)
