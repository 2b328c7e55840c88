"""Runs and logged models to a database, under their own ids."""

from __future__ import annotations

import math
import uuid
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.sql.run_rows import logged_model_metrics, logged_model_rows, run_rows
from mlflow_exim_plugin.host.sql.stored_values import as_stored_number
from mlflow_exim_plugin.schema.objects import Failure, Kind, LoggedModel, Loss, Run
from mlflow_exim_plugin.schema.provenance import origins
from mlflow_exim_plugin.sinks.absent_kinds import ABSENT
from mlflow_exim_plugin.sinks.counting import count_artifacts, count_run
from mlflow_exim_plugin.sinks.database.files import (
    FileComparison,
    complete_missing,
    is_elsewhere,
    put_files,
)
from mlflow_exim_plugin.sinks.database.grown_runs import ComingRun, GrownRuns, as_copy
from mlflow_exim_plugin.sinks.database.kin import settle_kin
from mlflow_exim_plugin.sinks.database.states import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.host.sql.writer import Rows
    from mlflow_exim_plugin.schema.metric_rows import RunRows
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.database.states import RowComparison
    from mlflow_exim_plugin.sinks.database.target import DatabaseTarget, TargetExperiment

__all__ = ["RunTables"]

_USER = "mlflow.user"


class RunTables:
    """Writes runs and logged models; safe to use from several threads.

    Args:
        target: The database.
    """

    def __init__(self, target: DatabaseTarget) -> None:
        self._target = target
        self._grown = GrownRuns(target)
        self._metrics_of_models: list[tuple[str, Rows]] = []

    def write_run(self, run: Run, into: TargetExperiment, report: Report) -> None:
        """Write one run with its parts.

        Raises:
            ServerError: The database cannot hold it.
        """
        target, source_id = self._target, run.id
        uri = target.place(str(run.info.get("artifact_uri") or ""), into, f"{run.id}/artifacts")
        with target.lock:
            copy = target.copy_of(run.id, "tags", "key", "run_uuid") if into.is_copy else None
            came_from = origins(run.id, run.tags)
            original = copy or target.original_of("runs", "run_uuid", came_from, into)
            kin = target.tables.one("runs", run_uuid=original) if original else None
            if kin is not None:
                target.know_kin(run, kin)
            if copy is not None:
                run = as_copy(run, copy, target)
        if kin is not None and copy is None:
            settle_kin(target, source_id, run, kin, into, _latest(run), report)
            return
        tags, user = run.tags | run.source_tags, run.info.get("user_id")
        if importer := target.options.importer:
            user = importer
            tags |= {_USER: importer} if _USER in tags else {}
        key = {"run_uuid": run.id}
        with target.lock:
            target.require_kept(into)
            fresh: dict[tuple[str, str], str] = {}
            dataset_uuid = partial(self._dataset, into, fresh)
            rows = run_rows(run, into.id, uri, user, tags, dataset_uuid)
            if Kind.LOGGED_MODEL in target.capabilities.lacks:
                rows = [row for row in rows if not row[1].get("source_type", "").startswith("RUN_")]
            rows = target.fit(Kind.RUN, source_id, rows, report)
            listed = _latest(run)
            latest = target.fit(Kind.RUN, source_id, listed, report)
            if len(latest) < len(listed):
                run = _without_metrics(run, {row["key"] for _, row in latest})
            compared = target.compare(Kind.RUN, [*rows, *latest], key)
            if compared is None:
                _say_filled(run, user, report)
                target.require([*rows, *latest])
                target.add(rows, **key)
                into.datasets |= fresh
        if compared is not None:
            coming = ComingRun(source_id, run, compared, rows, latest, into)
            if self._grown.settle(coming, report):
                into.datasets |= fresh
            return
        if target.options.dry_run:
            count_run(replace(run, histories=self._foreseen(run)), report)
            return
        self._put_histories(run, into, latest, report)
        put_files(target, run.id, uri, run.artifacts, report)
        with target.lock:
            target.require_kept(into)
            target.count(Kind.RUN, report)

    def _foreseen(self, run: Run) -> Iterator[RunRows | Failure]:
        for rows in run.histories:
            if not isinstance(rows, Failure):
                with self._target.lock:
                    self._target.metrics.foresee(rows)
            yield rows

    def _put_histories(
        self, run: Run, into: TargetExperiment, latest: Rows, report: Report
    ) -> None:
        """Write the histories of a run, and the latest value of each key."""
        target, seen = self._target, set[str]()
        for rows in run.histories:
            if isinstance(rows, Failure):
                report.failed(rows)
                continue
            keys = set(rows.keys)
            with target.lock:
                target.require_kept(into)
                target.metrics.add(rows)
                target.count(Kind.METRIC_HISTORY, report, len(keys - seen), rows=rows.num_rows)
            seen |= keys
        with target.lock:
            target.require_kept(into)
            target.metrics.end(run.id)
            if len(latest) > len(seen):  # of some keys nothing but the latest value is known
                target.add([row for row in latest if row[1]["key"] not in seen])

    def _dataset(
        self, into: TargetExperiment, fresh: dict[tuple[str, str], str], row: dict[str, Any]
    ) -> tuple[str, bool]:
        """Return the id of a dataset of an experiment, and whether it is new there."""
        target, identity = self._target, (str(row["name"]), str(row["digest"]))
        known = into.datasets.get(identity) or fresh.get(identity)
        if known is None and not into.is_new:
            key = {"experiment_id": into.id, "name": identity[0], "digest": identity[1]}
            found = target.tables.one("datasets", **key)
            if found is None and target.options.among_others and not target.options.dry_run:
                new = {"dataset_uuid": uuid.uuid4().hex, **row}
                found = target.tables.put_for_all("datasets", new, **key)
                into.datasets[identity] = str(found["dataset_uuid"])
            known = str(found["dataset_uuid"]) if found else None
        if known is not None:
            return known, False
        fresh[identity] = uuid.uuid4().hex
        return fresh[identity], True

    def write_logged_model(
        self, model: LoggedModel, into: TargetExperiment, report: Report
    ) -> None:
        """Write one logged model with its parts.

        Raises:
            ServerError: The database cannot hold it, or has no logged models.
        """
        target = self._target
        if Kind.LOGGED_MODEL in target.capabilities.lacks:
            report.skipped(Kind.LOGGED_MODEL, model.id, ABSENT)
            return
        source = str(model.info.get("artifact_uri") or "")
        location = target.place(source, into, f"models/{model.id}/artifacts")
        rows = logged_model_rows(model, into.id, location, model.tags | model.source_tags)
        rows = target.fit(Kind.LOGGED_MODEL, model.id, rows, report)
        metrics = logged_model_metrics(model, into.id)
        key = {"model_id": model.id}
        with target.lock:
            target.require_kept(into)
            tags_of = ("logged_model_tags", "tag_key", "model_id")
            if into.is_copy and (copy := target.copy_of(model.id, *tags_of)):
                report.skipped(Kind.LOGGED_MODEL, model.id, f"it is there already, as {copy}")
                return
            came_from = origins(model.id, model.tags)
            if original := target.original_of("logged_models", "model_id", came_from, into):
                report.skipped(Kind.LOGGED_MODEL, model.id, f"it is there already, as {original}")
                return
            metrics, waiting = self._by_run(metrics)
            rows += metrics
            compared = target.compare(Kind.LOGGED_MODEL, rows, key)
            if compared is None or compared.state in {State.EARLIER, State.SAME}:
                self._metrics_of_models += [(model.id, waiting)] if waiting else []
            is_left = compared is not None and compared.state is not State.EARLIER
            if not is_left:
                target.require(rows + waiting)
            if compared is None:
                target.add(rows, **key)
            elif not is_left:
                target.grow(Kind.LOGGED_MODEL, model.id, compared, report)
        if compared is not None and is_left:
            root = str(compared.there["artifact_location"] or "")
            files = (Kind.LOGGED_MODEL, model.id, root, model.artifacts)
            if not (compared.is_finished and complete_missing(target, *files, report)):
                target.leave(Kind.LOGGED_MODEL, model.id, compared, report)
                return
        elif compared is not None:
            self._complete_files(model, compared, report)
        elif target.options.dry_run:
            count_artifacts(model.artifacts, report)
        else:
            put_files(target, model.id, location, model.artifacts, report)
        with target.lock:
            target.require_kept(into)
            target.count(Kind.LOGGED_MODEL, report)

    def _complete_files(self, model: LoggedModel, compared: RowComparison, report: Report) -> None:
        """Send what a model lacks that was not finished yet; one that was has all its files."""
        if compared.was_open:
            root = str(compared.there["artifact_location"] or "")
            files = FileComparison(self._target, Kind.LOGGED_MODEL, model.id, root, model.artifacts)
            files.complete(report, replaces=is_elsewhere(root, model.info.get("artifact_uri")))

    def _by_run(self, metrics: Rows) -> tuple[Rows, Rows]:
        """Return the metrics whose run is there, and the others."""
        run_ids = {row["run_id"] for _, row in metrics}
        there = {run_id for run_id in run_ids if self._target.is_there("runs", run_uuid=run_id)}
        return (
            [entry for entry in metrics if entry[1]["run_id"] in there],
            [entry for entry in metrics if entry[1]["run_id"] not in there],
        )

    def finish(self, report: Report) -> None:
        """Write the metrics of logged models whose runs came later, from other experiments."""
        waiting, self._metrics_of_models = self._metrics_of_models, []
        for model_id, metrics in waiting:
            if not self._target.is_there("logged_models", model_id=model_id):
                continue
            there, lost = self._by_run(metrics)
            self._target.add(there)
            if lost:
                runs = ", ".join(sorted({row["run_id"] for _, row in lost})[:10])
                what = f"{len(lost)} metrics are left out, their runs are not there: {runs}"
                report.lost(Loss(Kind.LOGGED_MODEL, model_id, what))


