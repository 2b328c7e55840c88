"""What a policy means and what became of it, as one page that can be mailed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.pages.page import page, shown

if TYPE_CHECKING:
    from mlflow_exim_plugin.operations.retention.retain import Retention

__all__ = ["retention_page"]

_COLUMNS = (
    ("Outcome", "text"),
    ("Run", "id"),
    ("Name", "text"),
    ("Experiment", "text"),
    ("Rule", "text"),
    ("Why", "long"),
)


def retention_page(result: Retention) -> bytes:
    """Return what ``retain`` did as an HTML page that fetches nothing.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    table = {
        "noun": "run",
        "columns": [{"name": name, "type": type_} for name, type_ in _COLUMNS],
        "rows": [
            [
                run.outcome,
                run.run_id,
                shown(run.run_name),
                shown(run.experiment),
                shown(run.rule),
                shown("; ".join(run.reasons)),
            ]
            for run in result.runs
        ]
        + [
            ["failed", run_id, "", "", "", shown(f"it could not be freed to the end: {reason}")]
            for run_id, reason in result.unfinished.items()
        ],
    }
    return page("retention.html.jinja", [{"table": table}], {"result": result.to_dict()})
