"""``mlflow exim verify``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import archive_argument, asks, output_options
from mlflow_exim_plugin.cli.output import StatusLine, say, show_json, size_text
from mlflow_exim_plugin.errors import ExitCode
from mlflow_exim_plugin.options import Checking, Opening

if TYPE_CHECKING:
    from mlflow_exim_plugin.operations.verify import Verification


@click.command(cls=Command)
@archive_argument
@asks("registry_uri", "artifacts_destination", checking=Checking, opening=Opening)
@output_options
@click.pass_context
def verify(
    ctx: click.Context, /, archive: str, output: str, checking: Checking, opening: Opening
) -> None:
    """Check every byte and document of ARCHIVE, a path or any fsspec URL, against the format.

    Findings have the numbers of the specification: E for what must be, W for what should be. The
    exit code is 5 when something must not be so.

    Example:

      mlflow exim verify backup.tar.zst
    """
    from mlflow_exim_plugin.operations.verify import verify as run_verify

    def share(done_bytes: int, total_bytes: int) -> str:
        return f"{done_bytes / max(total_bytes, 1):.0%} of {size_text(total_bytes)}"

    with StatusLine(share) as progress:
        result = run_verify(archive, opening=opening, checking=replace(checking, progress=progress))
    if output == "json":
        show_json(result.to_dict())
    else:
        _tell(result)
    if not result.ok:
        ctx.exit(ExitCode.INVALID_ARCHIVE)


def _tell(result: Verification) -> None:
    for finding in result.findings:
        say(str(finding))
    size = f"{result.members} members, {size_text(result.size_bytes)}"
    if result.ok:
        trust = (
            "has the expected root"
            if result.authentic
            else "authenticity not checked: compare the root or give --root"
        )
        how = "Consistent" if result.level == "full" else "Consistent as far as was looked"
        say(f"{how}: {size}; {trust}")
        say(f"Root sha256:{result.root}")
        if result.content_root:
            say(f"Content root sha256:{result.content_root}")
    else:
        unhurt = f"{len(result.damaged)} damaged"
        if result.level == "full":
            unhurt += f", {result.members - len(result.damaged)} as they were packed"
        say(f"Damaged: {size}; {unhurt}")
        say(f"Claimed root sha256:{result.claimed_root}")
    if result.not_looked_at:
        say(f"Not looked at: {result.not_looked_at}")
    if result.seed is not None:
        say(f"Members were chosen by the seed {result.seed}")
