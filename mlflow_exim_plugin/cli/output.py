"""How results look: data on standard output, everything else on standard error."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mlflow_exim_plugin.errors import ErrorCode, EximError
    from mlflow_exim_plugin.schema.report import Report

__all__ = [
    "ByteProgress",
    "ReportProgress",
    "SideProgress",
    "say",
    "show_error",
    "show_error_json",
    "show_json",
    "show_report",
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
    shown = _UNSHOWN.sub(lambda found: found.group().encode("unicode_escape").decode(), text)
    click.echo(shown.encode(encoding, "backslashreplace").decode(encoding), err=err)


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


def show_error_json(code: ErrorCode, message: str, hint: str = "", **more: Any) -> None:
    """Print one error as a JSON document."""
    error = {"code": code.value, "message": message, "hint": hint}
    show_json({"ok": False, "error": error, **more})


def show_report(report: Report, *, title: str, as_json: bool) -> None:
    """Print what a transfer did."""
    summary = report.to_dict()
    if as_json:
        show_json(summary)
        return
    say(title)
    rows = [
        (
            kind.replace("_", " "),
            *(str(counts[c]) for c in ("found", "written", "skipped", "failed")),
        )
        for kind, counts in summary["counts"].items()
    ]
    _table(("", "found", "written", "skipped", "failed"), rows)
    say(f"{report.metric_rows:,} metric rows, {size_text(report.artifact_bytes)} of artifacts")
    if report.files_at:
        say(f"Files of new experiments: {report.files_at}")
    for seen in summary["not_packed"]:
        say(f"Not packed: {_amount(seen)} ({seen['reason']})")
    _named("Lossy", [(x["kind"], x["id"], x["what"]) for x in summary["lossy"]])
    _named("Failed", [(x["kind"], x["id"], x["reason"]) for x in summary["failures"]])
    if report.root:
        say(f"Root sha256:{report.root}")


def _amount(seen: dict[str, Any]) -> str:
    kind = str(seen["kind"]).replace("_", " ")
    if not seen["seen"]:
        return kind  # known to be left out, but not to be counted
    more = "at least " if seen["at_least"] else ""
    plural = "" if seen["seen"] == 1 else "s"
    return f"{more}{seen['seen']} {kind}{plural}"


def _named(title: str, entries: list[tuple[str, str, str]]) -> None:
    for kind, identity, what in entries[:_NAMED]:
        name = "all" if identity == "*" else identity
        say(f"{title}: {kind.replace('_', ' ')} {name}: {what}")
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


class _StatusLine:
    """One line on a terminal that is written over and over; nothing elsewhere."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._last_s = 0.0
        self._dirty = False

    @property
    def is_due(self) -> bool:
        """Whether a line would be seen now."""
        return self._shown and time.monotonic() - self._last_s >= _INTERVAL_S

    def show(self, text: str) -> None:
        """Write a line over the last one."""
        self._last_s, self._dirty = time.monotonic(), True
        click.echo(f"\r\x1b[K{text}", nl=False, err=True)

    def clear(self) -> None:
        """Take the line away."""
        if self._dirty:
            click.echo("\r\x1b[K", nl=False, err=True)
            self._dirty = False

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.clear()


class ReportProgress(_StatusLine):
    """Shows a growing report."""

    def __call__(self, report: Report) -> None:
        """Show the counts."""
        if not self.is_due:
            return
        counts = [_counted(kind.value, c.found) for kind, c in list(report.counts.items())]
        rows, size = f"{report.metric_rows:,} rows", size_text(report.artifact_bytes)
        self.show(", ".join([*counts, rows, size]))


def _counted(kind: str, count: int) -> str:
    name = kind.replace("_", " ")
    if count != 1:
        name = f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"
    return f"{count:,} {name}"


class ByteProgress(_StatusLine):
    """Shows how much of a file is done."""

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Show the share."""
        if self.is_due:
            self.show(f"{done_bytes / max(total_bytes, 1):.0%} of {size_text(total_bytes)}")


class SideProgress(_StatusLine):
    """Shows how much of a side is read."""

    def __call__(self, side: str, objects: int) -> None:
        """Show the number of objects."""
        if self.is_due:
            self.show(f"reading {side.upper()}: {objects:,} objects")
