"""Metric histories as curves to be drawn: thinned, with every extreme kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    import pyarrow as pa
    from numpy.typing import NDArray

    from mlflow_exim_plugin.schema.metric_rows import RunRows

__all__ = ["Curve", "Points", "curves_of"]

_FINER = 16
"""Stretches of a part of a history for each of a curve, whose ends are not known yet."""
_NAMED = 3


@dataclass(frozen=True)
class Points:
    """Rows of one key of one run, in order.

    Attributes:
        steps: int64.
        times_ms: int64, since the Unix epoch, UTC.
        values: float64, NaN and infinities allowed.
    """

    steps: NDArray[np.int64]
    times_ms: NDArray[np.int64]
    values: NDArray[np.float64]

    @classmethod
    def of(cls, table: pa.Table) -> Points:
        """Take the points of a table with the schema ``HISTORY``."""
        return cls(*(table.column(name).to_numpy() for name in ("step", "timestamp", "value")))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def has_one_step(self) -> bool:
        """Whether all have the same step, so that only their times tell them apart."""
        return len(self) > 0 and bool(self.steps[0] == self.steps[-1])

    def places(self) -> NDArray[np.float64]:
        """Return where each is from left to right, from 0 to 1: by step, or else by time."""
        along = self.times_ms if self.has_one_step else self.steps
        whole = along.astype(np.float64)  # the difference of two 64-bit numbers may have more
        whole -= whole[0]
        end = float(whole[-1])
        return whole / end if end > 0 else whole * 0

    def thinned(self, stretches: int) -> Points:
        """Return the smallest and largest value of each of so many equal stretches.

        The first and last point stay, and in each stretch the first one that is NaN or infinite.
        """
        if len(self) <= 2 * stretches:
            return self
        stretch = np.minimum((np.maximum(self.places(), 0) * stretches).astype(np.int64), stretches)
        is_finite = np.isfinite(self.values)
        # Sorted by stretch and value, what a stretch has of either is first or last in it.
        finite = np.flatnonzero(is_finite)
        ordered = finite[np.lexsort((self.values[finite], stretch[finite]))]
        firsts = _starts(stretch[ordered])
        gaps = np.flatnonzero(~is_finite)
        kept = np.unique(
            np.concatenate(
                [
                    [0, len(self) - 1],
                    ordered[firsts],
                    ordered[np.append(firsts[1:], len(ordered)) - 1] if len(ordered) else [],
                    gaps[_starts(stretch[gaps])],
                ]
            ).astype(np.int64)
        )
        return Points(self.steps[kept], self.times_ms[kept], self.values[kept])


def _starts(sorted_numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each run of equal numbers begins; they need not be sorted as a whole."""
    if not len(sorted_numbers):
        return np.empty(0, np.int64)
    return np.append(0, np.flatnonzero(np.diff(sorted_numbers)) + 1).astype(np.int64)


@dataclass
class Curve:
    """One metric of one run.

    Attributes:
        run_id: The run.
        key: Metric key.
        stretches: How many stretches it is drawn in.
        rows: Points that there are; fewer are drawn.
        gaps: How many of them are NaN or infinite.
        first_gaps: Step and value of the first of those.
    """

    run_id: str
    key: str
    stretches: int
    rows: int = 0
    gaps: int = 0
    first_gaps: list[tuple[int, float]] = field(default_factory=list)
    _parts: list[Points] = field(default_factory=list)
    _waiting: int = 0

    def add(self, points: Points) -> None:
        """Add the points that follow."""
        self.rows += len(points)
        odd = np.flatnonzero(~np.isfinite(points.values))
        self.gaps += len(odd)
        for place in odd[: _NAMED - len(self.first_gaps)]:
            self.first_gaps.append((int(points.steps[place]), float(points.values[place])))
        part = points.thinned(_FINER * self.stretches)
        self._parts.append(part)
        self._waiting += len(part)
        if self._waiting > 4 * _FINER * self.stretches:
            self._parts = [self._joined().thinned(_FINER * self.stretches)]
            self._waiting = len(self._parts[0])

    @property
    def points(self) -> Points:
        """What is drawn."""
        return self._joined().thinned(self.stretches)

    def _joined(self) -> Points:
        if len(self._parts) == 1:
            return self._parts[0]
        columns = zip(*((p.steps, p.times_ms, p.values) for p in self._parts), strict=True)
        return Points(*(np.concatenate(column) for column in columns))


def curves_of(
    run_id: str, histories: Iterable[RunRows], keys: Collection[str], stretches: int
) -> dict[str, Curve]:
    """Return a run's curves by key, read a few row groups at a time.

    Args:
        run_id: The run.
        histories: Its rows.
        keys: Keys that are wanted.
        stretches: How many stretches a curve is drawn in, each with two points or three.
    """
    curves: dict[str, Curve] = {}
    for rows in histories:
        for key, table in rows.by_key():
            if key in keys:
                curve = curves.setdefault(key, Curve(run_id, key, stretches))
                curve.add(Points.of(table))
    return curves
