"""Sink ``database``: the stream goes into the tables of a database, with its ids and times.

What is free keeps its id, its number and its times; what is taken follows the policy. An earlier
state of the same object is completed, and nothing else that is there is changed. All of an
experiment becomes visible in one moment, or none of it; so do a registered model with its versions,
and each object that belongs to no experiment. What a run that was stopped left behind is therefore
whole, and the next one goes on behind it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import ServerError, ServerLostError
from mlflow_exim_plugin.host.types import require_types
from mlflow_exim_plugin.schema.objects import (
    Entity,
    Experiment,
    Failure,
    Kind,
    LoggedModel,
    Loss,
    ModelVersion,
    RegisteredModel,
    Run,
    StreamObject,
    Trace,
)
from mlflow_exim_plugin.sinks.counting import skip_whole
from mlflow_exim_plugin.sinks.database.entities import EntityTables
from mlflow_exim_plugin.sinks.database.experiments import ExperimentTables
from mlflow_exim_plugin.sinks.database.models import ModelTables
from mlflow_exim_plugin.sinks.database.runs import RunTables
from mlflow_exim_plugin.sinks.database.target import DatabaseTarget, TargetExperiment
from mlflow_exim_plugin.sinks.database.traces import TraceTables
from mlflow_exim_plugin.sinks.workspaces import as_it_is_there, document_for, row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sqlalchemy import Engine

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.options import Writing
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.sink import Capabilities

__all__ = ["DatabaseSink"]

_LOST = "its experiment could not be written"


class DatabaseSink:
    """Writes a stream to one database.

    Args:
        engine: The database, with MLflow's schema.
        options: How to write.
        source_ids: Gives the ids of all experiments that may come.
        host: The deployment that files are sent to; None where all stay where the source has them.
        jobs: How many runs or logged models may be written at once.
    """

    def __init__(
        self,
        engine: Engine,
        options: Writing,
        *,
        source_ids: Callable[[], Iterable[str]],
        host: Host | None = None,
        jobs: int = 4,
    ) -> None:
        self._target = DatabaseTarget(engine, options, host)
        # Threads help where each file costs a call; for rows alone they only wait for each other.
        self.parallel = 1 if options.dry_run or self._target.has_local_files else jobs
        self._experiments = ExperimentTables(self._target, source_ids)
        self._runs = RunTables(self._target)
        self._traces = TraceTables(self._target)
        self._models = ModelTables(self._target)
        self._entities = EntityTables(self._target)
        self._into: dict[str, TargetExperiment | str] = {}
        self._open: dict[str, TargetExperiment] = {}
        self._scope = ""
        self._closed = ""

    @property
    def capabilities(self) -> Capabilities:
        """What the database can keep."""
        return self._target.capabilities

    def reach(self) -> None:
        """Look at the target once, before anything is written.

        Raises:
            ServerError: It cannot be read, or another process is writing to its file.
        """
        self._experiments.load()

    def close(self) -> None:
        """Take back what is not finished, if anything."""
        self._target.tables.rollback()

    def write(self, item: StreamObject, report: Report) -> None:
        """Write one object with its parts.

        Raises:
            ConflictError: The target has a namesake of that name or number and the policy is
                ``fail``.
            InvalidArchiveError: The object's document is not as MLflow has it.
            ServerError: The database refused the object.
        """
        self._enter_scope(item, report)
        if isinstance(item, Entity) and item.kind is Kind.WORKSPACE:
            return
        if self._closed:
            name = item.name if isinstance(item, Experiment) else item.id
            report.skipped(item.kind, name, self._closed)
            return
        for issue in item.issues:
            report.issue(issue)
        if isinstance(item, RegisteredModel):
            self._models.drop()
        require_types(item)
        try:
            self._write(item, report)
        except (ServerError, ServerLostError) as error:
            with self._target.lock:
                if self._target.tables.is_broken:
                    self._abandon(error.message, report)
            raise

    def finish(self, report: Report) -> None:
        """Write what had to wait for what came later."""
        self._leave_scope(report)
        self._scope = "links between objects"
        self._guarded(lambda: self._runs.finish(report), report)
        self._guarded(lambda: self._entities.finish(report), report)
        self._leave_scope(report)
        for (table, column), count in sorted(self._target.tables.left_out.items()):
            kind = Kind.TRACE if table.startswith("trace") else Kind.EXPERIMENT
            what = f"the target has no column {table}.{column}: {count} values are left out"
            report.lost(Loss(kind, "*", what))
        if unmapped := self._target.tables.unmapped():
            what = f"nothing is written to what MLflow's known schemas lack: {', '.join(unmapped)}"
            report.lost(Loss(Kind.EXPERIMENT, "*", what))

    def _write(self, item: StreamObject, report: Report) -> None:
        if isinstance(item, Experiment):
            self._into[item.id] = _LOST
            into = self._experiments.write(item, report)
            self._into[item.id] = into
            if isinstance(into, TargetExperiment) and into.is_new:
                self._open[item.id] = into
        elif isinstance(item, RegisteredModel):
            self._models.begin(item, report)
        elif isinstance(item, ModelVersion):
            self._models.write_version(item, report)
        elif isinstance(item, Entity) and not item.experiment_id:
            self._entities.write(item, None, report)
        else:
            self._write_inside(item, report)

    def _write_inside(self, item: Run | LoggedModel | Trace | Entity, report: Report) -> None:
        """Write what belongs to an experiment."""
        into = self._into.get(item.experiment_id, _LOST)
        if into == _LOST:
            raise ServerError(_LOST)
        if isinstance(into, str):
            skip_whole(item, into, report)
            if isinstance(item, Run | LoggedModel):
                self._target.left.add(item, into)
        elif isinstance(item, Run):
            self._runs.write_run(item, into, report)
        elif isinstance(item, LoggedModel):
            self._runs.write_logged_model(item, into, report)
        elif isinstance(item, Trace):
            self._traces.write(item, into, report)
        else:
            self._entities.write(item, into.id, report)

    def _enter_scope(self, item: StreamObject, report: Report) -> None:
        """Commit what came before an object that begins something new."""
        if isinstance(item, Entity) and item.kind is Kind.WORKSPACE:
            self._leave_scope(report)
            self._enter_workspace(item, report)
        elif isinstance(item, Experiment | RegisteredModel) or (
            isinstance(item, Entity) and not item.experiment_id
        ):
            self._leave_scope(report)
            self._scope = item.name if isinstance(item, Experiment) else item.id

    def _leave_scope(self, report: Report) -> None:
        self._guarded(lambda: self._models.finish(report), report)
        self._guarded(lambda: self._target.commit(report), report)
        self._open.clear()

    def _guarded(self, call: Callable[[], None], report: Report) -> None:
        """Do what is no object's own, and take back what it belongs to where that fails."""
        try:
            call()
        except (ServerError, ServerLostError) as error:
            if not self._target.has_written:
                report.lost(Loss(Kind.EXPERIMENT, self._scope, error.message))
            self._abandon(error.message, report)
            if isinstance(error, ServerLostError):
                raise

    def _abandon(self, reason: str, report: Report) -> None:
        """Take back all that belongs to what is being written."""
        self._target.abandon(f"{self._scope}/*", reason, report)
        self._models.drop()
        self._experiments.reset()
        for identity, into in self._open.items():
            into.is_lost = True
            self._into[identity] = _LOST
        self._open.clear()
        for identity, known in self._into.items():
            if isinstance(
                known, TargetExperiment
            ):  # what other threads are writing to it was taken back too
                self._into[identity] = replace(known, is_new=False, datasets={})
                known.is_lost = True

    def _enter_workspace(self, workspace: Entity, report: Report) -> None:
        """Write what follows into a workspace."""
        tables, name = self._target.tables, workspace.id
        self._closed, self._target.workspace = "", name
        self._experiments.enter_workspace()
        self._models.enter_workspace()
        if not tables.has("workspaces"):
            self._closed = f"the target has no workspaces, and it is in {name!r}"
            reason = "the target's MLflow does not have workspaces"
            report.failed(Failure(Kind.WORKSPACE, name, reason))
            return
        there = tables.one("workspaces", name=name)
        if there is not None:
            reason = as_it_is_there(row_of(workspace.document), there)
            report.skipped(Kind.WORKSPACE, name, reason)
            return
        if not self._may_have_workspaces():
            self._closed = f"the target runs without workspaces, and it is in {name!r}"
            reason = (
                "the target is used without workspaces, and its server would not start again; "
                "MLFLOW_ENABLE_WORKSPACES=true says that it is to have them"
            )
            report.failed(Failure(Kind.WORKSPACE, name, reason))
            return
        self._target.add([("workspaces", row_of(document_for(workspace, report)))])
        self._target.count(Kind.WORKSPACE, report)

    def _may_have_workspaces(self) -> bool:
        """Whether the target has workspaces, is told to have them, or is nobody's yet."""
        switch = os.environ.get("MLFLOW_ENABLE_WORKSPACES", "").lower()
        others = [w for w in self._target.tables.select("workspaces") if w["name"] != "default"]
        return switch in {"true", "1"} or bool(others) or self._experiments.was_unused
