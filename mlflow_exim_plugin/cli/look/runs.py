"""Runs as a table: which columns, in which order, and how they are written."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone
from itertools import pairwise
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["RunTable", "duration_text", "moment_text"]

_KEY_METRICS = 3
_SHORT = 8
"""Characters of an id that are shown at least."""
_CHILD = "└ "


class RunTable:
    """Runs of one or more experiments.

    Args:
        runs: As ``operations.look.contents.runs_of`` gives them.

    Attributes:
        runs: Likewise.
    """

    def __init__(self, runs: list[dict[str, Any]]) -> None:
        self.runs = runs

    def main_columns(self) -> list[str]:
        """Return the columns that tell most: the metrics are those that most of the runs have."""
        is_several = len({run["experiment_id"] for run in self.runs}) > 1
        is_deleted = any(run["lifecycle_stage"] == "deleted" for run in self.runs)
        having = Counter(key for run in self.runs for key in run["metrics"])
        metrics = sorted(having, key=lambda key: (-having[key], key))[:_KEY_METRICS]
        return [
            *(["experiment"] if is_several else []),
            *("id", "name", "status"),
            *(["stage"] if is_deleted else []),
            *("start", "duration", "rows", "artifacts"),
            *(f"metrics.{key}" for key in metrics),
        ]

    def all_columns(self) -> list[str]:
        """Return every column but tags."""
        keys = {
            part: dict.fromkeys(key for run in self.runs for key in run[part])
            for part in ("metrics", "params")
        }
        return [*_COLUMNS, *(f"{part}.{key}" for part in keys for key in sorted(keys[part]))]

    def cells(self, run: dict[str, Any], columns: Iterable[str]) -> list[Any]:
        """Return the values of a run: times in ISO 8601, durations in seconds."""
        values = {name: _value_of(name)(run) for name in columns}
        if values.get("start") is not None:
            start = datetime.fromtimestamp(values["start"] / 1000, timezone.utc)
            values["start"] = start.isoformat(timespec="milliseconds")
        if values.get("duration") is not None:
            values["duration"] /= 1000
        return list(values.values())

    def sorted(self, by: str | None) -> list[dict[str, Any]]:
        """Return the runs in the order of a column; what has no value in it, or NaN, comes last."""
        column = by or "-start"
        name = column.removeprefix("-")
        value_of = _value_of(name)
        has: list[dict[str, Any]] = []
        lacks: list[dict[str, Any]] = []
        for run in self.runs:
            value = value_of(run)
            (lacks if value is None or value != value else has).append(run)  # noqa: PLR0124 - NaN
        is_text = any(isinstance(value_of(run), str) for run in has)
        has.sort(
            key=lambda run: str(value_of(run)) if is_text else value_of(run),
            reverse=column != name,
        )
        return has + lacks

    def texts(
        self, columns: Sequence[str], sort: str | None, *, short: bool
    ) -> tuple[list[str], list[list[Any]]]:
        """Return a header and rows for people, in which a run stands below its parent.

        Args:
            columns: Names of columns.
            sort: Column that they are sorted by.
            short: Whether ids are cut to what tells them apart.
        """
        length = self._short_length() if short else None
        rows = []
        for depth, run in self._nested(self.sorted(sort)):
            cells = {name: _value_of(name)(run) for name in columns}
            for name in ("id", "parent"):
                if name in cells:
                    cells[name] = (cells[name] or "")[:length]
            for name, written in _WRITTEN.items():
                if name in cells:
                    cells[name] = written(cells[name])
            if "name" in cells and depth:
                cells["name"] = "  " * (depth - 1) + _CHILD + str(cells["name"])
            rows.append(list(cells.values()))
        header = [name.partition(".")[2] or name for name in columns]
        return header, rows

    def _short_length(self) -> int:
        ids = sorted(run["run_id"] for run in self.runs)
        shared = (len(commonprefix(two)) for two in pairwise(ids))  # noqa: RUF071 - no paths
        return max(_SHORT, 1 + max(shared, default=0))

    @staticmethod
    def _nested(runs: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the runs with how deep they are; parents that go in a circle are none."""
        ids = {run["run_id"] for run in runs}
        below: dict[str | None, list[dict[str, Any]]] = {}
        for run in runs:
            parent = run["parent_run_id"]
            below.setdefault(parent if parent in ids else None, []).append(run)
        left = dict.fromkeys(ids)
        waiting = [(0, run) for run in reversed(below.get(None, []))]
        while waiting:
            depth, run = waiting.pop()
            del left[run["run_id"]]
            yield depth, run
            children = reversed(below.get(run["run_id"], []))
            waiting += ((depth + 1, child) for child in children)
        yield from ((0, run) for run in runs if run["run_id"] in left)


def moment_text(time_ms: int | None) -> str:
    """Return a time for people, UTC."""
    if time_ms is None:
        return ""
    try:
        return f"{datetime.fromtimestamp(time_ms / 1000, timezone.utc):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return f"{time_ms} ms"


def duration_text(duration_ms: int | None) -> str:
    """Return how long something took, for people."""
    if duration_ms is None:
        return ""
    if abs(duration_ms) < 1000:
        return f"{duration_ms} ms"
    seconds = duration_ms / 1000
    if abs(seconds) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if abs(minutes) < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if abs(hours) < 48 else f"{hours // 24} d {hours % 24} h"


def _duration_ms(run: dict[str, Any]) -> int | None:
    start_ms, end_ms = run["start_time"], run["end_time"]
    return None if start_ms is None or end_ms is None else end_ms - start_ms


_COLUMNS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "experiment": lambda run: run["experiment_id"],
    "id": lambda run: run["run_id"],
    "name": lambda run: run["run_name"],
    "status": lambda run: run["status"],
    "stage": lambda run: run["lifecycle_stage"],
    "start": lambda run: run["start_time"],
    "duration": _duration_ms,
    "user": lambda run: run["user_id"],
    "parent": lambda run: run["parent_run_id"],
    "rows": lambda run: run["metric_rows"],
    "artifacts": lambda run: run["artifacts"],
}
_WRITTEN: dict[str, Callable[[Any], str]] = {"start": moment_text, "duration": duration_text}


def _value_of(column: str) -> Callable[[dict[str, Any]], Any]:
    """Return what gives the value of a column, None where a run has none.

    Raises:
        click.UsageError: There is no such column.
    """
    if column in _COLUMNS:
        return _COLUMNS[column]
    part, _, key = column.partition(".")
    if part not in {"metrics", "params", "tags"} or not key:
        known = ", ".join([*_COLUMNS, "metrics.KEY", "params.KEY", "tags.KEY"])
        raise click.UsageError(f"There is no column {column!r}. Columns are {known}.")
    if part == "metrics":
        return lambda run: _number(run[part].get(key))
    return lambda run: run[part].get(key)


def _number(value: Any) -> Any:
    """Return a value of a metric as a number: not all numbers are some in JSON."""
    return float(value) if value in {"NaN", "Infinity", "-Infinity"} else value
