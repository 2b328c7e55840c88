"""The plots of speed.md as SVG, from numbers that stand in its tables."""

from __future__ import annotations

from html import escape
from typing import NamedTuple


class Bar(NamedTuple):
    """One bar: what was done, and the text of the number, as in the table."""

    label: str
    value: str
    is_floor: bool = False


class Plot(NamedTuple):
    """Groups of bars; each group has a scale of its own where ``shared`` is false."""

    unit: str
    groups: dict[str, list[Bar]]
    shared: bool = False


def _beside(floor: str, floor_value: str, ours: str) -> list[Bar]:
    return [Bar(floor, floor_value, is_floor=True), Bar("mlflow exim", ours)]


PLOTS = {
    "speed-read": Plot(
        "s",
        {
            "2.0M metric rows over HTTP": _beside("get-history", "120", "92"),
            "the same rows from SQLite": _beside("ADBC to Parquet", "1.16", "1.42"),
            "10,000 runs from SQLite": _beside("rows alone, SQLAlchemy", "0.48", "1.9"),
            "1.0 GB of artifacts": _beside("tar, zstd -1 -T2", "3.0", "1.9"),
            "100,000 traces over HTTP": _beside("search, batchGet", "1,092", "1,017"),
            "the same traces from SQLite": _beside("through the server", "640", "167"),
        },
    ),
    "speed-write": Plot(
        "s",
        {
            "2.0M metric rows into SQLite": _beside("executemany", "8.4", "10.3"),
            "2.0M metric rows into PostgreSQL": _beside("COPY", "20.5", "17.7"),
            "10,000 runs into SQLite": _beside("executemany", "1.1", "2.8"),
            "10,000 runs into PostgreSQL": _beside("COPY", "2.0", "4.2"),
            "10,000 traces over HTTP": _beside("OTLP, StartTraceV3", "243", "288"),
        },
    ),
    "speed-memory": Plot(
        "MB",
        {
            "metric rows from SQLite": [Bar("2.0M", "294"), Bar("20.0M", "330")],
            "metric rows into SQLite": [Bar("2.0M", "326"), Bar("20.0M", "378")],
            "artifacts": [Bar("1.0 GB", "260"), Bar("one of 5 GB", "246")],
            "traces over HTTP, written": [Bar("10,000", "272"), Bar("100,000", "299")],
        },
        shared=True,
    ),
}
_WIDTH, _LEFT, _MOST = 720, 190, 420
_LINE, _GAP = 18, 14
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f } .group { font-weight: 600 }
.ours { fill: #0969da } .floor { fill: #8c959f } rect.page { fill: #fff }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } rect.page { fill: #0d1117 }
  .ours { fill: #58a6ff } .floor { fill: #6e7681 }
}"""


def number(text: str) -> float:
    """Return the number that a table writes so."""
    return float(text.replace(",", ""))


def svg(plot: Plot) -> str:
    """Draw a plot."""
    bars = [bar for group in plot.groups.values() for bar in group]
    most = max(number(bar.value) for bar in bars)
    shapes, y = [], _GAP
    for title, group in plot.groups.items():
        scale = _MOST / (most if plot.shared else max(number(bar.value) for bar in group))
        y += _LINE
        shapes.append(f'<text class="group" x="12" y="{y}">{escape(title)}</text>')
        for bar in group:
            y += _LINE
            width = number(bar.value) * scale
            kind = "floor" if bar.is_floor else "ours"
            box = f'x="{_LEFT}" y="{y - 11}" width="{width:.1f}" height="13" rx="2"'
            shapes += [
                f'<text x="{_LEFT - 8}" y="{y}" text-anchor="end">{escape(bar.label)}</text>',
                f'<rect class="{kind}" {box}/>',
                f'<text x="{_LEFT + width + 6:.1f}" y="{y}">{bar.value} {plot.unit}</text>',
            ]
        y += _GAP
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" role="img">',
            f"<style>{_STYLE}</style>",
            f'<rect class="page" width="{_WIDTH}" height="{y}" rx="6"/>',
            *shapes,
            "</svg>\n",
        ]
    )
