"""``mlflow exim verify``."""

from __future__ import annotations

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import archive_argument, asks, output_options
from mlflow_exim_plugin.cli.output import StatusLine, say, show_json, size_text
from mlflow_exim_plugin.errors import ExitCode
from mlflow_exim_plugin.options import Opening


@click.command(cls=Command)
@archive_argument
@click.option(
    "--root",
    metavar="HEX",
    help="Root digest that the archive must have; without it authenticity is not checked.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Threads that decompress.",
)
@asks("registry_uri", "artifacts_destination", opening=Opening)
@output_options
@click.pass_context
def verify(
    ctx: click.Context, /, archive: str, root: str | None, jobs: int, output: str, opening: Opening
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
        result = run_verify(
            archive,
            expected_root=root,
            jobs=jobs,
            storage_options=opening.storage_options,
            progress=progress,
        )
    if output == "json":
        show_json(result.to_dict())
    else:
        for finding in result.findings:
            say(str(finding))
        size = f"{result.members} members, {size_text(result.size_bytes)}"
        if result.ok:
            trust = (
                "has the expected root"
                if result.authentic
                else "authenticity not checked: compare the root or give --root"
            )
            say(f"Consistent: {size}; {trust}")
            say(f"Root sha256:{result.root}")
        else:
            sound = result.members - len(result.damaged)
            say(f"Damaged: {size}; {len(result.damaged)} damaged, {sound} as they were packed")
            say(f"Claimed root sha256:{result.claimed_root}")
    if not result.ok:
        ctx.exit(ExitCode.INVALID_ARCHIVE)
