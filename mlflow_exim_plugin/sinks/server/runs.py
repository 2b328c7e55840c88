"""Runs to a deployment: create or continue, write what is missing, read back, only then mark."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.api.logged_models import LoggedModels
from mlflow_exim_plugin.schema.objects import (
    Failure,
    Kind,
    Loss,
    Run,
    linked_models,
)
from mlflow_exim_plugin.schema.provenance import (
    AS_OF_MS,
    CONTENT,
    OF_GROUP,
    ORIGIN,
    chained,
    is_provenance,
)
from mlflow_exim_plugin.schema.runs import LOGGED_MODELS, PARENT, with_new_run_ids
from mlflow_exim_plugin.sinks.artifact_upload import ArtifactUpload
from mlflow_exim_plugin.sinks.counting import read_through
from mlflow_exim_plugin.sinks.left_out import DELETED_THERE
from mlflow_exim_plugin.sinks.policy import NOT_DELETED
from mlflow_exim_plugin.sinks.server.histories import HistoryLog
from mlflow_exim_plugin.sinks.server.ids import KnownRun, Planned
from mlflow_exim_plugin.sinks.server.target import ServerTarget, attempt
from mlflow_exim_plugin.sinks.server.texts import TextWriter

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.schema.report import Report

__all__ = ["RunWriter"]

_NAME = "mlflow.runName"
_USER = "mlflow.user"
_NAME_CHARACTERS = 250
"""What the databases of most servers hold of a run's name."""
_OTHER_STATUS = "FAILED"
"""For a run that was killed, where MLflow does not know that yet."""
_MODELS_NAMED = 10


@dataclass
class _WaitingRun:
    """What a run still needs when the whole stream has come.

    Attributes:
        parent: Its parent's id at the source.
        inputs: Logged models it takes, by source id.
        outputs: Logged models it made, with their steps.
        mark: What it is marked with once it is whole; None where it stays as it is.
        resumes: Whether links may be there already.
    """

    source_id: str
    known: KnownRun
    parent: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[tuple[str, int]] = field(default_factory=list)
    mark: str | None = None
    as_of_ms: int = 0
    is_deleted: bool = False
    resumes: bool = False


