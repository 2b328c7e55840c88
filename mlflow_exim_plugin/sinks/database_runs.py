"""Runs and logged models to a database, under their own ids."""

from __future__ import annotations

import math
import uuid
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.run_rows import (
    as_stored_number,
    logged_model_metrics,
    logged_model_rows,
    run_rows,
)
from mlflow_exim_plugin.schema.objects import Failure, Kind, LoggedModel, Loss, Run
from mlflow_exim_plugin.sinks.artifact_upload import ArtifactUpload
from mlflow_exim_plugin.sinks.counting import count_artifacts, count_run
from mlflow_exim_plugin.sinks.database_target import ABSENT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow_exim_plugin.host.table_writer import Rows
    from mlflow_exim_plugin.schema.objects import Artifact
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.database_experiments import Home
    from mlflow_exim_plugin.sinks.database_target import DatabaseTarget

__all__ = ["STAYS", "RunTables", "put_files"]

STAYS = "it stays where the source has it"
"""Why a file is not sent."""

_USER = "mlflow.user"


def put_files(
    target: DatabaseTarget,
    owner: str,
    root: str,
    artifacts: Iterable[Artifact | Failure],
    report: Report,
) -> None:
    """Send files to where a database says that they are, unless they stay where they were."""
    if not target.keeps_locations:
        ArtifactUpload(target.host, target.count_bytes).put(owner, root, "", artifacts, report)
        return
    for artifact in artifacts:
        if isinstance(artifact, Failure):
            report.failed(artifact)
        else:
            report.skipped(Kind.ARTIFACT, f"{owner}/{artifact.path}", STAYS)


class RunTables:
    """Writes runs and logged models; safe to use from several threads.

    Args:
        target: The database.
    """

    def __init__(self, target: DatabaseTarget) -> None:
        self._target = target
        self._metrics_of_models: list[tuple[str, Rows]] = []

    def write_run(self, run: Run, home: Home, report: Report) -> None:
        """Write one run with its parts.

        Raises:
            ServerError: The database cannot hold it.
        """
        target, info = self._target, run.info
        uri = target.place(str(info.get("artifact_uri") or ""), home, f"{run.id}/artifacts")
        tags, user = run.tags | run.source_tags, info.get("user_id")
        if importer := target.options.importer:
            user = importer
            tags |= {_USER: importer} if _USER in tags else {}
        key = {"run_uuid": run.id}
        with target.lock:
            target.require_kept(home)
            if home.is_copy and (copy := target.copy_of(run.id, "tags", "key", "run_uuid")):
                report.skipped(Kind.RUN, run.id, f"it is there already, as run {copy}")
                return
            fresh: dict[tuple[str, str], str] = {}
            dataset_uuid = partial(self._dataset, home, fresh)
            rows = run_rows(run, home.id, uri, user, tags, dataset_uuid)
            if not target.tables.has("logged_models"):
                rows = [row for row in rows if not row[1].get("source_type", "").startswith("RUN_")]
            latest = _latest(run)
            if target.is_settled(Kind.RUN, run.id, [*rows, *latest], key, report):
                return
            target.require([*rows, *latest])
            target.add(rows, **key)
            home.datasets |= fresh
            if target.options.dry_run:
                count_run(run, report)
                return
        self._put_histories(run, home, latest, report)
        put_files(target, run.id, uri, run.artifacts, report)
        with target.lock:
            target.require_kept(home)
            target.count(Kind.RUN, report)

    def _put_histories(self, run: Run, home: Home, latest: Rows, report: Report) -> None:
        """Write the histories of a run, and the latest value of each key."""
        target, seen = self._target, set[str]()
        for rows in run.histories:
            if isinstance(rows, Failure):
                report.failed(rows)
                continue
            keys = set(rows.keys)
            with target.lock:
                target.require_kept(home)
                target.metrics.add(rows)
                target.count(Kind.METRIC_HISTORY, report, len(keys - seen), rows=rows.num_rows)
            seen |= keys
        with target.lock:
            target.require_kept(home)
            target.metrics.end(run.id)
            if len(latest) > len(seen):  # of some keys nothing but the latest value is known
                target.add([row for row in latest if row[1]["key"] not in seen])

    def _dataset(
        self, home: Home, fresh: dict[tuple[str, str], str], dataset: dict[str, Any]
    ) -> tuple[str, bool]:
        """Return the id of a dataset of an experiment, and whether it is new there."""
        identity = (str(dataset["name"]), str(dataset["digest"]))
        known = home.datasets.get(identity) or fresh.get(identity)
        if known is None and not home.is_new:
            name, digest = identity
            found = self._target.tables.one(
                "datasets", experiment_id=home.id, name=name, digest=digest
            )
            known = str(found["dataset_uuid"]) if found else None
        if known is not None:
            return known, False
        fresh[identity] = uuid.uuid4().hex
        return fresh[identity], True

    def write_logged_model(self, model: LoggedModel, home: Home, report: Report) -> None:
        """Write one logged model with its parts.

        Raises:
            ServerError: The database cannot hold it, or has no logged models.
        """
        target = self._target
        if not target.tables.has("logged_models"):
            report.skipped(Kind.LOGGED_MODEL, model.id, ABSENT)
            return
        source = str(model.info.get("artifact_uri") or "")
        location = target.place(source, home, f"models/{model.id}/artifacts")
        rows = logged_model_rows(model, home.id, location, model.tags | model.source_tags)
        metrics = logged_model_metrics(model, home.id)
        key = {"model_id": model.id}
        with target.lock:
            target.require_kept(home)
            tags_of = ("logged_model_tags", "tag_key", "model_id")
            if home.is_copy and (copy := target.copy_of(model.id, *tags_of)):
                report.skipped(Kind.LOGGED_MODEL, model.id, f"it is there already, as {copy}")
                return
            if target.is_settled(Kind.LOGGED_MODEL, model.id, rows, key, report):
                return
            target.require(rows + metrics)
            target.add(rows, **key)
            if target.options.dry_run:
                count_artifacts(model.artifacts, report)
                report.written(Kind.LOGGED_MODEL)
                return
            waiting = self._put_metrics(metrics)
            if waiting:
                self._metrics_of_models.append((model.id, waiting))
        put_files(target, model.id, location, model.artifacts, report)
        with target.lock:
            target.require_kept(home)
            target.count(Kind.LOGGED_MODEL, report)

    def _put_metrics(self, metrics: Rows) -> Rows:
        """Write the metrics whose run is there; return the others."""
        waiting = []
        for table, row in metrics:
            if self._target.is_there("runs", run_uuid=row["run_id"]):
                self._target.add([(table, row)])
            else:
                waiting.append((table, row))
        return waiting

    def finish(self, report: Report) -> None:
        """Write the metrics of logged models whose runs came later, from other experiments."""
        waiting, self._metrics_of_models = self._metrics_of_models, []
        for model_id, metrics in waiting:
            if not self._target.is_there("logged_models", model_id=model_id):
                continue
            if lost := self._put_metrics(metrics):
                runs = ", ".join(sorted({row["run_id"] for _, row in lost})[:10])
                what = f"{len(lost)} metrics are left out, their runs are not there: {runs}"
                report.lost(Loss(Kind.LOGGED_MODEL, model_id, what))


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
