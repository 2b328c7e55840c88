"""``mlflow exim unpack``."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import archive_argument, asks, output_options
from mlflow_exim_plugin.cli.progress import run_transfer
from mlflow_exim_plugin.options import Opening, Scaling, Selection, Work, Writing


@click.command(cls=Command)
@archive_argument
@click.option(
    "--tracking-uri",
    metavar="URI",
    help="MLflow tracking URI; MLFLOW_TRACKING_URI or MLflow's own default without it.",
)
@asks(selection=Selection, opening=Opening, work=Work, writing=Writing, scaling=Scaling)
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
    from mlflow_exim_plugin.redaction import redact_url

    where = redact_url(archive)
    titles = f"Unpacked {where}", f"Would unpack {where}"
    run_transfer(ctx, partial(run_unpack, archive, **asked), work, output, *titles)
