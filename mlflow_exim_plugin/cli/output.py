"""How results look: data on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import sys
import traceback
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from mlflow_exim_plugin.errors import EximError, StoreError
from mlflow_exim_plugin.kinds.kind import Kind
from mlflow_exim_plugin.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO, TextIO

    from mlflow_exim_plugin.errors import ErrorCode
    from mlflow_exim_plugin.schema.report import Report

__all__ = [
    "QUIET",
    "copy_out",
    "counted",
    "escaped",
    "named",
    "put",
    "say",
    "show_error",
    "show_error_json",
    "show_json",
    "show_report",
    "show_traceback",
    "shown_on",
    "size_text",
]

QUIET = "mlflow_exim.quiet"
"""Where click's context keeps that a command is to be quiet."""
_COLOURS = {
    **dict.fromkeys(("Error", "Failed", "Damaged"), "red"),
    **dict.fromkeys(("Lossy", "Different"), "yellow"),
    **dict.fromkeys(("Consistent", "Equal"), "green"),
}
# Control characters, line separators, bidirectional overrides, lone surrogates.
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_NAMED = 20
"""How many failures or losses the text report spells out; JSON has them all."""


def put(data: str | bytes) -> None:
    """Write to standard output.

    Raises:
        BrokenPipeError: Whoever read it has enough.
        StoreError: It cannot be written, such as onto a full disk.
    """
    with _written():
        click.echo(data, nl=False)


@contextlib.contextmanager
def _written() -> Iterator[None]:
    try:
        yield
    except (BrokenPipeError, EximError):  # click ends the one quietly, the other is of a source
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreError(f"the output cannot be written: {reason}") from error


def copy_out(stream: BinaryIO) -> None:
    """Write a file to standard output.

    Raises:
        StoreError: It cannot be written, or the stream cannot be read.
    """
    with _written():
        shutil.copyfileobj(stream, sys.stdout.buffer, 1 << 20)
        sys.stdout.buffer.flush()


def say(text: str, *, err: bool = False) -> None:
    """Print one line for people; what a terminal would obey or cannot show is escaped.

    Names in archives are foreign: a control sequence in one must not reach the terminal.
    """
    stream = sys.stderr if err else sys.stdout
    with _written():
        click.echo(_coloured(shown_on(stream, text), stream), err=err)


def shown_on(stream: TextIO, text: str) -> str:
    """Return a text as a stream can show it, without what a terminal would obey."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return escaped(text).encode(encoding, "backslashreplace").decode(encoding)


def escaped(text: str) -> str:
    """Return a text with what a terminal would obey as it is written in Python."""
    return _UNSHOWN.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def _coloured(text: str, stream: TextIO) -> str:
    """Return a line with its first word in the colour of what it says, on a terminal alone."""
    word = text.partition(":")[0]
    is_plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    if word not in _COLOURS or is_plain or not stream.isatty():
        return text
    return click.style(word, fg=_COLOURS[word], bold=True) + text[len(word) :]


def show_json(value: Any) -> None:
    """Print one JSON document, in ASCII: right in every terminal."""
    put(json.dumps(value, indent=2) + "\n")


def show_error(error: EximError, *, as_json: bool, said: bool = True) -> None:
    """Print one error: a line, and a hint where there is one.

    Args:
        error: The error.
        as_json: Whether it is a document on standard output too.
        said: Whether people are told; a log in JSON has it otherwise.
    """
    if as_json:
        findings = [asdict(finding) for finding in getattr(error, "findings", ())]
        with contextlib.suppress(StoreError):  # which may be the error that is shown
            show_error_json(error.code, error.message, error.hint, findings=findings)
    if not said:
        return
    say(f"Error: {error.message}", err=True)
    if error.hint:
        say(f"Hint: {error.hint}", err=True)


def show_traceback() -> None:
    """Print where the error under way came from, and what lies behind it."""
    click.echo(redact(traceback.format_exc()), nl=False, err=True)


def show_error_logged(error: EximError) -> None:
    """Write an error to the log, with where it came from."""
    more = {"code": error.code.value, "hint": error.hint}
    logging.getLogger(__package__).error(error.message, exc_info=error, extra=more)


def show_error_json(code: ErrorCode, message: str, hint: str = "", **more: Any) -> None:
    """Print one error as a JSON document."""
    error = {"code": code.value, "message": redact(message), "hint": hint}
    show_json({"ok": False, "error": error, **more})


def show_report(report: Report, *, title: str, as_json: bool, quiet: bool = False) -> None:
    """Print what a transfer did; quietly, what failed."""
    summary = report.to_dict()
    if as_json:
        show_json(summary)
        return
    if not quiet:
        _show_done(report, summary, title)
    named("Failed", [(x["kind"], x["id"], x["reason"]) for x in summary["failures"]])
    if quiet:
        return
    if report.root:
        say(f"Root sha256:{report.root}")
    if report.content_root:
        say(f"Content root sha256:{report.content_root}")
    if report.signature:
        say(f"Signed: {report.signature}")
    if report.root and not report.archive_was_there:
        say("Keep the root elsewhere: `verify --root` proves later that nothing was changed.")


def _show_done(report: Report, summary: dict[str, Any], title: str) -> None:
    say(title)
    if report.read_as:
        say(f"Read as {report.read_as}")
    of_archive = ""
    if report.archive is not None and not report.archive_was_there:
        size = size_text(report.archive["size_bytes"])
        of_archive = f": {size} in {report.archive['members']:,} members"
    say(f"From {report.source} in {report.duration_s:,.1f} s{of_archive}")
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
        had = ", ".join(counted(Kind(k), count) for k, count in summary["completed"].items())
        say(f"Of those written, there in an earlier state and completed: {had}")
    if report.files_at:
        say(f"Files of new experiments: {report.files_at}")
    left_out: dict[str, list[str]] = {}
    for seen in summary["not_packed"]:
        amounts = left_out.setdefault(seen["reason"], [])
        if (amount := _amount(seen)) not in amounts:
            amounts.append(amount)
    for reason, amounts in left_out.items():
        say(f"Not packed: {', '.join(amounts)} ({reason})")
    for rules in summary["redacted"]:
        say(f"Redacted by {rules.get('name') or 'rules'} sha256:{rules['sha256']}")
    lossy = summary["lossy"]
    if usual := [Kind(x["kind"]).words for x in lossy if x["is_usual"]]:
        kinds = ", ".join(dict.fromkeys(usual))
        say(f"New at the target, as at every server: ids or times of {kinds} (--output json)")
    named("Lossy", [(x["kind"], x["id"], x["what"]) for x in lossy if not x["is_usual"]])


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


def counted(kind: Kind, count: int) -> str:
    """Return a number of objects in words."""
    name = kind.words
    if count != 1:
        name = f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"
    return f"{count:,} {name}"
