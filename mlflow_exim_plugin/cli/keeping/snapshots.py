"""``mlflow exim forget``, ``prune``, ``hold`` and ``release``: what of a set stays."""

from __future__ import annotations

from dataclasses import replace

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import asks, output_options
from mlflow_exim_plugin.cli.output import say, show_json, size_text
from mlflow_exim_plugin.options import Forgetting, Opening, Pruning, Work

_SET = click.argument("location", metavar="SET")
_OF_SERVERS = ("registry_uri", "artifacts_destination")


@click.command(cls=Command)
@_SET
@asks(*_OF_SERVERS, "snapshot", forgetting=Forgetting, opening=Opening)
@output_options
def forget(location: str, output: str, forgetting: Forgetting, opening: Opening) -> None:
    """Tell which snapshots of SET no rule keeps, and remove them with --apply.

    The newest one stays, and what is held or to be kept until a later day. Archives stay until
    `prune` finds that no snapshot names them.

    Example:

      mlflow exim forget s3://audit/mlflow --keep-daily 30 --keep-yearly 10 --apply
    """
    from mlflow_exim_plugin.cli.look.table import show_table
    from mlflow_exim_plugin.operations.keeping.forget import forget as run_forget

    result = run_forget(location, opening=opening, forgetting=forgetting)
    if output == "json":
        show_json(result.to_dict())
        return
    gone = "removed" if forgetting.apply else "would go"
    rows = [
        (str(one.number), one.taken, ", ".join(one.reasons) or gone) for one in result.snapshots
    ]
    show_table(("snapshot", "taken", "kept as"), rows)
    going = sum(not one.reasons for one in result.snapshots)
    say(f"{len(rows)} snapshots, {going} {gone}")
    if going and not forgetting.apply:
        say("Hint: --apply does it", err=True)


@click.command(cls=Command)
@_SET
@asks(*_OF_SERVERS, "snapshot", "dry_run", "strict", pruning=Pruning, opening=Opening, work=Work)
@output_options
def prune(location: str, output: str, pruning: Pruning, opening: Opening, work: Work) -> None:
    """Tell which archives and tables of SET no snapshot names, and remove them with --apply.

    Example:

      mlflow exim prune s3://audit/mlflow --compact --apply
    """
    from mlflow_exim_plugin.operations.keeping.prune import prune as run_prune

    work = replace(work, script="mlflow exim prune")
    result = run_prune(location, opening=opening, pruning=pruning, work=work)
    if output == "json":
        show_json(result.to_dict())
        return
    if result.compacted is not None:
        say(f"Packed anew as snapshot {result.compacted}")
    for file in result.files:
        fate = "removed" if file.removed else file.stays or "would go"
        say(f"{file.path} ({size_text(file.size_bytes)}): {fate}")
    removed = sum(file.removed for file in result.files)
    freed = size_text(result.freed_bytes)
    say(f"{len(result.files)} not needed, {removed} removed, {freed} freed")
    if not pruning.apply and any(not file.stays for file in result.files):
        say("Hint: --apply removes them", err=True)


@click.command(cls=Command)
@_SET
@click.option("--reason", required=True, metavar="TEXT", help="Why, for whoever reads it.")
@asks(*_OF_SERVERS, opening=Opening)
@output_options
def hold(location: str, reason: str, output: str, opening: Opening) -> None:
    """Hold a snapshot of SET, the newest without --at: `forget` leaves it until `release`.

    Example:

      mlflow exim hold s3://audit/mlflow --at 2026-06-30 --reason case-117
    """
    from mlflow_exim_plugin.operations.keeping.forget import hold as run_hold

    number = run_hold(location, reason, opening=opening)
    if output == "json":
        show_json({"ok": True, "snapshot": number, "held": True})
    else:
        say(f"Held: snapshot {number}")


@click.command(cls=Command)
@_SET
@asks(*_OF_SERVERS, opening=Opening)
@output_options
def release(location: str, output: str, opening: Opening) -> None:
    """Let go of a snapshot of SET that was held, the newest without --at.

    Example:

      mlflow exim release s3://audit/mlflow --at 12
    """
    from mlflow_exim_plugin.operations.keeping.forget import release as run_release

    number = run_release(location, opening=opening)
    if output == "json":
        show_json({"ok": True, "snapshot": number, "held": False})
    else:
        say(f"Released: snapshot {number}")
