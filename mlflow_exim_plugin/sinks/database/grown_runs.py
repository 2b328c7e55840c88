"""Runs that a database has already: those that went on at the source since are completed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import pyarrow as pa

from mlflow_exim_plugin.schema.metric_rows import RunRows
from mlflow_exim_plugin.schema.objects import Kind, Run, linked_models
from mlflow_exim_plugin.schema.provenance import AS_OF_MS, is_provenance
from mlflow_exim_plugin.schema.runs import LOGGED_MODELS, PARENT, with_new_run_ids
from mlflow_exim_plugin.schema.tables import history_table, sort_history
from mlflow_exim_plugin.sinks.database.files import FileComparison, complete_missing, is_elsewhere
from mlflow_exim_plugin.sinks.database.histories import HistoryComparison
from mlflow_exim_plugin.sinks.database.kin import settle_kin
from mlflow_exim_plugin.sinks.database.states import State

if TYPE_CHECKING:
    from mlflow_exim_plugin.host.sql.writer import Rows
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.database.states import RowComparison
    from mlflow_exim_plugin.sinks.database.target import DatabaseTarget, TargetExperiment

__all__ = ["ComingRun", "GrownRuns", "as_copy"]


@dataclass
class ComingRun:
    """A run that comes where the target has it already.

    Attributes:
        identity: Its id at the source.
        run: The run with its id at the target.
        compared: How its rows there stand to those that come.
        rows: Its rows.
        latest: Those of the latest of each key.
        into: Its experiment.
    """

    identity: str
    run: Run
    compared: RowComparison
    rows: Rows
    latest: Rows
    into: TargetExperiment


class GrownRuns:
    """Completes runs of which the target has an earlier state; safe from several threads.

    Args:
        target: The database.
    """

    def __init__(self, target: DatabaseTarget) -> None:
        self._target = target

    def settle(self, coming: ComingRun, report: Report) -> bool:
        """Complete a run that is there, or leave it as it is; return whether rows were written.

        Raises:
            ServerError: The database cannot hold it.
        """
        identity, run, compared = coming.identity, coming.run, coming.compared
        target = self._target
        place = f", as run {run.id}" if run.id != identity else ""
        leave = partial(target.leave, Kind.RUN, identity, compared, report, place)
        if place and not compared.was_open:
            there, into = compared.there, coming.into
            settle_kin(target, identity, run, there, into, coming.latest, report)
            return False
        if not compared.may_grow:
            root = str(compared.there["artifact_uri"] or "")
            finished = (Kind.RUN, identity, root, run.artifacts)
            if compared.is_finished and complete_missing(target, *finished, report):
                with target.lock:
                    target.require_kept(coming.into)
                    target.count(Kind.RUN, report)
            else:
                leave()
            return False
        with HistoryComparison(target, run.id) as histories:
            self._compare(run, compared, histories, report)
            root = str(compared.there["artifact_uri"] or "")
            is_same = compared.state is State.SAME
            if compared.state is not State.EARLIER and not is_same:
                leave()
                return False
            files = FileComparison(target, Kind.RUN, identity, root, run.artifacts)
            if is_same and not files.lacks:
                files.name_others(report)
                leave()
                return False
            self._put_rows(coming, histories, report)
        # Only what proves the run itself to be ahead tells which of two files is the later one.
        replaces = compared.lacks and is_elsewhere(root, run.info.get("artifact_uri"))
        files.complete(report, replaces=replaces)
        with target.lock:
            target.require_kept(coming.into)
            target.count(Kind.RUN, report)
        return not is_same

    def _compare(
        self, run: Run, compared: RowComparison, histories: HistoryComparison, report: Report
    ) -> None:
        """Let a run's metric rows tell what state of it the target has."""
        coming = iter(run.histories)
        first = next(coming, None)
        is_read = first is not None or not (self._target.options.dry_run and run.metric_keys)
        if is_read:
            leads = histories.compare(chain([] if first is None else [first], coming))
        else:  # a dry run may come without rows: the latest of each key stand for them
            histories.compare([_latest_rows(run)])
            leads = False
        for failure in histories.failures:
            report.failed(failure)
        compared.see("metrics", lacks=bool(histories.grown), leads=leads)

    def _put_rows(self, coming: ComingRun, histories: HistoryComparison, report: Report) -> None:
        """Write the rows that the target lacks, and those that became others."""
        identity, run, compared = coming.identity, coming.run, coming.compared
        target, grown = self._target, len(histories.grown)
        target.require([*coming.rows, *coming.latest])
        compared.missing += _beside_links(coming.rows, compared)
        if "lifecycle_stage" in compared.update:
            compared.update["deleted_time"] = coming.rows[0][1]["deleted_time"]
        with target.lock:
            target.require_kept(coming.into)
            if run.id != identity:
                self._note_as_of(run, compared)
            target.grow(Kind.RUN, identity, compared, report)
            target.metrics.note_infinite(run.id, histories.infinite)
            if grown:
                target.count(Kind.METRIC_HISTORY, report, grown, rows=histories.rows)
            if not target.options.dry_run:
                unread = [row for _, row in coming.latest if row["key"] not in histories.keys]
                target.metrics.resume(run.id, unread)
        unchanged = len(histories.keys) - grown
        report.skipped(Kind.METRIC_HISTORY, identity, "they are there already", unchanged)
        if target.options.dry_run:
            return
        for part in histories.missing():
            with target.lock:
                target.require_kept(coming.into)
                target.metrics.add(part)
        with target.lock:
            target.metrics.end(run.id)

    def _note_as_of(self, run: Run, compared: RowComparison) -> None:
        """Let an unpack of an older archive by MLflow's API take nothing back of a copy."""
        row = {"run_uuid": run.id, "key": AS_OF_MS, "value": str(run.as_of_ms)}
        key = {"run_uuid": run.id, "key": AS_OF_MS}
        if self._target.tables.one("tags", **key) is None:
            compared.missing.append(("tags", row))
        else:
            compared.changed.append(("tags", row, key))


