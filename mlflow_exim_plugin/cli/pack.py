"""``mlflow exim pack``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import asks, optional_archive_argument, output_options
from mlflow_exim_plugin.cli.progress import run_transfer
from mlflow_exim_plugin.cli.proving import ask_passphrase
from mlflow_exim_plugin.options import Opening, Packing, Reading, Scaling, Selection, Work


@click.command(cls=Command)
@optional_archive_argument
@click.option(
    "--tracking-uri",
    metavar="URI",
    help="MLflow tracking URI, or path or URL of another archive, a part of which is taken; "
    "MLFLOW_TRACKING_URI or MLflow's own default without it.",
)
@asks(
    selection=Selection,
    opening=Opening,
    work=Work,
    reading=Reading,
    packing=Packing,
    scaling=Scaling,
)
@output_options
@click.pass_context
def pack(
    ctx: click.Context,
    /,
    archive: str | None,
    output: str,
    work: Work,
    packing: Packing,
    **asked: Any,
) -> None:
    """Pack a tracking server and its model registry into ARCHIVE, a path or any fsspec URL.

    The source is only read; it may be another archive, of which members that are taken whole are
    copied as they are, neither decompressed nor compared with their digests. At ARCHIVE there is a
    complete archive afterwards, or none. {date} and {time} in its name become the day and the
    second (UTC). The exit code is 3 when an object could not be packed; the report names it and the
    rest is packed.

    With --set, SET is a folder of archives and of snapshots that say which of them make a state:
    what is unchanged since the newest snapshot is not packed again. Every command reads a set as it
    reads an archive.

    Example:

      mlflow exim pack backup.tar.zst --tracking-uri http://localhost:5000 -e "churn*"
    """
    from mlflow_exim_plugin.operations.pack import dated
    from mlflow_exim_plugin.operations.pack import pack as run_pack
    from mlflow_exim_plugin.redaction import redact_url

    if archive is not None:
        archive = dated(archive, packing.as_of_ms)
    elif packing.set is None:
        raise click.UsageError("Missing argument 'ARCHIVE', or option '--set'.")
    work = replace(work, script="mlflow exim pack")
    where = redact_url(archive or packing.set or "")
    asked["packing"] = replace(packing, passphrase=ask_passphrase)
    titles = f"Packed into {where}", f"Would pack into {where}"
    run_transfer(ctx, partial(run_pack, archive, **asked), work, output, *titles)
