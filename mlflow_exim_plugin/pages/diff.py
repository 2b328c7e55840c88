"""A comparison as one page that can be mailed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from mlflow_exim_plugin.comparison.result import ABSENT
from mlflow_exim_plugin.pages.page import page, shown

if TYPE_CHECKING:
    from mlflow_exim_plugin.comparison.result import Comparison, Difference

__all__ = ["diff_page"]

_COLUMNS = (("Kind", "text"), ("Object", "id"), ("Field", "text"), ("A", "long"), ("B", "long"))


def diff_page(result: Comparison) -> bytes:
    """Return what a comparison found as an HTML page that fetches nothing.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    table = {
        "noun": "difference",
        "columns": [{"name": name, "type": type_} for name, type_ in _COLUMNS],
        "rows": [_row(difference) for difference in result.differences],
    }
    words = {"result": result.to_dict(), "verdict": result.verdict}
    return page("diff.html.jinja", [{"table": table}], words)


def _row(difference: Difference) -> list[Any]:
    kind = difference.kind.value
    field = difference.path.removeprefix(kind).removeprefix(".")
    other = f" (B: {difference.id_b})" if difference.id_b else ""
    sides = [_value(value) for value in (difference.a, difference.b)]
    if not field:
        field = f"only in {'B' if difference.a is ABSENT else 'A'}"
    return [difference.kind.words, shown(f"{difference.id}{other}"), shown(field), *sides]


def _value(value: Any) -> str | None:
    if value is ABSENT:
        return None
    return shown(value if isinstance(value, str) else orjson.dumps(value, default=str).decode())
