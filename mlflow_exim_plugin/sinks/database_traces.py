"""Traces to a database, under their own ids, some hundreds with each statement."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import InvalidArchiveError, ServerError, ServerLostError, StoreError
from mlflow_exim_plugin.host.connection import translated
from mlflow_exim_plugin.host.entity_rows import association
from mlflow_exim_plugin.host.trace_documents import ARTIFACT_LOCATION
from mlflow_exim_plugin.host.trace_rows import TraceForm, put_span_file
from mlflow_exim_plugin.schema.objects import LINKED_RUNS, Failure, Kind, Loss, Trace
from mlflow_exim_plugin.schema.traces import problem_of
from mlflow_exim_plugin.sinks.counting import count_trace
from mlflow_exim_plugin.sinks.database_runs import STAYS, put_files
from mlflow_exim_plugin.sinks.database_target import ABSENT

if TYPE_CHECKING:
    from mlflow_exim_plugin.host.table_writer import Rows
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.database_experiments import Home
    from mlflow_exim_plugin.sinks.database_target import DatabaseTarget

__all__ = ["TraceTables"]

_PROMPTS = "mlflow.linkedPrompts"


class TraceTables:
    """Writes traces with their spans, assessments and links.

    Args:
        target: The database.
    """

    def __init__(self, target: DatabaseTarget) -> None:
        self._target = target
        self._form = TraceForm(target.tables)

    def write(self, trace: Trace, home: Home, report: Report) -> None:
        """Write one trace.

        Raises:
            InvalidArchiveError: It lacks what every trace has.
            ServerError: The database cannot hold it.
        """
        target = self._target
        if not target.tables.has("trace_info"):
            report.skipped(Kind.TRACE, trace.id, ABSENT)
            return
        if problem := problem_of(trace):
            raise InvalidArchiveError(f"the trace is not as MLflow has it: {problem}")
        source = trace.info["tags"].get(ARTIFACT_LOCATION, "")
        location = target.place(source, home, f"traces/{trace.id}/artifacts")
        with translated(f"reading trace {trace.id}"):
            rows, changed = self._form.rows(trace, home.id, location)
        key = {"request_id": trace.id, "trace_id": trace.id}
        if target.is_settled(Kind.TRACE, trace.id, rows, key, report):
            return
        target.require(rows)
        for name in changed:
            report.lost(Loss(Kind.TRACE, trace.id, f"{name} is kept in the target's own form"))
        target.add(rows, request_id=trace.id)
        if target.options.dry_run:
            report.written(Kind.TRACE)
            count_trace(trace, report)
            return
        self._link(trace, report)
        put_files(target, trace.id, location, trace.attachments, report)
        self._put_spans(trace, location, report)
        target.count(Kind.TRACE, report)
        if not trace.assessments:
            return
        if self._form.keeps_assessments:
            target.count(Kind.ASSESSMENT, report, len(trace.assessments))
        else:
            report.skipped(Kind.ASSESSMENT, trace.id, ABSENT, len(trace.assessments))

    def _put_spans(self, trace: Trace, location: str, report: Report) -> None:
        """Count spans that are rows, and write those that are a file."""
        count = len(trace.spans or ())
        if not self._form.has_spans_in_table(trace) and trace.spans is not None:
            if self._target.keeps_locations:
                report.skipped(Kind.SPAN, trace.id, STAYS, count)
                return
            try:
                put_span_file(self._target.host, trace, location)
            except ServerLostError:
                raise
            except (ServerError, StoreError) as error:
                report.failed(Failure(Kind.SPAN, trace.id, error.message, count))
                return
        if count:
            self._target.count(Kind.SPAN, report, count)

    def _link(self, trace: Trace, report: Report) -> None:
        """Link a trace to its runs and prompts, be they there yet or not."""
        if not self._target.tables.has("entity_associations"):
            return
        of_trace = ("trace", trace.id)
        rows: Rows = []
        for run_id in trace.info.get(LINKED_RUNS, ()):
            rows += association(of_trace, ("run", run_id))
        try:
            prompts: list[dict[str, Any]] = json.loads(trace.info["tags"].get(_PROMPTS) or "[]")
            for prompt in prompts:
                name = f"{prompt['name']}/{prompt['version']}"
                rows += association(of_trace, ("prompt_version", name))
        except (KeyError, TypeError, ValueError):
            what = f"{_PROMPTS} is no list of prompts: no links are made"
            report.lost(Loss(Kind.TRACE, trace.id, what))
        for row in rows:
            if problem := self._target.tables.problem_of([row]):
                report.lost(Loss(Kind.TRACE, trace.id, f"a link is not made: {problem}"))
            else:
                self._target.add([row])
