"""``mlflow exim unpack``."""

from __future__ import annotations

from typing import Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import (
    archive_argument,
    output_options,
    selection_from,
    selection_options,
    server_options,
)
from mlflow_exim_plugin.cli.output import ReportProgress, show_report
from mlflow_exim_plugin.errors import EximError, ExitCode, UsageError


@click.command(cls=Command)
@archive_argument
@selection_options
@server_options
@click.option(
    "--experiment-name", metavar="NAME", help="Put all runs into one experiment of this name."
)
@click.option(
    "--rename",
    "rename_file",
    metavar="FILE",
    help='JSON file of new names: {"experiments": {"old": "new"}, "models": {"old": "new"}}.',
)
@click.option(
    "--on-conflict",
    type=click.Choice(["merge", "skip", "rename", "fail"]),
    default="merge",
    show_default=True,
    help="What to do when the target has something else under the same name.",
)
@click.option(
    "--user",
    type=click.Choice(["source", "importer"]),
    default="source",
    show_default=True,
    help="Keep the users of the runs, or make them yours.",
)
@click.option("--use-src-user-id", is_flag=True, help="The old name of --user source.")
@click.option(
    "--import-source-tags",
    is_flag=True,
    help="Keep ids, times, users and other fields that the target sets anew as tags mlflow_exim.*.",
)
@click.option(
    "--artifact-location",
    metavar="URI",
    help="Artifact root for new experiments; the target's own without it.",
)
@output_options
@click.pass_context
def unpack(
    ctx: click.Context,
    /,
    archive: str,
    experiment_name: str | None,
    rename_file: str | None,
    user: str,
    use_src_user_id: bool,
    output: str,
    **options: Any,
) -> None:
    """Put the objects of ARCHIVE, a path or any fsspec URL, onto a tracking server.

    What is there already is recognised, what an interrupted unpack left is finished. The exit code
    is 3 when an object could not be written; the report names it and the rest is written.

    Example:

      mlflow exim unpack backup.tar.zst --tracking-uri http://new-server:5000
    """
    if use_src_user_id and user == "importer":
        raise UsageError("--use-src-user-id and --user importer exclude each other")
    if experiment_name and rename_file:
        raise UsageError("--experiment-name and --rename exclude each other")
    from mlflow_exim_plugin.container.storage import redact_url
    from mlflow_exim_plugin.operations import unpack as run_unpack
    from mlflow_exim_plugin.stages.rename import Rename

    selection = selection_from(options)
    with ReportProgress() as progress:
        report = run_unpack(
            archive,
            selection=selection,
            experiment_name=experiment_name,
            rename=Rename.from_file(rename_file) if rename_file else None,
            importer=_own_name() if user == "importer" else None,
            progress=progress,
            **options,
        )
    done = "Would unpack" if report.dry_run else "Unpacked"
    show_report(report, title=f"{done} {redact_url(archive)}", as_json=output == "json")
    if not report.ok:
        ctx.exit(ExitCode.PARTIAL)


def _own_name() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (ImportError, KeyError, OSError):  # a container's user may have no name
        raise EximError("the system does not tell who you are", "set LOGNAME") from None
