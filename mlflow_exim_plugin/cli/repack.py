"""``mlflow exim repack``."""

from __future__ import annotations

from dataclasses import replace

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import archive_argument, asks, output_options
from mlflow_exim_plugin.cli.output import say, show_json, size_text
from mlflow_exim_plugin.cli.progress import StatusLine
from mlflow_exim_plugin.options import Opening, Repacking
from mlflow_exim_plugin.redaction import redact_url


@click.command(cls=Command)
@archive_argument
@click.argument("target")
@asks("registry_uri", "artifacts_destination", opening=Opening, repacking=Repacking)
@output_options
def repack(archive: str, target: str, output: str, opening: Opening, repacking: Repacking) -> None:
    """Write ARCHIVE anew as TARGET, both paths or fsspec URLs, compressed in another way.

    Every member stays what it is, and with them the root, the content root and all signatures. Each
    is compared with its digest on the way: of a damaged archive nothing is written.

    Example:

      mlflow exim repack nightly.tar.zst s3://cold/nightly.tar.zst --level 19
    """
    from mlflow_exim_plugin.operations.repack import repack as run_repack

    def share(done_bytes: int, total_bytes: int) -> str:
        return f"{done_bytes / max(total_bytes, 1):.0%} of {size_text(total_bytes)}"

    with StatusLine(share) as progress:
        done = run_repack(
            archive, target, opening=opening, repacking=replace(repacking, progress=progress)
        )
    if output == "json":
        show_json(done.to_dict())
        return
    sizes = f"{size_text(done.old_size_bytes)} became {size_text(done.size_bytes)}"
    say(f"Repacked into {redact_url(target)}: {sizes}")
    say(f"Root sha256:{done.root}")
    if done.content_root:
        say(f"Content root sha256:{done.content_root}")
