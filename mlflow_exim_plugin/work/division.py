"""How a source is divided: experiments are joined or cut, so that no part is too large."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlflow_exim_plugin.options import ALL_IDS, Selection, SelectionPart
from mlflow_exim_plugin.work.plan import Entry, Size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.sources.outline import CanBeOutlined, ExperimentSize, Outline

__all__ = ["FOR_EACH", "MOST", "divided"]

MOST = Size(members=250_000, artifact_bytes=2 << 30, seconds=900)
"""No part has more, as far as that can be estimated."""
_LEAST_S = 10.0
"""A shorter part is not worth its beginning, while others wait."""
FOR_EACH = 4
"""So many parts there are for each task that runs at once: the last one is not waited for long."""
_ROW_S, _FILE_S, _BYTE_S = 1.0e-6, 3e-4, 1 / 100e6
_TRACE_S, _MODEL_S = 1e-3, 3e-3


@dataclass
class _Sizes:
    """What parts of experiments have."""

    run_s: float

    def runs(self, of: ExperimentSize, count: int) -> Size:
        """Return what some runs of an experiment have."""
        run = of.of_run
        each_s = self.run_s + run.rows * _ROW_S + run.files * _FILE_S + run.artifact_bytes * _BYTE_S
        return Size(
            runs=count,
            members=math.ceil(count * (1 + run.files)),
            rows=round(count * run.rows),
            artifact_bytes=round(count * run.artifact_bytes),
            seconds=count * each_s,
        )

    def beside(self, of: ExperimentSize) -> Size:
        """Return what an experiment has beside its runs; models have as many files as runs."""
        return Size(
            members=1 + math.ceil(of.logged_models * (1 + of.of_run.files)),
            seconds=of.logged_models * (_MODEL_S + self.run_s) + of.traces * _TRACE_S,
        )


def divided(
    source: CanBeOutlined, selection: Selection, parallel: int
) -> tuple[list[Entry], Outline]:
    """Divide what is taken of a source.

    Whoever is named by id or belongs to no experiment is a part of its own.

    Args:
        source: What it has.
        selection: What is taken.
        parallel: How many tasks will run at once.

    Returns:
        The parts, and what the source has.

    Raises:
        EximError: See ``CanBeOutlined``.
    """
    outline = source.outline()
    sizes = _Sizes(outline.run_s)
    whole = {of.id: sizes.runs(of, of.runs) + sizes.beside(of) for of in outline.experiments}
    total_s = sum(size.seconds for size in whole.values())
    share_s = min(MOST.seconds, max(_LEAST_S, total_s / (FOR_EACH * parallel)))
    most = replace(MOST, seconds=share_s)
    pieces = {
        of.id: _pieces(sizes.runs(of, of.runs), most)
        for of in outline.experiments
        if _is_over(whole[of.id], most) and of.runs > 1
    }
    cuts = source.cuts({one: count for one, count in pieces.items() if count > 1})
    base = replace(selection, runs=(), models=(), versions=(), datasets=())
    entries: list[Entry] = []
    some: list[str] = []
    size = Size()
    for of in outline.experiments:
        if of.id in pieces:
            begun = cuts.get(of.id, [("", of.runs)])
            entries += _cut(base, of, begun, sizes)
            continue
        if some and _is_over(size + whole[of.id], most):
            entries.append(_together(base, some, size))
            some, size = [], Size()
        some.append(of.id)
        size += whole[of.id]
    if some:
        entries.append(_together(base, some, size))
    return [*entries, *_rest(selection, outline)], outline


def _pieces(size: Size, most: Size) -> int:
    shares = (
        size.members / most.members,
        size.artifact_bytes / most.artifact_bytes,
        size.seconds / most.seconds,
    )
    return max(1, min(size.runs, math.ceil(max(shares))))


def _is_over(size: Size, most: Size) -> bool:
    is_long = size.seconds > most.seconds or size.members > most.members
    return is_long or size.artifact_bytes > most.artifact_bytes


def _cut(
    base: Selection, of: ExperimentSize, cuts: list[tuple[str, int]], sizes: _Sizes
) -> Iterator[Entry]:
    ends = [*(begin for begin, _ in cuts[1:]), ""]
    for (begin, count), end in zip(cuts, ends, strict=True):
        part = SelectionPart((of.id,), (begin, end))
        yield Entry(replace(base, part=part), sizes.runs(of, count))
    yield Entry(replace(base, part=SelectionPart((of.id,), beside_runs=True)), sizes.beside(of))


def _together(base: Selection, experiments: list[str], size: Size) -> Entry:
    part = SelectionPart(tuple(experiments), ALL_IDS, beside_runs=True)
    return Entry(replace(base, part=part), size)


def _rest(selection: Selection, outline: Outline) -> Iterator[Entry]:
    """Yield what belongs to no experiment, or was named by itself."""
    if not selection.names_objects:
        size = Size(members=outline.registered, seconds=outline.registered * _MODEL_S)
        yield Entry(replace(selection, part=SelectionPart(beside_experiments=True)), size)
    elif selection.runs or selection.models or selection.datasets:
        yield Entry(replace(selection, experiments=()), Size())
