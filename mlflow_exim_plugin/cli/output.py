"""How results look: data on standard output, everything else on standard error."""

from __future__ import annotations

import json
import re
import sys
import time
import traceback
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from mlflow_exim_plugin.errors import ExitCode
from mlflow_exim_plugin.kinds.kind import Kind
from mlflow_exim_plugin.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.errors import ErrorCode, EximError
    from mlflow_exim_plugin.options import Work
    from mlflow_exim_plugin.schema.report import Report

__all__ = [
    "StatusLine",
    "escaped",
    "growing_text",
    "named",
    "run_transfer",
    "say",
    "show_error",
    "show_error_json",
    "show_json",
    "show_report",
    "show_traceback",
    "size_text",
]

_INTERVAL_S = 0.2
# Control characters, line separators, bidirectional overrides, lone surrogates.
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_NAMED = 20
"""How many failures or losses the text report spells out; JSON has them all."""


def say(text: str, *, err: bool = False) -> None:
    """Print one line for people; what a terminal would obey or cannot show is escaped.

    Names in archives are foreign: a control sequence in one must not reach the terminal.
    """
    stream = sys.stderr if err else sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    click.echo(escaped(text).encode(encoding, "backslashreplace").decode(encoding), err=err)


def escaped(text: str) -> str:
    """Return a text with what a terminal would obey as it is written in Python."""
    return _UNSHOWN.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def show_json(value: Any) -> None:
    """Print one JSON document, in ASCII: right in every terminal."""
    click.echo(json.dumps(value, indent=2))


def show_error(error: EximError, *, as_json: bool) -> None:
    """Print one error: a line, and a hint where there is one."""
    if as_json:
        findings = [asdict(finding) for finding in getattr(error, "findings", ())]
        show_error_json(error.code, error.message, error.hint, findings=findings)
    say(f"Error: {error.message}", err=True)
    if error.hint:
        say(f"Hint: {error.hint}", err=True)


def show_traceback() -> None:
    """Print where the error under way came from, and what lies behind it."""
    click.echo(redact(traceback.format_exc()), nl=False, err=True)


def show_error_json(code: ErrorCode, message: str, hint: str = "", **more: Any) -> None:
    """Print one error as a JSON document."""
    error = {"code": code.value, "message": redact(message), "hint": hint}
    show_json({"ok": False, "error": error, **more})


def run_transfer(
    ctx: click.Context, transfer: Callable[..., Report], work: Work, output: str, *titles: str
) -> None:
    """Run a transfer, show how it goes and what it did; the exit code says whether all came.

    Args:
        ctx: The command.
        transfer: Takes ``work``.
        work: How much is done at once, and whether at all.
        output: ``text`` or ``json``.
        titles: What was done, and what would be in a dry run.
    """
    with StatusLine(growing_text) as progress:
        report = transfer(work=replace(work, progress=progress))
    show_report(report, title=titles[report.dry_run], as_json=output == "json")
    if not report.ok:
        ctx.exit(ExitCode.PARTIAL)


def show_report(report: Report, *, title: str, as_json: bool) -> None:
    """Print what a transfer did."""
    summary = report.to_dict()
    if as_json:
        show_json(summary)
        return
    say(title)
    if report.read_as:
        say(f"Read as {report.read_as}")
    rows = [
        (
            Kind(kind).words,
            *(str(counts[c]) for c in ("found", "written", "skipped", "failed")),
        )
        for kind, counts in summary["counts"].items()
    ]
    _table(("", "found", "written", "skipped", "failed"), rows)
    say(f"{report.metric_rows:,} metric rows, {size_text(report.artifact_bytes)} of artifacts")
    if summary["completed"]:
        had = ", ".join(_counted(kind, count) for kind, count in summary["completed"].items())
        say(f"Of those written, there in an earlier state and completed: {had}")
    if report.files_at:
        say(f"Files of new experiments: {report.files_at}")
    for seen in summary["not_packed"]:
        say(f"Not packed: {_amount(seen)} ({seen['reason']})")
    for rules in summary["redacted"]:
        say(f"Redacted by {rules.get('name') or 'rules'} sha256:{rules['sha256']}")
    named("Lossy", [(x["kind"], x["id"], x["what"]) for x in summary["lossy"]])
    named("Failed", [(x["kind"], x["id"], x["reason"]) for x in summary["failures"]])
    if report.root:
        say(f"Root sha256:{report.root}")
    if report.content_root:
        say(f"Content root sha256:{report.content_root}")
    if report.signature:
        say(f"Signed: {report.signature}")


def _amount(seen: dict[str, Any]) -> str:
    kind = str(seen["kind"]).replace("_", " ")
    if not seen["seen"]:
        return kind  # known to be left out, but not to be counted
    more = "at least " if seen["at_least"] else ""
    plural = "" if seen["seen"] == 1 else "s"
    return f"{more}{seen['seen']} {kind}{plural}"


def named(title: str, entries: list[tuple[str, str, str]]) -> None:
    """Print what failed or is kept differently: kind, id and reason of each."""
    for kind, identity, what in entries[:_NAMED]:
        name = "all" if identity == "*" else identity
        say(f"{title}: {Kind(kind).words} {name}: {what}")
    if len(entries) > _NAMED:
        say(f"{title}: and {len(entries) - _NAMED} more, see --output json")


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        first = row[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        say("  ".join([f"  {first}", *rest]).rstrip())


def size_text(size_bytes: float) -> str:
    """Return a size for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000 or unit == "GB":
            return f"{size_bytes:,.0f} {unit}" if unit == "B" else f"{size_bytes:,.1f} {unit}"
        size_bytes /= 1000
    raise AssertionError


class StatusLine:
    """One line on a terminal that is written over and over; nothing elsewhere.

    Args:
        text: Makes the line of what a progress callback is told.
    """

    def __init__(self, text: Callable[..., str]) -> None:
        self._text = text
        self._shown = sys.stderr.isatty()
        self._last_s = 0.0
        self._dirty = False

    def __call__(self, *told: Any) -> None:
        """Write a line over the last one, if the last one has been seen."""
        if self._shown and time.monotonic() - self._last_s >= _INTERVAL_S:
            self._last_s, self._dirty = time.monotonic(), True
            click.echo(f"\r\x1b[K{self._text(*told)}", nl=False, err=True)

    def clear(self) -> None:
        """Take the line away."""
        if self._dirty:
            click.echo("\r\x1b[K", nl=False, err=True)
            self._dirty = False

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.clear()


def growing_text(report: Report) -> str:
    """Return what a report counts so far in one line."""
    counts = [_counted(kind.value, c.found) for kind, c in list(report.counts.items())]
    rows, size = f"{report.metric_rows:,} rows", size_text(report.artifact_bytes)
    return ", ".join([*counts, rows, size])


def _counted(kind: str, count: int) -> str:
    name = Kind(kind).words
    if count != 1:
        name = f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"
    return f"{count:,} {name}"
