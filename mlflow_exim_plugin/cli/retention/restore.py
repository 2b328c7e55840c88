"""``mlflow exim restore``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import asks, output_options
from mlflow_exim_plugin.cli.progress import run_transfer
from mlflow_exim_plugin.options import Opening, Work


@click.command(cls=Command)
@click.argument("run_id")
@click.option("--set", required=True, metavar="SET", help="Path or URL of the set that has it.")
@click.option("--tracking-uri", metavar="URI", help="Where it goes; MLflow's default without.")
@click.option(
    "--artifact-location",
    metavar="URI",
    help="Artifact root for an experiment that is gone too, at a PostgreSQL or MySQL database.",
)
@asks("snapshot", opening=Opening, work=Work)
@output_options
@click.pass_context
def restore(ctx: click.Context, /, run_id: str, output: str, work: Work, **asked: Any) -> None:
    """Put the run RUN_ID back that `retain` let leave its deployment.

    A deleted run is restored, a hollow one gets its metric histories and files again, and one whose
    rows were freed is written anew, in a database with its id.

    Example:

      mlflow exim restore 0a1b2c --set s3://audit/mlflow --tracking-uri sqlite:///mlflow.db
    """
    from mlflow_exim_plugin.operations.retention.restore import restore as run_restore

    work = replace(work, script="mlflow exim restore")
    titles = f"Restored {run_id}", f"Would restore {run_id}"
    run_transfer(ctx, partial(run_restore, run_id, **asked), work, output, *titles)
