"""A curve has the extremes of its history, in whatever pieces that comes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlflow_exim_plugin.pages.curves import Curve, Points

STRETCHES = 50


def history(rows: int, *, one_step: bool = False) -> Points:
    random = np.random.default_rng(rows)
    steps = np.zeros(rows, np.int64) if one_step else np.sort(random.integers(-9, 10**6, rows))
    values = random.normal(size=rows).cumsum()
    values[[rows // 3, rows // 2]] = 1e6, -1e6
    values[[rows // 5, rows // 5 + 1]] = math.nan, math.inf
    return Points(steps, np.arange(rows, dtype=np.int64), values)


def extremes(points: Points) -> list[tuple[int, float]]:
    """Return where the smallest and the largest value of each fifth are."""
    found = []
    fifth = np.minimum((points.places() * 5).astype(int), 4)
    for number in range(5):
        values = np.where((fifth == number) & np.isfinite(points.values), points.values, np.nan)
        places = int(np.nanargmin(values)), int(np.nanargmax(values))
        found += [(int(points.times_ms[at]), float(points.values[at])) for at in places]
    return found


@pytest.mark.parametrize("one_step", [False, True])
@pytest.mark.parametrize("pieces", [1, 7, 400])
def test_extremes_of_every_stretch_are_kept(pieces: int, *, one_step: bool) -> None:
    whole = history(100_000, one_step=one_step)
    curve = Curve("run", "loss", STRETCHES)
    for part in np.array_split(np.arange(len(whole)), pieces):
        curve.add(Points(whole.steps[part], whole.times_ms[part], whole.values[part]))

    drawn = curve.points

    assert len(drawn) <= 3 * STRETCHES + 2
    assert (curve.rows, curve.gaps) == (len(whole), 2)
    assert [value for _, value in curve.first_gaps] == [
        pytest.approx(math.nan, nan_ok=True),
        math.inf,
    ]
    assert {drawn.times_ms[0], drawn.times_ms[-1]} == {0, len(whole) - 1}
    assert np.all(np.diff(drawn.times_ms) > 0)
    assert np.isnan(drawn.values).sum() == 1
    if pieces == 1:
        assert extremes(drawn) == extremes(whole)
    assert {1e6, -1e6} <= set(drawn.values.tolist())


@pytest.mark.parametrize("values", [[math.nan] * 500, [1.0] * 500, [-math.inf, 2.0] * 250])
def test_histories_without_a_curve(values: list[float]) -> None:
    steps = np.full(500, 2**63 - 1)
    drawn = Points(steps, steps, np.array(values)).thinned(STRETCHES)

    assert 2 <= len(drawn) <= 5
