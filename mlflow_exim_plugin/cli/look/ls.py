"""``mlflow exim ls``."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.look.foreign import as_mlflow_has_them
from mlflow_exim_plugin.cli.look.table import show_csv, show_table
from mlflow_exim_plugin.cli.options import archive_argument, asks, output_options_and
from mlflow_exim_plugin.cli.output import say, show_json, size_text
from mlflow_exim_plugin.options import Opening

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mlflow_exim_plugin.operations.ends import OpenSource
    from mlflow_exim_plugin.operations.look.archives import ArchiveThere, SnapshotThere
    from mlflow_exim_plugin.sources.archive.archive import Archive


@click.command(cls=Command)
@archive_argument
@click.option(
    "-e",
    "--experiment",
    metavar="NAME",
    help="List the runs of this experiment, by name, id or glob.",
)
@click.option("--members", is_flag=True, help="List the members: digest, size and path.")
@click.option(
    "--sort",
    metavar="COLUMN",
    help="Column that runs are sorted by; with - before it the largest first. The last started "
    "first without it.",
)
@click.option(
    "--columns",
    metavar="A,B",
    help="Columns of the runs: id, name, status, stage, start, duration, user, experiment, parent, "
    "rows, artifacts, and metrics.KEY, params.KEY, tags.KEY.",
)
@click.option("--limit", metavar="N", type=click.IntRange(1), help="List no more runs than these.")
@asks("registry_uri", "artifacts_destination", opening=Opening)
@output_options_and("csv")
def ls(
    archive: str,
    experiment: str | None,
    members: bool,
    output: str,
    opening: Opening,
    **how: Any,
) -> None:
    """List what ARCHIVE, a path or any fsspec URL, holds; it may be an old export's folder too.

    Of a folder, or a place on a store, in which archives lie, it lists these, and of a set its
    snapshots: --at says into which one to look.

    Example:

      mlflow exim ls backup.tar.zst -e churn --sort metrics.loss --limit 10
    """
    from mlflow_exim_plugin.operations.ends import open_source
    from mlflow_exim_plugin.operations.look.archives import archives_in, snapshots_in

    if experiment is None and any(value is not None for value in how.values()):
        raise click.UsageError("--sort, --columns and --limit are for the runs of --experiment.")
    is_plain = experiment is None and not members
    if is_plain and (snapshots := snapshots_in(archive, opening)) is not None:
        _list_snapshots(snapshots, output)
        return
    if is_plain and (there := archives_in(archive, opening)):
        _list_archives(there, output)
        return
    with open_source(archive, opening, among=("archive", "export")) as source:
        if members:
            if source.archive is None:
                raise click.UsageError("--members is for archives: an export is files already.")
            _list_members(source.archive, output)
        elif experiment is not None:
            with as_mlflow_has_them():
                _list_runs(source, experiment, output, **how)
        else:
            _list_objects(source, output)


def _list_snapshots(there: Sequence[SnapshotThere], output: str) -> None:
    if output == "json":
        show_json([asdict(snapshot) for snapshot in there])
        return
    if output == "csv":
        names = list(asdict(there[0])) if there else []
        show_csv(names, [list(asdict(snapshot).values()) for snapshot in there])
        return
    header = ["snapshot", "taken (UTC)", "from", "runs", "archives", "new", "failed", "root"]
    rows = [
        (
            f"{s.number} (held)" if s.held else str(s.number),
            s.taken,
            s.source,
            str(s.runs),
            str(s.archives),
            size_text(s.new_bytes),
            str(s.failed),
            s.root[:12] if sys.stdout.isatty() else s.root,
        )
        for s in there
    ]
    show_table(header, rows)
    if there:
        say(f"{len(rows)} snapshots; the newest has {size_text(there[-1].size_bytes)}")
    else:
        say("There is no snapshot yet.")


def _list_archives(there: Sequence[ArchiveThere], output: str) -> None:
    if output == "json":
        show_json([asdict(archive) for archive in there])
    elif output == "csv":
        show_csv(list(asdict(there[0])), [list(asdict(archive).values()) for archive in there])
    else:
        rows = [
            (a.name, a.source, a.packed, size_text(a.size_bytes) if a.root else "", a.root)
            for a in there
        ]
        show_table(("archive", "from", "packed (UTC)", "size", "root"), rows)
        for archive in there:
            if archive.error:
                say(f"Unreadable: {archive.name}: {archive.error}")


def _list_members(archive: Archive, output: str) -> None:
    listed = [
        {"path": m.path, "size_bytes": m.size_bytes, "sha256": m.sha256}
        for m in archive.reader.members()
    ]
    if output == "json":
        show_json(listed)
    elif output == "csv":
        rows = [(m.path, m.size_bytes, m.sha256) for m in archive.reader.members()]
        show_csv(["path", "size_bytes", "sha256"], rows)
    else:
        for member in listed:
            say(f"{member['sha256']}  {member['size_bytes']:>12}  {member['path']}")


def _list_objects(source: OpenSource, output: str) -> None:
    from mlflow_exim_plugin.kinds.kind import Kind
    from mlflow_exim_plugin.operations.look.contents import contents
    from mlflow_exim_plugin.schema.objects import ENTITY_KINDS

    found = contents(source)
    if output == "json":
        show_json(found)
        return
    experiments = found["experiments"]
    header = ["experiment_id", "name", "lifecycle_stage", "runs", "logged_models", "traces"]
    if output == "csv":
        show_csv(header, [[experiment[name] for name in header] for experiment in experiments])
        return
    if source.archive is not None:
        system = source.archive.summary.system
        size = size_text(found["size_bytes"])
        say(f"Packed {system.export_time_text} UTC from {system.mlflow_tracking_uri}, {size}")
        if found["content_root"]:
            say(f"Content root sha256:{found['content_root']}")
    if source.read_as:
        say(f"Read as {source.read_as}")
    is_deleted = any(e["lifecycle_stage"] == "deleted" for e in experiments)
    shown = ["experiment_id", "name", *(["lifecycle_stage"] if is_deleted else []), "runs"]
    shown += [name for name in ("logged_models", "traces") if any(e[name] for e in experiments)]
    words = {"experiment_id": "experiment", "lifecycle_stage": "stage"}
    say("")
    show_table(
        [words.get(name, name.replace("_", " ")) for name in shown],
        [[experiment[name] for name in shown] for experiment in experiments],
    )
    for kind in ("models", "prompts"):
        rows = [(m["name"], _ranges(m["versions"]), _aliases(m["aliases"])) for m in found[kind]]
        if rows:
            say("")
        show_table((kind[:-1], "versions", "aliases"), rows)
    counts = found["counts"]
    others = [f"{counts[k]} {Kind(k).words}" for k in map(str, ENTITY_KINDS) if k in counts]
    if others:
        say("")
        say(f"and {', '.join(others)}")


def _ranges(numbers: Iterable[int]) -> str:
    """Return numbers as ``1-3, 7``."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ranges) or "none"


def _aliases(versions: dict[str, int]) -> str:
    return ", ".join(f"{alias} {number}" for alias, number in sorted(versions.items()))


def _list_runs(
    source: OpenSource,
    experiment: str,
    output: str,
    *,
    sort: str | None,
    columns: str | None,
    limit: int | None,
) -> None:
    from mlflow_exim_plugin.cli.look.runs import RunTable
    from mlflow_exim_plugin.operations.look.contents import runs_of

    runs = RunTable(runs_of(source, experiment))
    if output == "json":
        show_json(runs.sorted(sort)[:limit] if sort else runs.runs[:limit])
    elif output == "csv":
        names = columns.split(",") if columns else runs.all_columns()
        show_csv(names, [runs.cells(run, names) for run in runs.sorted(sort)[:limit]])
    else:
        names = columns.split(",") if columns else runs.main_columns()
        header, rows = runs.texts(names, sort, short=sys.stdout.isatty())
        show_table(header, rows[:limit])
        if limit is not None and len(rows) > limit:
            say(f"and {len(rows) - limit:,} more")
