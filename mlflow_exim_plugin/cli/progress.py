"""How far a command is: one line on a terminal that is written over and over, nothing elsewhere."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from mlflow_exim_plugin.cli.output import QUIET, counted, show_report, shown_on, size_text
from mlflow_exim_plugin.errors import ExitCode
from mlflow_exim_plugin.kinds.kind import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.options import Work
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["StatusLine", "Transferring", "clear_line", "run_transfer"]

_INTERVAL_S = 0.5
_RATE_OVER_S = 10.0
_WIDTH = 80
_CLEAR = "\r\x1b[K"
_shown: list[StatusLine] = []
"""The line that is on the terminal."""


def clear_line() -> None:
    """Take the line away, before something else is written; it comes back by itself."""
    for line in _shown:
        line.clear()


class StatusLine:
    """The line; it is brought up to date also while nothing new is told.

    Args:
        text: Makes the line of what a progress callback was told last.
    """

    def __init__(self, text: Callable[..., str]) -> None:
        self._text = text
        self._is_shown = sys.stderr.isatty() and not is_quiet()
        self._told: tuple[Any, ...] | None = None
        self._is_dirty = False
        self._turn = threading.Lock()
        self._ended = threading.Event()
        self._drawing = threading.Thread(target=self._draw, name="exim-progress", daemon=True)

    def __call__(self, *told: Any) -> None:
        """Take what is to be shown next."""
        self._told = told

    def clear(self) -> None:
        """Take the line away until it is drawn again."""
        with self._turn:
            if self._is_dirty:
                click.echo(_CLEAR, nl=False, err=True)
                self._is_dirty = False

    def __enter__(self) -> Any:
        if self._is_shown:
            _shown.append(self)
            self._drawing.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._is_shown:
            self._ended.set()
            self._drawing.join()
            _shown.remove(self)
            self.clear()

    def _draw(self) -> None:
        while not self._ended.wait(_INTERVAL_S):
            if self._told is None:
                continue
            text = shown_on(sys.stderr, self._text(*self._told))
            with self._turn:
                click.echo(_CLEAR + _cut(text, _columns() - 1), nl=False, err=True)
                self._is_dirty = True


class Transferring:
    """What is said of a transfer under way: share, time, what is left, counts, rows, bytes, rate.

    Args:
        now_s: The clock.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._began_s = now_s()
        self._seen: deque[tuple[float, int, int]] = deque()

    def __call__(self, report: Report) -> str:
        """Return the line."""
        now_s = self._now_s()
        found = {kind: counts.found for kind, counts in list(report.counts.items())}
        total = sum(report.planned.values())
        done = sum(min(found.get(kind, 0), count) for kind, count in report.planned.items())
        share = done / total if total else None
        passed_s = now_s - self._began_s
        parts = [_clock(passed_s)]
        if share is not None:
            left = f", {_clock(passed_s / share - passed_s)} left" if 0 < share < 1 else ""
            parts = [f"{share:4.0%}", f"{parts[0]}{left}"]
        for kind in Kind:  # in the order of work
            if kind in report.planned:
                parts.append(f"{found.get(kind, 0):,} of {counted(kind, report.planned[kind])}")
            elif kind in found and kind is not Kind.ARTIFACT:
                parts.append(counted(kind, found[kind]))
        if report.metric_rows:
            parts.append(f"{report.metric_rows:,} rows")
        if Kind.ARTIFACT in found or report.artifact_bytes:
            files = counted(Kind.ARTIFACT, found.get(Kind.ARTIFACT, 0))
            parts.append(f"{files}, {size_text(report.artifact_bytes)}")
        return " · ".join([*parts, *self._rate(now_s, sum(found.values()), report.artifact_bytes)])

    def _rate(self, now_s: float, objects: int, size_bytes: int) -> list[str]:
        self._seen.append((now_s, objects, size_bytes))
        while now_s - self._seen[0][0] > _RATE_OVER_S:
            self._seen.popleft()
        then_s, objects_then, bytes_then = self._seen[0]
        if (over_s := now_s - then_s) < 1:
            return []
        if size_bytes > bytes_then:
            return [f"{size_text((size_bytes - bytes_then) / over_s)}/s"]
        return [f"{(objects - objects_then) / over_s:,.0f} objects/s"]


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
    quiet = is_quiet()
    with StatusLine(Transferring()) as progress:
        report = transfer(work=replace(work, progress=progress))
    title = titles[report.dry_run]
    show_report(report, title=title, as_json=output == "json", quiet=quiet)
    if not report.ok:
        ctx.exit(ExitCode.PARTIAL)


def is_quiet() -> bool:
    """Whether the command under way is to show no progress, and of a report what failed."""
    return bool(click.get_current_context().meta.get(QUIET))


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or _WIDTH
    except OSError:
        return _WIDTH


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"
