"""Sink ``archive``: the stream becomes members, each object's envelope after its parts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.errors import (
    EximError,
    InvalidArchiveError,
    NotFoundError,
    StoreError,
)
from mlflow_exim_plugin.schema.canonical import content_digest, document_bytes
from mlflow_exim_plugin.schema.digests import ContentRoot, raw_digest
from mlflow_exim_plugin.schema.envelope import ArchiveHeader, System
from mlflow_exim_plugin.schema.metric_rows import MetricsDigest
from mlflow_exim_plugin.schema.objects import (
    ENTITY_KINDS,
    Artifact,
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
from mlflow_exim_plugin.schema.report import entries, failed_runs
from mlflow_exim_plugin.schema.traces import problem_of, trace_digest
from mlflow_exim_plugin.sinks.archive.place import PlaceInSet
from mlflow_exim_plugin.sinks.archive.readme import README
from mlflow_exim_plugin.sinks.archive.tables import MetricsParts, TraceParts
from mlflow_exim_plugin.sinks.counting import count_parts
from mlflow_exim_plugin.sinks.sink import Capabilities

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mlflow_exim_plugin.container.member_stream import Member
    from mlflow_exim_plugin.container.writer import ArchiveWriter
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.archive.log import Step

__all__ = ["ArchiveSink"]


class ArchiveSink:
    """Writes a stream into one archive, in one pass.

    Args:
        writer: Open archive.
        system: Part ``system`` of every envelope.
        selection: What was asked for, kept in ``archive.json``.
        taken_from: The archives that the objects come from, the last one first; kept there too.
        redacted: Gives at the end what was taken out on the way; kept there too.
        step: What the log tells of it; without it there is no log.
        place: What other archives of its set have taken; an archive alone has it to itself.
    """

    capabilities = Capabilities()
    parallel = 1
    """Members come one after the other; the frames are compressed in parallel below."""
    content_root: ContentRoot
    """What was written so far."""
    place: PlaceInSet
    """Where that stands."""

    def __init__(
        self,
        writer: ArchiveWriter,
        system: System,
        selection: dict[str, Any] | None = None,
        taken_from: Sequence[dict[str, Any]] = (),
        redacted: Callable[[], list[dict[str, Any]]] = list,
        step: Step | None = None,
        place: PlaceInSet | None = None,
    ) -> None:
        self._writer = writer
        self.place = place or PlaceInSet()
        self._system = system.to_json()
        self._selection = selection or {}
        self._taken_from = taken_from
        self._redacted = redacted
        self._step = step
        self._workspaces: list[_Workspace] = [_Workspace("", layout.TREE)]
        self._experiment: _OpenExperiment | None = None
        self._model: _OpenModel | None = None
        self._model_folders: set[str] = set()
        self._run_count = 0
        self.content_root = ContentRoot()
        header = ArchiveHeader.now(writer.required_features)
        writer.add(layout.HEADER, document_bytes(header.to_json()))
        writer.add(layout.README, README.encode("ascii"))

    def write(self, item: StreamObject, report: Report) -> None:
        """Write one object with its parts.

        Raises:
            InvalidArchiveError: The object cannot be written as the format wants it.
            StoreError: The archive cannot be written.
        """
        if isinstance(item, Experiment):
            self._finish_open(report)
            first = self.place.first_table
            tree = self._workspace.tree
            self._experiment = _OpenExperiment(item, tree, self._writer, report, first)
            self._copy_tables(item, report)
        elif isinstance(item, Run):
            self._write_run(item, report)
        elif isinstance(item, LoggedModel):
            self._write_logged_model(item, report)
        elif isinstance(item, Trace):
            self._write_trace(item, report)
        elif isinstance(item, RegisteredModel):
            self._finish_open(report)
            tree = self._workspace.tree
            folder = self.place.model_folder(item, self._model_folders, tree)
            if item.stored is not None:  # its versions may have to stay there
                folder = item.stored.path.removesuffix("model.json")
            self._model_folders.add(folder.casefold())
            self._model = _OpenModel(item, folder)
        elif isinstance(item, ModelVersion):
            self._write_version(item, report)
        else:
            self._write_entity(item, report)

    def finish(self, report: Report) -> None:
        """Write what is still open, the archive's own envelope and the tail."""
        self._finish_open(report)
        summary = report.to_dict()
        failed = failed_runs(report.failures)
        info = {
            "counts": summary["counts"],
            "num_total_runs": self._run_count + failed["num_failed_runs"],
            "num_ok_runs": self._run_count,
            **failed,
            "metric_rows": report.metric_rows,
            "artifact_bytes": report.artifact_bytes,
            "failures": entries(report.failures),
            "lossy": entries(report.losses),
            "not_packed": summary["not_packed"],
            "content_root": self.content_root.hexdigest(),
        }
        if report.read_as:
            info["read_as"] = report.read_as
        if self._taken_from:
            info["taken_from"] = [*self._taken_from]
        if redacted := self._redacted():
            info["redacted"] = redacted
        default, *others = self._workspaces
        part = {"selection": self._selection, **default.listing()}
        if others:
            part["workspaces"] = [{"name": w.name, **w.listing()} for w in others]
        self._add(layout.ARCHIVE, info, part)
        if (step := self._step) is not None:
            event = step.event(self._selection, report, info["content_root"])
            for number, stored in enumerate((*step.events, event), 1):
                self._writer.add(layout.log_member(number), stored)
        report.root = self._writer.close()
        report.content_root = info["content_root"]

    @property
    def _workspace(self) -> _Workspace:
        return self._workspaces[-1]

    def _opened(self, item: Run | LoggedModel | Trace | Entity) -> _OpenExperiment:
        if self._experiment is None or self._experiment.item.id != item.experiment_id:
            raise StoreError(f"{item.kind} {item.id} came before its experiment")
        return self._experiment

    def _require_free(self, path: str, item: Run | LoggedModel) -> None:
        if self._writer.is_taken(path):  # before its rows are in a table
            raise InvalidArchiveError(f"{item.kind} {item.id!r} is there already, but for case")

    def _copy_tables(self, experiment: Experiment, report: Report) -> None:
        """Take the metric rows and traces of an experiment as they are in another archive."""
        for part in experiment.trace_parts:
            for path in (*part.envelope.parts, part.envelope.path):
                self._writer.copy(path, part.envelope.reader, path)
            for kind, count in part.counts.items():
                if count:
                    report.written(kind, count)
            report.add_bytes(part.attachment_bytes)
            folder = layout.experiment_folder(experiment.id, self._workspace.tree)
            self.content_root.add_traces(folder, part.content_digests)
            for issue in part.issues:
                report.issue(issue)
        for file in experiment.metrics_files:
            self._writer.copy(file.path, file.reader, file.path)

    def _copied(
        self,
        path: str,
        item: Run | LoggedModel | ModelVersion | Entity,
        artifacts: list[dict[str, Any]],
        issues: list[Failure | Loss],
        report: Report,
    ) -> str | None:
        """Take an envelope as it is in another archive, if that says nothing else of the object.

        Returns:
            The content digest that it states, None where it is to be made.
        """
        stored = item.stored
        if stored is None or stored.path != path or issues != [*item.issues]:
            return None
        if tuple(entry["member"] for entry in artifacts) != stored.parts:
            return None
        self._writer.copy(path, stored.reader, stored.path)
        for issue in issues:
            report.issue(issue)
        return stored.content_digest

    def _write_run(self, run: Run, report: Report) -> None:
        opened = self._opened(run)
        run_id = run.id
        folder = layout.run_folder(opened.folder, run_id)
        path = layout.run_member(folder)
        self._require_free(path, run)
        issues: list[Failure | Loss] = [*run.issues]
        digest = MetricsDigest()
        ranges: list[dict[str, Any]] = []
        for rows in run.histories:
            if isinstance(rows, Failure):
                issues.append(rows)
                continue
            digest.update(rows)
            ranges += opened.metrics.append(rows)
        place = partial(layout.artifact_member, folder)
        artifacts = self._write_artifacts(place, run_id, run.artifacts, issues, report)
        metrics = run.metrics
        if digest.rows:
            metrics = {
                "digest": digest.hexdigest(),
                "keys": digest.keys,
                "rows": digest.rows,
                "parts": _joined(ranges),
            }
        if metrics is not None:
            report.written(Kind.METRIC_HISTORY, metrics["keys"])
            report.add_rows(metrics["rows"])
        if (content := self._copied(path, run, artifacts, issues, report)) is None:
            document = {"run": run.document}
            content = self._add_object(
                path, document, issues, report, artifacts, metrics, run.doubles
            )
        self.content_root.add(path, content)
        opened.runs.append(run_id)
        self._run_count += 1
        report.written(Kind.RUN)

    def _write_logged_model(self, model: LoggedModel, report: Report) -> None:
        opened = self._opened(model)
        folder = layout.logged_model_folder(opened.folder, model.id)
        path = layout.logged_model_member(folder)
        self._require_free(path, model)
        issues = [*model.issues]
        place = partial(layout.artifact_member, folder)
        artifacts = self._write_artifacts(place, model.id, model.artifacts, issues, report)
        if (content := self._copied(path, model, artifacts, issues, report)) is None:
            document = {"logged_model": model.document}
            content = self._add_object(path, document, issues, report, artifacts)
        self.content_root.add(path, content)
        opened.logged_models.append(model.id)
        report.written(Kind.LOGGED_MODEL)

    def _write_trace(self, trace: Trace, report: Report) -> None:
        opened = self._opened(trace)
        if opened.traces.is_full:
            self._close_traces(opened)
        issues = [*trace.issues]
        if problem := problem_of(trace):
            issues.append(Failure(Kind.SPAN, trace.id, f"its spans are malformed: {problem}"))
            trace = replace(trace, spans=None)
            if problem := problem_of(trace):
                raise InvalidArchiveError(problem)
        try:
            digest = trace_digest(trace)
        except ValueError as error:  # a text that UTF-8 cannot hold, a bare NaN
            raise InvalidArchiveError(f"it is not as the format wants it: {error}") from error
        place = partial(layout.attachment_member, opened.folder, trace.id)
        attachments = self._write_artifacts(place, trace.id, trace.attachments, issues, report)
        if attachments:
            digest = trace_digest(trace, _contents(attachments))
        opened.traces.append(trace, digest)
        self.content_root.add_traces(opened.folder, raw_digest(digest))
        opened.attachments += [{"trace_id": trace.id, **entry} for entry in attachments]
        opened.trace_issues += issues
        for issue in issues:
            report.issue(issue)
        report.written(Kind.TRACE)
        for kind, count in (
            (Kind.SPAN, len(trace.spans or ())),
            (Kind.ASSESSMENT, len(trace.assessments)),
        ):
            if count:
                report.written(kind, count)

    def _close_traces(self, opened: _OpenExperiment) -> None:
        closed = opened.traces.close()
        if closed is None:
            return
        path, tables, digests = closed
        document = {"experiment_id": opened.item.id, "traces": len(digests)}
        attachments, opened.attachments = opened.attachments, []
        issues, opened.trace_issues = opened.trace_issues, []
        info = {
            "content_digest": content_digest(document, traces=digests),
            "tables": tables,
            **({"attachments": attachments} if attachments else {}),
        }
        self._add(path, info | _named(issues), document)

    def _write_version(self, version: ModelVersion, report: Report) -> None:
        if self._model is None:
            raise StoreError(f"{version.kind} {version.id} came before its model")
        issues = [*version.issues]
        folder = layout.version_folder(self._model.folder, version.version)
        place = partial(layout.artifact_member, folder)
        artifacts = self._write_artifacts(place, version.id, version.artifacts, issues, report)
        path = layout.version_member(self._model.folder, version.version)
        if (content := self._copied(path, version, artifacts, issues, report)) is None:
            document = {"model_version": version.document}
            content = self._add_object(path, document, issues, report, artifacts)
        unnumbered = self._unnumbered(self._model.item)
        self.content_root.add(layout.version_member(unnumbered, version.version), content)
        self._model.versions.append(version.version)
        report.written(version.kind)

    def _write_entity(self, entity: Entity, report: Report) -> None:
        experiment = ""
        if ENTITY_KINDS[entity.kind].of_experiment:
            experiment = self._opened(entity).folder
        else:
            self._finish_open(report)
        if entity.kind is Kind.WORKSPACE:
            self._workspaces.append(_Workspace(entity.id, layout.workspace_tree(entity.id)))
        unnumbered = layout.entity_member(
            entity.kind, entity.id, tree=self._workspace.tree, experiment=experiment
        )
        path = unnumbered if entity.stored is None else entity.stored.path
        path, issues = self.place.entity(path, self._writer.free_path), [*entity.issues]
        place = partial(layout.artifact_member, path.removesuffix(".json") + "/")
        artifacts = self._write_artifacts(place, entity.id, entity.artifacts, issues, report)
        document = {str(entity.kind): entity.document}
        if (content := self._copied(path, entity, artifacts, issues, report)) is None:
            content = self._add_object(path, document, issues, report, artifacts)
        self.content_root.add(unnumbered, content)
        report.written(entity.kind)
        count_parts(entity, report)

    def _add_object(
        self,
        path: str,
        document: dict[str, Any],
        issues: list[Failure | Loss],
        report: Report,
        artifacts: list[dict[str, Any]] | None = None,
        metrics: dict[str, Any] | None = None,
        doubles: list[float] | None = None,
        more: dict[str, Any] | None = None,
    ) -> str:
        """Write an object's envelope, report what is wrong with it, and return its digest."""
        rows = metrics["digest"] if metrics else None
        try:
            digest = content_digest(document, rows, _contents(artifacts or ()), doubles=doubles)
        except ValueError as error:  # a text that UTF-8 cannot hold, a bare NaN
            raise InvalidArchiveError(f"it is not as the format wants it: {error}") from error
        info = {"content_digest": digest, **(more or {})}
        if metrics:
            info["metrics"] = metrics
        if artifacts:
            info["artifacts"] = artifacts
        self._add(path, info | _named(issues), document, doubles)
        for issue in issues:
            report.issue(issue)
        return digest

    def _unnumbered(self, model: RegisteredModel) -> str:
        """Return the folder of a registered model or prompt where its name meets no other's."""
        return layout.model_folder(model.name, kind=model.kind, tree=self._workspace.tree)

    def _write_artifacts(
        self,
        place: Callable[[str], str],
        owner: str,
        artifacts: Iterable[Artifact | Failure],
        issues: list[Failure | Loss],
        report: Report,
    ) -> list[dict[str, Any]]:
        written: list[dict[str, Any]] = []
        for artifact in artifacts:
            if isinstance(artifact, Failure):
                issues.append(artifact)
                continue
            name = f"{owner}/{artifact.path}"
            member_path = self._writer.free_path(place(artifact.path))
            member = self._write_artifact(member_path, artifact)
            if isinstance(member, EximError):
                issues.append(Failure(Kind.ARTIFACT, name, member.message))
                continue
            if member.is_cut:
                what = f"it grew while it was being read: its first {member.size_bytes} bytes"
                issues.append(Loss(Kind.ARTIFACT, name, what))
            elif not member.complete:
                issues.append(Failure(Kind.ARTIFACT, name, member.error))
                continue
            written.append(
                {
                    "path": artifact.path,
                    "member": member.path,
                    "size_bytes": member.size_bytes,
                    "sha256": member.sha256,
                }
            )
            report.written(Kind.ARTIFACT)
            report.add_bytes(member.size_bytes)
        return written

    def _write_artifact(self, path: str, artifact: Artifact) -> Member | EximError:
        """Write one file; return why it cannot be read. That nothing can be written is raised."""
        if (kept := self._writer.kept(path, artifact.size_bytes)) is not None:
            return kept
        if (stored := artifact.stored) is not None:
            try:
                return self._writer.copy(path, stored.reader, stored.path)
            except (InvalidArchiveError, NotFoundError) as error:
                return error
        try:
            stream = artifact.open()
        except EximError as error:
            return error
        with stream:
            return self._writer.add_stream(path, artifact.size_bytes, stream)

    def _finish_open(self, report: Report) -> None:
        """Write the envelope of the experiment or model whose parts have all come."""
        if (opened := self._experiment) is not None:
            self._experiment = None
            opened.metrics.close()
            self._close_traces(opened)
            self.content_root.end_traces(opened.folder)
            self._add_experiment(opened, report)
        if (model := self._model) is not None:
            self._model = None
            document = {"registered_model": model.item.document, "versions": model.versions}
            path = layout.model_member(model.folder)
            content = self._add_object(path, document, [*model.item.issues], report)
            self.content_root.add(layout.model_member(self._unnumbered(model.item)), content)
            is_prompt = model.item.kind is Kind.PROMPT
            workspace = self._workspace
            (workspace.prompts if is_prompt else workspace.models).append(model.item.name)
            report.written(model.item.kind)

    def _add_experiment(self, opened: _OpenExperiment, report: Report) -> None:
        experiment = opened.item
        failed = failed_runs(report.failures[opened.failures_before :])
        document: dict[str, Any] = {"experiment": experiment.document, "runs": opened.runs}
        if opened.logged_models:
            document["logged_models"] = opened.logged_models
        path = layout.experiment_member(experiment.id, self._workspace.tree)
        counts = {
            "num_total_runs": len(opened.runs) + failed["num_failed_runs"],
            "num_ok_runs": len(opened.runs),
            **failed,
        }
        content = self._add_object(path, document, [*experiment.issues], report, more=counts)
        self.content_root.add(path, content)
        entry = {"experiment_id": experiment.id, "name": experiment.name}
        self._workspace.experiments.append(entry)
        report.written(Kind.EXPERIMENT)

    def _add(
        self,
        path: str,
        info: dict[str, Any],
        mlflow: dict[str, Any],
        doubles: list[float] | None = None,
    ) -> None:
        """Write an envelope. The doubles of ``mlflow``, where they are known, are all it has."""
        envelope = {"system": self._system, "info": info, "mlflow": mlflow}
        self._writer.add(path, document_bytes(envelope, doubles))


