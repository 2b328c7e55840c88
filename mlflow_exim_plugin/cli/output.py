"""How results look: data on standard output, everything else on standard error."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.errors import EximError
    from mlflow_exim_plugin.schema.report import Report

__all__ = [
    "ByteProgress",
    "ReportProgress",
    "quiet_host",
    "show_error",
    "show_json",
    "show_report",
    "size_text",
]

_INTERVAL_S = 0.2
_NAMED = 20
"""How many failures or losses the text report spells out; JSON has them all."""


@contextlib.contextmanager
def quiet_host(*, verbose: bool) -> Iterator[None]:
    """Keep MLflow's log lines and progress bars out of the output, unless asked for."""
    # A dead server should be a message within half a minute; users who set the variable decide.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.ERROR,
        format="%(levelname)s %(name)s: %(message)s",
    )
    if not verbose:
        for name in ("mlflow", "alembic", "urllib3"):
            logging.getLogger(name).setLevel(logging.ERROR)
        import warnings

        warnings.simplefilter("ignore")
    yield


def show_json(value: Any) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show_error(error: EximError, *, as_json: bool) -> None:
    """Print one error: a line, and a hint where there is one."""
    if as_json:
        show_json(
            {"ok": False, "error": {"code": error.code.value, "message": error.message, "hint": error.hint}}
        )
    click.secho(f"Error: {error.message}", fg="red", err=True)
    if error.hint:
        click.echo(f"Hint: {error.hint}", err=True)


def show_report(report: Report, *, title: str, as_json: bool) -> None:
    """Print what a transfer did."""
    summary = report.to_dict()
    if as_json:
        show_json(summary)
        return
    click.echo(title)
    rows = [
        (kind.replace("_", " "), *(str(counts[c]) for c in ("found", "written", "skipped", "failed")))
        for kind, counts in summary["counts"].items()
    ]
    _table(("", "found", "written", "skipped", "failed"), rows)
    click.echo(
        f"{report.metric_rows:,} metric rows, {size_text(report.artifact_bytes)} of artifacts"
    )
    for seen in summary["not_packed"]:
        more = "at least " if seen["at_least"] else ""
        kind = seen["kind"].replace("_", " ")
        plural = "" if seen["seen"] == 1 else "s"
        click.echo(f"Not packed: {more}{seen['seen']} {kind}{plural} ({seen['reason']})")
    _named("Lossy", [(x["kind"], x["id"], x["what"]) for x in summary["lossy"]])
    _named("Failed", [(x["kind"], x["id"], x["reason"]) for x in summary["failures"]])
    if report.root:
        click.echo(f"Root sha256:{report.root}")


def _named(title: str, entries: list[tuple[str, str, str]]) -> None:
    for kind, identity, what in entries[:_NAMED]:
        name = "all" if identity == "*" else identity
        click.echo(f"{title}: {kind.replace('_', ' ')} {name}: {what}")
    if len(entries) > _NAMED:
        click.echo(f"{title}: and {len(entries) - _NAMED} more, see --output json")


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        first = row[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        click.echo("  ".join([f"  {first}", *rest]).rstrip())


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

    def show(self, text: str) -> None:
        now_s = time.monotonic()
        if not self._shown or now_s - self._last_s < _INTERVAL_S:
            return
        self._last_s, self._dirty = now_s, True
        click.echo(f"\r\x1b[K{text}", nl=False, err=True)

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._dirty:
            click.echo("\r\x1b[K", nl=False, err=True)


class ReportProgress(_StatusLine):
    """Shows a growing report."""

    def __call__(self, report: Report) -> None:
        """Show the counts."""
        counts = ", ".join(
            f"{c.found} {kind.value.replace('_', ' ')}s" for kind, c in list(report.counts.items())
        )
        self.show(f"{counts}, {report.metric_rows:,} rows, {size_text(report.artifact_bytes)}")


class ByteProgress(_StatusLine):
    """Shows how much of a file is done."""

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Show the share."""
        self.show(f"{done_bytes / max(total_bytes, 1):.0%} of {size_text(total_bytes)}")
