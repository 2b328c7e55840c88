"""``mlflow exim diff``."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from mlflow_exim_plugin.cli.command import Command
from mlflow_exim_plugin.cli.options import asks, output_options_and
from mlflow_exim_plugin.cli.output import put, say, show_json
from mlflow_exim_plugin.cli.progress import StatusLine
from mlflow_exim_plugin.errors import ExitCode
from mlflow_exim_plugin.options import Comparing, Opening, Reading, Selection

if TYPE_CHECKING:
    from mlflow_exim_plugin.comparison.result import Comparison, Difference

_SHOWN = 60
"""Characters of a value that a line shows."""
_NAMED = 20


@click.command(cls=Command)
@click.argument("a")
@click.argument("b")
@asks(
    "a_storage_options",
    "b_storage_options",
    selection=Selection,
    opening=Opening,
    a_opening=Opening,
    b_opening=Opening,
    reading=Reading,
    comparing=Comparing,
)
@output_options_and("html")
@click.pass_context
def diff(
    ctx: click.Context, /, a: str, b: str, output: str, comparing: Comparing, **asked: Any
) -> None:
    """Compare A and B, each a server's URI, a store's URI or an archive, whatever their ids are.

    Objects are compared field by field, with their metric histories and the digests of their
    files. Copies are known by the tags that say where they came from, other objects by their names.
    Both sides are only read. Of an archive the digests in its manifest are taken, which `verify`
    checks.

    With --output html the result is a page to be looked at in a browser, which fetches nothing.

    The exit code is 0 when both are equal under the rules, 1 when they differ, and 3 when something
    could not be read, whatever else was found.

    Example:

      mlflow exim diff http://old-server:5000 backup.tar.zst --rules exact
    """
    from mlflow_exim_plugin.operations.diff import diff as run_diff

    def reading(side: str, objects: int) -> str:
        return f"reading {side.upper()}: {objects:,} objects"

    with StatusLine(reading) as progress:

        def show(difference: Difference) -> None:
            progress.clear()
            say(_line(difference))

        comparing = replace(comparing, found=show if output == "text" else None, progress=progress)
        result = run_diff(a, b, comparing=comparing, **asked)
    if output == "json":
        show_json(result.to_dict())
    elif output == "html":
        from mlflow_exim_plugin.pages.diff import diff_page

        put(diff_page(result))
    else:
        _show(result)
    if result.unreadable:
        ctx.exit(ExitCode.PARTIAL)
    if not result.equal:
        ctx.exit(ExitCode.OTHER)


def _line(difference: Difference) -> str:
    """Return a difference as one line."""
    from mlflow_exim_plugin.comparison.shapes import ABSENT

    kind = difference.kind.value
    name = f"{kind} {difference.id}"
    if difference.path == kind:
        side, label = ("B", difference.b) if difference.a is ABSENT else ("A", difference.a)
        named = "" if label == difference.id else f" ({_value(label)})"
        return f"{name}{named}: only in {side}"
    field = difference.path.removeprefix(f"{kind}.")
    return f"{name} {field}: {_value(difference.a)} → {_value(difference.b)}"


def _value(value: Any) -> str:
    """Return a value in one short piece."""
    from mlflow_exim_plugin.comparison.shapes import ABSENT

    if value is ABSENT:
        return "nothing"
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


def _show(result: Comparison) -> None:
    if result.total > len(result.differences):
        say(f"... and {result.total - len(result.differences)} more differences, see --limit")
    for side, failure in result.unreadable[:_NAMED]:
        say(f"Unreadable in {side.upper()}: {failure.kind.words} {failure.id}: {failure.reason}")
    if len(result.unreadable) > _NAMED:
        say(f"Unreadable: and {len(result.unreadable) - _NAMED} more, see --output json")
    for side, seen in result.not_compared:
        number = f"{seen.seen} " if seen.seen else ""
        say(f"Not compared in {side.upper()}: {number}{seen.kind} ({seen.reason})")
    for side, what in result.left_out:
        say(f"Left out in {side.upper()}: {what}")
    for kind, counts in sorted(result.counts.items(), key=lambda entry: entry[0].value):
        parts = [f"{counts.equal} equal"]
        for count, word in (
            (counts.different, "different"),
            (counts.only_in_a, "only in A"),
            (counts.only_in_b, "only in B"),
            (counts.unreadable, "unreadable on one side"),
        ):
            if count:
                parts.append(f"{count} {word}")
        say(f"  {kind.words}: {', '.join(parts)}")
    rules = result.rules
    for name, times in (*sorted(rules.applied.items()), *sorted(rules.ignored.items())):
        if times:
            say(f"  not counted: {times} × {name}")
    say(f"{result.verdict}: {result.a} and {result.b}")
