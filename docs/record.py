"""Records the picture of a terminal that README shows: a real session as docs/images/session.svg.

python docs/record.py    needs the package with its extra `dev`; starts an MLflow server
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent)]

from docs import example_store  # noqa: E402
from tests.servers import start_server  # noqa: E402

STORE = "sqlite:///mlflow.db"
SESSION = """
# What a laptop logged, in one file
mlflow exim pack backup.tar.zst --tracking-uri {store}
# Look inside, without unpacking
mlflow exim ls backup.tar.zst
# Onto the team's server
mlflow exim unpack backup.tar.zst --tracking-uri {server} | tail -2
# Is all of it there? Field by field, row by row, file by file:
mlflow exim diff {store} {server} | tail -1
"""
_CHARACTER, _LINE, _EDGE, _BAR = 7.25, 18, 16, 34
_STYLE = """
text { font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  fill: #d0d7de; white-space: pre }
.comment { fill: #8b949e } .command { fill: #fff; font-weight: 600 } .prompt { fill: #7ee787 }"""


def main() -> None:
    """Run the session and write the picture."""
    with tempfile.TemporaryDirectory() as folder, start_server(Path(folder, "server")) as server:
        os.chdir(folder)
        example_store.fill(STORE, Path("artifacts").resolve().as_uri())
        lines = list(_run(SESSION.format(store=STORE, server=server.url)))
    (DOCS / "images" / "session.svg").write_text(svg(lines), encoding="utf-8")


def _run(session: str) -> list[tuple[str, str]]:
    """Run the commands in a shell; return what a terminal shows, each line with its class."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shown: list[tuple[str, str]] = []
    for line in session.strip().splitlines():
        if line[0] == "#":
            shown += [("", "")] if shown else []
            shown.append(("comment", line))
            continue
        done = subprocess.run(  # noqa: S603
            ["/bin/bash", "-o", "pipefail", "-c", line],
            env=os.environ | {"PATH": path},
            capture_output=True,
            text=True,
            check=True,
        )
        shown.append(("command", line))
        shown += [("", text) for text in done.stdout.splitlines()]
    return shown


def svg(lines: list[tuple[str, str]]) -> str:
    """Draw the lines of a terminal."""
    width = max(len(text) + 2 for _, text in lines) * _CHARACTER + 2 * _EDGE
    height = _BAR + len(lines) * _LINE + _EDGE
    shapes = [
        f'<circle cx="{_EDGE + 4 + 18 * number}" cy="18" r="5.5" fill="{color}"/>'
        for number, color in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    ]
    for number, (kind, text) in enumerate(lines):
        prompt = '<tspan class="prompt">$ </tspan>' if kind == "command" else ""
        shapes.append(
            f'<text class="{kind}" x="{_EDGE}" y="{_BAR + (number + 1) * _LINE - 4}" '
            f'xml:space="preserve">{prompt}{escape(text)}</text>'
        )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}">',
            f"<style>{_STYLE}</style>",
            f'<rect width="{width:.0f}" height="{height}" rx="9" fill="#0d1117"/>',
            *shapes,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    main()
