"""``mlflow exim plot``."""

from __future__ import annotations

from typing import Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import archive_argument, asks, output_options
from mlflow_exim_plugin.cli.output import say, show_json
from mlflow_exim_plugin.options import Drawing, Opening, Publishing
from mlflow_exim_plugin.redaction import redact_url


@click.command(cls=Command)
@archive_argument
@click.option(
    "-o",
    "--output-file",
    required=True,
    metavar="FILE",
    help="The picture, a path or fsspec URL that ends in .svg or .png.",
)
@asks(
    "registry_uri",
    "artifacts_destination",
    opening=Opening,
    drawing=Drawing,
    publishing=Publishing,
)
@output_options
def plot(archive: str, output_file: str, output: str, **asked: Any) -> None:
    """Draw metrics of runs of ARCHIVE as one picture.

    Example:

      mlflow exim plot backup.tar.zst -r "depth*" -k loss -o loss.svg
    """
    from mlflow_exim_plugin.pages.plot import plot as draw

    picture = draw(archive, output_file, **asked)
    if output == "json":
        show_json(picture.to_dict())
        return
    for curve in picture.curves:
        gaps = f", {curve.gaps:,} of them NaN or infinite and drawn as gaps" if curve.gaps else ""
        say(f"{curve.key} of {curve.run_id}: {curve.rows:,} points{gaps}")
    say(f"Wrote {redact_url(output_file)}")
