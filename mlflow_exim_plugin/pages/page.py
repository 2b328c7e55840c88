"""One HTML file of a template, its style, its scripts and its data.

Everything in an archive is text of strangers: the template escapes it, scripts get it as JSON in
which no markup can stand and show it as text, and the page's policy lets nothing else run or be
fetched.
"""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from mlflow_exim_plugin.errors import MissingDependencyError
from mlflow_exim_plugin.redaction import redact, writable
from mlflow_exim_plugin.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["page", "shown"]

_HERE = Path(__file__).parent
_LONGEST = 300
"""Characters of a text that a page shows."""
_MARKUP = str.maketrans({c: f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
"""Controls, among them those that turn the direction of text outside of their own."""


def shown(value: Any, longest: int = _LONGEST) -> str:
    """Return a text as a page may show it: cut, without secrets, with controls named."""
    text = str(value)
    if "://" in text or "=" in text or ":" in text:
        text = redact(text[: 4 * longest])
    if len(text) > longest:
        text = f"{text[:longest]}…"
    if not text.isprintable():  # else there is none of either
        text = _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", writable(text))
    return text


def page(template: str, data: Any, words: Mapping[str, Any]) -> bytes:
    """Return a page.

    Args:
        template: Name of its template.
        data: What its scripts read, as JSON values; NaN and infinities become null.
        words: What its template is filled with.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    style = _file("uplot/uPlot.min.css") + _file("page.css")
    scripts = [_file("uplot/uPlot.iife.min.js"), _file("grid.js"), _file("charts.js")]
    allowed = " ".join(_hash(script) for script in scripts)
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M")
    safe = _safe_type()
    document = _templates().get_template(template)
    text = document.render(
        words,
        policy=policy,
        version=__version__,
        made=made,
        style=safe(style),
        scripts=[safe(script) for script in scripts],
        data=safe(orjson.dumps(data).decode().translate(_MARKUP)),
    )
    return str(text).encode()


@cache
def _templates() -> Any:
    try:
        import jinja2
    except ImportError:
        raise MissingDependencyError("pages are made with Jinja2", "pip install jinja2") from None
    environment = jinja2.Environment(
        autoescape=True,
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["shown"] = shown
    environment.filters["spaced"] = lambda kind: shown(kind).replace("_", " ")
    return environment


def _safe_type() -> Any:
    import markupsafe  # comes with Jinja2

    return markupsafe.Markup


def _file(name: str) -> str:
    return (_HERE / name).read_text("utf-8")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
