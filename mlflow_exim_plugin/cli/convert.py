"""``mlflow exim convert``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import asks, output_options
from mlflow_exim_plugin.cli.progress import run_transfer
from mlflow_exim_plugin.cli.proving import ask_passphrase
from mlflow_exim_plugin.options import Opening, Packing, Selection, Work


@click.command(cls=Command)
@click.argument("source")
@click.argument("target")
@asks(
    "registry_uri",
    "artifacts_destination",
    selection=Selection,
    opening=Opening,
    work=Work,
    packing=Packing,
)
@output_options
@click.pass_context
def convert(
    ctx: click.Context,
    /,
    source: str,
    target: str,
    output: str,
    work: Work,
    packing: Packing,
    **asked: Any,
) -> None:
    """Convert SOURCE, a folder that mlflow-export-import wrote, into the archive TARGET, or back.

    Every generation of such exports is read, from paths and fsspec URLs; which it is is found out
    and said. An archive is written as an export of the current layout, into a folder that is empty
    or not there. The exit code is 3 when an object could not be read or written.

    Example:

      mlflow exim convert exported/experiments old.tar.zst
    """
    from mlflow_exim_plugin.operations.convert import convert as run_convert
    from mlflow_exim_plugin.redaction import redact_url

    work, where = replace(work, script="mlflow exim convert"), redact_url(target)
    asked["packing"] = replace(packing, passphrase=ask_passphrase)
    titles = f"Converted into {where}", f"Would convert into {where}"
    run_transfer(ctx, partial(run_convert, source, target, **asked), work, output, *titles)
