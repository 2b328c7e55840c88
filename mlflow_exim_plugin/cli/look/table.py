"""Tables: for people as wide as the terminal, for programs as CSV."""

from __future__ import annotations

import csv
import io
import shutil
import sys
import unicodedata
from typing import TYPE_CHECKING

from mlflow_exim_plugin.cli.output import escaped, put, say

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["show_csv", "show_table"]

_BETWEEN = "  "
_NARROWEST = 12
"""Texts are cut to this where a terminal is too narrow, and no further."""


def show_table(header: Sequence[str], rows: Sequence[Sequence[str | int | float | None]]) -> None:
    """Print rows below a header; numbers are to the right, texts are cut where a terminal ends."""
    if not rows:
        return
    is_number = [
        all(isinstance(row[place], int | float | None) for row in rows)
        for place in range(len(header))
    ]
    lines = [[_text(cell) for cell in row] for row in (header, *rows)]
    widths = [max(_width(line[place]) for line in lines) for place in range(len(header))]
    if sys.stdout.isatty():
        _narrow(widths, is_number, shutil.get_terminal_size().columns)
    for line in lines:
        cells = (
            _filled(cell, width, to_right=right)
            for cell, width, right in zip(line, widths, is_number, strict=True)
        )
        say(_BETWEEN.join(cells).rstrip())


def show_csv(header: Sequence[str], rows: Iterable[Sequence[str | int | float | None]]) -> None:
    """Print rows as CSV with a header (RFC 4180); what is absent is empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows([header, *rows])
    put(text.getvalue().encode("utf-8", "backslashreplace"))


def _text(cell: str | float | None) -> str:
    match cell:
        case None:
            return ""
        case float():
            return f"{cell:.6g}"
        case int():
            return f"{cell:,}"
        case str():
            return escaped(cell)


def _width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(
        0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF")
        for char in text
    )


def _narrow(widths: list[int], is_number: Sequence[bool], available: int) -> None:
    """Take from the widest texts until a line fits, if that can be."""
    too_much = sum(widths) + len(_BETWEEN) * (len(widths) - 1) - available
    while too_much > 0:
        texts = [w for w, number in zip(widths, is_number, strict=True) if not number]
        if not texts or max(texts) <= _NARROWEST:
            return
        widths[widths.index(max(texts))] -= 1
        too_much -= 1


def _filled(text: str, width: int, *, to_right: bool) -> str:
    if _width(text) > width:
        while _width(text) >= width:
            text = text[:-1]
        text += "…"
    space = " " * (width - _width(text))
    return space + text if to_right else text + space
