"""``mlflow exim cat``."""

from __future__ import annotations

import shutil
import sys

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import archive_argument, asks, verbose_option
from mlflow_exim_plugin.options import Opening


@click.command(cls=Command)
@archive_argument
@click.argument("member")
@asks("registry_uri", "artifacts_destination", opening=Opening)
@verbose_option
def cat(archive: str, member: str, opening: Opening) -> None:
    """Write the bytes of one MEMBER of ARCHIVE to standard output.

    Example:

      mlflow exim cat backup.tar.zst data/archive.json
    """
    from mlflow_exim_plugin.sources.archive.archive import Archive

    with (
        Archive.open(archive, storage_options=opening.storage_options) as opened,
        opened.reader.open_member(member) as stream,
    ):
        shutil.copyfileobj(stream, sys.stdout.buffer, 1 << 20)
        sys.stdout.buffer.flush()
