"""An experiment on a page: its runs as a table, their main metrics as curves."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.pages.curves import Curve, curves_of
from mlflow_exim_plugin.pages.page import shown
from mlflow_exim_plugin.schema.objects import Failure, Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlflow_exim_plugin.schema.metric_rows import RunRows
    from mlflow_exim_plugin.schema.objects import Experiment

__all__ = ["ExperimentSection", "Share"]

_COLUMNS = 6
"""Columns of metrics, and of params."""
_CANDIDATES = 40
"""Metrics that are read to find those that are drawn."""
_LOOKED_AT = 200
"""Runs that are read to find those that are drawn."""
_CELL = 100
"""Characters of a param in a table."""
_EXACT = 2**53


@dataclass(frozen=True)
class Share:
    """What one experiment may take of a page.

    Attributes:
        runs: Runs in its table.
        drawn_runs: Runs that are drawn.
        charts: Metrics that are drawn.
        stretches: Parts of a curve, each with its smallest and largest value.
    """

    runs: int
    drawn_runs: int
    charts: int
    stretches: int

    @classmethod
    def among(cls, run_counts: list[int]) -> Share:
        """Return what each of some experiments may take, by how many runs they have."""
        rest, runs = 20_000, 0
        for number, count in enumerate(sorted(run_counts)):
            runs = max(rest // (len(run_counts) - number), 20)
            rest -= min(count, runs)
        if len(run_counts) <= 15:
            return cls(runs, 20, 4, 100)
        if len(run_counts) <= 100:
            return cls(runs, 10, 4, 50)
        return cls(runs, 5, 2, 25)


@dataclass
class ExperimentSection:
    """What a page says of one experiment.

    Attributes:
        experiment: The experiment.
        name: What it is called, with its workspace.
        share: What it may take.
        runs: How many runs there are.
        logged_models: How many logged models.
        traces: How many traces, None where their documents cannot be read.
        unreadable: Histories that could not be read.
    """

    experiment: Experiment
    name: str
    share: Share
    runs: int = 0
    logged_models: int = 0
    traces: int | None = 0
    unreadable: list[Failure] = field(default_factory=list)
    not_drawn: str = ""
    _last_started: list[tuple[int, int, Run]] = field(default_factory=list)

    def add(self, run: Run) -> None:
        """Add a run; those that started last are kept."""
        self.runs += 1
        entry = (run.info.get("start_time", -1), -self.runs, run)
        if len(self._last_started) < self.share.runs:
            heapq.heappush(self._last_started, entry)
        else:
            heapq.heappushpop(self._last_started, entry)

    def words(self) -> dict[str, Any]:
        """Return what the template says of it, once ``data`` was made."""
        document = self.experiment.document
        tags = {tag["key"]: tag.get("value", "") for tag in document.get("tags") or ()}
        listed = len(self._last_started)
        return {
            "id": self.experiment.id,
            "name": self.name,
            "deleted": document.get("lifecycle_stage") == "deleted",
            "note": tags.get("mlflow.note.content", ""),
            "runs": self.runs,
            "logged_models": self.logged_models,
            "traces": self.traces,
            "not_drawn": self.not_drawn,
            "not_listed": self.runs > listed
            and f"The {listed:,} runs that started last, of {self.runs:,}, are in this page.",
        }

    def data(self) -> dict[str, Any]:
        """Return what the scripts draw: the table, and the charts of the runs in it."""
        runs = [run for _, _, run in sorted(self._last_started, reverse=True)]
        histories = self._curves(runs)
        keys = _main_keys(histories, self.share.charts)
        colors: dict[str, int] = {}
        for row, curves in histories.items():
            if any(key in keys for key in curves):
                colors[str(row)] = len(colors)
        drawn = [
            _chart(key, {row: c[key] for row, c in histories.items() if key in c}) for key in keys
        ]
        self._say_what_is_not_drawn(runs, keys, len(colors))
        return {"table": {**_table(runs, keys), "colors": colors}, "drawn": drawn}

    def _curves(self, runs: list[Run]) -> dict[int, dict[str, Curve]]:
        """Return curves by row and key, of the first rows that have any."""
        seen = Counter(key for run in runs[:_LOOKED_AT] for key in run.metric_keys)
        wanted = sorted(seen, key=lambda key: (_is_of_system(key), -seen[key], key))[:_CANDIDATES]
        found: dict[int, dict[str, Curve]] = {}
        for row, run in enumerate(runs[:_LOOKED_AT]):
            if len(found) == self.share.drawn_runs:
                break
            if run.metric_keys:
                curves = curves_of(run.id, self._rows(run), set(wanted), self.share.stretches)
                curves = {key: curve for key, curve in curves.items() if curve.rows > 1}
                if curves:
                    found[row] = curves
        return found

    def _rows(self, run: Run) -> Iterator[RunRows]:
        for rows in run.histories:
            if isinstance(rows, Failure):
                self.unreadable.append(rows)
            else:
                yield rows

    def _say_what_is_not_drawn(self, runs: list[Run], keys: list[str], drawn_runs: int) -> None:
        all_keys = {key for run in runs for key in run.metric_keys}
        others = len(all_keys - set(keys))
        if drawn_runs and (drawn_runs < len(runs) or others):
            of_runs = f"of {self.runs:,} runs the last {drawn_runs} that have curves"
            of_keys = f", of {len(all_keys):,} metrics {len(keys)}" if others else ""
            self.not_drawn = f"Drawn: {of_runs}{of_keys}. Others: mlflow exim plot."


def _is_of_system(key: str) -> bool:
    return key.startswith("system/")


def _main_keys(histories: dict[int, dict[str, Curve]], limit: int) -> list[str]:
    """Return the metrics that most runs have a curve of."""
    seen = Counter(key for curves in histories.values() for key in curves)
    return sorted(seen, key=lambda key: (_is_of_system(key), -seen[key], key))[:limit]


def _chart(key: str, curves: dict[int, Curve]) -> dict[str, Any]:
    points = {row: curve.points for row, curve in curves.items()}
    by_time = all(p.has_one_step for p in points.values())
    drawn = []
    for row, of in points.items():
        along = of.times_ms if by_time else of.steps
        places = along.tolist()
        away = [_plain(b - a) for a, b in zip([0, *places], places, strict=False)]
        if by_time:  # seconds since the run's first
            away = [0, *(ms / 1000 for ms in away[1:])]
        values = [_rounded(v) for v in of.values.tolist()]
        drawn.append({"run": row, "x": away, "y": values})
    rows = sum(curve.rows for curve in curves.values())
    shown_rows = sum(len(of) for of in points.values())
    told = f"{shown_rows:,} of {rows:,} points, with the smallest and largest of each stretch."
    if shown_rows == rows:
        told = f"All {rows:,} points."
    if gaps := sum(curve.gaps for curve in curves.values()):
        first = next(curve for curve in curves.values() if curve.gaps)
        named = ", ".join(f"{value} at step {step}" for step, value in first.first_gaps)
        told += f" Gaps: {gaps:,} are NaN or infinite, such as {named} of run {first.run_id}."
    return {
        "key": shown(key),
        "by": "seconds since the first" if by_time else "step",
        "told": told,
        "curves": drawn,
    }


def _rounded(value: float) -> float | None:
    """Return five digits of a value, None for what is no number."""
    rounded = float(f"{value:.5g}")
    if math.isfinite(rounded):
        return rounded
    return value if math.isfinite(value) else None  # the largest there is, rounded up


def _plain(number: int) -> float:
    """Return a number as JavaScript has it; the difference of two steps may have 65 bits."""
    return number if abs(number) < _EXACT else float(number)


def _table(runs: list[Run], first_keys: list[str]) -> dict[str, Any]:
    metrics = [{m["key"]: m.get("value") for m in _entries(run, "metrics")} for run in runs]
    params = [run.params for run in runs]
    metric_keys = [*first_keys, *(k for k in _by_count(metrics) if k not in first_keys)][:_COLUMNS]
    param_keys = _telling(params)[:_COLUMNS]
    columns = [
        {"name": "Run", "type": "text"},
        {"name": "Id", "type": "id"},
        {"name": "Status", "type": "status"},
        {"name": "Started (UTC)", "type": "time"},
        {"name": "Took", "type": "duration"},
        {"name": "User", "type": "text"},
        *({"name": shown(key), "group": "metric", "type": "number"} for key in metric_keys),
        *({"name": shown(key), "group": "param", "type": "param"} for key in param_keys),
    ]
    rows = []
    for run, of_metrics, of_params in zip(runs, metrics, params, strict=True):
        cells = [of_params.get(key) for key in param_keys]
        rows.append(
            [
                *_about(run),
                *(_value(of_metrics.get(key)) for key in metric_keys),
                *(None if cell is None else shown(cell, _CELL) for cell in cells),
            ]
        )
    return {"noun": "run", "columns": columns, "rows": rows}


def _value(value: Any) -> float | str | None:
    """Return the value of a metric: a number, or what JSON has for one that is none."""
    return value if value is None or type(value) in (int, float) else shown(value, _CELL)


def _about(run: Run) -> list[Any]:
    info, tags = run.info, run.tags
    start, end = info.get("start_time"), info.get("end_time")
    status = str(info.get("status", ""))
    if info.get("lifecycle_stage") == "deleted":
        status = f"{status}, deleted"
    name = info.get("run_name") or tags.get("mlflow.runName") or run.id
    took = None if start is None or end is None else _plain(end - start)
    user = info.get("user_id") or tags.get("mlflow.user", "")
    return [shown(name), shown(run.id), shown(status), start, took, shown(user)]


def _entries(run: Run, part: str) -> Iterable[dict[str, Any]]:
    entries: Iterable[dict[str, Any]] = run.document.get("data", {}).get(part) or ()
    return entries


def _by_count(columns: list[dict[str, Any]]) -> list[str]:
    seen = Counter(key for column in columns for key in column)
    return sorted(seen, key=lambda key: (_is_of_system(key), -seen[key], key))


def _telling(params: list[dict[str, str]]) -> list[str]:
    """Return the params by how much they tell: first those that are not the same everywhere."""
    values: dict[str, set[str]] = {}
    for of_run in params:
        for key, value in of_run.items():
            if len(of := values.setdefault(key, set())) < 2:
                of.add(value)
    seen = Counter(key for of_run in params for key in of_run)
    same = {key for key, of in values.items() if len(of) == 1 and seen[key] == len(params)}
    return sorted(seen, key=lambda key: (key in same, -seen[key], key))
