"""``mlflow exim ls``, ``show``, ``cat``, ``serve``, ``report``, ``plot``: look into an archive."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import archive_argument, asks, output_options, verbose_option
from mlflow_exim_plugin.cli.output import say, show_json, size_text
from mlflow_exim_plugin.errors import ExitCode
from mlflow_exim_plugin.options import Drawing, Opening, Publishing, Reading, Selection
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.schema.report import plain

if TYPE_CHECKING:
    from mlflow_exim_plugin.operations.ends import OpenSource
    from mlflow_exim_plugin.sources.archive.archive import Archive


@click.command(cls=Command)
@archive_argument
@click.option(
    "-e", "--experiment", metavar="NAME", help="List the runs of this experiment, by name or id."
)
@click.option("--members", is_flag=True, help="List the members: digest, size and path.")
@asks("registry_uri", "artifacts_destination", opening=Opening)
@output_options
def ls(archive: str, experiment: str | None, members: bool, output: str, opening: Opening) -> None:
    """List what ARCHIVE, a path or any fsspec URL, holds; it may be an old export's folder too.

    Example:

      mlflow exim ls backup.tar.zst -e churn
    """
    from mlflow_exim_plugin.operations.ends import open_source

    as_json = output == "json"
    with open_source(archive, opening, among=("archive", "export")) as source:
        if members:
            if source.archive is None:
                raise click.UsageError("--members is for archives: an export is files already.")
            _list_members(source.archive, as_json=as_json)
        elif experiment is not None:
            _list_runs(source, experiment, as_json=as_json)
        else:
            _list_objects(source, as_json=as_json)


@click.command(cls=Command)
@archive_argument
@click.option("-e", "--experiment", metavar="NAME", help="Experiment, by name or id.")
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
@asks(opening=Opening, reading=Reading)
@output_options
def show(
    archive: str,
    trace: str | None,
    lineage: bool,
    output: str,
    opening: Opening,
    reading: Reading,
    **asked: str | None,
) -> None:
    """Show one object of ARCHIVE, or the archive itself; it may be an old export's folder too.

    That is its envelope; of a trace, which is rows of a table, and in an export it is the document.
    With --lineage it is what the object's tags tell of the places it was carried from.

    Example:

      mlflow exim show backup.tar.zst --run-id 2f0c1b4a9e8d4c7f8a6b5c4d3e2f1a0b --output json
    """
    if sum(choice is not None for choice in (*asked.values(), trace)) > 1:
        raise click.UsageError(
            "Give one of --experiment, --run-id, --model, --logged-model and --trace."
        )
    if lineage:
        from mlflow_exim_plugin.cli.lineage import show_lineage

        show_lineage(archive, asked, opening, reading, as_json=output == "json")
        return
    from mlflow_exim_plugin.operations.contents import document_of
    from mlflow_exim_plugin.operations.ends import open_source

    with open_source(archive, opening, among=("archive", "export")) as source:
        document = document_of(source, trace=trace, **asked)
    if output == "json":
        show_json(document)
    else:
        _outline(document, "")


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


@click.command(cls=Command)
@archive_argument
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen at.", metavar="HOST"
)
@click.option(
    "--port",
    default=5000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen at; 0 takes a free one.",
)
@click.option("--open", is_flag=True, help="Open it in the browser.")
@click.option(
    "--cache-dir",
    metavar="FOLDER",
    help="Where to keep what is made of an archive for the next time; MLFLOW_EXIM_CACHE_DIR or "
    "the user's own cache without it.",
)
@asks("registry_uri", "artifacts_destination", opening=Opening)
@verbose_option
def serve(
    archive: str,
    host: str,
    port: int,
    open: bool,  # noqa: A002 - the name of the option
    cache_dir: str | None,
    opening: Opening,
) -> None:
    """Show ARCHIVE, a path or any fsspec URL, in MLflow's own user interface, read only.

    Clients find MLflow's REST API at the address that is printed. Nothing is unpacked; what writes
    is refused. It ends with Ctrl-C.

    Example:

      mlflow exim serve backup.tar.zst --open
    """
    import mlflow  # noqa: F401 - before Arrow, which would go without what MLflow needs

    from mlflow_exim_plugin.operations.live.archive import open_live
    from mlflow_exim_plugin.operations.live.cache import CacheFolder
    from mlflow_exim_plugin.plugins.address import Address
    from mlflow_exim_plugin.plugins.server import (
        ReadOnlyApp,
        described,
        listening,
        mlflow_app,
        run,
    )

    def tell(url: str) -> None:
        say(described(live))
        say(f"Served read only at {url} until Ctrl-C")
        if open:
            click.launch(url)

    with listening(host, port) as listener:
        address = Address.of_archive(archive)
        cache = CacheFolder(Path(cache_dir) if cache_dir else None)
        live = open_live(address.archive, cache=cache, storage_options=opening.storage_options)
        app = mlflow_app(address, has_workspaces=len(live.archive.trees) > 1)
        run(ReadOnlyApp(app, live), listener, tell)


@click.command(cls=Command)
@archive_argument
@click.option(
    "-o", "--output-file", required=True, metavar="FILE", help="The page, a path or fsspec URL."
)
@asks(
    "registry_uri",
    "artifacts_destination",
    "traces",
    "artifacts",
    "include",
    "exclude",
    opening=Opening,
    selection=Selection,
    publishing=Publishing,
)
@output_options
@click.pass_context
def report(
    ctx: click.Context, /, archive: str, output_file: str, output: str, **asked: Any
) -> None:
    """Tell what ARCHIVE holds on one HTML page, which can be mailed and fetches nothing.

    It says where the archive is from, what failed or was left out, and shows the runs of each
    experiment as a table with their main curves, and models with their versions. The exit code is 3
    when something of the archive could not be read.

    Example:

      mlflow exim report backup.tar.zst -o backup.html
    """
    from mlflow_exim_plugin.pages.report import report as write_report

    done = write_report(archive, output_file, **asked)
    if output == "json":
        show_json(
            {
                "ok": done.ok,
                "size_bytes": done.size_bytes,
                "experiments": done.experiments,
                "runs": done.runs,
                "unreadable": [plain(failure) for failure in done.unreadable],
            }
        )
    else:
        for failure in done.unreadable:
            say(
                f"Unreadable: {failure.kind.value.replace('_', ' ')} {failure.id}: {failure.reason}"
            )
        held = f"{done.experiments:,} experiments, {done.runs:,} runs"
        say(f"Wrote {redact_url(output_file)}: {held}, {size_text(done.size_bytes)}")
    if not done.ok:
        ctx.exit(ExitCode.PARTIAL)


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


def _list_members(archive: Archive, *, as_json: bool) -> None:
    listed = [
        {"path": m.path, "size_bytes": m.size_bytes, "sha256": m.sha256}
        for m in archive.reader.members()
    ]
    if as_json:
        show_json(listed)
        return
    for member in listed:
        say(f"{member['sha256']}  {member['size_bytes']:>12}  {member['path']}")


def _list_objects(source: OpenSource, *, as_json: bool) -> None:
    from mlflow_exim_plugin.operations.contents import contents
    from mlflow_exim_plugin.schema.objects import ENTITY_KINDS

    found = contents(source)
    if as_json:
        show_json(found)
        return
    if source.archive is not None:
        system = source.archive.summary.system
        say(
            f"Packed {system.export_time_text} UTC from {system.mlflow_tracking_uri}, "
            f"{size_text(found['size_bytes'])}"
        )
    if source.read_as:
        say(f"Read as {source.read_as}")
    for e in found["experiments"]:
        parts = [f"{e['runs']} runs"]
        parts += [
            f"{e[kind]} {kind.replace('_', ' ')}" for kind in ("logged_models", "traces") if e[kind]
        ]
        parts += ["deleted"] if e["lifecycle_stage"] == "deleted" else []
        say(f"experiment {e['experiment_id']}  {e['name']}  ({', '.join(parts)})")
    for kind in ("models", "prompts"):
        for m in found[kind]:
            numbers = ", ".join(map(str, m["versions"]))
            say(f"{kind[:-1]} {m['name']}  (versions {numbers or 'none'})")
    counts = found["counts"]
    others = [
        f"{counts[kind]} {kind.replace('_', ' ')}"
        for kind in map(str, ENTITY_KINDS)
        if kind in counts
    ]
    if others:
        say(f"and {', '.join(others)}")


def _list_runs(source: OpenSource, experiment: str, *, as_json: bool) -> None:
    from mlflow_exim_plugin.operations.contents import runs_of

    runs = runs_of(source, experiment)
    if as_json:
        show_json(runs)
        return
    for run in runs:
        deleted = "  deleted" if run["lifecycle_stage"] == "deleted" else ""
        say(
            f"{run['run_id']}  {run['status']:<9}  {run['metric_rows']:>9} rows  "
            f"{run['artifacts']:>5} artifacts  {run['run_name']}{deleted}"
        )


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