class _OpenExperiment:
    """The experiment whose objects are coming."""

    def __init__(
        self, item: Experiment, tree: str, writer: ArchiveWriter, report: Report, first: int
    ) -> None:
        self.item = item
        self.folder = layout.experiment_folder(item.id, tree)
        self.runs: list[str] = []
        self.logged_models: list[str] = []
        self.metrics = MetricsParts(writer, self.folder, first)
        self.traces = TraceParts(writer, self.folder, first)
        self.attachments: list[dict[str, Any]] = []
        self.trace_issues: list[Failure | Loss] = []
        self.failures_before = len(report.failures)


@dataclass
class _OpenModel:
    """The registered model or prompt whose versions are coming."""

    item: RegisteredModel
    folder: str
    versions: list[int] = field(default_factory=list)


@dataclass
class _Workspace:
    """What was written of one workspace."""

    name: str
    tree: str
    experiments: list[dict[str, str]] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    def listing(self) -> dict[str, Any]:
        listing = {"experiments": self.experiments, "models": self.models}
        return listing | ({"prompts": self.prompts} if self.prompts else {})


def _contents(entries: Iterable[dict[str, Any]]) -> list[tuple[str, int, str]]:
    return [(entry["path"], entry["size_bytes"], entry["sha256"]) for entry in entries]


def _joined(ranges: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join ranges that follow each other in one file: a run's keys may come one by one."""
    joined: list[dict[str, Any]] = []
    for part in ranges:
        if joined and joined[-1]["member"] == part["member"]:
            joined[-1]["rows"] += part["rows"]
        else:
            joined.append(dict(part))
    return joined


def _named(issues: list[Failure | Loss]) -> dict[str, Any]:
    failures = entries(issue for issue in issues if isinstance(issue, Failure))
    for entry in failures:
        if entry["count"] == 1:  # which is what it is where it is not said
            del entry["count"]
    losses = entries(issue for issue in issues if isinstance(issue, Loss))
    return ({"failures": failures} if failures else {}) | ({"lossy": losses} if losses else {})
