"""One workspace of a deployment as the end of a stream: each kind goes to its writer."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import NotFoundError, ServerError, StoreError
from mlflow_exim_plugin.host.open.roots import make_root
from mlflow_exim_plugin.host.types import require_types
from mlflow_exim_plugin.schema.objects import (
    Entity,
    Experiment,
    Kind,
    LoggedModel,
    Loss,
    ModelVersion,
    RegisteredModel,
    Run,
    StreamObject,
    Trace,
    by_number,
    key_values,
)
from mlflow_exim_plugin.schema.provenance import (
    ARTIFACT_RUNS,
    OF_GROUP,
    ORIGIN,
    chained,
    experiment_origin,
    is_provenance,
    kinship,
    newest,
    origins,
    told,
)
from mlflow_exim_plugin.sinks.counting import skip_whole
from mlflow_exim_plugin.sinks.kin import RunState
from mlflow_exim_plugin.sinks.left_out import DELETED_THERE
from mlflow_exim_plugin.sinks.policy import (
    NOT_DELETED,
    Meetings,
    TargetNames,
    experiment_keeps,
    find_name,
    is_numbered,
)
from mlflow_exim_plugin.sinks.server.artifact_runs import ArtifactRuns
from mlflow_exim_plugin.sinks.server.entities.writer import EntityWriter
from mlflow_exim_plugin.sinks.server.experiments import ExperimentWriter
from mlflow_exim_plugin.sinks.server.ids import IdMap, KnownRun, Planned
from mlflow_exim_plugin.sinks.server.logged_models import LoggedModelWriter
from mlflow_exim_plugin.sinks.server.registry.models import ModelWriter
from mlflow_exim_plugin.sinks.server.runs import RunWriter
from mlflow_exim_plugin.sinks.server.target import Destination, ServerTarget, attempt
from mlflow_exim_plugin.sinks.server.texts import is_beginning
from mlflow_exim_plugin.sinks.server.traces.writer import TraceWriter

if TYPE_CHECKING:
    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.options import Writing
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.absent_kinds import AbsentKinds

__all__ = ["WorkspaceSink"]


@dataclass
class KnownExperiment:
    """Where what belongs to one source experiment goes.

    Attributes:
        id: Experiment id at the target.
        name: Its name there.
        ours: True when an unpack made it.
        delete_after: True when it is deleted at the source.
        is_deleted: True while it is deleted at the target.
        is_opened: True when it was deleted there until it was written to.
    """

    id: str
    name: str
    ours: bool
    origin: str
    delete_after: bool = False
    is_deleted: bool = False
    is_opened: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class WorkspaceSink:
    """Writes the stream of one workspace to one of a deployment.

    Args:
        host: The deployment.
        options: How to write.
        ids: Source ids to target ids; the same for all workspaces.
        absent: Kinds that the deployment was found not to have; likewise.
        jobs: How many runs may be written at once.
    """

    def __init__(
        self, host: Host, options: Writing, ids: IdMap, absent: AbsentKinds, jobs: int
    ) -> None:
        target = ServerTarget.of(host, options, ids, absent)
        self._host = host
        self._options = options
        self._reader = target.reader
        self._writer = target.writer
        self._writes = ExperimentWriter(target)
        self._ids = ids
        self._absent = absent
        self._targets: dict[str, KnownExperiment | str] = {}
        self._meetings = Meetings()
        self._loaded: set[str] = set()
        self._current: list[KnownExperiment] = []
        self._by_name: dict[str, dict[str, Any]] | None = None
        self._before: list[str] | None = None
        self._source_tags = target.source_tags
        self._run_writer = RunWriter(target)
        artifact_runs = ArtifactRuns(target)
        self._logged_model_writer = LoggedModelWriter(target, self._run_writer, artifact_runs)
        self._entity_writer = EntityWriter(target)
        self._trace_writer = TraceWriter(target, self._run_writer, jobs)
        self._model_writer = ModelWriter(target, self._run_writer, artifact_runs)

    def reach(self) -> None:
        """List the target once, before anything is written.

        Raises:
            ServerError: It cannot be listed, only its server reaches the folder of its files, or it
                is one of before MLflow 1.0: then every object would fail for this one reason.
        """
        if self._host.generation.is_0x:
            raise ServerError(
                f"the target is {self._host.generation.name}, which is only read",
                "unpack into a server of MLflow 1.0 or later, or into a database",
            )
        listed = sorted(self._experiments().values(), key=lambda d: by_number(d["experiment_id"]))
        location = self._options.artifact_location or next(
            (str(document.get("artifact_location") or "") for document in listed), ""
        )
        if self._options.sends_files and not self._host.reaches(location):
            raise ServerError(
                f"{location} is a folder of the server's machine: files that are put there from "
                "here would not reach it",
                "start the server with --serve-artifacts, run this on its machine, give "
                "--artifact-location with a place that both reach, or --no-artifacts",
            )

    def write(self, item: StreamObject, report: Report) -> None:
        """Write one object with its parts.

        Raises:
            ConflictError: The target has a namesake of that name and the policy is ``fail``.
            InvalidArchiveError: The object's document is not as MLflow has it.
            ServerError: The target refused the object.
        """
        for issue in item.issues:
            report.issue(issue)
        if isinstance(item, RegisteredModel):
            self._model_writer.finish(report)
        require_types(item)
        if not isinstance(item, Trace):
            self._trace_writer.flush(report)
        if isinstance(item, Experiment):
            self._write_experiment(item, report)
        elif isinstance(item, RegisteredModel):
            self._model_writer.begin(item, report)
        elif isinstance(item, ModelVersion):
            self._model_writer.write_version(item, report)
        elif isinstance(item, Entity) and not item.experiment_id:
            self._entity_writer.write(item, Destination("", lambda: None), report)
        else:
            self._write_inside(item, report)

    def finish(self, report: Report) -> None:
        """Do what had to wait for what came later: links between objects, aliases, deletions."""
        self._run_writer.finish(report)
        self._model_writer.finish(report)
        self._logged_model_writer.finish(report)
        self._trace_writer.finish(report)
        self._entity_writer.finish(report)
        self._delete_experiments(report)

    def _write_experiment(self, experiment: Experiment, report: Report) -> None:
        origin = experiment_origin(experiment.document)
        target = self._known_target(experiment)
        if target is not None:
            self._go_to(target, experiment)
            self._load(target)
            if target.is_deleted and not experiment.is_deleted:
                self._targets[experiment.id] = DELETED_THERE
                report.skipped(Kind.EXPERIMENT, experiment.name, DELETED_THERE)
                return
            self._count_known(target, experiment, report)
            self._current.append(target)
            return
        target = self._new_target(experiment, origin, report)
        if target is None:
            return
        self._go_to(target, experiment)
        self._current.append(target)

    def _count_known(self, target: KnownExperiment, experiment: Experiment, report: Report) -> None:
        """Let an experiment that is there follow its source, where it may; count it."""
        differing = self._add_tags(target.id, experiment, report) if target.ours else []
        takes = target.ours and self._options.takes_edits
        if takes and (self._takes_name(target, experiment, report) or differing):
            report.written(Kind.EXPERIMENT)
            report.completed(Kind.EXPERIMENT)
            if not self._options.dry_run:
                self._say_unarrived(target, experiment, differing, report)
            return
        reason = "it is there already"
        if differing:
            reason += f" and keeps its own tags {', '.join(differing)}"
        report.skipped(Kind.EXPERIMENT, experiment.name, reason)

    def _say_unarrived(
        self, target: KnownExperiment, experiment: Experiment, keys: list[str], report: Report
    ) -> None:
        """Read back what followed its source."""
        there = self._reader.experiment(target.id)
        of_source, of_copy = (
            key_values(document.get("tags")) for document in (experiment.document, there)
        )
        missing = [f"tag {k}" for k in keys if not is_beginning(of_copy.get(k, ""), of_source[k])]
        if there["name"] != target.name:
            missing.append("its name")
        for what in missing:
            report.lost(Loss(Kind.EXPERIMENT, experiment.name, f"{what}: it did not arrive"))

    def _takes_name(self, target: KnownExperiment, experiment: Experiment, report: Report) -> bool:
        """Give a copy the name that its source has now, if nothing else has it."""
        name, experiments = experiment.name, self._experiments()
        if is_numbered(Kind.EXPERIMENT, name, target.name) or experiment.is_renamed:
            return False
        kept = Loss(Kind.EXPERIMENT, name, f"it keeps its name {target.name!r}")
        if name in experiments:
            report.lost(replace(kept, what=f"{kept.what}: another has {name!r}"))
            return False
        rename = partial(self._writer.rename_experiment, target.id, name)
        if not self._options.dry_run and not attempt(rename, kept, report):
            return False
        experiments[name] = experiments.pop(target.name) | {"name": name}
        target.name = name
        return True

    def _go_to(self, target: KnownExperiment, experiment: Experiment) -> None:
        """Remember where an experiment goes."""
        target.delete_after = experiment.is_deleted
        self._targets[experiment.id] = target
        self._ids.know(Kind.EXPERIMENT, experiment.id, target.id)
        self._meetings.went(Kind.EXPERIMENT, experiment.name, target.name)

    def _known_target(self, experiment: Experiment) -> KnownExperiment | None:
        """Find where this experiment was or went before, even into a namesake's.

        Where another name is asked for, that is under this name alone.
        """
        origin = experiment_origin(experiment.document)
        wanted = origins(origin, key_values(experiment.document.get("tags")))
        found = []
        documents = {
            d["experiment_id"]: d for d in self._experiments().values() if _fits(experiment, d)
        }
        for document in documents.values():
            tags = key_values(document.get("tags"))
            own = experiment_origin(document)
            if (near := kinship(wanted, origins(own, tags))) is not None:
                found.append((near, document, newest(told(tags, ORIGIN)) == origin))
        if found:
            _, document, ours = min(found, key=lambda entry: entry[0])
            return _known(document, origin, ours=ours)
        for info, _ in self._reader.marked(self._joined(documents), OF_GROUP, f"= '{origin}'"):
            return _known(documents[str(info.experiment_id)], origin, ours=False)
        # The first servers keep no tags of experiments by which one without runs would be known.
        namesake = self._experiments().get(experiment.name)
        if (
            self._host.generation.lists_experiments
            and experiment.is_deleted
            and namesake is not None
            and _is_deleted(namesake)
            and not namesake.get("tags")
            and not self._reader.runs(namesake["experiment_id"])
        ):
            return _known(namesake, origin, ours=False)
        return None

    def _joined(self, documents: dict[str, dict[str, Any]]) -> list[str]:
        """Return the experiments that runs of others may have joined, before this unpack began."""
        if self._before is None:
            # Runs that hold files of other objects are in an experiment of their own.
            self._before = [
                there["experiment_id"]
                for name, there in self._experiments().items()
                if name != ARTIFACT_RUNS and not isinstance(there["experiment_id"], Planned)
            ]
            if (
                not self._host.generation.lists_experiments
                and next(self._reader.marked(self._before, OF_GROUP, "LIKE '%'"), None) is None
            ):
                self._before = []
        return [identity for identity in self._before if identity in documents]

    def _new_target(
        self, experiment: Experiment, origin: str, report: Report
    ) -> KnownExperiment | None:
        name = experiment.name
        namesake = self._experiments().get(name)
        if namesake is not None and self._is_untouched_default(namesake):
            target = _known(namesake, origin, ours=True)
            self._load(target)
            self._add_tags(target.id, experiment, report)
            if self._writes.takes_tags:
                report.written(Kind.EXPERIMENT)
            else:  # which leaves no trace of this
                report.skipped(Kind.EXPERIMENT, name, "it is there already")
            return target
        tags = key_values(experiment.document.get("tags"))
        names = TargetNames(
            self._experiments().get,
            meetings=self._meetings,
            keeps=lambda there: experiment_keeps(
                experiment, key_values(there.get("tags")), is_deleted=_is_deleted(there)
            ),
            is_deleted=_is_deleted,
            longest=self._absent.longest_name,
        )
        named = find_name(experiment, name, names, self._options.on_conflict, report)
        if named.is_left:
            self._targets[experiment.id] = named.reason
            return None
        if named.there is not None:
            report.skipped(Kind.EXPERIMENT, name, named.reason)
            target = _known(named.there, origin, ours=False)
            self._load(target)
            return target
        marked = _own(tags) | {ORIGIN: chained(origin, tags)}
        if self._options.dry_run:
            new_id: str = Planned(experiment.id)
        else:
            location, host = self._options.artifact_location, self._reader.host
            if location and not host.is_http:
                make_root(location)
            if host.workspaces:  # there experiments lie below the folder of their workspace
                location = None
            try:
                new_id = self._writes.create(experiment.name, named.name, location, marked, report)
            except ServerError as error:
                if self._options.is_strict or not self._absent.learn_length(named.name, error):
                    raise
                return self._new_target(experiment, origin, report)
            self._put_source_tags(new_id, experiment, {}, report)
        self._experiments()[named.name] = {
            "experiment_id": new_id,
            "name": named.name,
            "tags": [{"key": k, "value": v} for k, v in marked.items()],
        }
        self._loaded.add(new_id)
        report.written(Kind.EXPERIMENT)
        return _known(self._experiments()[named.name], origin, ours=True)

    def _is_untouched_default(self, document: dict[str, Any]) -> bool:
        """Whether it is the experiment MLflow makes by itself and nobody has used."""
        if document["experiment_id"] != "0" or _is_deleted(document):
            return False
        return not document.get("tags") and not self._reader.runs("0")

    def _experiments(self) -> dict[str, dict[str, Any]]:
        if self._by_name is None:
            self._by_name = {d["name"]: d for d in self._reader.experiments()}
        return self._by_name

    def _load(self, target: KnownExperiment) -> None:
        if target.id in self._loaded:
            return
        self._loaded.add(target.id)
        for document in self._reader.run_documents(target.id):
            info, tags = document["info"], key_values(document["data"].get("tags"))
            is_deleted = info.get("lifecycle_stage") == "deleted"
            run_id, root = info["run_id"], info.get("artifact_uri")
            known = KnownRun.of_tags(run_id, root, tags, is_deleted=is_deleted)
            if not known.is_copy:
                known.fingerprint = RunState.of(document).fingerprint()
            self._ids.meet(target.id, run_id, tags, known)
            if origin := told(tags, ORIGIN):
                self._ids.runs[newest(origin)] = known
        self._logged_model_writer.known.load(target.id, self._tags_of(target.id))

    def _tags_of(self, experiment_id: str) -> dict[str, str]:
        return next(
            key_values(d.get("tags"))
            for d in self._experiments().values()
            if d["experiment_id"] == experiment_id
        )

    def _add_tags(self, experiment_id: str, experiment: Experiment, report: Report) -> list[str]:
        """Set what an interrupted unpack or an older archive left out, and, where asked, edits.

        Returns:
            Keys of the tags that have another value, which stays where edits are not taken.
        """
        there = self._tags_of(experiment_id)
        tags = key_values(experiment.document.get("tags"))
        origin = experiment_origin(experiment.document)
        takes = self._options.takes_edits and self._writes.takes_tags
        differing = [
            key
            for key, value in _own(tags).items()
            if (key in there or takes) and not is_beginning(there.get(key, ""), value)
        ]
        if not self._options.dry_run:
            new = [key for key in _own(tags) if key not in there]
            missing = {key: tags[key] for key in (*new, *(differing if takes else ()))}
            if not told(there, ORIGIN):
                missing[ORIGIN] = chained(origin, tags)
            self._writes.set_tags(experiment_id, experiment.name, missing, report)
            self._put_source_tags(experiment_id, experiment, there, report)
        return differing

    def _put_source_tags(
        self, experiment_id: str, experiment: Experiment, there: dict[str, str], report: Report
    ) -> None:
        set_tag = partial(self._writer.set_experiment_tag, experiment_id)
        self._source_tags.put_each(experiment, there, set_tag, report)

    def _write_inside(self, item: Run | LoggedModel | Trace | Entity, report: Report) -> None:
        """Write what belongs to an experiment."""
        target = self._targets.get(item.experiment_id)
        if target is None:
            if isinstance(item, Run | LoggedModel):
                self._ids.refused.add(item.id)
            raise ServerError("its experiment could not be written")
        if isinstance(target, str):
            skip_whole(item, target, report)
            if isinstance(item, Run | LoggedModel):
                self._ids.left.add(item, target)
        elif isinstance(item, Run):
            self._write_run(item, target, report)
        elif isinstance(item, LoggedModel):
            self._write_logged_model(item, target, report)
        else:
            to = Destination(target.id, lambda: self._open(target))
            if isinstance(item, Trace):
                self._trace_writer.add(item, to, report)
            else:
                self._entity_writer.write(item, to, report)

    def _write_run(self, run: Run, target: KnownExperiment, report: Report) -> None:
        self._trace_writer.saw_run(run)
        self._logged_model_writer.known.saw_run(run, target.id)
        if self._is_original(run, target, self._ids.runs, report):
            return
        if self._run_writer.is_settled(run, report):
            return
        self._open(target)
        try:
            self._run_writer.write(run, target.id, target.origin, report)
        except ServerError as error:
            if not self._host.refused(error):
                self._ids.refused.add(run.id)
            raise

    def _write_logged_model(
        self, model: LoggedModel, target: KnownExperiment, report: Report
    ) -> None:
        is_original = partial(self._is_original, model, target, self._ids.logged_models, report)
        if is_original():
            return
        if model.id not in self._ids.logged_models:
            self._logged_model_writer.known.follow(model, target.id, is_original=not target.ours)
            if is_original():
                return
        if self._logged_model_writer.is_settled(model, report):
            return
        if Kind.LOGGED_MODEL not in self._absent:
            self._open(target)
        try:
            self._logged_model_writer.write(model, target.id, target.origin, report)
        except (ServerError, NotFoundError):
            self._ids.refused.add(model.id)
            raise

    def _is_original(
        self,
        item: Run | LoggedModel,
        target: KnownExperiment,
        copies: dict[str, Any],
        report: Report,
    ) -> bool:
        """Whether an object is one of the target's own that came back, or a later copy of it."""
        if item.id in copies:
            return False
        known = self._ids.relative(target.id, origins(item.id, item.tags))
        if known is None:
            return False
        copies[item.id] = known
        known.old_artifact_uri = str(item.info.get("artifact_uri") or "")
        if known.is_copy and not known.content:
            return False  # an interrupted unpack made it
        reason = f"it is there already, as {known.id}"
        if isinstance(item, Run) and not known.is_copy:
            reason = self._as_it_is_there(item, known, report) or reason
        if known.is_deleted and item.info.get("lifecycle_stage") != "deleted":
            reason = f"it was deleted at the target, as {known.id}"
            if isinstance(item, LoggedModel):
                self._ids.left.add(item, reason)
        report.skipped(item.kind, item.id, reason)
        return True

    def _as_it_is_there(self, run: Run, known: KnownRun, report: Report) -> str:
        """Name what a run that comes home has otherwise; empty where that is nothing."""
        state = RunState.of(run.document)
        if state.fingerprint() == known.fingerprint:
            return ""
        differing = state.lacking(RunState.of(self._reader.run(known.id)))
        if not differing:
            return ""
        reason = f"the target has another state of it, as {known.id}, which stays: "
        reason += ", ".join(differing)
        report.lost(Loss(Kind.RUN, run.id, reason))
        return reason

    def _open(self, target: KnownExperiment) -> None:
        """Let an experiment be written to; at the end it is deleted again."""
        if not target.is_deleted or self._options.dry_run:
            return
        with target.lock:
            if target.is_deleted:
                target.is_opened = True
                self._writer.set_experiment_deleted(target.id, deleted=False)
                target.is_deleted = False

    def _delete_experiments(self, report: Report) -> None:
        current, self._current = self._current, []
        if self._options.dry_run:
            return
        deleted: set[str] = set()
        living = {target.id for target in current if not target.delete_after}
        for target in current:
            if not target.delete_after or target.is_deleted:
                continue
            if not (target.ours or target.is_opened):
                continue
            if target.id in living:  # one that is not deleted joined it
                report.lost(Loss(Kind.EXPERIMENT, target.name, NOT_DELETED))
                continue
            try:
                self._writes.delete(target.id)
                deleted.add(target.id)
            except (ServerError, StoreError) as error:
                report.lost(Loss(Kind.EXPERIMENT, target.id, error.message))
        for document in self._reader.experiments() if deleted else ():
            identity = str(document["experiment_id"])
            if identity in deleted and not _is_deleted(document):
                report.lost(Loss(Kind.EXPERIMENT, identity, "its deletion did not arrive"))


def _fits(experiment: Experiment, there: dict[str, Any]) -> bool:
    """Whether an experiment at the target has a name under which one is looked for."""
    if not experiment.is_renamed:
        return True
    return is_numbered(Kind.EXPERIMENT, experiment.name, str(there["name"]))


def _known(document: dict[str, Any], origin: str, *, ours: bool) -> KnownExperiment:
    is_deleted = _is_deleted(document)
    return KnownExperiment(
        document["experiment_id"], str(document["name"]), ours, origin, is_deleted=is_deleted
    )


def _is_deleted(document: dict[str, Any]) -> bool:
    return bool(document.get("lifecycle_stage") == "deleted")


def _own(tags: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if not is_provenance(key)}
