"""``mlflow exim cat``."""

from __future__ import annotations

import sys

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import archive_argument, asks, verbose_option
from mlflow_exim_plugin.cli.output import copy_out, size_text
from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.options import Opening

_LOOKED_AT_BYTES = 8192


@click.command(cls=Command)
@archive_argument
@click.argument("member")
@click.option("--binary", is_flag=True, help="Write to a terminal what is no text, too.")
@asks("registry_uri", "artifacts_destination", opening=Opening)
@verbose_option
def cat(archive: str, member: str, binary: bool, opening: Opening) -> None:
    """Write the bytes of one MEMBER of ARCHIVE to standard output.

    Example:

      mlflow exim cat backup.tar.zst data/archive.json
    """
    from mlflow_exim_plugin.operations.ends import open_archived

    with (
        open_archived(archive, opening) as opened,
        opened.reader.open_member(member) as stream,
    ):
        if sys.stdout.isatty() and not binary and b"\0" in stream.read(_LOOKED_AT_BYTES):
            size = size_text(opened.reader.member(member).size_bytes)
            raise UsageError(
                f"{member} is no text, {size}", "write it to a file with > FILE, or say --binary"
            )
        stream.seek(0)
        copy_out(stream)
