"""Source ``exports``: what mlflow-export-import wrote, of every generation, on any store."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import NotFoundError, StoreError
from mlflow_exim_plugin.host.traces.files import ATTACHMENTS
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.schema.lineage import is_or_was
from mlflow_exim_plugin.schema.objects import (
    Artifact,
    Entity,
    Failure,
    Kind,
    LoggedModel,
    Loss,
    ModelVersion,
    Run,
    StreamItem,
    Trace,
    model_behind,
)
from mlflow_exim_plugin.sources.exports.claims import Claims
from mlflow_exim_plugin.sources.exports.documents import dataset_document, mend_dataset
from mlflow_exim_plugin.sources.exports.layout import ExportLayout
from mlflow_exim_plugin.sources.exports.registry import ExportedRegistry
from mlflow_exim_plugin.sources.exports.tracking import ExportedTracking
from mlflow_exim_plugin.sources.file_tree import FileTree
from mlflow_exim_plugin.stages.select import Plan, Wanted, take_versions
from mlflow_exim_plugin.stages.sound import sound

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlflow_exim_plugin.options import Selection
    from mlflow_exim_plugin.sources.exports.layout import ExportedFile
    from mlflow_exim_plugin.sources.exports.registry import ExportedModel

__all__ = ["Export", "ExportSource"]


class Export:
    """What is known of an export before any of it is taken.

    Args:
        location: Its folder, a path or any fsspec URL.
        storage_options: For the file system, see fsspec.

    Attributes:
        layout: Its files.
        registry: Its registered models and prompts.
        tracking: Its experiments and what belongs to them.
        losses: What it does not have itself, though it says that it was there.

    Raises:
        NotFoundError: There is no such folder, or nothing of an export in it.
        StoreError: It cannot be listed.
    """

    def __init__(self, location: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self._location = redact_url(location)
        self.layout = ExportLayout(FileTree(location, storage_options))
        if not any(self.layout.paths.values()):
            raise NotFoundError(
                f"{self._location} holds no export of mlflow-export-import",
                "its files are named run.json, experiment.json, model.json and so on",
            )
        claims = Claims()
        datasets: set[str] = set()
        for path in self.layout.paths[Kind.EVALUATION_DATASET]:
            with contextlib.suppress(StoreError), self.layout.reading(path) as found:
                datasets.add(str(found.payload["evaluation_dataset"]["dataset_id"]))
        for path in self.layout.lists:
            try:
                with self.layout.reading(path) as found:
                    claims.note(found)
            except StoreError as error:
                self.layout.failures.append(Failure(Kind.ARTIFACT, path, error.message))
        self.registry = ExportedRegistry(self.layout, claims)
        tracking = ExportedTracking(self.layout, self.registry.experiment_names, claims)
        self.tracking = tracking
        experiments = {e.name for e in tracking.experiments.values()} | {*tracking.experiments}
        there = {
            Kind.EXPERIMENT: experiments,
            Kind.RUN: tracking.run_ids,
            Kind.LOGGED_MODEL: tracking.logged_model_ids,
            Kind.TRACE: tracking.trace_ids,
            Kind.REGISTERED_MODEL: {*self.registry.models},
            Kind.EVALUATION_DATASET: datasets,
        }
        self.losses = [*tracking.losses, *claims.losses(there)]

    @property
    def described(self) -> str:
        """What it is, for people: tool and generation."""
        return self.layout.described

    @property
    def uri(self) -> str:
        """Where it was exported from, without secrets; its own place where it does not say."""
        said = self.layout.tracking_uris
        return redact_url(next(iter(said))) if len(said) == 1 else self._location

    @property
    def mlflow_version(self) -> str:
        """Version of the MLflow that exported it, where it says so."""
        return ", ".join(sorted(self.layout.mlflow_versions))


def _taken(of: ExportedModel, selection: Selection, wanted: Wanted) -> ExportedModel | None:
    """Return a model with those of its versions that are taken, None where it has none of them."""
    ids = [version.id for version in of.versions.values()]
    ids += [failure.id for failure in of.failures]
    documents = [version.document for version in of.versions.values()]
    if (found := take_versions(of.model, ids, selection, wanted, lambda: documents)) is None:
        return None
    model, takes = found
    return replace(
        of,
        model=model,
        versions={number: v for number, v in of.versions.items() if takes(v.id)},
        failures=[failure for failure in of.failures if takes(failure.id)],
    )


class ExportSource:
    """Reads an export.

    Args:
        export: The export.
        contents: False reads no metric rows, for a dry run.
    """

    def __init__(self, export: Export, *, contents: bool = True) -> None:
        self._contents = contents
        self._layout = export.layout
        self._registry = export.registry
        self._tracking = export.tracking
        self._losses = export.losses
        self.planned: dict[Kind, int] = {}

    def experiment_ids(self) -> Iterator[str]:
        """Yield the ids of all experiments."""
        yield from self._tracking.experiments

    def find(self, identity: str) -> Iterator[Run | LoggedModel | Entity]:
        """Yield what has an id or had it at an earlier place, without its parts."""
        tracking = self._tracking
        for experiment_id in tracking.experiments:
            for model, _ in tracking.logged_models(experiment_id):
                if isinstance(model, LoggedModel) and is_or_was(model, identity):
                    yield model
            for run_id in tracking.runs(experiment_id):
                run, _ = tracking.read_run(run_id, contents=False)
                if isinstance(run, Run) and is_or_was(run, identity):
                    yield run
        for dataset in self._datasets():
            if isinstance(dataset, Entity) and is_or_was(dataset, identity):
                yield dataset

    def stream(self, selection: Selection) -> Iterator[StreamItem]:
        """Yield what is selected, in dependency order.

        Raises:
            NotFoundError: A name or id that was asked for is not there.
        """
        return sound(self._stream(selection))

    def _stream(self, selection: Selection) -> Iterator[StreamItem]:
        tracking, wanted = self._tracking, Wanted(selection, self.planned)
        models = [
            taken
            for model in self._registry.models.values()
            if wanted.takes_model(model.model.name) and (taken := _taken(model, selection, wanted))
        ]
        plan = Plan(tracking, selection, tracking.experiments, wanted)
        named = [v for m in models for v in m.versions.values()] if selection.models else []
        if selection.takes_all_runs:
            plan.take_all({e: set(tracking.runs(e)) for e in tracking.experiments})
        else:
            yield from plan.make(
                {str(v.document["run_id"]) for v in named if v.document.get("run_id")}
            )
        yield from wanted.missing()
        if not selection.is_narrow:
            yield from self._layout.failures
            yield from tracking.failures
            yield from self._losses
            yield from self._registry.failures
        for experiment in tracking.experiments.values():
            if experiment.id in plan.chosen:
                yield experiment
                yield from self._of_experiment(experiment.id, plan, selection, named)
        for one in models:
            yield one.model
            yield from one.failures
            for number in sorted(one.versions):
                yield self._with_files(one, one.versions[number], plan, selection)
        for dataset in self._datasets():
            if not selection.is_narrow or (
                isinstance(dataset, Entity) and plan.takes_dataset(dataset)
            ):
                yield dataset
        yield from wanted.missing(datasets=True)

    def _of_experiment(
        self, experiment_id: str, plan: Plan, selection: Selection, named: list[ModelVersion]
    ) -> Iterator[StreamItem]:
        """Yield what was chosen of an experiment, in dependency order."""
        for run_id in sorted(plan.chosen[experiment_id]):
            run, files = self._tracking.read_run(run_id, contents=self._contents)
            if isinstance(run, Run):
                plan.link(run.document)
                run.artifacts = self._taken(files, selection)
                if (loss := plan.loss_of(run)) is not None:
                    run.issues = (*run.issues, loss)
            yield run
        plan.logged_models.update(filter(None, (model_behind(v.document) for v in named)))
        for model, files in self._tracking.logged_models(experiment_id):
            if isinstance(model, Failure):
                if plan.takes_whole(experiment_id):
                    yield model
            elif plan.takes_logged_model(model):
                model.artifacts = self._taken(files, selection)
                yield model
        if not selection.traces:
            return
        for trace, files in self._tracking.traces(experiment_id):
            if isinstance(trace, Trace):
                if not plan.takes_trace(trace):
                    continue
                beside = [file for file in files if file.path.startswith(ATTACHMENTS)]
                trace.attachments = self._taken(beside, selection)
                yield trace
            elif plan.takes_whole(experiment_id):
                yield trace

    def _with_files(
        self, of: ExportedModel, version: ModelVersion, plan: Plan, selection: Selection
    ) -> ModelVersion:
        """Give a version the files that were exported for it alone."""
        if version.kind is not Kind.MODEL_VERSION:
            return version
        folders = (("version_models", str(version.version)), ("version_model",))
        files = [f for folder in folders for f in self._layout.files_below(of.folder, *folder)]
        if (model_behind(version.document) in plan.logged_models) or self._lies_in_run(
            version.document, plan
        ):
            return version
        version.artifacts = self._taken(files, selection)
        if not files:
            what = "the export has neither its run nor files of it"
            version.issues = (*version.issues, Loss(version.kind, version.id, what))
        return version

    def _lies_in_run(self, version: dict[str, Any], plan: Plan) -> bool:
        """Whether the files of a version are those of a run that is taken."""
        run_id, source = str(version.get("run_id") or ""), str(version.get("source") or "")
        if not plan.holds(run_id):
            return False
        try:
            root = str(self._tracking.run(run_id)["info"].get("artifact_uri") or "")
        except NotFoundError:  # it cannot be read, which is said of it
            return False
        return source.startswith((f"{root.rstrip('/')}/", f"runs:/{run_id}/"))

    def _datasets(self) -> Iterator[Entity | Failure]:
        for path in self._layout.paths[Kind.EVALUATION_DATASET]:
            try:
                with self._layout.reading(path) as found:
                    document = dataset_document(found.payload["evaluation_dataset"])
            except StoreError as error:
                yield Failure(Kind.EVALUATION_DATASET, path, error.message)
            else:
                dataset = Entity(Kind.EVALUATION_DATASET, document, as_of_ms=found.as_of_ms)
                dataset.issues = tuple(
                    Loss(dataset.kind, dataset.id, what)
                    for what in mend_dataset(document, found.as_of_ms)
                )
                yield dataset

    def _taken(self, files: list[ExportedFile], selection: Selection) -> list[Artifact | Failure]:
        return [
            Artifact(file.path, file.size_bytes, partial(self._layout.open, file))
            for file in files
            if selection.takes_artifact(file.path)
        ]
