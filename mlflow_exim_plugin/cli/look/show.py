"""``mlflow exim show``."""

from __future__ import annotations

import json
from typing import Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.look.foreign import as_mlflow_has_them
from mlflow_exim_plugin.cli.options import archive_argument, asks, output_options
from mlflow_exim_plugin.cli.output import say, show_json
from mlflow_exim_plugin.options import Opening, Reading


@click.command(cls=Command)
@archive_argument
@click.option("-e", "--experiment", metavar="NAME", help="Experiment.")
@click.option("-r", "--run-id", metavar="ID", help="Run.")
@click.option(
    "-m",
    "--model",
    metavar="NAME",
    help="Registered model or prompt with its versions, or MODEL/3, MODEL@ALIAS, MODEL/latest.",
)
@click.option("--logged-model", metavar="ID", help="Logged model.")
@click.option("--trace", metavar="ID", help="Trace with its spans and assessments.")
@click.option(
    "--lineage",
    is_flag=True,
    help="Show where an experiment, run or model was before, the oldest place first; ARCHIVE may "
    "then be a server's or store's URI too.",
)
@click.option("--log", is_flag=True, help="Show who packed what, from where, step by step.")
@click.option("--envelope", is_flag=True, help="Show the whole document, as it is in the archive.")
@asks(opening=Opening, reading=Reading)
@output_options
def show(
    archive: str,
    trace: str | None,
    lineage: bool,
    log: bool,
    envelope: bool,
    output: str,
    opening: Opening,
    reading: Reading,
    **asked: str | None,
) -> None:
    """Show one object of ARCHIVE, or the archive itself; it may be an old export's folder too.

    Objects are named by id, the beginning of one, name or glob. What people ask first is shown;
    with --envelope, and as JSON, it is the envelope, of a trace, which is rows of a table, and in
    an export the document. With --lineage it is what the object's tags tell of the places it was
    carried from.

    Example:

      mlflow exim show backup.tar.zst --run-id 2f0c1b4a
    """
    if sum(choice is not None for choice in (*asked.values(), trace)) > 1:
        raise click.UsageError(
            "Give one of --experiment, --run-id, --model, --logged-model and --trace."
        )
    if lineage:
        from mlflow_exim_plugin.cli.look.lineage import show_lineage

        show_lineage(archive, asked, opening, reading, as_json=output == "json")
        return
    if log:
        _show_log(archive, opening, as_json=output == "json")
        return
    from mlflow_exim_plugin.operations.ends import open_source
    from mlflow_exim_plugin.operations.look.contents import document_of

    with open_source(archive, opening, among=("archive", "export")) as source:
        document = document_of(source, trace=trace, **asked)
        root = source.archive.reader.root if source.archive else None
    is_whole = trace is None and not any(asked.values())
    if output == "json":
        show_json(document)
    elif envelope:
        _outline(document, "")
    else:
        from mlflow_exim_plugin.cli.look.summary import show_summary

        with as_mlflow_has_them():
            show_summary(document, root)
        if root is not None and is_whole:
            from mlflow_exim_plugin.operations.proving.sign import unchecked_signatures

            for signature in unchecked_signatures(archive, root, opening.storage_options):
                say(f"Not checked, signed by {signature}")


def _show_log(archive: str, opening: Opening, *, as_json: bool) -> None:
    from mlflow_exim_plugin.operations.ends import open_archived

    with open_archived(archive, opening) as opened:
        events = opened.log
    if as_json:
        show_json([event.to_json() for event in events])
        return
    if not events:
        say("There is no log.")
    for number, event in enumerate(events, 1):
        system, info = event.system, event.info
        say(f"{number}. {system.export_time_text} UTC, {system.user}: {system.script}")
        say(f"   from {system.mlflow_tracking_uri}, by version {system.package_version}")
        if info.earlier is not None:
            say(f"   its root sha256:{info.earlier.root}")
        if info.selection:
            say(f"   selected {json.dumps(info.selection, ensure_ascii=False)}")
        for left in info.left_out:
            say(f"   left out {left.count} {left.kind.replace('_', ' ')}: {left.reason}")
        if info.lossy:
            say(f"   lossy {info.lossy}, named in data/archive.json")
        say(f"   content root sha256:{info.content_root}")


def _outline(value: Any, indent: str) -> None:
    """Print a document for people: a line a field, entries of key and value on one line."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, entry in entries:
        name = "-" if isinstance(value, list) else str(key)
        if isinstance(entry, dict) and entry.keys() == {"key", "value"}:
            say(f"{indent}{entry['key']}: {entry['value']}")
        elif isinstance(entry, dict | list):
            if entry:
                say(f"{indent}{name}:" if name != "-" else f"{indent}-")
                _outline(entry, indent + "  ")
        else:
            say(f"{indent}{name}: {entry}" if name != "-" else f"{indent}- {entry}")
