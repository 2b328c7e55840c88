"""``mlflow exim index``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import asks, output_options
from mlflow_exim_plugin.cli.output import say, show_json
from mlflow_exim_plugin.cli.progress import StatusLine
from mlflow_exim_plugin.errors import ExitCode
from mlflow_exim_plugin.options import Indexing, Opening, Scaling

if TYPE_CHECKING:
    from mlflow_exim_plugin.sets.catalogue.catalogue import ArchivesRead


@click.command(cls=Command)
@click.argument("location")
@asks(
    "registry_uri",
    "artifacts_destination",
    "snapshot",
    indexing=Indexing,
    opening=Opening,
    scaling=Scaling,
)
@output_options
@click.pass_context
def index(
    ctx: click.Context,
    /,
    location: str,
    output: str,
    indexing: Indexing,
    opening: Opening,
    scaling: Scaling,
) -> None:
    """Make the catalogue of LOCATION, a set or folder of archives, or bring it up to date.

    LOCATION is a path or any fsspec URL; `find` asks the catalogue, which lies in `catalogue/`
    below it. What is new there is read, and what is gone is left out. The exit code is 3 when an
    archive or an object of one could not be read; all others are found then.

    Example:

      mlflow exim index s3://backups
    """
    from mlflow_exim_plugin.operations.keeping.index import index as run_index

    with StatusLine(_growing_text) as progress:
        asked = replace(indexing, progress=progress)
        result = run_index(location, indexing=asked, opening=opening, scaling=scaling)
    if output == "json":
        show_json(result.to_dict())
    else:
        say(f"{result.location}: {result.objects:,} objects of {result.archives:,} archives")
        say(f"Read now: {result.read:,}; gone or others now: {result.gone:,}")
        for place, reason in result.failures:
            say(f"Unreadable: {place}: {reason}")
    if not result.ok:
        ctx.exit(ExitCode.PARTIAL)


def _growing_text(read: ArchivesRead) -> str:
    return f"{read.archives:,} archives, {read.objects:,} objects"
