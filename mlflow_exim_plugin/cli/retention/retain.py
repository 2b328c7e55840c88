"""``mlflow exim retain``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import asks, output_options_and
from mlflow_exim_plugin.cli.output import put, say, show_json
from mlflow_exim_plugin.cli.progress import StatusLine, Transferring, is_quiet
from mlflow_exim_plugin.errors import ExitCode
from mlflow_exim_plugin.options import Opening, Reading, Retaining, Work

if TYPE_CHECKING:
    from mlflow_exim_plugin.operations.retention.retain import Retention


@click.command(cls=Command)
@click.argument("policy")
@click.option("--set", required=True, metavar="SET", help="Path or URL of the set that gets them.")
@click.option("--tracking-uri", metavar="URI", help="What has the runs; MLflow's default without.")
@asks(
    "snapshot",
    "dry_run",
    "strict",
    retaining=Retaining,
    opening=Opening,
    reading=Reading,
    work=Work,
)
@output_options_and("html")
@click.pass_context
def retain(ctx: click.Context, /, output: str, work: Work, **asked: Any) -> None:
    """Let the runs that POLICY means leave their deployment, once a set is proven to have them.

    POLICY is a YAML file. Without --apply the runs are listed, and why some of them stay: nothing
    is written. With it they are packed into the set, read back from there and compared with the
    deployment, and then deleted as MLflow deletes runs: they can be restored. A run that a
    registered version, an alias or another run uses stays. What was broken off goes on when it is
    called again. The exit code is 3 when a run that was to go could not.

    Example:

      mlflow exim retain policy.yaml --set s3://audit/mlflow --tracking-uri sqlite:///mlflow.db
    """
    from mlflow_exim_plugin.operations.retention.retain import retain as run_retain

    with StatusLine(Transferring()) as progress:
        work = replace(work, script="mlflow exim retain", progress=progress)
        result = run_retain(work=work, **asked)
    if output == "json":
        show_json(result.to_dict())
    elif output == "html":
        from mlflow_exim_plugin.pages.retention import retention_page

        put(retention_page(result))
    else:
        _show(result, quiet=is_quiet())
    if not result.ok:
        ctx.exit(ExitCode.PARTIAL)


def _show(result: Retention, *, quiet: bool) -> None:
    for run in result.runs:
        if quiet and run.outcome != "failed":
            continue
        why = f": {'; '.join(run.reasons)}" if run.reasons else f" by {run.rule}"
        who = f" {run.run_id}" if run.run_id else ""
        name = f" {run.run_name!r}" if run.run_name else ""
        of = f" of {run.experiment!r}" if run.rule else ""
        say(f"{run.outcome}{who}{name}{of}{why}")
    for run_id, reason in result.unfinished.items():
        say(f"failed {run_id}, which an earlier time had begun to free: {reason}")
    if quiet:
        return
    for run_id in result.finished:
        say(f"freed {run_id}, which an earlier time had begun")
    counts = ", ".join(f"{count} {outcome}" for outcome, count in result.counts().items())
    where = f" in snapshot {result.snapshot} of {result.set}" if result.snapshot else ""
    say(f"{result.source}: {counts or 'no run is meant'}{where}")
    if result.dry_run:
        say("Nothing was written: --apply does it.")
