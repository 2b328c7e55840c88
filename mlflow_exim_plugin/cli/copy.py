"""``mlflow exim copy``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import asks, output_options
from mlflow_exim_plugin.cli.output import say
from mlflow_exim_plugin.cli.progress import run_transfer
from mlflow_exim_plugin.options import Opening, Reading, Selection, Work, Writing


@click.command(cls=Command)
@click.argument("source")
@click.argument("target")
@asks(
    "source_storage_options",
    "target_storage_options",
    selection=Selection,
    source_opening=Opening,
    target_opening=Opening,
    work=Work,
    reading=Reading,
    writing=Writing,
)
@click.option(
    "--artifacts-destination", hidden=True, help="The old name of --target-artifacts-destination."
)
@output_options
@click.pass_context
def copy(
    ctx: click.Context,
    /,
    source: str,
    target: str,
    output: str,
    work: Work,
    artifacts_destination: str | None,
    **asked: Any,
) -> None:
    """Copy from SOURCE, an MLflow tracking URI or an archive, to TARGET, an MLflow tracking URI.

    SOURCE is only read. What was copied or unpacked before is recognised. The exit code is 3 when
    an object could not be read or written; the report names it and the rest is copied.

    Example:

      mlflow exim copy sqlite:///mlflow.db http://new-server:5000
    """
    from mlflow_exim_plugin.operations.copy import copy as run_copy
    from mlflow_exim_plugin.redaction import redact_url

    if artifacts_destination is not None:
        say("Note: --artifacts-destination is called --target-artifacts-destination", err=True)
        asked.setdefault("target_artifacts_destination", artifacts_destination)
    work = replace(work, script="mlflow exim copy")
    where = f"{redact_url(source)} to {redact_url(target)}"
    titles = f"Copied {where}", f"Would copy {where}"
    run_transfer(ctx, partial(run_copy, source, target, **asked), work, output, *titles)
