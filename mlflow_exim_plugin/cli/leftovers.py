"""``mlflow exim leftovers``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import asks, output_options
from mlflow_exim_plugin.cli.output import say, show_json, size_text
from mlflow_exim_plugin.errors import ExitCode
from mlflow_exim_plugin.options import Clearing, Opening

if TYPE_CHECKING:
    from mlflow_exim_plugin.operations.leftovers import Leftover


@click.command(cls=Command)
@click.argument("url", required=False)
@asks("registry_uri", "artifacts_destination", opening=Opening, clearing=Clearing)
@output_options
@click.pass_context
def leftovers(
    ctx: click.Context, /, url: str | None, output: str, opening: Opening, clearing: Clearing
) -> None:
    """Tell what killed and interrupted packs left, and remove it with --clear.

    URL is a folder or an archive, a path or any fsspec URL: files that were not finished there,
    uploads and blocks of the store. In a folder and all below, halves of files that unpacks were
    killed at are found too. Without it that is what this machine has noted.

    Whatever a process of this machine writes is in use, and stays. What nothing on this machine
    tells of may be another's: it goes by its age alone.

    Example:

      mlflow exim leftovers s3://backups --clear --older-than 7d
    """
    from mlflow_exim_plugin.operations.leftovers import leftovers as run_leftovers

    as_json = output == "json"
    if not as_json:
        clearing = replace(clearing, removing=lambda one: say(f"Removing {_line(one)}"))
    result = run_leftovers(url, opening=opening, clearing=clearing)
    if as_json:
        show_json(result.to_dict())
    else:
        for one in result.found:
            if one.failure:
                say(f"Failed: {one.failure}")
            elif not one.removed:
                say(_line(one))
        removed = sum(one.removed for one in result.found)
        say(f"{len(result.found)} found, {removed} removed")
        stay = {one.state for one in result.found if not (one.removed or one.failure)}
        if "left" in stay and not clearing.clear:
            say("Hint: --clear removes what is left", err=True)
        if url is not None and "unknown" in stay:
            say("Hint: --clear --older-than AGE removes what is unknown here", err=True)
    if not result.ok:
        ctx.exit(ExitCode.PARTIAL)


def _line(one: Leftover) -> str:
    size = "" if one.size_bytes is None else f", {size_text(one.size_bytes)}"
    age = "" if one.age_s is None else f", {_age_text(one.age_s)} old"
    name = f" {one.name}" if one.name else ""
    return f"{one.url}: {one.kind}{name} ({one.state}{size}{age})"


def _age_text(age_s: int) -> str:
    for unit, seconds in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if age_s >= 2 * seconds:
            return f"{age_s // seconds} {unit}"
    return f"{age_s} s"
