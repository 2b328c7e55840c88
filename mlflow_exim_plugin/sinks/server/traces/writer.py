"""Traces to a deployment: ids and times kept, and read back.

A server that gets spans makes a trace of them, with previews, token counts and times of its own;
the info that follows puts the source's in their place. The tag ``CONTENT`` says that all is there
and comes with what is last. Writing the info of a trace that is there takes a server twice as long.
So where it tells of spans that arrived, and these leave it nothing to make, infos go first, with
the tag ``CONTENT_WITH_SPANS``.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import EximError, ServerError, ServerLostError
from mlflow_exim_plugin.host.open.workspaces import workers
from mlflow_exim_plugin.host.traces.documents import (
    ARTIFACT_LOCATION,
    SPANS_LOCATION,
    TRACKING_STORE,
)
from mlflow_exim_plugin.host.traces.listing import TraceListing
from mlflow_exim_plugin.host.traces.reading import TraceReader
from mlflow_exim_plugin.host.traces.search import TraceSearch
from mlflow_exim_plugin.host.traces.spans import fits_otlp
from mlflow_exim_plugin.host.traces.writing import TraceCalls, TraceIntake, unknown_assessment
from mlflow_exim_plugin.schema.objects import Failure, Kind, Loss, Run, Trace
from mlflow_exim_plugin.schema.provenance import (
    AS_OF_MS,
    CONTENT,
    CONTENT_WITH_SPANS,
    ORIGIN,
    chained,
    origins,
    told,
)
from mlflow_exim_plugin.schema.traces import trace_digest
from mlflow_exim_plugin.sinks.notes import Notes
from mlflow_exim_plugin.sinks.server.ids import Planned
from mlflow_exim_plugin.sinks.server.traces.comparison import (
    compare_info,
    compare_span,
    content_there,
    is_targets_own,
    leaves_info,
    missing_assessments,
    missing_spans,
    shortened,
)
from mlflow_exim_plugin.sinks.server.traces.job import Job
from mlflow_exim_plugin.sinks.server.traces.known import KnownTraces
from mlflow_exim_plugin.sinks.server.traces.links import TraceLinks
from mlflow_exim_plugin.sinks.server.traces.references import JUDGE_RUN, TraceReferences

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.server.runs import RunWriter
    from mlflow_exim_plugin.sinks.server.target import Destination, ServerTarget

__all__ = ["TraceWriter"]

_GROUP = 50
_GROUP_SPANS = 2_000
_FINALIZED = "mlflow.trace.infoFinalized"
_ELSEWHERE = "the target has a trace of this id in its workspace {}"


class TraceWriter:
    """Writes traces some at a time, as one call checks and fills many of them.

    Args:
        target: The deployment and how to write to it.
        run_writer: Uploads attachments.
        jobs: How many groups may be written at once.
    """

    def __init__(self, target: ServerTarget, run_writer: RunWriter, jobs: int) -> None:
        self._calls = TraceCalls(target.host)
        self._listing = TraceListing(TraceSearch(target.host))
        self._reader = TraceReader(target.host)
        self._run_writer = run_writer
        self._ids = target.ids
        self._absent = target.absent
        self._options = target.options
        self._jobs = jobs
        self._pool = workers(jobs, "exim-traces")
        self._lock = threading.Lock()
        self._queue_lock = threading.Lock()
        self._waiting: list[tuple[Trace, str]] = []
        self._restores: dict[str, Callable[[], None]] = {}
        self._spans = 0
        self._spans_come_back = False
        self._under_way: deque[Future[None]] = deque()
        self._known = KnownTraces(self._listing)
        self._deleted_runs: set[str] = set()
        self._late: list[Job] = []
        self._missing_spans: dict[str, int] = {}
        self._notes = Notes()
        self._references = TraceReferences(target.ids, self._notes)
        dry = target.options.dry_run
        self._links = TraceLinks(self._calls, self._listing, target.ids, self._notes, dry_run=dry)

    def saw_run(self, run: Run) -> None:
        """Remember a run that will be deleted: that takes its assessments along."""
        if run.info.get("lifecycle_stage") == "deleted":
            with self._lock:
                self._deleted_runs.add(run.id)

    def add(self, trace: Trace, to: Destination, report: Report) -> None:
        """Take a trace; it is written with others, at the latest by ``flush``."""
        if Kind.TRACE in self._absent:
            self._absent.leave(trace, report)
            return
        with self._queue_lock:
            spans = len(trace.spans or ())
            if self._waiting and (
                len(self._waiting) == _GROUP or self._spans + spans > _GROUP_SPANS
            ):
                self._send(report)
            self._restores[to.experiment_id] = to.restore
            self._waiting.append((trace, to.experiment_id))
            self._spans += spans

    def flush(self, report: Report) -> None:
        """Write what waits and return when it is written."""
        with self._queue_lock:
            if self._waiting:
                self._send(report)
            while self._under_way:
                self._under_way.popleft().result()

    def finish(self, report: Report) -> None:
        """Write what had to wait for other objects, and name what the target keeps differently.

        Assessments of deleted runs come now, when their runs are deleted: before, the server would
        have deleted them as well.
        """
        self.flush(report)
        self._pool.shutdown()
        for job in self._late:
            self._add_assessments(job, job.later, report)
            self._complete(job, report)
        self._links.make()
        self._notes.say(report)

    def _send(self, report: Report) -> None:
        while len(self._under_way) > self._jobs:
            self._under_way.popleft().result()
        group, self._waiting, self._spans = self._waiting, [], 0
        self._under_way.append(self._pool.submit(self._write, group, report))

    def _write(self, group: list[tuple[Trace, str]], report: Report) -> None:
        try:
            asked = group[0][1]
            form = self._calls.form("0" if isinstance(asked, Planned) else asked)
            if form is TraceIntake.NONE:
                self._absent.add(Kind.TRACE)
                for trace, _ in group:
                    self._absent.leave(trace, report)
                return
            write = self._write_with_ids if form is TraceIntake.WITH_ID else self._write_without_ids
            write(group, report)
        except ServerLostError:
            raise
        except EximError as error:
            for trace, _ in group:
                report.failed(Failure(Kind.TRACE, trace.id, error.message))

    # Targets that keep ids

    def _write_with_ids(self, group: list[tuple[Trace, str]], report: Report) -> None:
        there = self._calls.existing([trace.id for trace, _ in group])
        jobs = []
        for trace, experiment_id in group:
            digest = trace.digest or trace_digest(trace)
            if trace.id not in there:
                jobs.append(self._job(trace, experiment_id, digest))
            elif reason := self._refusal(trace, experiment_id, *there[trace.id]):
                report.failed(Failure(Kind.TRACE, trace.id, reason))
            elif reason := self._settled(trace, digest, there[trace.id][1]["info"]["tags"]):
                report.skipped(Kind.TRACE, trace.id, reason)
            elif is_targets_own(
                trace,
                self._references.info(trace),
                there[trace.id][1],
                self._missing_spans.get(trace.id, 0),
            ):
                self._add_to_own(trace, experiment_id, there[trace.id][1], report)
            else:
                jobs.append(self._resumed(trace, experiment_id, digest, there[trace.id][1]))
        if self._options.dry_run:
            elsewhere = self._calls.elsewhere([job.trace.id for job in jobs if not job.document])
            for job in jobs:
                if workspace := elsewhere.get(job.trace.id):
                    reason = _ELSEWHERE.format(workspace)
                    report.failed(Failure(Kind.TRACE, job.trace.id, reason))
                else:
                    self._count(job, report)
            return
        for job in jobs:
            self._plan(job)
        by_otlp = [job for job in jobs if job.spans and not job.in_file]
        self._log_spans([job for job in by_otlp if not job.spans_last], report)
        begun = [job for job in jobs if self._write_info(job, report)]
        self._log_spans([job for job in begun if job.spans_last], report)
        self._look_again([job for job in begun if job.needs_info and job.differences()])
        for job in begun:
            self._write_rest(job, report)

    def _count(self, job: Job, report: Report) -> None:
        """Count and name what writing a trace would, as far as the target does as it is told."""
        trace = job.trace
        self._ids.know(Kind.TRACE, trace.id, trace.id)
        report.written(Kind.TRACE)
        if job.spans:
            report.written(Kind.SPAN, len(job.spans))
        self._add_assessments(job, [*job.at_start, *job.afterwards], report)
        self._run_writer.put_artifacts(trace.id, "", "", trace.attachments, report)
        self._links.collect(trace, job.info, trace.id, job.experiment_id)

    def _plan(self, job: Job) -> None:
        """Decide what of a trace is written when, and how."""
        spans, names = job.spans, self._of_deleted_runs(job.trace)
        for assessment in job.afterwards:
            if assessment.get("overrides") in names:
                names.add(assessment.get("assessment_id"))
        job.later = [a for a in (*job.at_start, *job.afterwards) if a.get("assessment_id") in names]
        job.at_start = [a for a in job.at_start if a not in job.later]
        job.afterwards = [a for a in job.afterwards if a not in job.later]
        job.in_file = spans is not None and not (spans and fits_otlp(spans, job.trace.id))
        if spans and self._calls.tells_of_spans and not (job.in_file or job.document):
            job.spans_last = len(spans) <= _GROUP_SPANS and leaves_info(job.info, spans)

    def _look_again(self, jobs: list[Job]) -> None:
        """Put right what spans made of infos, and note what stays different.

        What a server answers to a write may lack what it has just written: so it is asked first.
        """
        self._look(jobs)
        changed = [job for job in jobs if job.spans_last and job.differences()]
        for job in changed:
            try:
                self._calls.start(self._marked_info(job), job.experiment_id, [])
            except ServerError as error:
                what = f"its info cannot be written after its spans: {error.message}"
                self._notes.add(Kind.TRACE, job.trace.id, what)
        self._look(changed)
        for job in jobs:
            for kind, what in job.differences():
                self._notes.add(kind, job.trace.id, what)

    def _look(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        there = self._calls.existing([job.trace.id for job in jobs])
        for job in jobs:
            job.document = there[job.trace.id][1]

    def _refusal(
        self, trace: Trace, experiment_id: str, there: str, document: dict[str, Any]
    ) -> str:
        """Return why a trace of this id that is there is not this one, empty when it is."""
        if there != experiment_id:
            return f"the target has a trace of this id in its experiment {there}"
        if not told(document["info"]["tags"], AS_OF_MS) and not self._is_same(trace, document):
            return "the target has another trace of this id"
        return ""

    def _settled(self, trace: Trace, digest: str, tags: dict[str, str]) -> str:
        """Return why a trace that is there needs nothing more, empty when it does."""
        self._ids.know(Kind.TRACE, trace.id, trace.id)
        if content_there(tags) == digest:
            return "it is there already"
        if int(told(tags, AS_OF_MS) or 0) > trace.as_of_ms:
            return "the target has a later state of it"
        return ""

    def _resumed(
        self, trace: Trace, experiment_id: str, digest: str, document: dict[str, Any]
    ) -> Job:
        """Prepare a trace that is there without all its parts, or in an earlier state."""
        job = self._job(trace, experiment_id, digest)
        job.document = document
        known = {a.get("assessment_id") for a in document["assessments"]}
        job.afterwards = [
            a for a in (*job.at_start, *job.afterwards) if a.get("assessment_id") not in known
        ]
        job.at_start = []
        is_ours = bool(told(document["info"]["tags"], AS_OF_MS))
        job.needs_info = is_ours or _FINALIZED not in document["info"]["trace_metadata"]
        return job

    def _add_to_own(
        self, trace: Trace, experiment_id: str, document: dict[str, Any], report: Report
    ) -> None:
        """Add the assessments that a trace of the target lacks; nothing else of it is changed."""
        differing = compare_info(trace, self._references.info(trace), document)
        if missing := self._missing_spans.get(trace.id):
            differing.append(f"{missing} of its spans are not there")
        for what in differing:
            self._notes.add(Kind.TRACE, trace.id, f"the target keeps its own trace: {what}")
        if missing_assessments(trace, document):
            job = self._resumed(trace, experiment_id, "", document)
            self._add_assessments(job, job.afterwards, report)
            report.written(Kind.TRACE)
            report.completed(Kind.TRACE, 1)
        else:
            report.skipped(Kind.TRACE, trace.id, "it is there already")

    def _is_same(self, trace: Trace, document: dict[str, Any]) -> bool:
        """Whether a trace that no unpack finished is this one, perhaps without all its parts."""
        there = Trace(document, trace.experiment_id)
        self._reader.fill([there])
        missing = missing_spans(trace, there)
        self._missing_spans[trace.id] = missing or 0
        started_ms = document["info"].get("request_time_ms")
        return missing is not None and (
            _FINALIZED not in document["info"]["trace_metadata"]
            or bool(started_ms == trace.info.get("request_time_ms"))
        )

    def _log_spans(self, jobs: list[Job], report: Report) -> None:
        """Send the spans of some traces in one call, or of each alone if that is refused."""
        for experiment_id in dict.fromkeys(job.experiment_id for job in jobs):
            group = [job for job in jobs if job.experiment_id == experiment_id]
            try:
                self._send_spans(group, experiment_id)
            except ServerError:
                for job in group:
                    try:
                        self._send_spans([job], experiment_id)
                    except ServerError:
                        job.in_file = True
            self._compare_spans([job for job in group if not job.in_file], report)

    def _send_spans(self, jobs: list[Job], experiment_id: str) -> None:
        spans = [span for job in jobs for span in job.spans or ()]
        for start in range(0, len(spans), _GROUP_SPANS):
            part = spans[start : start + _GROUP_SPANS]
            if not self._calls.takes_otlp or not self._calls.log_spans(experiment_id, part):
                for job in jobs:
                    job.in_file = True
                return

    def _compare_spans(self, jobs: list[Job], report: Report) -> None:
        """Read the spans back: some servers add attributes, or change their values."""
        stored = {"tags": {SPANS_LOCATION: TRACKING_STORE}, "trace_metadata": {}, "state": "OK"}
        there = [
            Trace({"info": {"trace_id": job.trace.id, **stored}}, job.experiment_id) for job in jobs
        ]
        self._reader.fill(there)
        self._spans_come_back |= any(found.spans for found in there)
        for job, found in zip(jobs, there, strict=True):
            by_id = {span["span_id"]: span for span in found.spans or ()}
            missing = sum(span["span_id"] not in by_id for span in job.spans or ())
            if not self._spans_come_back:
                # MLflow 3.4 takes spans by OTLP and never gives them back.
                job.in_file, self._calls.takes_otlp = True, False
                continue
            if missing:
                reason = f"{missing} of its {len(job.spans or ())} spans did not arrive"
                report.failed(Failure(Kind.SPAN, job.trace.id, reason, missing))
                job.whole = False
            report.written(Kind.SPAN, len(job.spans or ()) - missing)
            for span in job.spans or ():
                if span["span_id"] in by_id:
                    compare_span(self._notes, job.trace.id, span, by_id[span["span_id"]])
            has_info = "request_time_ms" in found.info  # it comes with the spans, but not always
            if job.spans_last:
                job.document = found.document if has_info else {}
            elif has_info and self._calls.tells_of_spans is None and not job.document:
                self._calls.tells_of_spans = SPANS_LOCATION in found.info["tags"]

    def _write_info(self, job: Job, report: Report) -> bool:
        """Write the info, and say whether the trace is there now."""
        if job.needs_info:
            is_last = job.whole and not (job.has_more or job.in_file)
            try:
                self._start(job, report, is_last=is_last)
            except ServerLostError:
                raise
            except EximError as error:
                if not self._start_shortened(job, report, is_last=is_last):
                    workspace = self._calls.elsewhere([job.trace.id]).get(job.trace.id)
                    reason = _ELSEWHERE.format(workspace) if workspace else error.message
                    report.failed(Failure(Kind.TRACE, job.trace.id, reason))
                    return False
        self._ids.know(Kind.TRACE, job.trace.id, job.trace.id)
        report.written(Kind.TRACE)
        return True

    def _write_rest(self, job: Job, report: Report) -> None:
        """Write what follows info and spans, then the mark where it is not there yet."""
        trace = job.trace
        if job.in_file and job.document["info"]["tags"].get(SPANS_LOCATION) == TRACKING_STORE:
            count = len(job.spans or ())  # the server would not look into a file for them
            reason = f"{count} of its {count} spans did not arrive"
            report.failed(Failure(Kind.SPAN, job.trace.id, reason, count))
            job.whole = False
        elif job.in_file:
            job.whole &= self._put_spans(job, TraceIntake.WITH_ID, report)
        if attachments := list(trace.attachments):
            location = job.document["info"]["tags"].get(ARTIFACT_LOCATION, "")
            job.whole &= self._run_writer.put_artifacts(trace.id, location, "", attachments, report)
        self._add_assessments(job, job.afterwards, report)
        self._links.collect(trace, job.info, trace.id, job.experiment_id)
        if job.later:
            with self._lock:
                self._late.append(job)
        else:
            self._complete(job, report)

    def _marked_info(self, job: Job) -> dict[str, Any]:
        return job.info | {"tags": job.info["tags"] | {AS_OF_MS: str(job.trace.as_of_ms)}}

    def _start_shortened(self, job: Job, report: Report, *, is_last: bool) -> bool:
        """Write an info that was refused with what the databases of most servers hold of it."""
        job.info, notes = shortened(job.info)
        if not notes or self._options.is_strict:
            return False
        try:
            self._start(job, report, is_last=is_last)
        except ServerLostError:
            raise
        except EximError:
            return False
        for what in notes:
            self._notes.add(Kind.TRACE, job.trace.id, f"the target cannot hold all of it: {what}")
        return True

    def _start(self, job: Job, report: Report, *, is_last: bool) -> None:
        """Write info and assessments in one call; a refused assessment must not cost the trace."""
        info, assessments = self._marked_info(job), job.at_start
        name = CONTENT_WITH_SPANS if job.spans_last else CONTENT
        mark = {name: job.digest} if is_last else {}
        try:
            marked = info | {"tags": info["tags"] | mark}
            job.document = self._calls.start(marked, job.experiment_id, assessments)
        except ServerError:
            if not assessments:
                raise
            job.document = self._calls.start(info, job.experiment_id, [])
            # Each alone after all, so that the refused one is named.
            job.at_start, job.afterwards = [], [*assessments, *job.afterwards]
        else:
            job.marked = is_last and not job.spans_last
            if assessments:
                report.written(Kind.ASSESSMENT, len(assessments))

    def _put_spans(self, job: Job, form: TraceIntake, report: Report) -> bool:
        spans = job.spans or []
        try:
            self._calls.put_spans(job.document, spans, form)
        except ServerLostError:
            raise
        except EximError as error:
            report.failed(Failure(Kind.SPAN, job.trace.id, error.message, max(1, len(spans))))
            return False
        report.written(Kind.SPAN, len(spans))
        return True

    def _add_assessments(self, job: Job, assessments: list[dict[str, Any]], report: Report) -> None:
        for assessment in assessments:
            try:
                if not self._options.dry_run:
                    self._calls.add_assessment(job.trace.id, assessment)
                report.written(Kind.ASSESSMENT)
            except ServerError as error:
                name = f"{job.trace.id}/{assessment.get('assessment_id')}"
                if reason := unknown_assessment(error, assessment):
                    report.skipped(Kind.ASSESSMENT, name, reason)
                    continue
                report.failed(Failure(Kind.ASSESSMENT, name, error.message))
                job.whole = False

    def _complete(self, job: Job, report: Report) -> None:
        """Put the mark where the last part of a trace did not bring it, or take it away."""
        there = job.document["info"]["tags"]
        is_marked = job.marked or content_there(there) == job.digest
        if job.marked or (job.whole and is_marked):
            return
        if job.whole:
            wanted = {AS_OF_MS: str(job.trace.as_of_ms), CONTENT: job.digest}
        elif is_marked:
            wanted = {CONTENT: ""}
        else:
            return
        trace_id = self._ids.get(Kind.TRACE, job.trace.id) or job.trace.id
        try:
            for key, value in wanted.items():
                if there.get(key) != value:
                    self._calls.set_tag(trace_id, key, value)
        except ServerError as error:
            report.lost(Loss(Kind.TRACE, job.trace.id, error.message))

    # Targets that make their own ids

    def _write_without_ids(self, group: list[tuple[Trace, str]], report: Report) -> None:
        for trace, experiment_id in group:
            digest = trace.digest or trace_digest(trace)
            there = self._known.of(experiment_id)
            came_from = origins(trace.id, trace.info["tags"])
            known, content = next((there[one] for one in came_from if one in there), ("", ""))
            if known and content in {digest, None}:
                self._ids.know(Kind.TRACE, trace.id, known)
                report.skipped(Kind.TRACE, trace.id, "it is there already")
                continue
            try:
                self._write_without_id(self._job(trace, experiment_id, digest), known, report)
            except ServerLostError:
                raise
            except EximError as error:
                report.failed(Failure(Kind.TRACE, trace.id, error.message))

    def _write_without_id(self, job: Job, known: str, report: Report) -> None:
        trace = job.trace
        if self._options.dry_run:
            known = known or Planned(trace.id)
        elif known:
            found = self._listing.all(job.experiment_id, f"request_id = '{known}'")
            job.document = next(found).document
        else:
            tags = {ORIGIN: chained(trace.id, trace.info["tags"])} | job.info["tags"]
            info = job.info | {"tags": tags}
            job.document = self._calls.start_without_id(info, job.experiment_id)
            known = job.document["info"]["trace_id"]
        self._ids.know(Kind.TRACE, trace.id, known)
        if self._options.dry_run:
            report.written(Kind.SPAN, len(job.spans or ()))
        elif job.spans is not None:
            job.whole &= self._put_spans(job, TraceIntake.WITHOUT_ID, report)
        if job.info["state"] in {"OK", "ERROR"} and not self._options.dry_run:
            self._calls.end_without_id(known, job.info)
        report.written(Kind.TRACE)
        self._notes.add(Kind.TRACE, trace.id, f"its id is new; the tag {ORIGIN} keeps the old one")
        for name in ("client_request_id", "request_preview", "response_preview"):
            if name in job.info:
                self._notes.add(Kind.TRACE, trace.id, f"the target cannot keep {name}")
        if job.info["state"] in {"OK", "ERROR"} and "execution_duration_ms" not in job.info:
            self._notes.add(Kind.TRACE, trace.id, "execution_duration_ms becomes 0")
        lost = len(job.at_start) + len(job.afterwards)
        if lost:
            reason = "the target has no assessments"
            report.skipped(Kind.ASSESSMENT, f"{trace.id}/*", reason, lost)
            self._notes.add(Kind.ASSESSMENT, trace.id, reason)
        if attachments := list(trace.attachments):
            tags = {} if self._options.dry_run else job.document["info"]["tags"]
            location = tags.get(ARTIFACT_LOCATION, "")
            job.whole &= self._run_writer.put_artifacts(trace.id, location, "", attachments, report)
        if self._options.dry_run:
            self._links.collect(trace, job.info, known, job.experiment_id)
            return
        for what in compare_info(trace, job.info, job.document, is_started=True):
            self._notes.add(Kind.TRACE, trace.id, what)
        self._links.collect(trace, job.info, known, job.experiment_id)
        self._complete(job, report)

    # References

    def _job(self, trace: Trace, experiment_id: str, digest: str) -> Job:
        """Prepare a trace: the target's ids in place of the source's."""
        self._restores[experiment_id]()
        references = self._references
        at_start, afterwards = references.assessments(trace)
        return Job(
            trace,
            experiment_id,
            digest,
            references.info(trace),
            references.spans(trace),
            at_start,
            afterwards,
            whole=not references.is_waiting(trace),
        )

    def _of_deleted_runs(self, trace: Trace) -> set[Any]:
        """Return the ids of the assessments that a run's deletion takes along."""
        with self._lock:
            return {
                assessment.get("assessment_id")
                for assessment in trace.assessments
                if (assessment.get("metadata") or {}).get(JUDGE_RUN) in self._deleted_runs
            }
