"""``mlflow exim move``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import asks, output_options
from mlflow_exim_plugin.cli.progress import run_transfer
from mlflow_exim_plugin.options import Moving, Opening, Reading, Selection, Work

_OTHERS = ("models", "versions", "datasets", "deleted", "traces", "artifacts", "include", "exclude")


@click.command(cls=Command)
@click.argument("target", required=False)
@click.option("--tracking-uri", metavar="URI", help="What has the runs; MLflow's default without.")
@asks(
    *_OTHERS,
    "storage_options",
    "target_storage_options",
    selection=Selection,
    moving=Moving,
    opening=Opening,
    target_opening=Opening,
    reading=Reading,
    work=Work,
)
@output_options
@click.pass_context
def move(ctx: click.Context, /, target: str | None, output: str, work: Work, **asked: Any) -> None:
    """Move runs to another experiment, or to TARGET, the MLflow tracking URI of another deployment.

    Inside of one database a run keeps its id. Elsewhere it is copied, compared with its copy object
    by object, and only then deleted where it was; it can be restored there. A run that something
    else uses, or that is not the same there, stays where it is, and the exit code is 3. What was
    broken off goes on when it is called again.

    Example:

      mlflow exim move -r 0a1b2c --experiment-name archive --tracking-uri sqlite:///mlflow.db
    """
    from mlflow_exim_plugin.operations.retention.move import move as run_move

    work = replace(work, script="mlflow exim move")
    run_transfer(ctx, partial(run_move, target, **asked), work, output, "Moved", "Would move")