def as_copy(run: Run, copy: str, target: DatabaseTarget) -> Run:
    """Return a run as an unpack by MLflow's API wrote it, with the ids of the target.

    Args:
        run: The run.
        copy: Its id at the target.
        target: Where other copies are known.
    """

    def run_id(old: str) -> str:
        return target.copy_of(old, "tags", "key", "run_uuid") or old

    def model_id(old: str) -> str:
        has_models = target.tables.has("logged_models")
        of_models = ("logged_model_tags", "tag_key", "model_id")
        return (has_models and target.copy_of(old, *of_models)) or old

    tags = {key: value for key, value in run.tags.items() if not is_provenance(key)}
    if parent := tags.get(PARENT):
        tags[PARENT] = run_id(parent)
    if history := tags.get(LOGGED_MODELS):
        tags[LOGGED_MODELS] = with_new_run_ids(history, run_id)
    document = dict(run.document)
    document["info"] = run.info | {"run_id": copy}
    listed = [{"key": key, "value": value} for key, value in tags.items()]
    document["data"] = document.get("data", {}) | {"tags": listed}
    inputs, outputs = linked_models(run.document)
    if inputs:
        linked = [{"model_id": model_id(old)} for old in inputs]
        document["inputs"] = document["inputs"] | {"model_inputs": linked}
    if outputs:
        made = [{"model_id": model_id(old), "step": step} for old, step in outputs]
        document["outputs"] = document["outputs"] | {"model_outputs": made}
    return replace(run, document=document)


def _latest_rows(run: Run) -> RunRows:
    """Return the latest of each key, as the run's document has it."""
    tables = [
        history_table(
            str(metric["key"]),
            [int(metric.get("step", 0))],
            [int(metric.get("timestamp", 0))],
            [float(metric["value"])],
        )
        for metric in run.document["data"]["metrics"]
    ]
    return RunRows.of(run.id, sort_history(pa.concat_tables(tables)))


def _beside_links(rows: Rows, compared: RowComparison) -> Rows:
    """Return the datasets and tags that belong to the links which the target lacks."""
    links = [row for table, row in compared.missing if table == "inputs"]
    inputs = {row["input_uuid"] for row in links}
    sources = {row["source_id"] for row in links}
    return [
        (table, row)
        for table, row in rows
        if (table == "datasets" and row["dataset_uuid"] in sources)
        or (table == "input_tags" and row["input_uuid"] in inputs)
    ]
