"""Logged models that earlier unpacks wrote to a deployment, also those that were deleted since."""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import NotFoundError, ServerError
from mlflow_exim_plugin.host.api.logged_models import LoggedModels
from mlflow_exim_plugin.schema.objects import Kind, LoggedModel, linked_models
from mlflow_exim_plugin.schema.provenance import (
    LOGGED_MODEL,
    ORIGIN,
    logged_model_remembered,
    newest,
    origins,
    told,
)
from mlflow_exim_plugin.sinks.server.ids import KnownModel

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.objects import Run
    from mlflow_exim_plugin.sinks.server.target import ServerTarget

__all__ = ["KnownModels"]

_IS_ID = re.compile(r"[\w-]+")


class KnownModels:
    """Finds them, and lets an experiment remember those that nothing else would lead to.

    No server lists a deleted model: only the run that made it knows it.

    Args:
        target: The deployment and how to write to it.
    """

    def __init__(self, target: ServerTarget) -> None:
        self._models = LoggedModels(target.host)
        self._writer = target.writer
        self._reader = target.reader
        self._ids = target.ids
        self._absent = target.absent
        self._has_answered = False
        self._unfollowed: set[str] = set()
        self._led_to: set[tuple[str, str]] = set()
        self._lock = threading.Lock()

    def saw_run(self, run: Run, experiment_id: str) -> None:
        """Remember which models a run leads to, also when they are deleted."""
        _, outputs = linked_models(run.document)
        self._led_to.update((experiment_id, model_id) for model_id, _ in outputs)

    def load(self, experiment_id: str, tags: dict[str, str]) -> None:
        """Recognise what earlier unpacks wrote to an experiment.

        Args:
            experiment_id: The experiment at the target.
            tags: Its tags, which remember the models that no listing and no run would show.
        """
        if Kind.LOGGED_MODEL in self._absent:
            return
        for key, value in tags.items():
            if source_id := logged_model_remembered(key):
                model_id, as_of_ms, content = value.split(" ", 2)
                # Until the listing shows it.
                known = KnownModel(model_id, "", content, int(as_of_ms), is_deleted=True)
                self._ids.logged_models[source_id] = known
        try:
            for document in self._models.documents(experiment_id):
                model = LoggedModel(document)
                root = model.info.get("artifact_uri")
                count = len(document.get("data", {}).get("metrics") or ())
                known = KnownModel.of_tags(model.id, root, model.tags, metric_count=count)
                self._ids.meet(experiment_id, model.id, model.tags, known)
                if origin := newest(told(model.tags, ORIGIN)):
                    self._ids.logged_models[origin] = known
        except ServerError as error:
            if not self._absent.learn(Kind.LOGGED_MODEL, error):
                raise
        self._has_answered = True
        self._unfollowed.add(experiment_id)

    def are_absent(self) -> bool:
        """Ask a target without making anything whether it has logged models."""
        if not self._has_answered:
            try:
                next(self._models.documents("0"), None)
            except ServerError as error:
                self._absent.learn(Kind.LOGGED_MODEL, error)
            self._has_answered = True
        return Kind.LOGGED_MODEL in self._absent

    def follow(self, model: LoggedModel, experiment_id: str, *, is_original: bool) -> None:
        """Find a model that someone deleted: only the runs that made such ones know them.

        Args:
            model: The model.
            experiment_id: The experiment at the target.
            is_original: Whether that is no copy: the model may be one of its own, under its own id.
        """
        if Kind.LOGGED_MODEL in self._absent:
            return
        with self._lock:
            if experiment_id in self._unfollowed:
                self._unfollowed.remove(experiment_id)
                listed = {known.id for known in self._ids.logged_models.values()}
                for model_id in self._reader.made_models(experiment_id) - listed:
                    self._meet_deleted(model_id, experiment_id)
        for model_id in origins(model.id, model.tags) if is_original else ():
            if _IS_ID.fullmatch(model_id):
                self._meet_deleted(model_id, experiment_id)

    def _meet_deleted(self, model_id: str, experiment_id: str) -> None:
        try:
            model = LoggedModel(self._models.read(model_id))
        except NotFoundError:
            return  # this deployment does not give deleted models
        if model.info.get("lifecycle_stage") == "deleted":
            root = model.info.get("artifact_uri")
            known = KnownModel.of_tags(model_id, root, model.tags, is_deleted=True)
            self._ids.meet(experiment_id, model_id, model.tags, known)
            if origin := newest(told(model.tags, ORIGIN)):
                self._ids.logged_models[origin] = known

    def remember(self, source_id: str, value: str, experiment_id: str, *, is_deleted: bool) -> None:
        """Let its experiment remember a model that is deleted, or that no run would lead to then.

        Args:
            source_id: Its id at the source.
            value: As the tag has it, see ``LOGGED_MODEL``.
            experiment_id: The experiment at the target.
            is_deleted: Whether it is deleted at the source.

        Raises:
            ServerError: The target refuses.
        """
        if is_deleted or (experiment_id, source_id) not in self._led_to:
            self._writer.set_experiment_tag(experiment_id, f"{LOGGED_MODEL}{source_id}", value)