def _without_metrics(run: Run, kept: set[str]) -> Run:
    """Return a run with the metrics of some keys alone."""

    def histories() -> Iterator[RunRows | Failure]:
        for rows in run.histories:
            if isinstance(rows, Failure):
                yield rows
            elif left := {*rows.keys} - kept:
                if (fitting := rows.without(left)) is not None:
                    yield fitting
            else:
                yield rows

    data = run.document["data"]
    metrics = [metric for metric in data["metrics"] if metric["key"] in kept]
    document = run.document | {"data": data | {"metrics": metrics}}
    return replace(run, document=document, histories=histories())


def _say_filled(run: Run, user: str | None, report: Report) -> None:
    """Name what a run lacks and a table has to have: MLflow reads no run without."""
    for name, value, filled in (
        ("user", user, "an empty one"),
        ("start time", run.info.get("start_time"), "0"),
    ):
        if value is None:
            what = f"it has no {name}, without which MLflow reads no run: it gets {filled}"
            report.lost(Loss(Kind.RUN, run.id, what))


def _latest(run: Run) -> Rows:
    """Return the row of the latest value of each key, as the run's document has it."""
    rows: Rows = []
    run_id = run.id
    for metric in run.document.get("data", {}).get("metrics") or ():
        value = metric["value"]
        is_finite = type(value) is float and math.isfinite(value)
        row = {
            "key": metric["key"],
            "value": value if is_finite else as_stored_number(value),
            "timestamp": metric.get("timestamp", 0),
            "step": metric.get("step", 0),
            "is_nan": not is_finite and math.isnan(float(value)),
            "run_uuid": run_id,
        }
        rows.append(("latest_metrics", row))
    return rows
