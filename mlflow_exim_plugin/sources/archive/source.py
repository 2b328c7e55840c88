"""Source ``archive``: streams the objects of an archive, what is damaged as ``Failure``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.container.paths import decode_segment, encode_segment
from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.options import ALL_IDS, matches
from mlflow_exim_plugin.schema.envelope import (
    ArtifactEntry,
    EntityEnvelope,
    ExperimentEnvelope,
    LoggedModelEnvelope,
    MetricsEntry,
    ModelEnvelope,
    RunEnvelope,
    TracePartEnvelope,
    VersionEnvelope,
    check_entity,
)
from mlflow_exim_plugin.schema.lineage import is_or_was
from mlflow_exim_plugin.schema.objects import (
    ENTITY_KINDS,
    IS_NUMBER,
    VERSION_KINDS,
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
    StoredMember,
    StreamItem,
    Trace,
    by_number,
    created_ms,
    model_behind,
)
from mlflow_exim_plugin.schema.runs import PARENT
from mlflow_exim_plugin.sources.archive.outline import ArchiveOutline, with_all_in_it
from mlflow_exim_plugin.sources.archive.run_listing import ArchiveRuns
from mlflow_exim_plugin.sources.archive.stored import StoredParts
from mlflow_exim_plugin.sources.archive.version_files import files_behind, files_left_behind
from mlflow_exim_plugin.stages.select import Plan, Wanted, take_versions, within

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping

    from mlflow_exim_plugin.options import Selection
    from mlflow_exim_plugin.schema.envelope import Info, RunInfo, VersionInfo
    from mlflow_exim_plugin.schema.metric_rows import RunRows
    from mlflow_exim_plugin.sources.archive.archive import Archive, Tree

__all__ = ["ArchiveSource"]

_BEFORE_TRACES = [k for k, of in ENTITY_KINDS.items() if of.of_experiment and not of.after_traces]
_AFTER_TRACES = [k for k, of in ENTITY_KINDS.items() if of.after_traces]
_AFTER_MODELS = [k for k, of in ENTITY_KINDS.items() if not of.of_experiment and of.rows]


_VERSION = "/version.json"


class ArchiveSource:
    """Streams an archive's objects.

    Args:
        archive: Open archive.
        contents: False reads no metric rows.
        as_stored: Gives what may stand in another archive as it is, and what this one says to be
            missing; only for a sink that writes archives.
        tables_as_stored: Whether that may be whole tables of metric rows and traces too.
    """

    def __init__(
        self,
        archive: Archive,
        *,
        contents: bool = True,
        as_stored: bool = False,
        tables_as_stored: bool = True,
    ) -> None:
        self._archive = archive
        self._contents = contents
        self._as_stored = as_stored
        self._tables_as_stored = tables_as_stored
        self.planned: dict[Kind, int] = {}

    def stream(self, selection: Selection) -> Iterator[StreamItem]:
        """Yield what is selected, in dependency order; what is damaged as ``Failure``.

        Raises:
            NotFoundError: A name or id that was asked for is not in the archive.
        """
        wanted = Wanted(selection, self.planned)
        stored = None
        if self._as_stored:
            stored = StoredParts(self._archive, selection, tables=self._tables_as_stored)
        streams = [
            _TreeStream(self._archive, tree, selection, stored, contents=self._contents)
            for tree in self._archive.trees
        ]
        for stream in streams:
            yield from stream.choose(wanted)
        lost = list(self._lost(selection, wanted, streams))
        yield from wanted.missing()
        for stream in streams:
            yield from stream.items()
        yield from lost
        yield from wanted.missing(datasets=True)
        if stored is not None:
            yield from stored.rest()

    def _lost(
        self, selection: Selection, wanted: Wanted, streams: Iterable[_TreeStream]
    ) -> Iterator[Failure | Loss]:
        """Yield what is taken and lies in no archive of a set any more."""
        if selection.part is not None:  # said once, where it is divided
            return
        for lost in self._archive.lost:
            if not (selection.traces or lost.kind is not Kind.TRACE):
                continue
            identity = decode_segment(lost.path.split("/")[-2]) or ""
            if lost.kind is Kind.RUN and matches(selection.runs, (identity,)):
                wanted.saw("run", [identity])
            elif selection.names_objects and not any(s.takes_lost(lost.path) for s in streams):
                continue
            if lost.has_earlier:
                yield Loss(lost.kind, lost.path, f"it is as it was earlier: {lost.reason}")
            else:
                yield Failure(lost.kind, lost.path, lost.reason)

    def outlined(self, selection: Selection) -> ArchiveOutline:
        """Return what tells how much of a selection there is."""
        return ArchiveOutline(self._archive, selection)

    def experiment_ids(self) -> Iterator[str]:
        """Yield the ids of all experiments in the archive."""
        for tree in self._archive.trees:
            yield from filter(IS_NUMBER.fullmatch, tree.experiments)

    def find(self, identity: str) -> Iterator[Run | LoggedModel | Entity]:
        """Yield what has an id or had it at an earlier place, without its parts."""
        for item in self._with_lasting_ids():
            if is_or_was(item, identity):
                yield item

    def _with_lasting_ids(self) -> Iterator[Run | LoggedModel | Entity]:
        for run in self._archive.runs():
            yield Run(dict(run.mlflow.run))
        for model in self._archive.logged_models():
            yield LoggedModel(dict(model.mlflow.logged_model))
        kind = Kind.EVALUATION_DATASET
        for entity in self._archive.entities(kind):
            yield Entity(kind, check_entity(entity, kind, str(kind)))


class _TreeStream:
    """The stream of one workspace."""

    def __init__(
        self,
        archive: Archive,
        tree: Tree,
        selection: Selection,
        stored: StoredParts | None,
        *,
        contents: bool,
    ) -> None:
        self._archive = archive
        self._stored = stored
        self._contents = contents
        self._tree = tree
        self._selection = selection
        self._experiments: dict[str, Experiment] = {}
        self._segments: dict[str, str] = {}
        self._models: list[RegisteredModel] = []
        self._taken_models: set[str] = set()
        self._versions: dict[tuple[Kind, str], list[tuple[VersionEnvelope, str]]] = {}

    def choose(self, wanted: Wanted) -> Iterator[Failure]:
        """Choose what is taken; yields what is damaged so that it cannot be chosen."""
        tree = self._tree
        named = self._where_named_runs_lie()
        has_models = self._selection.models or not self._selection.is_narrow
        models = [*tree.models.values(), *chain(*tree.versions.values())] if has_models else []
        segments = tree.experiments.keys() if named is None else named
        part = self._selection.part
        if part is not None and self._selection.means_all_runs:
            segments = segments & {encode_segment(e) for e in part.experiments}
        self._archive.reader.expect([*(tree.experiments[s] for s in segments), *models])
        for failure in self._load_experiments(segments):
            if part is None:  # else said once, where it is divided
                yield failure
        for model in self._all_models(wanted) if has_models else ():
            if isinstance(model, Failure):
                yield model
            else:
                self._models.append(model)
        catalog = ArchiveRuns(self._archive, self._tree, self._segments)
        self._plan = Plan(catalog, self._selection, self._experiments, wanted)
        if self._selection.means_all_runs:
            self._plan.take_all({e: self._run_ids(s) for e, s in self._segments.items()})
            return
        behind = {
            str(v.mlflow.model_version["run_id"])
            for listed in self._versions.values()
            for v, _ in listed
            if v.mlflow.model_version.get("run_id")
        }
        takes_behind = self._selection.models and not self._selection.alone
        yield from self._plan.make(behind if takes_behind else set())
        ancestors = {encode_segment(e) for e in self._plan.chosen if e not in self._segments}
        yield from self._load_experiments(ancestors & tree.experiments.keys())
        if takes_behind:
            self._take_models()

    def _where_named_runs_lie(self) -> set[str] | None:
        """Return the segments of their experiments where runs are all that is named.

        None for a glob, or an id that a run had elsewhere: that may be a run of any experiment.
        """
        asked = self._selection
        if not asked.runs or asked.experiments or asked.models:
            return None
        named = {encode_segment(run_id) for run_id in asked.runs}
        known = (runs.keys() for tree in self._archive.trees for runs in tree.runs.values())
        if not named <= set().union(*(named & runs for runs in known)):
            return None
        return {segment for segment, runs in self._tree.runs.items() if named & runs.keys()}

    def _load_experiments(self, segments: Iterable[str]) -> Iterator[Failure]:
        for segment, experiment in self._all_experiments(segments):
            if isinstance(experiment, Failure):
                yield experiment
            else:
                self._experiments[experiment.id] = experiment
                self._segments[experiment.id] = segment

    def _run_ids(self, segment: str) -> set[str]:
        """Return the ids of an experiment's runs, as far as their places tell them."""
        found = set(filter(None, map(decode_segment, self._tree.runs.get(segment, ()))))
        part = self._selection.part
        return found if part is None else {*filter(part.takes_run, found)}

    def items(self) -> Iterator[StreamItem]:
        """Yield what was chosen."""
        workspace = None
        if self._tree.workspace is not None:
            (workspace,) = self._entities(Kind.WORKSPACE, [self._tree.workspace], "")
        yield from within(workspace, self._in_tree(), self._selection)

    def _in_tree(self) -> Iterator[StreamItem]:
        tree, plan = self._tree, self._plan
        by_id = sorted(self._experiments, key=lambda e: by_number(self._segments[e]))
        taken = [self._experiments[e] for e in by_id if e in plan.chosen]
        if self._selection.oldest_first:
            taken.sort(key=created_ms)
        for experiment in taken:
            yield from self._of_experiment(experiment, plan)
        for model in self._models:
            yield model
            for version, path in self._versions[model.kind, model.name]:
                files = version.info.artifacts or self._files_behind(version, plan)
                yield ModelVersion(
                    dict(version.mlflow.model_version),
                    self._artifacts(files),
                    VERSION_KINDS[model.kind],
                    as_of_ms=version.system.export_time_ms,
                    **self._as_it_is(path, version.info, VERSION_KINDS[model.kind]),
                )
        for kind in _AFTER_MODELS:
            for item in self._entities(kind, tree.entities.get((kind, ""), ()), ""):
                if isinstance(item, Failure) or self._takes(item, plan):
                    yield item

    def _files_behind(self, version: VersionEnvelope, plan: Plan) -> tuple[ArtifactEntry, ...]:
        """Return the files of a version that has none of its own, where its run does not come."""
        if self._selection.alone and self._selection.models:
            return files_behind(self._archive, version)
        if self._stored:
            return files_left_behind(self._archive, version, plan, self._taken_models)
        return ()

    def takes_lost(self, path: str) -> bool:
        """Whether an envelope that is lost belongs to what is taken as a whole."""
        plan, of_models = self._plan, self._tree.models.items()
        models = {(model.kind, model.name) for model in self._models}
        owners = [
            *(
                self._tree.experiments[of]
                for e, of in self._segments.items()
                if plan.takes_whole(e)
            ),
            *(at for (kind, of), at in of_models if (kind, decode_segment(of)) in models),
        ]
        return any(path.startswith(f"{owner.rpartition('/')[0]}/") for owner in owners)

    def _take_models(self) -> None:
        """Take the logged models behind the versions of the models that were named."""
        owners = {
            path.split("/")[-2]: experiment_id
            for experiment_id, segment in self._segments.items()
            for path in self._tree.logged_models.get(segment, ())
        }
        for listed in self._versions.values():
            for version, _ in listed:
                model_id = model_behind(version.mlflow.model_version)
                if model_id and (owner := owners.get(encode_segment(model_id))):
                    self._plan.logged_models.add(model_id)
                    self._plan.chosen.setdefault(owner, set())

    def _takes(self, entity: Entity, plan: Plan) -> bool:
        """Whether an entity that belongs to no experiment is taken."""
        if not self._selection.is_narrow:
            return True
        asked = self._selection
        if not (asked.names_objects and asked.takes_beside_runs):
            return False  # another part takes all of them, or those of its experiments
        return entity.kind is Kind.EVALUATION_DATASET and plan.takes_dataset(entity)

    def _of_experiment(self, experiment: Experiment, plan: Plan) -> Iterator[StreamItem]:
        tree, segment = self._tree, self._segments[experiment.id]
        beside = self._selection.takes_beside_runs
        whole = plan.takes_whole(experiment.id) and beside
        chosen, all_runs = plan.chosen[experiment.id], tree.runs.get(segment, {})
        runs = [path for of, path in all_runs.items() if self._may_take(decode_segment(of), chosen)]
        logged_models = tree.logged_models.get(segment, ()) if beside else ()
        self._archive.reader.expect([*runs, *logged_models])
        parts = tree.traces.get(segment, ()) if self._selection.traces and beside else ()
        traces = None
        if self._stored and len(chosen) == len(all_runs) and self._contents:
            folder = tree.experiments[segment].removesuffix("experiment.json")
            files = self._stored.metrics_files(folder, all_runs.values()) or ()
            experiment = replace(experiment, metrics_files=files)
        if self._stored and whole and (traces := self._stored.traces(parts)):
            experiment = replace(experiment, trace_parts=traces)
        yield experiment
        if self._stored and whole:
            info = self._archive.document(ExperimentEnvelope, tree.experiments[segment]).info
            yield from self._stored.failed_runs(info)
        for path in runs:
            yield from self._run(path, plan, as_rows=not experiment.metrics_files)
        for path in logged_models:
            yield from self._logged_model(path, plan)
        for kind in _BEFORE_TRACES if whole else ():
            yield from self._entities(kind, tree.entities.get((kind, segment), ()), experiment.id)
        for path in parts if traces is None else ():
            yield from self._traces(path, plan, whole=whole)
        for kind in _AFTER_TRACES if whole else ():
            yield from self._entities(kind, tree.entities.get((kind, segment), ()), experiment.id)

    def _may_take(self, run_id: str | None, chosen: Container[str]) -> bool:
        """Whether a run may be taken whose place in the archive says this id."""
        part = self._selection.part
        if run_id is None:  # a part that does not have it leaves it out when it was read
            return part is None or part.runs is not None
        return self._selection.takes_all_runs or run_id in chosen

    def _all_experiments(
        self, segments: Iterable[str]
    ) -> Iterator[tuple[str, Experiment | Failure]]:
        """Yield the experiments; one whose document is damaged takes all in it with it."""
        tree = self._tree
        for segment in sorted(segments, key=by_number):
            path = tree.experiments[segment]
            try:
                envelope = self._archive.document(ExperimentEnvelope, path)
                yield (
                    segment,
                    Experiment(
                        dict(envelope.mlflow.experiment),
                        issues=self._told(Kind.EXPERIMENT, envelope.info),
                    ),
                )
            except InvalidArchiveError as error:
                for failure in with_all_in_it(self._archive, tree, segment, error):
                    yield segment, failure

    def _all_models(self, wanted: Wanted) -> Iterator[RegisteredModel | Failure]:
        """Yield the models and prompts that are taken and put their versions by kind and name."""
        tree = self._tree
        for key in sorted(tree.models, key=lambda key: key[0] is not Kind.PROMPT):
            path, members, kind = tree.models[key], tree.versions.get(key, ()), key[0]
            version_kind = VERSION_KINDS[kind]
            try:
                envelope = self._archive.document(ModelEnvelope, path)
            except InvalidArchiveError as error:
                yield Failure(kind, path, error.message)
                if members:
                    reason = "the document of their registered model is damaged"
                    folder = path.rpartition("/")[0]
                    yield Failure(version_kind, f"{folder}/versions/", reason, len(members))
                continue
            model = RegisteredModel(
                dict(envelope.mlflow.registered_model),
                kind,
                as_of_ms=envelope.system.export_time_ms,
                issues=self._told(kind, envelope.info),
                stored=self._stored.member(path) if self._stored else None,
            )
            if not wanted.takes_model(model.name):
                continue
            by_folder = {member.removesuffix(_VERSION): member for member in members}
            unread: list[Failure] = []
            documents = partial(self._version_documents, members, version_kind, unread)
            found = take_versions(model, by_folder, self._selection, wanted, documents)
            takes = found[1] if found else None
            for failure in unread:  # what is taken is read again, and named then
                if takes is None or not takes(failure.id.removesuffix(_VERSION)):
                    yield failure
            if found is None or takes is None:
                continue
            model = found[0]
            listed = self._versions[kind, model.name] = []
            for member in (by_folder[folder] for folder in by_folder if takes(folder)):
                try:
                    listed.append((self._archive.document(VersionEnvelope, member), member))
                except InvalidArchiveError as error:
                    yield Failure(version_kind, member, error.message)
            listed.sort(key=lambda found: int(found[0].mlflow.model_version["version"]))
            yield model

    def _version_documents(
        self, members: Iterable[str], kind: Kind, unread: list[Failure]
    ) -> Iterator[Mapping[str, Any]]:
        """Yield the documents of versions, which are looked at to choose among them."""
        for member in members:
            try:
                yield self._archive.document(VersionEnvelope, member).mlflow.model_version
            except InvalidArchiveError as error:
                unread.append(Failure(kind, member, error.message))

    def _as_it_is(self, path: str, info: VersionInfo | RunInfo, kind: Kind) -> dict[str, Any]:
        """Return what is told of an object where it goes into another archive."""
        if self._stored is None:
            return {}
        stored = self._stored.envelope(path, info)
        return {"stored": stored, "issues": self._stored.issues(kind, info)}

    def _told(self, kind: Kind, info: Info) -> tuple[Failure | Loss, ...]:
        return self._stored.issues(kind, info) if self._stored else ()

    def _run(self, path: str, plan: Plan, *, as_rows: bool) -> Iterator[Run | Failure]:
        try:
            envelope = self._archive.document(RunEnvelope, path)
        except InvalidArchiveError as error:
            if self._may_name(path):
                yield Failure(Kind.RUN, path, error.message)
            return
        run = Run(dict(envelope.mlflow.run), digest=envelope.info.content_digest)
        run.as_of_ms = envelope.system.export_time_ms
        if not self._is_chosen(run, plan):
            return
        run = replace(run, **self._as_it_is(path, envelope.info, Kind.RUN))
        if envelope.info.metrics and self._contents:
            if as_rows:
                run.histories = self._histories(run.id, envelope.info.metrics)
                run.stored = None
            else:
                run.metrics = envelope.info.metrics.to_json()
        run.artifacts = self._artifacts(envelope.info.artifacts)
        plan.link(run.document)
        if (loss := plan.loss_of(run)) is not None and not _is_said(run):
            run.issues = (*run.issues, loss)
            run.stored = None
        yield run

    def _is_chosen(self, run: Run, plan: Plan) -> bool:
        part = self._selection.part
        if self._selection.means_all_runs:  # also those whose places say no id
            return part is None or part.takes_run(run.id)
        return run.id in plan.chosen.get(run.experiment_id, ())

    def _may_name(self, path: str) -> bool:
        """Whether a run that cannot be read is named here: one without an id, in the first part."""
        part = self._selection.part
        is_known = decode_segment(path.split("/")[-2]) is not None
        return part is None or is_known or (part.runs or ALL_IDS)[0] == ""

    def _logged_model(self, path: str, plan: Plan) -> Iterator[LoggedModel | Failure]:
        try:
            envelope = self._archive.document(LoggedModelEnvelope, path)
        except InvalidArchiveError as error:
            yield Failure(Kind.LOGGED_MODEL, path, error.message)
            return
        model = LoggedModel(
            dict(envelope.mlflow.logged_model),
            self._artifacts(envelope.info.artifacts),
            digest=envelope.info.content_digest,
            as_of_ms=envelope.system.export_time_ms,
            **self._as_it_is(path, envelope.info, Kind.LOGGED_MODEL),
        )
        if plan.takes_logged_model(model):
            self._taken_models.add(model.id)
            yield model

    def _traces(self, path: str, plan: Plan, *, whole: bool) -> Iterator[Trace | Failure]:
        """Yield the traces of a part; one that is damaged alone, what cannot be read together."""
        from mlflow_exim_plugin.sources.archive.trace_parts import read_part

        read, expected = 0, 1
        try:
            envelope = self._archive.document(TracePartEnvelope, path)
            expected = envelope.mlflow.traces
            for stored in read_part(self._archive.reader, envelope, path):
                read += 1
                trace = stored.trace
                if not whole and not plan.takes_trace(trace):
                    continue
                trace.as_of_ms = envelope.system.export_time_ms
                trace.attachments = self._artifacts(tuple(stored.attachments), always=True)
                try:
                    stored.check(path)
                except InvalidArchiveError as error:
                    yield Failure(Kind.TRACE, trace.id, error.message)
                else:
                    yield trace
        except InvalidArchiveError as error:
            yield Failure(Kind.TRACE, path, error.message, max(1, expected - read))

    def _entities(
        self, kind: Kind, paths: Iterable[str], experiment_id: str
    ) -> Iterator[Entity | Failure]:
        for path in paths:
            try:
                envelope = self._archive.document(EntityEnvelope, path)
                document = check_entity(envelope, kind, path)
            except InvalidArchiveError as error:
                yield Failure(kind, path, error.message)
                continue
            info, system = envelope.info, envelope.system
            yield Entity(
                kind,
                document,
                experiment_id,
                self._artifacts(info.artifacts),
                digest=info.content_digest,
                as_of_ms=system.export_time_ms,
                **self._as_it_is(path, info, kind),
            )

    def _histories(self, run_id: str, metrics: MetricsEntry) -> Iterator[RunRows | Failure]:
        try:
            yield from self._archive.histories(run_id, metrics)
        except InvalidArchiveError as error:
            yield Failure(Kind.METRIC_HISTORY, run_id, error.message)

    def _artifacts(
        self, entries: tuple[ArtifactEntry, ...], *, always: bool = False
    ) -> list[Artifact | Failure]:
        as_stored = self._stored or self._selection.alone
        return [
            Artifact(
                entry.path,
                entry.size_bytes,
                partial(self._archive.reader.open_member, entry.member),
                entry.sha256,
                StoredMember(self._archive.reader.holder(entry.member), entry.member)
                if as_stored
                else None,
            )
            for entry in entries
            if always or self._selection.takes_artifact(entry.path)
        ]


def _is_said(run: Run) -> bool:
    """Whether it is said already that the parent of a run stayed behind, in an earlier archive."""
    parent = run.tags.get(PARENT, "")
    return any(isinstance(said, Loss) and parent in said.what.split() for said in run.issues)
