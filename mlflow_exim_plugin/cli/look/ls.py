"""``mlflow exim ls``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import archive_argument, asks, output_options
from mlflow_exim_plugin.cli.output import say, show_json, size_text
from mlflow_exim_plugin.options import Opening

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
        if found["content_root"]:
            say(f"Content root sha256:{found['content_root']}")
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
