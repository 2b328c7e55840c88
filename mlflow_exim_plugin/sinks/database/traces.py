"""Traces to a database, under their own ids, some hundreds with each statement."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import InvalidArchiveError, ServerError, StoreError
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.sql.entity_rows import association
from mlflow_exim_plugin.host.sql.trace_rows import TraceForm, put_span_file
from mlflow_exim_plugin.host.traces.documents import ARTIFACT_LOCATION
from mlflow_exim_plugin.kinds.description import LINK
from mlflow_exim_plugin.schema.objects import (
    LINKED_RUNS,
    Failure,
    Kind,
    Loss,
    Trace,
    linked_prompts,
)
from mlflow_exim_plugin.schema.traces import problem_of
from mlflow_exim_plugin.sinks.absent_kinds import ABSENT
from mlflow_exim_plugin.sinks.counting import count_trace
from mlflow_exim_plugin.sinks.database.files import (
    STAYS,
    FileComparison,
    is_elsewhere,
    put_files,
)
from mlflow_exim_plugin.sinks.database.states import State

if TYPE_CHECKING:
    from mlflow_exim_plugin.host.sql.writer import Rows
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.database.states import RowComparison
    from mlflow_exim_plugin.sinks.database.target import DatabaseTarget, TargetExperiment

__all__ = ["TraceTables"]


class TraceTables:
    """Writes traces with their spans, assessments and links.

    Args:
        target: The database.
    """

    def __init__(self, target: DatabaseTarget) -> None:
        self._target = target
        self._form = TraceForm(target.tables)

    def write(self, trace: Trace, into: TargetExperiment, report: Report) -> None:
        """Write one trace.

        Raises:
            InvalidArchiveError: It lacks what every trace has.
            ServerError: The database cannot hold it.
        """
        target = self._target
        if Kind.TRACE in target.capabilities.lacks:
            report.skipped(Kind.TRACE, trace.id, ABSENT)
            return
        if problem := problem_of(trace):
            raise InvalidArchiveError(f"the trace is not as MLflow has it: {problem}")
        source = trace.info["tags"].get(ARTIFACT_LOCATION, "")
        location = target.place(source, into, f"traces/{trace.id}/artifacts")
        with translated(f"reading trace {trace.id}"):
            rows, changed = self._form.rows(trace, into.id, location)
        target.require_types(rows)
        rows = target.fit(Kind.TRACE, trace.id, rows, report)
        key = {"request_id": trace.id, "trace_id": trace.id}
        compared = target.compare(Kind.TRACE, rows, key)
        # A copy by MLflow's API names the runs of the target, and no rows of it tell which.
        if compared is not None and (into.is_copy or compared.state is not State.EARLIER):
            target.leave(Kind.TRACE, trace.id, compared, report)
            return
        target.require(rows)
        for name in changed:
            report.lost(Loss(Kind.TRACE, trace.id, f"{name} is kept in the target's own form"))
        if compared is not None:
            target.grow(Kind.TRACE, trace.id, compared, report)
            location = self._location(trace.id) or location
            files = FileComparison(target, Kind.TRACE, trace.id, location, trace.attachments)
            files.complete(report, replaces=compared.lacks and is_elsewhere(location, source))
        else:
            target.add(rows, request_id=trace.id)
            if target.options.dry_run:
                report.written(Kind.TRACE)
                count_trace(trace, report)
                return
            put_files(target, trace.id, location, trace.attachments, report)
        self._link(trace, compared, report)
        self._put_spans(trace, location, compared, rows, report)
        target.count(Kind.TRACE, report)
        if self._form.keeps_assessments:
            number = len(trace.assessments)
            self._count(Kind.ASSESSMENT, trace.id, number, compared, "assessments", rows, report)
        else:
            report.skipped(Kind.ASSESSMENT, trace.id, ABSENT, len(trace.assessments))

    def _location(self, trace_id: str) -> str:
        """Return where the files of a trace are that is there, empty where it does not say."""
        key = {"request_id": trace_id, "key": ARTIFACT_LOCATION}
        tag = self._target.tables.one("trace_tags", **key)
        return str(tag["value"]) if tag else ""

    def _count(
        self,
        kind: Kind,
        trace_id: str,
        number: int,
        compared: RowComparison | None,
        table: str,
        rows: Rows,
        report: Report,
    ) -> None:
        """Count the parts of a trace that are rows, those that were there already apart."""
        fitting = sum(of == table for of, _ in rows)
        written = compared.count(table) if compared else fitting
        if written:
            self._target.count(kind, report, written)
        report.skipped(kind, trace_id, "they are there already", fitting - written)
        report.skipped(kind, trace_id, "the target cannot hold them", number - fitting)

    def _put_spans(
        self,
        trace: Trace,
        location: str,
        compared: RowComparison | None,
        rows: Rows,
        report: Report,
    ) -> None:
        """Count spans that are rows, and write those that are a file."""
        count = len(trace.spans or ())
        if self._form.has_spans_in_table(trace):
            self._count(Kind.SPAN, trace.id, count, compared, "spans", rows, report)
            return
        if trace.spans is None:
            return
        if self._target.keeps_locations:
            report.skipped(Kind.SPAN, trace.id, STAYS, count)
            return
        try:
            if not self._target.options.dry_run:
                put_span_file(self._target.host, trace, location)
        except (ServerError, StoreError) as error:
            report.failed(Failure(Kind.SPAN, trace.id, error.message, count))
            return
        if count:
            self._target.count(Kind.SPAN, report, count)

    def _link(self, trace: Trace, compared: RowComparison | None, report: Report) -> None:
        """Link a trace to its runs and prompts, be they there yet or not."""
        if not self._target.tables.has("entity_associations"):
            return
        of_trace = ("trace", trace.id)
        rows: Rows = []
        for run_id in trace.info.get(LINKED_RUNS, ()):
            rows += association(of_trace, ("run", run_id))
        for version in linked_prompts(trace.info):
            rows += association(of_trace, ("prompt_version", version))
        for row in rows:
            link = {column: row[1][column] for column in LINK}
            if compared is not None and self._target.tables.one(row[0], **link):
                continue
            if problem := self._target.tables.problem_of([row]):
                report.lost(Loss(Kind.TRACE, trace.id, f"a link is not made: {problem}"))
            else:
                self._target.add([row])
