"""``plot``: metrics of runs of an archive as one picture."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import MissingDependencyError, NotFoundError, UsageError
from mlflow_exim_plugin.operations.ends import open_archived
from mlflow_exim_plugin.operations.look.meaning import runs_meant
from mlflow_exim_plugin.options import Drawing, Opening, Publishing, flat, matches
from mlflow_exim_plugin.pages.curves import Curve, curves_of
from mlflow_exim_plugin.storage.output import atomic_output

if TYPE_CHECKING:
    from mlflow_exim_plugin.sources.archive.archive import Archive
    from mlflow_exim_plugin.sources.archive.objects import ArchivedRun

__all__ = ["Picture", "plot"]

_FORMATS = ("svg", "png")
_STRETCHES = 1500
"""More than a picture has dots from left to right."""
_LABEL = 60
_LEGEND = 20
"""Curves beyond which none is named."""


@dataclass(frozen=True)
class Picture:
    """What was drawn.

    Attributes:
        curves: Run, key and points of each curve.
    """

    curves: list[Curve]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "ok": True,
            "curves": [
                {"run_id": c.run_id, "key": c.key, "points": c.rows, "gaps": c.gaps}
                for c in self.curves
            ],
        }


@flat()
def plot(
    archive: str,
    output: str,
    *,
    opening: Opening = Opening(),
    drawing: Drawing = Drawing(),
    publishing: Publishing = Publishing(),
) -> Picture:
    """Draw metrics of runs of an archive as an SVG or PNG file.

    Long histories are thinned; the smallest and largest value of each stretch is drawn. Values that
    are NaN or infinite are gaps.

    Args:
        archive: Path or fsspec URL of the archive.
        output: Path or fsspec URL of the picture; it ends in ``.svg`` or ``.png``.
        opening: How the two are opened; each option is a keyword of its own too, here and below.
        drawing: What is drawn.
        publishing: How the picture is written.

    Raises:
        UsageError: No run or no metric is named, or the output is none of these formats.
        NotFoundError: There is no such archive, run or metric.
        InvalidArchiveError: The archive cannot be opened, or what is drawn is damaged.
        ArchiveExistsError: There is a file at ``output`` and ``overwrite`` is false.
        StoreError: One of the two cannot be read or written.
        MissingDependencyError: matplotlib is not installed.
    """
    kind = output.split("?", maxsplit=1)[0].rpartition(".")[2].lower()
    if kind not in _FORMATS:
        raise UsageError(f"a picture's name ends in .{' or .'.join(_FORMATS)}, not {output!r}")
    if not drawing.runs or not drawing.keys:
        raise UsageError("a run and a metric are to be named", "write -r RUN -k KEY")
    options = opening.storage_options
    with open_archived(archive, opening) as opened:
        runs = [opened.run(run_id) for run_id in runs_meant(opened, drawing.runs)]
        names = {run.mlflow.run["info"]["run_id"]: _name(run) for run in runs}
        curves = _curves(opened, runs, drawing)
    with atomic_output(output, overwrite=publishing.overwrite, storage_options=options) as file:
        file.write(_drawn(curves, names, drawing, kind))
    return Picture(curves)


def _name(run: ArchivedRun) -> str:
    return run.name or run.id


def _curves(archive: Archive, runs: list[ArchivedRun], drawing: Drawing) -> list[Curve]:
    curves: list[Curve] = []
    known: set[str] = set()
    for run in runs:
        run_id = run.mlflow.run["info"]["run_id"]
        keys = {m["key"] for m in run.mlflow.run.get("data", {}).get("metrics", ())}
        known |= keys
        wanted = {key for key in keys if matches(drawing.keys, (key,))}
        if wanted and run.info.metrics:
            rows = archive.histories(run_id, run.info.metrics)
            curves += curves_of(run_id, rows, wanted, _STRETCHES).values()
    drawn = {curve.key for curve in curves}
    for key in drawing.keys:
        if not any(matches((key,), (name,)) for name in drawn):
            raise NotFoundError.among("the runs have no metric", key, known)
    return curves


def _drawn(curves: list[Curve], names: dict[str, str], drawing: Drawing, kind: str) -> bytes:
    """Return the picture."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError(
            "pictures are drawn by matplotlib, which is not installed", "pip install matplotlib"
        ) from None
    keys = dict.fromkeys(curve.key for curve in curves)
    # Text stays text, which a browser shows in whatever script it is.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "mlflow-exim"}):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.subplots()
        for curve in curves:
            points = curve.points
            along = (points.times_ms - points.times_ms[0]) / 1000
            axes.plot(
                points.steps if drawing.by == "step" else along,
                points.values,
                linewidth=1.3,
                marker="." if len(points) <= _LEGEND else None,
                label=f"\u200b{_label(names[curve.run_id], curve.key, len(names), len(keys))}",
            )
        axes.set_xlabel("step" if drawing.by == "step" else "seconds since the first row")
        if len(keys) == 1:
            axes.set_ylabel(_cut(next(iter(keys))), parse_math=False)
        if len(names) == 1:
            axes.set_title(_cut(next(iter(names.values()))), parse_math=False)
        if drawing.logarithmic:
            axes.set_yscale("log", nonpositive="mask")
        if 1 < len(curves) <= _LEGEND:
            for text in axes.legend(frameon=False, fontsize="small").get_texts():
                text.set_parse_math(False)
        axes.spines[["top", "right"]].set_visible(b=False)
        axes.grid(alpha=0.25)
        file = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a letter that the font does not have
            dated: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {}
            figure.savefig(file, format=kind, dpi=150, **dated)
    return file.getvalue()


def _label(name: str, key: str, runs: int, keys: int) -> str:
    if runs == 1:
        return _cut(key)
    return _cut(name) if keys == 1 else f"{_cut(name)}: {_cut(key)}"


def _cut(text: str) -> str:
    return text if len(text) <= _LABEL else f"{text[:_LABEL]}…"
