"""``mlflow exim find`` and ``show --lineage``: where objects went and where they were."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import asks, output_options
from mlflow_exim_plugin.cli.output import say, show_json
from mlflow_exim_plugin.errors import NotFoundError
from mlflow_exim_plugin.options import Opening, Reading

if TYPE_CHECKING:
    from mlflow_exim_plugin.operations.lineage import Occurrence
    from mlflow_exim_plugin.schema.lineage import SourceRecord

_TIMES_MS = ("start_time", "end_time", "creation_time", "last_update_time", "created_time")
_TIME_ENDS = ("_timestamp", "_timestamp_ms", "_time_ms")


@click.command(cls=Command)
@click.argument("identity", metavar="ID")
@click.argument("locations", metavar="LOCATION...", nargs=-1, required=True)
@asks(opening=Opening, reading=Reading)
@output_options
def find(
    identity: str, locations: tuple[str, ...], output: str, opening: Opening, reading: Reading
) -> None:
    """Tell where the run ID of an old server went: what it is at each LOCATION.

    ID is that of a run, a logged model (m-…) or an evaluation dataset (d-…), as it is or was
    anywhere; a LOCATION is a server's or store's URI or an archive. The exit code is 4 when none
    has it.

    Example:

      mlflow exim find 2f0c1b4a9e8d4c7f8a6b5c4d3e2f1a0b http://new-server:5000 backup.tar.zst
    """
    from mlflow_exim_plugin.operations.lineage import copies

    found = list(copies(identity, locations, opening=opening, reading=reading))
    if output == "json":
        show_json([occurrence.to_dict() for occurrence in found])
    else:
        for occurrence in found:
            of = f" of experiment {occurrence.experiment_id}" if occurrence.experiment_id else ""
            of_kind = f"{occurrence.kind} {occurrence.id}{of}"
            say(f"{occurrence.location}: {of_kind}  {occurrence.name}".rstrip())
    if not found:
        raise NotFoundError(
            f"no place has {identity} or a copy of it",
            "copies are known by the tags that unpack sets; ids of other tools are not kept",
        )


def show_lineage(
    location: str,
    asked: dict[str, str | None],
    opening: Opening,
    reading: Reading,
    *,
    as_json: bool,
) -> None:
    """Print where an object was before, the oldest place first."""
    from mlflow_exim_plugin.operations.lineage import lineage

    if not any(asked.values()):
        raise click.UsageError(
            "--lineage needs one of --experiment, --run-id, --model and --logged-model."
        )
    found = lineage(location, **asked, opening=opening, reading=reading)
    if as_json:
        show_json([occurrence.to_dict() for occurrence in found])
        return
    for occurrence in found:
        _show(occurrence)


def _show(occurrence: Occurrence) -> None:
    for number, source in enumerate(occurrence.sources, 1):
        identity = source.fields.get("run_id") or source.origin
        server = source.server.get("tracking_uri", "a place that its tags do not name")
        say(f"{number}. {server}{_read_at(source)}")
        if occurrence.kind == "run":
            say(f"   run_id: {identity}")
        for name, text in sorted(source.fields.items()):
            if occurrence.kind == "run" and name in ("run_id", "run_uuid"):
                continue
            say(f"   {name}: {_readable(name, text)}")
        for name, text in sorted(source.tags.items()):
            say(f"   mlflow.{name}: {text}")
        if not source.names:
            say("   (it was carried on without source tags)")
    say(f"{len(occurrence.sources) + 1}. {occurrence.location}, now")
    say(f"   {occurrence.kind.words}: {occurrence.id}")
    for name, text in (
        ("name", occurrence.name),
        ("experiment_id", occurrence.experiment_id),
        ("user", occurrence.user),
    ):
        if text and text != occurrence.id:
            say(f"   {name}: {text}")


def _read_at(source: SourceRecord) -> str:
    if text := source.server.get("export_time_ms", ""):
        return f", read {_moment(text)}"
    if text := source.server.get("timestamp", ""):
        return f", read {_moment(text + '000')}"
    return ""


def _readable(name: str, text: str) -> str:
    if name in _TIMES_MS or name.endswith(_TIME_ENDS):
        return _moment(text)
    return text


def _moment(text: str) -> str:
    """Return ms since the Unix epoch as a time in UTC; other text as it is."""
    if not text.isdecimal() or len(text) > 14:
        return text
    moment = datetime.fromtimestamp(int(text) / 1000, timezone.utc)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
