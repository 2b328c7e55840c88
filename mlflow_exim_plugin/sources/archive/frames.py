"""Runs of an archive as the DataFrame of ``mlflow.search_runs``, without MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

__all__ = ["frame_of", "stages_of"]

_VIEWS = ("", "active_only", "deleted_only", "all")
"""Names of MLflow's ``ViewType`` by its numbers."""
_STAGES = {"active_only": {"active"}, "deleted_only": {"deleted"}, "all": {"active", "deleted"}}
_INFO = ("run_id", "experiment_id", "status", "artifact_uri")
_TIMES = ("start_time", "end_time")


def stages_of(run_view_type: int | str) -> set[str]:
    """Return the lifecycle stages that MLflow's ``ViewType``, a number or its name, stands for.

    Raises:
        UsageError: It is none.
    """
    is_number = isinstance(run_view_type, int) and 0 < run_view_type < len(_VIEWS)
    name = _VIEWS[int(run_view_type)] if is_number else str(run_view_type).lower()
    if name not in _STAGES:
        raise UsageError(f"run_view_type is {', '.join(_STAGES)}, not {run_view_type!r}")
    return _STAGES[name]


def frame_of(runs: Iterable[dict[str, Any]], max_results: int) -> pd.DataFrame:
    """Return REST's ``Run`` objects as ``mlflow.search_runs`` does, the last started first.

    Args:
        runs: In any order.
        max_results: No more rows than these.

    Raises:
        MissingDependencyError: pandas is not installed.
    """
    pd = _pandas()
    # As MLflow sorts: without a start time a run comes last, and equals come by their ids.
    ordered = sorted(runs, key=lambda run: (-run["info"].get("start_time", -1), _id(run)))
    ordered = ordered[:max_results]
    columns: dict[str, list[Any]] = {
        name: [run["info"].get(name) for run in ordered] for name in _INFO
    }
    for name in _TIMES:
        times = (run["info"].get(name) for run in ordered)
        columns[name] = [None if t is None else pd.Timestamp(t, unit="ms", tz="UTC") for t in times]
    for part, absent in (("metrics", float("nan")), ("params", None), ("tags", None)):
        columns |= _spread(ordered, part, absent)
    return pd.DataFrame(columns)


def _spread(runs: Sequence[dict[str, Any]], part: str, absent: Any) -> dict[str, list[Any]]:
    """Return a column for each key, in the order in which runs bring them."""
    columns: dict[str, list[Any]] = {}
    for row, run in enumerate(runs):
        for entry in run.get("data", {}).get(part, ()):
            value = entry.get("value", "")
            column = columns.setdefault(f"{part}.{entry['key']}", [absent] * len(runs))
            column[row] = float(value) if part == "metrics" else value
    return columns


def _id(run: dict[str, Any]) -> str:
    return str(run["info"]["run_id"])


def _pandas() -> Any:
    try:
        import pandas as pd
    except ImportError:
        raise MissingDependencyError(
            "search_runs gives a DataFrame, and pandas is not installed", "pip install pandas"
        ) from None
    return pd