class RunWriter:
    """Writes runs; each is marked whole only after the target was read back.

    Args:
        target: The deployment and how to write to it.
    """

    def __init__(self, target: ServerTarget) -> None:
        self._host = target.host
        self._writer = target.writer
        self._reader = target.reader
        self._ids = target.ids
        self._source_tags = target.source_tags
        self._options = target.options
        self._lock = threading.Lock()
        self._datasets_lock = threading.Lock()
        self._texts = TextWriter(target.host, target.options)
        self._models = LoggedModels(target.host)
        self.put_artifacts = ArtifactUpload(target.host, dry_run=target.options.dry_run).put
        self._waiting: list[_WaitingRun] = []

    def is_settled(self, run: Run, report: Report) -> bool:
        """Whether nothing is to be done for a run, which is then counted as skipped."""
        known = self._ids.runs.get(run.id)
        if known is None:
            return False
        known.old_artifact_uri = str(run.info.get("artifact_uri") or "")
        if known.content and self._options.is_whole(known.content, run.digest):
            reason = "it is there already"
            if self._options.lacks_source_tags(known.content) and not self._options.dry_run:
                attempt(
                    lambda: self._add_source_tags(run, known, report),
                    Loss(Kind.RUN, run.id, "its source tags"),
                    report,
                )
            if run.info.get("lifecycle_stage") == "deleted" and not known.is_deleted:
                # Restored here, or an unpack was killed between marking and deleting it: a deleted
                # run takes no tags, so nothing can tell. It stays, and that is said.
                report.lost(Loss(Kind.RUN, run.id, NOT_DELETED))
            inputs, outputs = linked_models(run.document)
            if inputs or outputs:
                # What an earlier archive did not bring along may come with this one.
                self._wait(_WaitingRun(run.id, known, "", inputs, outputs, resumes=True))
        elif known.content and known.as_of_ms > run.as_of_ms:
            reason = "the target has a later state of it"
        elif known.is_deleted and run.info.get("lifecycle_stage") != "deleted":
            reason = DELETED_THERE
        else:
            return False
        report.skipped(Kind.RUN, run.id, reason)
        return True

    def write(self, run: Run, experiment_id: str, group: str, report: Report) -> None:
        """Write one run, or go on with one that is unfinished.

        Args:
            run: The run.
            experiment_id: Experiment at the target.
            group: Origin of the source experiment.
            report: Counts and names what happens.

        Raises:
            ServerError: The target refused the run as a whole.
        """
        known = self._ids.runs.get(run.id)
        is_new = known is None
        if known is None:
            known = self._create(run, experiment_id, group, report)
        elif known.is_deleted and not self._options.dry_run:
            self._writer.set_run_deleted(known.id, deleted=False)
            known.is_deleted = False
        before = known.content
        if self._options.dry_run:
            whole = self._log_histories(run, known, report, is_new=is_new)
            unsure = before and run.digest is None
            artifacts = read_through(run.artifacts) if unsure else run.artifacts
            whole &= self.put_artifacts(run.id, known.artifact_uri, "", artifacts, report)
        else:
            whole = self._fill(run, known, report, is_new=is_new)
        entry = _WaitingRun(
            run.id,
            known,
            run.tags.get(PARENT, ""),
            *linked_models(run.document),
            mark=self._options.mark(run.digest) if whole else None,
            as_of_ms=run.as_of_ms,
            is_deleted=run.info.get("lifecycle_stage") == "deleted",
            resumes=not is_new,
        )
        # A deleted run takes no metrics of the logged models that are still to come.
        if entry.parent or entry.inputs or entry.outputs or entry.is_deleted:
            self._wait(entry)
        elif entry.mark is not None and not self._options.dry_run:
            self._complete(entry, entry.mark)
        if before and before == entry.mark:
            report.skipped(Kind.RUN, run.id, "it is there already")
        else:
            report.written(Kind.RUN)
            report.completed(Kind.RUN, int(not is_new))

    def finish(self, report: Report) -> None:
        """Link runs to parents and logged models, which may come after them; complete them."""
        waiting, self._waiting = self._waiting, []
        for entry in waiting:
            try:
                parent = self._link_parent(entry, report) if entry.parent else ""
                links = self._link_models(entry, report)
                if self._options.dry_run:
                    continue
                may_come = entry.parent in self._ids.refused  # another time, and then is linked
                arrived = self._arrived(entry, parent, links, report) and not may_come
                if arrived and entry.mark is not None:
                    self._complete(entry, entry.mark)
            except ServerError as error:
                report.lost(Loss(Kind.RUN, entry.source_id, error.message))

    @contextlib.contextmanager
    def opened(self, known: KnownRun) -> Iterator[None]:
        """Let a run be written to that is deleted at the target, for as long as it takes."""
        if not known.is_deleted:
            yield
            return
        self._writer.set_run_deleted(known.id, deleted=False)
        try:
            yield
        finally:
            self._writer.set_run_deleted(known.id, deleted=True)

    def _wait(self, entry: _WaitingRun) -> None:
        with self._lock:
            self._waiting.append(entry)

    def _arrived(
        self,
        entry: _WaitingRun,
        parent: str,
        links: tuple[set[str], bool],
        report: Report,
    ) -> bool:
        """Whether the links of a run are there; a server need not keep what it takes."""
        models, is_whole = links
        if not (parent or models):
            return is_whole
        there = Run(self._reader.run(entry.known.id))
        inputs, outputs = linked_models(there.document)
        missing = models - {*inputs, *(model_id for model_id, _ in outputs)}
        what = [f"its link to logged model {model_id}" for model_id in sorted(missing)]
        if parent and there.tags.get(PARENT) != parent:
            what.append(f"its link to its parent run {parent}")
        for lost in what:
            report.lost(Loss(Kind.RUN, entry.source_id, f"{lost}: it did not arrive"))
        return is_whole and not what

    def _link_parent(self, entry: _WaitingRun, report: Report) -> str:
        parent = self._ids.runs.get(entry.parent)
        if parent is None:
            what = f"its parent run {entry.parent} is not at the target; {PARENT} keeps the old id"
            report.lost(Loss(Kind.RUN, entry.source_id, what))
        known = parent.id if parent else entry.parent
        if not self._options.dry_run:
            self._writer.log_tags(entry.known.id, {PARENT: known})
        return known

    def _link_models(self, entry: _WaitingRun, report: Report) -> tuple[set[str], bool]:
        """Link a run to its logged models; return the new links, and whether none was refused."""
        if not entry.inputs and not entry.outputs:
            return set(), True
        linked = {*entry.inputs, *(source_id for source_id, _ in entry.outputs)}
        new = {i: found for i in linked if (found := self._ids.get(Kind.LOGGED_MODEL, i))}
        if missing := sorted(linked - set(new)):
            what = (
                f"its inputs and outputs leave out {len(missing)} logged models that are not at "
                f"the target: {', '.join(missing[:_MODELS_NAMED])}"
            )
            report.lost(Loss(Kind.RUN, entry.source_id, what))
        if self._options.dry_run:
            return set(), True
        inputs = [new[source_id] for source_id in entry.inputs if source_id in new]
        outputs = [(new[source_id], step) for source_id, step in entry.outputs if source_id in new]
        if entry.resumes and (inputs or outputs):
            there_in, there_out = linked_models(self._reader.run(entry.known.id))
            made = {model_id for model_id, _ in there_out}
            inputs = [model_id for model_id in inputs if model_id not in there_in]
            outputs = [link for link in outputs if link[0] not in made]
        if inputs or outputs:
            with self.opened(entry.known):
                self._models.link(entry.known.id, inputs, outputs)
        made_now = {*inputs, *(model_id for model_id, _ in outputs)}
        return made_now, not linked & self._ids.refused

    def _create(self, run: Run, experiment_id: str, group: str, report: Report) -> KnownRun:
        info = run.info
        if "start_time" not in info:
            report.lost(Loss(Kind.RUN, run.id, "it has no start time, the target sets one"))
        name = info.get("run_name") or run.tags.get(_NAME)
        if not name:
            report.lost(Loss(Kind.RUN, run.id, "it has no name, the target makes one up"))
        old_root = str(info.get("artifact_uri") or "")
        if self._options.dry_run:
            planned = Planned(run.id)
            known = KnownRun(planned, f"{planned}/artifacts", old_artifact_uri=old_root)
            self._ids.runs[run.id] = known
            return known
        user = self._options.importer or str(info.get("user_id") or "")
        tags = {ORIGIN: chained(run.id, run.tags), OF_GROUP: group}
        create = partial(
            self._writer.create_run, experiment_id, user, info.get("start_time"), tags=tags
        )
        try:
            run_id, artifact_uri = create(run_name=name)
        except ServerError:
            if not self._may_cut(name):
                raise
            run_id, artifact_uri = create(run_name=str(name)[:_NAME_CHARACTERS])
        known = KnownRun(run_id, artifact_uri, old_artifact_uri=old_root)
        self._ids.runs[run.id] = known
        return known

    def _fill(self, run: Run, known: KnownRun, report: Report, *, is_new: bool) -> bool:
        """Write params, tags, rows, datasets and files; return whether all arrived."""
        params, tags = run.params, self._tags(run)
        whole = True
        for kind, texts, together, alone in (
            (Kind.PARAM, params, self._writer.log_params, self._writer.log_param),
            (Kind.TAG, tags, self._writer.log_tags, self._writer.set_run_tag),
        ):
            put = partial(together, known.id), partial(alone, known.id)
            left_out, is_all = self._texts.put_together(kind, run.id, texts, *put, report)
            for key in left_out:
                texts.pop(key)
            whole &= is_all or kind is Kind.TAG
        source_tags = self._put_source_tags(run, known, report)
        self._log_datasets(run, known, report)
        whole &= self._log_histories(run, known, report, is_new=is_new)
        whole &= self.put_artifacts(run.id, known.artifact_uri, "", run.artifacts, report)
        self._finish_info(run, known)
        return self._read_back(run, known, params, tags, source_tags, report) and whole

    def _may_cut(self, name: str | None) -> bool:
        """Whether a name that was refused is tried again without its end."""
        return not self._options.is_strict and len(name or "") > _NAME_CHARACTERS

    def _tags(self, run: Run) -> dict[str, str]:
        tags = {key: value for key, value in run.tags.items() if not is_provenance(key)}
        if self._options.importer and _USER in tags:
            tags[_USER] = self._options.importer
        tags.pop(PARENT, None)
        if name := run.info.get("run_name"):
            tags.setdefault(_NAME, name)  # MLflow before 1.29 keeps it there alone
        if history := tags.get(LOGGED_MODELS):
            known = self._ids.runs
            tags[LOGGED_MODELS] = with_new_run_ids(
                history, lambda old: known[old].id if old in known else old
            )
        return tags

    def _put_source_tags(self, run: Run, known: KnownRun, report: Report) -> dict[str, str]:
        return self._source_tags.put(run, {}, partial(self._writer.set_run_tags, known.id), report)

    def _add_source_tags(self, run: Run, known: KnownRun, report: Report) -> None:
        """Give a run that an earlier unpack wrote the source tags that are asked for now."""
        known.content = self._options.mark(run.digest)
        with self.opened(known):
            self._put_source_tags(run, known, report)
            self._writer.set_run_tags(known.id, {CONTENT: known.content})

    def _log_datasets(self, run: Run, known: KnownRun, report: Report) -> None:
        log = partial(self._writer.log_inputs, known.id, run.document)
        # Two runs that bring the same new dataset at once: MLflow refuses the second.
        with self._datasets_lock:
            attempt(log, Loss(Kind.RUN, run.id, "its dataset inputs"), report)

    def _finish_info(self, run: Run, known: KnownRun) -> None:
        status, end_time = str(run.info.get("status", "RUNNING")), run.info.get("end_time")
        try:
            self._writer.finish_run(known.id, status, end_time, None)
        except ServerError as error:
            if status == _OTHER_STATUS or self._options.is_strict or not self._host.refused(error):
                raise
            self._writer.finish_run(known.id, _OTHER_STATUS, end_time, None)

    def _log_histories(self, run: Run, known: KnownRun, report: Report, *, is_new: bool) -> bool:
        log = HistoryLog(
            self._writer,
            run.id,
            known.id,
            report,
            resumes=not is_new,
            is_strict=self._options.is_strict,
            dry_run=self._options.dry_run,
        )
        whole = True
        for rows in run.histories:
            if isinstance(rows, Failure):
                report.failed(rows)
                whole = False
            else:
                log.add(rows)
        return log.finish() and whole

    def _read_back(
        self,
        run: Run,
        known: KnownRun,
        params: dict[str, str],
        tags: dict[str, str],
        source_tags: dict[str, str],
        report: Report,
    ) -> bool:
        there = Run(self._reader.run(known.id))
        whole = True
        for kind, sent, found in (
            (Kind.PARAM, params, there.params),
            (Kind.TAG, tags, there.tags),
        ):
            for key, value in sent.items():
                if key not in found:
                    report.failed(Failure(kind, f"{run.id}/{key}", "it did not arrive"))
                    whole = False
                elif found[key] != value:
                    what = f"the target keeps {len(found[key])} of {len(value)} characters"
                    if len(found[key]) >= len(value):
                        what = "the target keeps another value"
                    if self._options.is_strict:
                        report.failed(Failure(kind, f"{run.id}/{key}", what))
                        whole = False
                    else:
                        report.lost(Loss(kind, f"{run.id}/{key}", what))
        self._source_tags.compare(run, source_tags, there.tags, report)
        for name in ("status", "start_time", "end_time", "run_name"):
            wanted, found_value = run.info.get(name), there.info.get(name)
            if wanted and wanted != found_value:
                report.lost(Loss(Kind.RUN, run.id, f"{name} is {found_value}, not {wanted}"))
        return whole

    def _complete(self, entry: _WaitingRun, mark: str) -> None:
        known = entry.known
        self._writer.log_tags(known.id, {AS_OF_MS: str(entry.as_of_ms), CONTENT: mark})
        known.content, known.as_of_ms = mark, entry.as_of_ms
        if entry.is_deleted:
            self._writer.set_run_deleted(known.id, deleted=True)
            known.is_deleted = True
            if Run(self._reader.run(known.id)).info.get("lifecycle_stage") != "deleted":
                self._writer.log_tags(known.id, {CONTENT: ""})  # so that the next unpack does it
                known.content, known.is_deleted = "", False
                raise ServerError("its deletion did not arrive")
