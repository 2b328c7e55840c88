"""Source ``folder``: all that MLflow keeps in an ``mlruns`` folder, read without its store.

MLflow's own store makes folders where it only looks, gives up an experiment for one damaged file,
and asks the default tracking server for what its registry names.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from itertools import chain
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import NotFoundError
from mlflow_exim_plugin.host.traces.files import ATTACHMENTS, TraceFiles
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.schema.lineage import is_or_was
from mlflow_exim_plugin.schema.objects import (
    SOURCE_RUN,
    Artifact,
    Failure,
    Kind,
    LoggedModel,
    Loss,
    ModelVersion,
    RegisteredModel,
    Run,
    StreamItem,
    created_ms,
    linked_models,
    model_behind,
)
from mlflow_exim_plugin.sources.artifacts import ArtifactReader
from mlflow_exim_plugin.sources.folder.metrics import Rows
from mlflow_exim_plugin.sources.folder.registry import RegistryFolder
from mlflow_exim_plugin.sources.folder.store import TrackingFolder
from mlflow_exim_plugin.sources.folder.traces import TracesFolder
from mlflow_exim_plugin.stages.select import Plan, Wanted, take_versions
from mlflow_exim_plugin.storage.urls import path_of_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from typing import Protocol

    from mlflow_exim_plugin.host.files.tree import FilesOfRoot
    from mlflow_exim_plugin.host.open.roots import ArtifactRoots
    from mlflow_exim_plugin.options import Selection
    from mlflow_exim_plugin.schema.metric_rows import RunRows
    from mlflow_exim_plugin.schema.objects import Entity, Experiment, Trace
    from mlflow_exim_plugin.sources.artifacts import Listing
    from mlflow_exim_plugin.sources.folder.files import StoreFiles

    class Registry(Protocol):
        """A model registry that is read together with the folder."""

        def models(self) -> Iterator[RegisteredModel | Failure | Loss]:
            """Yield every registered model and prompt, by name."""

        def versions(self, model: RegisteredModel) -> Iterator[ModelVersion | Failure | Loss]:
            """Yield the versions of one, by number."""

        def root(self, version: ModelVersion) -> str:
            """Return where the files of a version that was just read are."""


__all__ = ["FolderDeployment", "FolderSource"]

_RUNS_AT_ONCE = 200
_ROWS_AT_ONCE = 250_000
_log = logging.getLogger(__name__)


class FolderDeployment:
    """An ``mlruns`` folder, as whoever reads artifacts of it must know it.

    Args:
        uri: Where it is, as it was given.
        files: All its files.
        roots: How artifact roots are found.

    Attributes:
        store: Its experiments.
        files: Likewise.
        roots: How artifact roots are found.
        tracking_uri: Where it is.
    """

    def __init__(self, uri: str, files: StoreFiles, roots: ArtifactRoots) -> None:
        self.tracking_uri = uri
        self.roots = roots
        self.files = files
        self.store = TrackingFolder(self.files)

    def files_at(self, root: str) -> FilesOfRoot | None:
        """Return the files of a root, None where they are to be looked for by its URI."""
        return self.files.folder_at(root)

    def artifact_root(self, root: str) -> str:
        """Return where the files of an artifact root are to be found from here."""
        return self.files.found(self.roots.found(root))

    def run_root(self, run_id: str) -> str:
        """Return the artifact root of a run, empty where there is no such run."""
        try:
            return str(self.store.run(run_id)["info"].get("artifact_uri") or "")
        except NotFoundError:
            return ""


_TakenModel = tuple[RegisteredModel, "Callable[[str], bool]"]
"""A model, and what tells by its id whether a version of it is taken."""


class FolderSource:
    """Reads an ``mlruns`` folder.

    Args:
        deployment: The folder.
        registry: Its model registry, or the one that is to be read in its place.
        jobs: How many files may be read at once that lie elsewhere.
        contents: False reads no metric rows and no artifact bytes, for a dry run.
    """

    def __init__(
        self,
        deployment: FolderDeployment,
        registry: Registry | None = None,
        *,
        jobs: int = 4,
        contents: bool = True,
    ) -> None:
        self._deployment = deployment
        self._store = deployment.store
        self._registry = registry or RegistryFolder(deployment.files)
        self._jobs = jobs
        self._contents = contents
        self.planned: dict[Kind, int] = {}

    @property
    def uri(self) -> str:
        """Where it is, without secrets."""
        return redact_url(self._deployment.tracking_uri)

    @property
    def mlflow_version(self) -> str:
        """Version of the MLflow that is installed."""
        return metadata.version("mlflow")

    def experiment_ids(self) -> Iterator[str]:
        """Yield the ids of all experiments."""
        yield from self._store.experiments()

    def find(self, identity: str) -> Iterator[Run | LoggedModel | Entity]:
        """Yield what has an id or had it at an earlier place, without its parts."""
        for experiment_id in self._store.experiments():
            found: Iterable[Run | LoggedModel | Failure | None]
            if identity.startswith("m-"):
                ids = self._store.logged_model_ids(experiment_id)
                found = (self._store.logged_model(experiment_id, model_id) for model_id in ids)
            else:
                run_ids = self._store.run_ids(experiment_id)
                found = (self._store.read_run(experiment_id, run_id) for run_id in run_ids)
            for item in found:
                if isinstance(item, Run | LoggedModel) and is_or_was(item, identity):
                    yield item

    def stream(self, selection: Selection) -> Iterator[StreamItem]:
        """Yield what is selected, in dependency order.

        Raises:
            NotFoundError: A name or id that was asked for is not there.
            StoreError: The folder cannot be listed at all.
        """
        wanted = Wanted(selection, self.planned)
        experiments = self._store.experiments()
        models: list[RegisteredModel] = []
        failures: list[Failure | Loss] = []
        for model in self._registry.models():
            if isinstance(model, Failure | Loss):
                failures.append(model)
            elif wanted.takes_model(model.name):
                models.append(model)
        taken = [found for model in models if (found := self._taken(model, selection, wanted))]
        taken.sort(key=lambda found: (found[0].kind is not Kind.PROMPT, found[0].name))
        plan = Plan(self._store, selection, dict(experiments), wanted)
        named = self._versions_of(taken) if selection.models else []
        if selection.takes_all_runs:
            plan.take_all({e: set(self._store.run_ids(e)) for e in experiments})
        else:
            yield from plan.make(
                {str(v.document["run_id"]) for v in named if v.document.get("run_id")}
            )
        yield from wanted.missing()
        if not selection.is_narrow:
            yield from chain(self._store.failures, failures)
        yield from self._unread_of(plan, selection)
        yield from self._chosen(plan, selection, experiments, taken, named)
        yield from wanted.missing(datasets=True)

    def _taken(
        self, model: RegisteredModel, selection: Selection, wanted: Wanted
    ) -> _TakenModel | None:
        """Return a model and which of its versions are taken; they are looked at if asked for."""
        listed = list(self._registry.versions(model)) if selection.models else []
        documents = [of.document for of in listed if isinstance(of, ModelVersion)]
        ids = [version.id for version in listed]
        return take_versions(model, ids, selection, wanted, lambda: documents)

    def _versions_of(self, models: list[_TakenModel]) -> list[ModelVersion]:
        versions = [
            v for model, takes in models for v in self._registry.versions(model) if takes(v.id)
        ]
        return [version for version in versions if isinstance(version, ModelVersion)]

    def _unread_of(self, plan: Plan, selection: Selection) -> Iterator[Failure]:
        """Yield the runs that would have been looked at, and cannot be read."""
        for run_id, failure in self._store.unread.items():
            if plan.takes_whole(self._store.experiment_of(run_id)) or run_id in selection.runs:
                yield failure

    def _chosen(
        self,
        plan: Plan,
        selection: Selection,
        experiments: Mapping[str, Experiment],
        models: list[_TakenModel],
        named: list[ModelVersion],
    ) -> Iterator[StreamItem]:
        """Yield what was chosen, in dependency order."""
        logged = _TakenModels(self._store, selection, plan)
        logged.complete(named)
        with ThreadPoolExecutor(self._jobs, "exim-read") as pool:
            files = ArtifactReader(self._deployment, selection, pool, contents=self._contents)
            taken = [e for e in experiments.values() if e.id in plan.chosen]
            if selection.oldest_first:
                taken.sort(key=created_ms)
            for experiment in taken:
                yield experiment
                for item in self._runs(experiment.id, plan, files):
                    if isinstance(item, Run):
                        logged.watch(item)
                    yield item
                if not selection.takes_beside_runs:
                    continue
                for model in logged.of_experiment(experiment.id):
                    if isinstance(model, LoggedModel):
                        root = model.info.get("artifact_uri")
                        model.artifacts = files.files(model.id, root)
                    yield model
                if selection.traces:
                    yield from self._traces(experiment.id, plan, selection)
            for registered, takes in models:
                yield registered
                for version in self._registry.versions(registered):
                    if not takes(version.id):
                        continue
                    if isinstance(version, ModelVersion) and registered.kind is not Kind.PROMPT:
                        root = self._registry.root(version)
                        version.artifacts = files.of_version(version, root, plan, logged)
                    yield version
            yield from files.said()
        if left_alone := self._deployment.files.left_alone:
            _log.info("left alone, not of MLflow: %s", ", ".join(sorted(left_alone)))

    def _runs(
        self, experiment_id: str, plan: Plan, files: ArtifactReader
    ) -> Iterator[Run | Failure]:
        rows = Rows()
        group: list[Run | Failure] = []
        listings: dict[str, Callable[[], Listing]] = {}
        for run_id in sorted(plan.chosen[experiment_id]):
            run = self._store.read_run(experiment_id, run_id, rows)
            group.append(run)
            if isinstance(run, Run):
                root = run.info.get("artifact_uri")
                # For a folder of this machine a thread takes longer to begin than it saves.
                is_here = root is None or path_of_uri(root) is not None
                list_files = partial(files.listed, run.id, root)
                listings[run.id] = list_files if is_here else files.start(run.id, root).result
            if len(group) == _RUNS_AT_ONCE or len(rows) > _ROWS_AT_ONCE:
                yield from self._finished(group, rows, listings, plan, files)
                group, rows, listings = [], Rows(), {}
        yield from self._finished(group, rows, listings, plan, files)

    def _finished(
        self,
        group: list[Run | Failure],
        rows: Rows,
        listings: dict[str, Callable[[], Listing]],
        plan: Plan,
        files: ArtifactReader,
    ) -> Iterator[Run | Failure]:
        """Yield runs that were read, with their rows and files."""
        of_run: dict[str, RunRows] = {}
        if self._contents:
            of_run = {found.run_id: found for found in rows.by_run()}
        for run in group:
            if isinstance(run, Run):
                if run.id in of_run:
                    run.histories = (of_run.pop(run.id),)
                elif not self._contents:
                    run.histories = ()
                run.artifacts = files.take(listings[run.id]())
                if (loss := plan.loss_of(run)) is not None:
                    run.issues = (*run.issues, loss)
            yield run

    def _traces(
        self, experiment_id: str, plan: Plan, selection: Selection
    ) -> Iterator[Trace | Failure]:
        reader = TraceFiles(self._deployment)
        whole, run_ids = plan.takes_whole(experiment_id), plan.chosen[experiment_id]
        for trace in TracesFolder(self._deployment.files).of_experiment(
            experiment_id, self._store.path(experiment_id)
        ):
            if isinstance(trace, Failure):
                if whole:
                    yield trace
                continue
            if not whole and trace.info["trace_metadata"].get(SOURCE_RUN) not in run_ids:
                continue
            pointing = reader.fill([trace]) if self._contents else ()
            if trace.id in pointing and selection.takes_artifact(ATTACHMENTS):
                trace.attachments = [
                    item
                    for item in reader.attachments(trace)
                    if not isinstance(item, Artifact) or selection.takes_artifact(item.path)
                ]
            yield trace


class _TakenModels:
    """The logged models that come along, and what is known of those that were taken.

    Args:
        store: The folder.
        selection: What was asked for.
        plan: Which experiments and runs are taken; gains the experiments of the models.
    """

    def __init__(self, store: TrackingFolder, selection: Selection, plan: Plan) -> None:
        self._store = store
        self._selection = selection
        self._plan = plan
        self._lies_in = {
            model_id: experiment_id
            for experiment_id in store.experiments()
            for model_id in store.logged_model_ids(experiment_id)
        }
        self._roots: dict[str, str] = {}
        self._gone: dict[str, str] = {}

    def complete(self, versions: list[ModelVersion]) -> None:
        """Take the models behind versions and those that runs taken alone made or used."""
        plan = self._plan
        wanted = {model_id for v in versions if (model_id := model_behind(v.document))}
        for experiment_id, run_ids in plan.chosen.items():
            if not plan.takes_whole(experiment_id):
                for run_id in run_ids:
                    wanted |= _linked(self._store.run(run_id))
        for model_id in wanted & self._lies_in.keys():
            plan.logged_models.add(model_id)
            plan.chosen.setdefault(self._lies_in[model_id], set())

    def watch(self, run: Run) -> None:
        """Remember which models a run made or used that are not there."""
        for model_id in _linked(run.document) - self._lies_in.keys():
            self._gone.setdefault(model_id, run.id)

    def of_experiment(self, experiment_id: str) -> Iterator[LoggedModel | Failure | Loss]:
        """Yield the models of an experiment that are taken, by id."""
        for model_id in sorted(self._gone):
            what = f"logged model {model_id}, which it made or used, is gone from the source"
            yield Loss(Kind.RUN, self._gone[model_id], what)
        self._gone.clear()
        for model_id in self._store.logged_model_ids(experiment_id):
            is_named = model_id in self._plan.logged_models
            if not (is_named or self._plan.takes_whole(experiment_id)):
                continue
            model = self._store.logged_model(experiment_id, model_id)
            if isinstance(model, Failure):
                yield model
            elif model is not None and self._plan.takes_logged_model(model):
                self._roots[model.id] = str(model.info.get("artifact_uri") or "")
                yield model

    def holds(self, model_id: str | None, uri: str) -> bool:
        """Whether files at a URI are those of a model that was taken."""
        if model_id is None or model_id not in self._roots:
            return False
        root = self._roots[model_id].rstrip("/")
        return uri.startswith(f"models:/{model_id}") or f"{uri}/".startswith(f"{root}/")


def _linked(run: dict[str, object]) -> set[str]:
    inputs, outputs = linked_models(run)
    return {*inputs, *(model_id for model_id, _ in outputs)}
