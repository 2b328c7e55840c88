"""Logged models to a deployment: files byte for byte, metrics through their runs, then marked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from mlflow_exim_plugin.container.paths import encode_segment
from mlflow_exim_plugin.errors import NotFoundError, ServerError
from mlflow_exim_plugin.host.api.histories import read_history
from mlflow_exim_plugin.host.api.logged_models import LoggedModels
from mlflow_exim_plugin.schema.objects import (
    Failure,
    Kind,
    LoggedModel,
    Loss,
    key_values,
)
from mlflow_exim_plugin.schema.provenance import (
    AS_OF_MS,
    CONTENT,
    OF_GROUP,
    ORIGIN,
    chained,
    is_provenance,
)
from mlflow_exim_plugin.schema.runs import with_changed_entries
from mlflow_exim_plugin.sinks.counting import read_through
from mlflow_exim_plugin.sinks.server.ids import KnownModel, Planned
from mlflow_exim_plugin.sinks.server.in_turn import InTurn
from mlflow_exim_plugin.sinks.server.known_models import KnownModels
from mlflow_exim_plugin.sinks.server.mentions import Mentions
from mlflow_exim_plugin.sinks.server.target import attempt
from mlflow_exim_plugin.sinks.server.texts import TextWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.server.artifact_runs import ArtifactRuns
    from mlflow_exim_plugin.sinks.server.ids import IdMap
    from mlflow_exim_plugin.sinks.server.runs import RunWriter
    from mlflow_exim_plugin.sinks.server.target import ServerTarget

__all__ = ["LoggedModelWriter"]

VERSIONS_TAG = "mlflow.modelVersions"
_FOLDER = "mlflow_exim/logged_models"
_LONGEST_NAME = 500
"""So many characters of a logged model's name MLflow's databases hold."""
_PENDING = "LOGGED_MODEL_PENDING"
_ABSENT = "the target has no logged models"
_DELETED = "its copy was deleted at the target"


@dataclass
class _WaitingModel:
    """What has to wait for the end of the stream, when every run and version is there.

    Attributes:
        mark: What the model is marked with; empty where it stays as it is.
        versions: Its tag ``mlflow.modelVersions`` at the source.
        metrics: Those that are not at the target yet.
        is_settled: Whether it was there before and only metrics may be missing.
    """

    source_id: str
    known: KnownModel
    experiment_id: str
    metrics: list[dict[str, Any]]
    mark: str = ""
    as_of_ms: int = 0
    versions: str = ""
    is_deleted: bool = False
    is_settled: bool = False


class LoggedModelWriter:
    """Writes logged models; each is marked whole only when its metrics and links are in.

    Args:
        target: The deployment and how to write to it.
        run_writer: Uploads files, keeps deleted runs open while they are written to.
        artifact_runs: Hold the files where the target has no logged models.

    Attributes:
        known: Those that are there.
    """

    def __init__(
        self, target: ServerTarget, run_writer: RunWriter, artifact_runs: ArtifactRuns
    ) -> None:
        self._host = target.host
        self.known = KnownModels(target)
        self._models = LoggedModels(target.host)
        self._writer = target.writer
        self._reader = target.reader
        self._run_writer = run_writer
        self._artifact_runs = artifact_runs
        self._ids = target.ids
        self._source_tags = target.source_tags
        self._options = target.options
        self._texts = TextWriter(target.host, target.options)
        self._waiting: list[_WaitingModel] = []
        self._absent = target.absent
        self._in_turn = InTurn()

    def is_settled(self, model: LoggedModel, report: Report) -> bool:
        """Whether nothing is to be done for a model, which is then counted as skipped."""
        known = self._ids.logged_models.get(model.id)
        if known is None or not (known.content or known.is_deleted):
            return False
        self._describe(model, known)
        if known.is_deleted:
            self._ids.left.add(model, _DELETED)
        if known.is_deleted and not _is_deleted(model):
            reason = _DELETED
        elif known.is_deleted and model.digest is None:
            reason = "it is there already"  # nothing changes a deleted model
        elif self._options.is_whole(known.content, model.digest):
            if _is_deleted(model) and not known.is_deleted:
                return False  # an unpack was killed before it deleted it: nothing restores models
            if self._options.lacks_source_tags(known.content) and not self._options.dry_run:
                attempt(
                    lambda: self._add_source_tags(model, known, report),
                    Loss(Kind.LOGGED_MODEL, model.id, "its source tags"),
                    report,
                )
            reason = "it is there already"
            metrics = _metrics(model.document)
            if known.metric_count is not None and known.metric_count < len(metrics):
                # Runs that an earlier archive did not bring along may come with this one.
                self._waiting.append(_WaitingModel(model.id, known, "", metrics, is_settled=True))
        elif known.as_of_ms > model.as_of_ms:
            reason = "the target has a later state of it"
        else:
            return False
        report.skipped(Kind.LOGGED_MODEL, model.id, reason)
        return True

    def write(self, model: LoggedModel, experiment_id: str, group: str, report: Report) -> None:
        """Write one model, or go on with one that is unfinished.

        Args:
            model: The model.
            experiment_id: Experiment at the target.
            group: Origin of the source experiment.
            report: Counts and names what happens.

        Raises:
            ServerError: The target refused the model, or did not keep it.
        """
        known = self._ids.logged_models.get(model.id)
        there: dict[str, Any] | None = None
        if known is not None:
            there = self._models.read(known.id)
            known.artifact_uri = str(there["info"].get("artifact_uri") or "")
        elif Kind.LOGGED_MODEL not in self._absent:
            known = self._create(model, experiment_id, group, report)
        if known is None:
            self._keep_files(model, group, report)
            return
        self._describe(model, known)
        if self._options.dry_run:
            self._plan(model, known, there, report)
            return
        if there is not None:
            self._continue(model, known, LoggedModel(there), report)
        self._put_source_tags(model, known, report)
        whole = self._put_files(model, known, report)
        metrics = _metrics(model.document)
        left, refused = self._log_metrics(model.id, known, metrics, there, report)
        status = str(model.info.get("status", _PENDING))
        if status != (there or {"info": {"status": _PENDING}})["info"].get("status", _PENDING):
            self._models.set_status(known.id, status)
        versions = model.tags.get(VERSIONS_TAG, "")
        self._require_arrived(model, known, len(metrics) - len(left) - refused, report)
        is_deleted = _is_deleted(model)
        waiting = _WaitingModel(
            model.id,
            known,
            experiment_id,
            left,
            self._options.mark(model.digest) if whole else "",
            model.as_of_ms,
            versions,
            is_deleted,
        )
        if left or versions or is_deleted:
            self._waiting.append(waiting)
        else:
            self._complete(waiting, report)

    def finish(self, report: Report) -> None:
        """Write what had to wait and mark the models that are whole."""
        waiting, self._waiting = self._waiting, []
        for entry in waiting:
            try:
                if entry.metrics:
                    self._log_the_rest(entry, report)
                if entry.is_settled or self._options.dry_run:
                    continue
                if entry.versions:
                    versions = _with_new_versions(entry.versions, self._ids)
                    self._models.set_tags(entry.known.id, {VERSIONS_TAG: versions})
                self._complete(entry, report)
            except (ServerError, NotFoundError) as error:
                report.failed(Failure(Kind.LOGGED_MODEL, entry.source_id, error.message))

    def _create(
        self, model: LoggedModel, experiment_id: str, group: str, report: Report
    ) -> KnownModel | None:
        """Create a model; None where the target knows no logged models."""
        old_run = str(model.info.get("source_run_id") or "")
        if old_run in self._ids.refused:  # once it is there without its run, it stays so
            raise ServerError(f"run {old_run}, which it was made by, could not be written")
        run_id = self._ids.get(Kind.RUN, old_run) if old_run else None
        if self._options.dry_run:
            if self.known.are_absent():
                return None
            self._say_without_run(model, old_run, run_id, report)
            planned = Planned(model.id)
            known = KnownModel(planned, f"{planned}/artifacts")
            self._ids.logged_models[model.id] = known
            return known
        marks = {ORIGIN: chained(model.id, model.tags), OF_GROUP: group}
        create = partial(self._models.create, experiment_id)
        params, tags = _params(model), self._tags(model)
        is_whole = True
        try:
            with self._in_turn:  # listed newest first, they are in the order of the source
                created = create(model.info, run_id, params, tags | marks)
        except ServerError as error:
            if self._absent.learn(Kind.LOGGED_MODEL, error):
                return None
            if self._options.is_strict or not self._host.refused(error):
                raise
            name = str(model.info.get("name") or "")[:_LONGEST_NAME]
            created = create(model.info | {"name": name}, run_id, {}, marks)
            is_whole = False
        self._say_without_run(model, old_run, run_id, report)
        info = created["info"]
        known = KnownModel(info["model_id"], str(info.get("artifact_uri") or ""))
        self._ids.logged_models[model.id] = known
        if not is_whole:
            self._add(model, known, params, tags, report)
        return known

    def _say_without_run(
        self, model: LoggedModel, old_run: str, run_id: str | None, report: Report
    ) -> None:
        if old_run and run_id is None:
            what = f"its source run {old_run} is not at the target, it has none there"
            report.lost(Loss(Kind.LOGGED_MODEL, model.id, what))

    def _plan(
        self,
        model: LoggedModel,
        known: KnownModel,
        there: dict[str, Any] | None,
        report: Report,
    ) -> None:
        """Count and name what writing a model would."""
        unsure = known.content and model.digest is None
        artifacts = read_through(model.artifacts) if unsure else model.artifacts
        whole = self._run_writer.put_artifacts(model.id, "", "", artifacts, report)
        left, _ = self._log_metrics(model.id, known, _metrics(model.document), there, report)
        if left:
            self._waiting.append(_WaitingModel(model.id, known, "", left))
        mark = self._options.mark(model.digest) if whole else ""
        self._count(_WaitingModel(model.id, known, "", [], mark), known.content, report)

    def _count(self, entry: _WaitingModel, was: str, report: Report) -> None:
        if was and was == entry.mark:
            report.skipped(Kind.LOGGED_MODEL, entry.source_id, "it is there already")
        else:
            report.written(Kind.LOGGED_MODEL)
            report.completed(Kind.LOGGED_MODEL, int(bool(was)))

    def _describe(self, model: LoggedModel, known: KnownModel) -> None:
        """Remember of a model what versions that were made of it ask for."""
        known.old_artifact_uri = str(model.info.get("artifact_uri") or "")
        known.notes_versions = VERSIONS_TAG in model.tags

    def _continue(
        self, model: LoggedModel, known: KnownModel, there: LoggedModel, report: Report
    ) -> None:
        """Add what an interrupted unpack or an older archive left out."""
        present = _params(there)
        missing = {k: v for k, v in _params(model).items() if k not in present}
        tags = {k: v for k, v in self._tags(model).items() if there.tags.get(k) != v}
        self._add(model, known, missing, tags, report)

    def _add(
        self,
        model: LoggedModel,
        known: KnownModel,
        params: dict[str, str],
        tags: dict[str, str],
        report: Report,
    ) -> None:
        """Add params and tags; one that is refused costs no more than itself."""
        for kind, texts, add in (
            (Kind.PARAM, params, partial(self._models.add_params, known.id)),
            (Kind.TAG, tags, partial(self._models.set_tags, known.id)),
        ):
            together = partial(self._together, add)
            left_out, whole = self._texts.put_together(
                kind, model.id, texts, together, _one_by_one(add), report
            )
            if whole:
                known.refused |= {(kind, key) for key in left_out}

    def _together(
        self, add: Callable[[dict[str, str]], None], texts: dict[str, str]
    ) -> dict[str, ServerError]:
        """Add texts, and return those that are refused: all of them or none."""
        try:
            add(texts)
        except ServerError as error:
            if self._options.is_strict or not self._host.refused(error):
                raise
            return dict.fromkeys(texts, error)
        return {}

    def _tags(self, model: LoggedModel) -> dict[str, str]:
        return {
            key: value
            for key, value in model.tags.items()
            if key != VERSIONS_TAG and not is_provenance(key)
        }

    def _put_source_tags(self, model: LoggedModel, known: KnownModel, report: Report) -> None:
        send = partial(self._models.set_tags, known.id)
        taken = self._source_tags.put(model, {}, send, report)
        if taken:
            there = LoggedModel(self._models.read(known.id))
            self._source_tags.compare(model, taken, there.tags, report)

    def _add_source_tags(self, model: LoggedModel, known: KnownModel, report: Report) -> None:
        """Give a model that an earlier unpack wrote the source tags that are asked for now."""
        known.content = self._options.mark(model.digest)
        self._put_source_tags(model, known, report)
        self._models.set_tags(known.id, {CONTENT: known.content})

    def _put_files(self, model: LoggedModel, known: KnownModel, report: Report) -> bool:
        old_ids = [model.id, str(model.info.get("source_run_id") or "")]
        mentions = Mentions([old_id.encode() for old_id in old_ids if old_id])
        artifacts = mentions.watch(model.artifacts)
        root, prefix = known.artifact_uri, known.folder
        whole = self._run_writer.put_artifacts(model.id, root, prefix, artifacts, report)
        if files := mentions.named():
            what = f"files that mention its old ids came untouched: {files}"
            report.lost(Loss(Kind.LOGGED_MODEL, model.id, what))
        return whole

    def _log_metrics(
        self,
        source_id: str,
        known: KnownModel,
        metrics: list[dict[str, Any]],
        there: dict[str, Any] | None,
        report: Report,
    ) -> tuple[list[dict[str, Any]], int]:
        """Log what is not there yet and name what the target refuses.

        MLflow 3.1 refuses a NaN that the run has already, and the run always has it first.

        Returns:
            The metrics whose runs are not at the target, and how many were refused.
        """
        present = {_identity(metric) for metric in _metrics(there)} if there else set()
        of_run: dict[str, list[dict[str, Any]]] = {}
        left = []
        refused = 0
        for metric in metrics:
            source_run = str(metric.get("run_id") or "")
            target_run = self._ids.get(Kind.RUN, source_run)
            if target_run is None:
                left.append(metric)
            elif _identity({**metric, "run_id": target_run}) not in present:
                of_run.setdefault(source_run, []).append(metric)
        if self._options.dry_run:
            return left, 0
        for source_run, missing in of_run.items():
            run = self._ids.runs[source_run]
            with self._run_writer.opened(run):
                rows = [self._as_logged(metric, run.id) for metric in missing]
                for metric, error in self._models.log_metrics(run.id, known.id, rows):
                    at = f"metric {metric['key']} at step {metric.get('step', 0)}"
                    what = f"{at}: {error.message}"
                    report.lost(Loss(Kind.LOGGED_MODEL, source_id, what))
                    refused += 1
        return left, refused

    def _as_logged(self, metric: dict[str, Any], run_id: str) -> dict[str, Any]:
        """Return a metric as it was logged: MLflow keeps a model's NaN as 0, its run's as NaN."""
        if metric.get("value", 0) != 0:
            return metric
        rows = read_history(self._host, run_id, str(metric["key"]))
        moment = pc.and_(
            pc.equal(rows.column("step"), int(metric.get("step", 0))),
            pc.equal(rows.column("timestamp"), int(metric.get("timestamp", 0))),
        )
        values = rows.filter(moment).column("value")
        is_nan = len(values) > 0 and pc.all(pc.is_nan(values)).as_py()
        return {**metric, "value": "NaN"} if is_nan else metric

    def _log_the_rest(self, entry: _WaitingModel, report: Report) -> None:
        there = self._models.read(entry.known.id) if entry.is_settled else None
        left, _ = self._log_metrics(entry.source_id, entry.known, entry.metrics, there, report)
        for metric in left:
            what = f"metric {metric['key']}: its run {metric.get('run_id')} is not at the target"
            report.lost(Loss(Kind.LOGGED_MODEL, entry.source_id, what))

    def _require_arrived(
        self, model: LoggedModel, known: KnownModel, metrics: int, report: Report
    ) -> None:
        """Read a model back and name what became different.

        Args:
            model: As it was read.
            known: Its copy.
            metrics: How many metrics the copy must have by now.
            report: Told of what became different.

        Raises:
            ServerError: Something of it did not arrive.
        """
        there = LoggedModel(self._models.read(known.id))
        for part, sent, found in (
            (Kind.PARAM, _params(model), _params(there)),
            (Kind.TAG, self._tags(model), there.tags),
        ):
            for key, value in sent.items():
                if (part, key) in known.refused:
                    continue
                if key not in found:
                    raise ServerError(f"its {part} {key} did not arrive")
                if found[key] != value:
                    kept = f"{len(found[key])} of {len(value)} characters"
                    what = f"{part} {key}: the target keeps {kept}"
                    report.lost(Loss(Kind.LOGGED_MODEL, model.id, what))
        arrived = len(_metrics(there.document))
        if arrived < metrics:
            raise ServerError(f"only {arrived} of its metrics arrived")
        for name in ("name", "model_type", "status"):
            if (wanted := model.info.get(name)) and wanted != there.info.get(name):
                what = f"its {name} is {there.info.get(name)}, not {wanted}"
                report.lost(Loss(Kind.LOGGED_MODEL, model.id, what))

    def _complete(self, entry: _WaitingModel, report: Report) -> None:
        """Mark a model whole, delete it where it is deleted at the source, and count it."""
        known = entry.known
        was = known.content
        value = f"{known.id} {entry.as_of_ms} {entry.mark}"
        self.known.remember(
            entry.source_id, value, entry.experiment_id, is_deleted=entry.is_deleted
        )
        if entry.mark:
            tags = {AS_OF_MS: str(entry.as_of_ms), CONTENT: entry.mark}
            self._models.set_tags(known.id, tags)
            known.content, known.as_of_ms = entry.mark, entry.as_of_ms
        if entry.is_deleted and not known.is_deleted:
            self._models.delete(known.id)
            known.is_deleted = True
            self._read_back_deleted(entry, report)
        self._count(entry, was, report)

    def _read_back_deleted(self, entry: _WaitingModel, report: Report) -> None:
        try:
            there = LoggedModel(self._models.read(entry.known.id))
        except NotFoundError:
            what = "it is deleted, and the target shows no deleted logged models"
        else:
            what = "" if _is_deleted(there) else "its deletion did not arrive"
        if what:
            report.lost(Loss(Kind.LOGGED_MODEL, entry.source_id, what))

    def _keep_files(self, model: LoggedModel, group: str, report: Report) -> None:
        """Give a model's files to a run, where versions that were made of it will find them."""
        run = self._artifact_runs.run(
            model.id,
            group,
            str(model.info.get("name") or model.id),
            "",
            model.info.get("creation_timestamp_ms"),
        )
        folder = f"{_FOLDER}/{encode_segment(model.id)}/"
        known = KnownModel("", run.artifact_uri, holder=run.id, folder=folder)
        self._ids.logged_models[model.id] = known
        self._describe(model, known)
        if not run.content or not self._options.is_whole(run.content, model.digest):
            whole = self._put_files(model, known, report)
            if not self._options.dry_run:
                end = model.info.get("last_updated_timestamp_ms")
                self._writer.finish_run(run.id, "FINISHED", end, None)
            if whole and not self._options.dry_run:
                mark = {AS_OF_MS: str(model.as_of_ms), CONTENT: self._options.mark(model.digest)}
                self._writer.log_tags(run.id, mark)
        reason = f"{_ABSENT}; folder {folder} of run {run.id} holds its files"
        report.skipped(Kind.LOGGED_MODEL, model.id, reason)


