"""``mlflow exim plan``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import asks, output_options
from mlflow_exim_plugin.cli.output import named, say, show_json, size_text
from mlflow_exim_plugin.errors import ExitCode
from mlflow_exim_plugin.options import Opening, Planning, Reading, Selection, Work

if TYPE_CHECKING:
    from mlflow_exim_plugin.work.plan import Entry, Size, TaskPlan


@click.command(cls=Command)
@click.argument("location", required=False)
@asks(
    "dry_run",
    "strict",
    selection=Selection,
    opening=Opening,
    reading=Reading,
    planning=Planning,
    work=Work,
)
@output_options
@click.pass_context
def plan(
    ctx: click.Context, /, location: str | None, output: str, work: Work, **asked: Any
) -> None:
    """Tell how LOCATION would be divided into tasks, and how much there is to pack.

    LOCATION is the tracking URI of a database or server; MLFLOW_TRACKING_URI or MLflow's own
    default without it. A database counts what it has, a server is listed; what runs have is
    estimated from some of them. No task has more than 250,000 members, 2 GB of artifacts or 15
    minutes, by these estimates, but for what cannot be divided: a run, what an experiment has
    beside its runs, and what belongs to no experiment.

    Example:

      mlflow exim plan postgresql://mlflow@db/mlflow --parallel 16
    """
    from mlflow_exim_plugin.operations.keeping.plan import plan as run_plan

    work = replace(work, script="mlflow exim plan")
    found = run_plan(location, work=work, **asked)
    if output == "json":
        show_json(found.to_json())
    else:
        _show(found)
    if found.failures:
        ctx.exit(ExitCode.PARTIAL)


def _show(found: TaskPlan) -> None:
    for number, entry in enumerate(found.entries, 1):
        say(f"{number:4} {_what(entry)}: {_how_much(entry.size)}")
    named("Failed", [(str(f.kind), f.id, f.reason) for f in found.failures])
    tasks = f"{len(found.entries):,} task{'s' * (len(found.entries) != 1)}"
    say(f"{tasks}, in all about {_how_much(found.size)}")


def _what(entry: Entry) -> str:
    part = entry.selection.part
    if part is None:
        return "what is named by itself"
    if part.beside_experiments:
        return "what belongs to no experiment"
    if part.runs is None:
        return f"what experiment {part.experiments[0]} has beside its runs"
    if not part.beside_runs:
        first, end = part.runs
        since, until = f" from {first}" if first else "", f" to before {end}" if end else ""
        return f"runs of experiment {part.experiments[0]}{since}{until}"
    first, count = part.experiments[0], len(part.experiments)
    return f"experiment {first}" if count == 1 else f"{count} experiments from {first} on"


def _how_much(size: Size) -> str:
    parts = [f"{size.runs:,} runs"] if size.runs else []
    parts.append(f"{size.members:,} members")
    if size.rows:
        parts.append(f"{size.rows:,} rows")
    if size.artifact_bytes:
        parts.append(size_text(size.artifact_bytes))
    seconds = round(size.seconds)
    return ", ".join(
        [*parts, f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"]
    )
