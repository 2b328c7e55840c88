"""Runs that are there under another id: what the coming one was made of, or what was made of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.schema.objects import Kind, Loss
from mlflow_exim_plugin.sinks.database.files import complete_missing
from mlflow_exim_plugin.sinks.database.states import comparable
from mlflow_exim_plugin.sinks.kin import RUN_STATES, own_tags

if TYPE_CHECKING:
    from mlflow_exim_plugin.host.sql.writer import Rows
    from mlflow_exim_plugin.schema.objects import Run
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.database.target import DatabaseTarget, TargetExperiment

__all__ = ["settle_kin"]


def settle_kin(
    target: DatabaseTarget,
    source_id: str,
    run: Run,
    there: dict[str, Any],
    into: TargetExperiment,
    latest: Rows,
    report: Report,
) -> None:
    """Send the files that such a run lacks, or leave it as it is and name what differs.

    Args:
        target: The database.
        source_id: Id at the source of the run that comes.
        run: That run.
        there: The row of its kin.
        into: Its experiment.
        latest: Rows of the latest value of each of its metrics.
        report: Counts and names what happens.
    """
    identity = str(there["run_uuid"])
    reason = f"it is there already, as {identity}"
    if differing := ", ".join(_differing(target, run, latest, there)):
        reason = f"the target has another state of it, as {identity}, which stays: {differing}"
        report.lost(Loss(Kind.RUN, source_id, reason))
    elif complete_missing(
        target, Kind.RUN, source_id, str(there["artifact_uri"] or ""), run.artifacts, report
    ):
        with target.lock:
            target.require_kept(into)
            target.count(Kind.RUN, report)
        return
    report.skipped(Kind.RUN, source_id, reason)


def _differing(target: DatabaseTarget, run: Run, latest: Rows, there: dict[str, Any]) -> list[str]:
    """Return what of a run its kin has otherwise, or not at all."""
    comes = {"status": "RUNNING", "start_time": 0, "lifecycle_stage": "active"} | run.info
    found = [name for name in RUN_STATES if comparable(comes.get(name)) != comparable(there[name])]
    tags = own_tags(run.tags)
    metrics = {row["key"]: _value(row) for _, row in latest}
    tables, owner = target.tables, {"run_uuid": there["run_uuid"]}
    with target.lock:
        parts: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
            "params": (
                run.params,
                {r["key"]: r["value"] for r in tables.select("params", **owner)},
            ),
            "tags": (tags, {r["key"]: r["value"] for r in tables.select("tags", **owner)}),
            "metrics": (
                metrics,
                {r["key"]: _value(r) for r in tables.select("latest_metrics", **owner)},
            ),
        }
    for name, (coming, kept) in parts.items():
        own = {tables.told_apart(key): comparable(value) for key, value in kept.items()}
        if any(own.get(tables.told_apart(k), own) != comparable(v) for k, v in coming.items()):
            found.append(name)
    return found


def _value(row: dict[str, Any]) -> tuple[Any, ...]:
    return bool(row["is_nan"]), float(row["value"]), int(row["step"]), int(row["timestamp"])
