"""``mlflow exim show --lineage``: where objects were."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING

import click

from mlflow_exim_plugin.cli.output import say, show_json

if TYPE_CHECKING:
    from mlflow_exim_plugin.operations.lineage import Occurrence
    from mlflow_exim_plugin.options import Opening, Reading
    from mlflow_exim_plugin.schema.lineage import SourceRecord

_TIMES_MS = ("start_time", "end_time", "creation_time", "last_update_time", "created_time")
_TIME_ENDS = ("_timestamp", "_timestamp_ms", "_time_ms")


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
