"""Who uses a run, told by all objects of a deployment: a server has no rows to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.removal.uses import IS_DELETED, SOURCE_OF_ASSESSMENT, Use, ids_in
from mlflow_exim_plugin.schema.objects import (
    LINKED_RUNS,
    SOURCE_RUN,
    Entity,
    LoggedModel,
    ModelVersion,
    Run,
    Trace,
    linked_models,
)
from mlflow_exim_plugin.schema.runs import PARENT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.schema.objects import StreamObject

__all__ = ["SeenUses"]


class SeenUses:
    """Remembers who names whom while a deployment's objects come by.

    Histories and files are not needed for it.
    """

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}
        self._named: list[tuple[str, str, str]] = []

    def see(self, item: StreamObject) -> None:
        """Take note of what an object names."""
        if isinstance(item, Run):
            self._see_run(item)
        elif isinstance(item, LoggedModel):
            self._see_model(item)
        elif isinstance(item, Trace):
            self._see_trace(item)
        elif isinstance(item, ModelVersion):
            self._see_version(item)
        elif isinstance(item, Entity):
            for named in ids_in(item.document):
                if named != item.id:
                    self._name(named, f"{item.kind.words} {item.id}")

    def uses(self) -> Iterator[Use]:
        """Yield who uses a run: what is a run's own stands for that run."""
        for named, by, user in self._named:
            of, owner = self._owners.get(named, named), self._owners.get(user, user)
            if of != owner:
                yield Use(of, by, owner)

    def _name(self, named: Any, by: str, user: str = "") -> None:
        if named:
            self._named.append((str(named), by, user))

    def _see_run(self, run: Run) -> None:
        self._name(run.tags.get(PARENT), f"run {run.id} is a child of it", run.id)
        inputs, outputs = linked_models(run.document)
        for model in {*inputs, *(model for model, _ in outputs)}:
            self._name(model, f"run {run.id} uses its logged model {model}", run.id)

    def _see_model(self, model: LoggedModel) -> None:
        owner = str(model.info.get("source_run_id") or "")
        if owner:
            self._owners[model.id] = owner
        for metric in model.document.get("data", {}).get("metrics") or ():
            measured = str(metric.get("run_id") or "")
            if measured and measured != owner:
                self._name(measured, f"logged model {model.id} has metrics of it", model.id)
                self._name(
                    model.id, f"run {measured} measured its logged model {model.id}", measured
                )

    def _see_trace(self, trace: Trace) -> None:
        if owner := trace.info.get("trace_metadata", {}).get(SOURCE_RUN):
            self._owners[trace.id] = str(owner)
        for run_id in trace.info.get(LINKED_RUNS) or ():
            self._name(run_id, f"trace {trace.id} is linked to it", trace.id)
        for assessment in trace.assessments:
            source = (assessment.get("metadata") or {}).get(SOURCE_OF_ASSESSMENT)
            self._name(source, f"an assessment of trace {trace.id} comes from it", trace.id)

    def _see_version(self, version: ModelVersion) -> None:
        document = version.document
        if document.get("current_stage") == IS_DELETED:
            return
        named = set(ids_in([document.get(name) for name in ("run_id", "source", "model_id")]))
        for identity in named:
            by = f"registered model {version.name!r} version {version.version}"
            self._name(identity, by)
