"""``mlflow exim ls``, ``show`` and ``cat``: look inside an archive where it lies."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import archive_argument, asks, output_options, verbose_option
from mlflow_exim_plugin.cli.output import say, show_json, size_text
from mlflow_exim_plugin.options import Opening, Reading

if TYPE_CHECKING:
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
    """List what ARCHIVE, a path or any fsspec URL, holds.

    Example:

      mlflow exim ls backup.tar.zst -e churn
    """
    from mlflow_exim_plugin.sources.archive.archive import Archive

    with Archive.open(archive, storage_options=opening.storage_options) as opened:
        if members:
            _list_members(opened, as_json=output == "json")
        elif experiment is not None:
            _list_runs(opened, experiment, as_json=output == "json")
        else:
            _list_objects(opened, as_json=output == "json")


@click.command(cls=Command)
@archive_argument
@click.option("-e", "--experiment", metavar="NAME", help="Experiment, by name or id.")
@click.option("-r", "--run-id", metavar="ID", help="Run.")
@click.option("-m", "--model", metavar="NAME", help="Registered model or prompt and its versions.")
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
    """Show one object of ARCHIVE, or the archive itself.

    That is its envelope, but for a trace, which is rows of a table: its documents. With --lineage
    it is what the object's tags tell of the places it was carried from.

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
    from mlflow_exim_plugin.sources.archive.archive import Archive

    with Archive.open(archive, storage_options=opening.storage_options) as opened:
        if experiment := asked["experiment"]:
            document = _experiment(opened, experiment)
        elif run_id := asked["run_id"]:
            document = opened.run(run_id).to_json()
        elif model := asked["model"]:
            document = opened.model(model).to_json()
            document["versions"] = [v.to_json() for v in opened.versions(model)]
        elif logged_model := asked["logged_model"]:
            document = opened.logged_model(logged_model).to_json()
        elif trace is not None:
            found = opened.trace(trace)
            document = {**found.document, "spans": found.spans}
        else:
            document = opened.summary.to_json()
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


def _list_objects(archive: Archive, *, as_json: bool) -> None:
    from mlflow_exim_plugin.schema.objects import ENTITY_KINDS, Kind

    experiments = [
        {
            "experiment_id": e.mlflow.experiment["experiment_id"],
            "name": e.mlflow.experiment["name"],
            "lifecycle_stage": e.mlflow.experiment.get("lifecycle_stage", "active"),
            "runs": len(e.mlflow.runs),
            "logged_models": len(e.mlflow.logged_models),
            "traces": sum(
                part.mlflow.traces
                for part in archive.trace_parts(e.mlflow.experiment["experiment_id"])
            ),
        }
        for e in archive.experiments()
    ]
    models, prompts = (
        [
            {"name": m.mlflow.registered_model["name"], "versions": list(m.mlflow.versions)}
            for m in archive.models(kind)
        ]
        for kind in (Kind.REGISTERED_MODEL, Kind.PROMPT)
    )
    summary = archive.summary
    counts = {kind: count.written for kind, count in summary.info.counts.items() if count.written}
    if as_json:
        show_json(
            {
                "root": archive.reader.root,
                "size_bytes": archive.reader.size_bytes,
                "experiments": experiments,
                "models": models,
                "prompts": prompts,
                "counts": counts,
            }
        )
        return
    system = summary.system
    say(
        f"Packed {system.export_time_text} UTC from {system.mlflow_tracking_uri}, "
        f"{size_text(archive.reader.size_bytes)}"
    )
    for e in experiments:
        parts = [f"{e['runs']} runs"]
        parts += [
            f"{e[kind]} {kind.replace('_', ' ')}" for kind in ("logged_models", "traces") if e[kind]
        ]
        parts += ["deleted"] if e["lifecycle_stage"] == "deleted" else []
        say(f"experiment {e['experiment_id']}  {e['name']}  ({', '.join(parts)})")
    for kind_name, listed in (("model", models), ("prompt", prompts)):
        for m in listed:
            numbers = ", ".join(map(str, m["versions"]))
            say(f"{kind_name} {m['name']}  (versions {numbers or 'none'})")
    others = [
        f"{counts[kind]} {kind.replace('_', ' ')}"
        for kind in map(str, ENTITY_KINDS)
        if kind in counts
    ]
    if others:
        say(f"and {', '.join(others)}")


def _list_runs(archive: Archive, experiment: str, *, as_json: bool) -> None:
    document = _experiment(archive, experiment)
    experiment_id = document["mlflow"]["experiment"]["experiment_id"]
    runs = []
    for envelope in archive.runs(experiment_id):
        info = envelope.mlflow.run["info"]
        runs.append(
            {
                "run_id": info["run_id"],
                "run_name": info.get("run_name", ""),
                "status": info.get("status", ""),
                "lifecycle_stage": info.get("lifecycle_stage", "active"),
                "metric_rows": envelope.info.metrics.rows if envelope.info.metrics else 0,
                "artifacts": len(envelope.info.artifacts),
            }
        )
    if as_json:
        show_json(runs)
        return
    for run in runs:
        deleted = "  deleted" if run["lifecycle_stage"] == "deleted" else ""
        say(
            f"{run['run_id']}  {run['status']:<9}  {run['metric_rows']:>9} rows  "
            f"{run['artifacts']:>5} artifacts  {run['run_name']}{deleted}"
        )


def _experiment(archive: Archive, wanted: str) -> dict[str, Any]:
    from mlflow_exim_plugin.errors import NotFoundError

    for envelope in archive.experiments():
        experiment = envelope.mlflow.experiment
        if wanted in (experiment["name"], experiment["experiment_id"]):
            return envelope.to_json()
    raise NotFoundError(f"the archive has no experiment {wanted!r}")


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
