"""``mlflow exim scan``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import asks, output_options
from mlflow_exim_plugin.cli.output import named, say, show_json, size_text
from mlflow_exim_plugin.cli.progress import StatusLine, clear_line
from mlflow_exim_plugin.errors import ArchiveExistsError, ExitCode, StoreError
from mlflow_exim_plugin.options import Opening, Reading, Scanning, Selection

if TYPE_CHECKING:
    from mlflow_exim_plugin.operations.scan import Scan, ScanFinding

_FOUND = 1


@click.command(cls=Command)
@click.argument("location", required=False)
@asks(selection=Selection, opening=Opening, reading=Reading, scanning=Scanning)
@click.option(
    "--write-rules",
    metavar="FILE",
    help="Write rules for --redact that take out what is found.",
)
@output_options
@click.pass_context
def scan(
    ctx: click.Context,
    /,
    location: str | None,
    output: str,
    scanning: Scanning,
    write_rules: str | None,
    **asked: Any,
) -> None:
    """Look for secrets and personal data in LOCATION before it is packed or shared.

    LOCATION is an MLflow tracking URI, an archive or an old export; MLFLOW_TRACKING_URI or MLflow's
    own default without it. Tokens and keys, private keys, passwords, e-mail addresses and numbers
    of payment cards are looked for in all texts and files. Of what is found only the beginning is
    shown. The exit code is 0 when nothing is found, 1 when something is, and 3 when something could
    not be read.

    Example:

      mlflow exim scan sqlite:///mlflow.db --write-rules rules.yaml
    """
    from mlflow_exim_plugin.operations.scan import scan as run_scan

    as_json = output == "json"
    if write_rules is not None and Path(write_rules).exists():
        raise ArchiveExistsError(f"there is a file {write_rules}", "give another name")
    with StatusLine(_growing) as progress:

        def found(one: ScanFinding) -> None:
            clear_line()
            path = one.path.removeprefix(f"{one.kind}.")
            say(f"{one.kind.words} {one.id} {path}: {one.detector} {one.shown}{_times(one)}")

        scanning = replace(scanning, found=None if as_json else found, progress=progress)
        result = run_scan(location, scanning=scanning, **asked)
    if write_rules is not None and result.rules:
        try:
            Path(write_rules).write_text(result.rules_yaml(), encoding="utf-8")
        except OSError as error:
            raise StoreError(f"{write_rules} cannot be written: {error.strerror}") from error
    if as_json:
        show_json(result.to_dict())
    else:
        _show(result, write_rules)
    if result.failures:
        ctx.exit(ExitCode.PARTIAL)
    if result.counts:
        ctx.exit(_FOUND)


def _show(result: Scan, written: str | None) -> None:
    hidden = sum(result.counts.values()) - len(result.findings)
    if hidden:
        say(f"and {hidden} more, see --limit")
    named("Failed", [(str(f.kind), f.id, f.reason) for f in result.failures])
    for (kind, detector), count in sorted(result.counts.items()):
        say(f"Found {detector} in {count:,} place{'s' * (count != 1)} of {kind.words}")
    looked = f"{sum(result.objects.values()):,} objects, {size_text(result.file_bytes)} of files"
    say(f"{'Something' if result.counts else 'Nothing'} was found in {looked}")
    if written is not None and result.rules:
        say(f"Rules that take it out: {written}; use pack --redact {written}")


def _times(one: ScanFinding) -> str:
    return f", {one.count} times" if one.count > 1 else ""


def _growing(result: Scan) -> str:
    looked = f"{sum(result.objects.values()):,} objects, {size_text(result.file_bytes)} of files"
    return f"{looked}, found in {sum(result.counts.values()):,} places"
