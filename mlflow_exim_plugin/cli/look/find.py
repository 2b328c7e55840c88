"""``mlflow exim find``."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.look.runs import moment_text
from mlflow_exim_plugin.cli.look.table import show_csv, show_table
from mlflow_exim_plugin.cli.options import asks, output_options_and
from mlflow_exim_plugin.cli.output import say, show_json
from mlflow_exim_plugin.errors import ExitCode, NotFoundError
from mlflow_exim_plugin.options import Opening, Reading, Seeking

if TYPE_CHECKING:
    from mlflow_exim_plugin.operations.look.find import FindResult, FoundObject

_ID = re.compile(r"[0-9a-f]{32}|(m|d|tr|rec)-[0-9a-f]{32}")
"""What no location is called."""


@click.command(cls=Command)
@click.argument("places", metavar="[ID] LOCATION...", nargs=-1, required=True)
@asks(seeking=Seeking, opening=Opening, reading=Reading)
@output_options_and("csv")
@click.pass_context
def find(
    ctx: click.Context,
    /,
    places: tuple[str, ...],
    output: str,
    seeking: Seeking,
    opening: Opening,
    reading: Reading,
) -> None:
    """Find objects in archives, sets and folders of archives, by what is known of them.

    A LOCATION is an archive, a set, or a folder in which archives lie, a path or any fsspec URL.
    The last two are asked by the catalogue that `index` makes; archives that it does not know are
    read.

    ID is that of a run, logged model (m-…), trace (tr-…) or evaluation dataset (d-…), as it is or
    was anywhere; for it a LOCATION may be a server's or store's URI too. Without ID an option says
    what to find. All that is said must hold.

    Of an object that several archives of a folder have, the latest state is shown. The exit code is
    4 when nothing was found, and 3 when something could not be read.

    Example:

      mlflow exim find s3://backups --metric "acc>0.9" --tag team=risk
    """
    from mlflow_exim_plugin.operations.look.find import find as run_find

    identity = None
    if len(places) > 1 and (seeking.is_empty or _ID.fullmatch(places[0])):
        identity, places = places[0], places[1:]
    found = run_find(places, identity, seeking=seeking, opening=opening, reading=reading)
    if output == "json":
        show_json(found.to_dict())
    elif output == "csv":
        _show_csv(found)
    else:
        _show(found)
    for note in found.notes:
        say(f"Note: {note}", err=True)
    for place, reason in found.failures:
        say(f"Unreadable: {place}: {reason}", err=True)
    if found.failures:
        ctx.exit(ExitCode.PARTIAL)
    if not found.objects and output == "json":
        ctx.exit(ExitCode.NOT_FOUND)  # the document says so
    if not found.objects:
        what = f"no place has {identity} or a copy of it" if identity else "nothing was found"
        hint = "copies are known by the tags that unpack sets; ids of other tools are not kept"
        raise NotFoundError(what, hint if identity else "")


def _show(found: FindResult) -> None:
    has_workspaces = any(one.workspace not in ("", "default") for one in found.objects)
    has_snapshots = any(one.snapshot is not None for one in found.objects)
    rows = [
        (
            one.location,
            *([one.snapshot] if has_snapshots else []),
            *([one.workspace] if has_workspaces else []),
            one.kind,
            one.id,
            one.name,
            moment_text(one.start_time_ms),
        )
        for one in found.objects
    ]
    more = [*(["snapshot"] if has_snapshots else []), *(["workspace"] if has_workspaces else [])]
    show_table(("location", *more, "kind", "id", "name", "start (UTC)"), rows)
    for one in found.objects:
        for path in one.files:
            say(f"{one.kind} {one.id} has {path}")
    if (others := found.total - len(found.objects)) > 0:
        say(f"and {others:,} more (--limit)")


def _show_csv(found: FindResult) -> None:
    def cells(one: FoundObject) -> list[str | int | None]:
        told = asdict(one)
        told["files"] = "\n".join(one.files)
        return [value for name, value in told.items() if name != "sources"]

    from mlflow_exim_plugin.operations.look.find import FoundObject as Columns

    names = [name for name in Columns.__dataclass_fields__ if name != "sources"]
    show_csv(names, [cells(one) for one in found.objects])