def _one_by_one(add: Callable[[dict[str, str]], None]) -> Callable[[str, str], None]:
    return lambda key, value: add({key: value})


def _is_deleted(model: LoggedModel) -> bool:
    return model.info.get("lifecycle_stage") == "deleted"


def _params(model: LoggedModel) -> dict[str, str]:
    return key_values(model.document.get("data", {}).get("params"))


def _metrics(document: dict[str, Any] | None) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = (document or {}).get("data", {}).get("metrics") or []
    return listed


def _identity(metric: dict[str, Any]) -> tuple[Any, ...]:
    names = ("key", "run_id", "dataset_name", "dataset_digest")
    numbers = (int(metric.get(name) or 0) for name in ("step", "timestamp"))
    return (*(metric.get(name) or "" for name in names), *numbers)


def _with_new_versions(value: str, ids: IdMap) -> str:
    """Give the entries of ``mlflow.modelVersions`` the names and numbers of the target."""

    def change(entry: dict[str, Any]) -> None:
        version_id = f"{entry.get('name')}/{entry.get('version')}"
        known = ids.get(Kind.MODEL_VERSION, version_id)
        if known is not None and known != version_id:
            entry["name"], _, number = known.rpartition("/")
            entry["version"] = type(entry["version"])(number)

    return with_changed_entries(value, change)
