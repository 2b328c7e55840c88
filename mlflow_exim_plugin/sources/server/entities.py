"""The kinds that are one document each: which family reads them, and when in the stream."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError, StoreError
from mlflow_exim_plugin.host.entities import datasets, gateway, registries
from mlflow_exim_plugin.host.entities.gateway import secret_names
from mlflow_exim_plugin.host.entities.judges import (
    all_issues,
    experiments_with_scorers,
    label_schemas,
    queue_documents,
    review_queues,
    scorers,
)
from mlflow_exim_plugin.host.files.tree import ArtifactTree
from mlflow_exim_plugin.host.sql.entities import entities_of
from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.schema.objects import Artifact, Entity, Experiment, Failure, Kind, Unpacked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.kinds.description import PartFiles
    from mlflow_exim_plugin.options import Selection
    from mlflow_exim_plugin.stages.select import Plan

    _Found = Iterable[Entity | Failure]

__all__ = ["EntityReader"]

_READS: dict[Kind, Callable[[Host], Iterable[Entity | Failure]]] = {
    **datasets.READS,
    **gateway.READS,
    **registries.READS,
}


class EntityReader:
    """Reads every kind whose objects are ``Entity``.

    A kind that the deployment does not have gives nothing; one that it has and cannot list gives
    one failure, and the other kinds go on.

    Args:
        host: The deployment.
        selection: What was asked for; what belongs to no experiment comes when nothing was named.
        plan: Which experiments are taken as a whole: they bring what belongs to them.
    """

    def __init__(self, host: Host, selection: Selection, plan: Plan) -> None:
        self._host = host
        self._selection = selection
        self._plan = plan
        self._taken: list[str] = []
        self._absent: set[Kind] = set()
        self._of_files = host.is_server_of_files
        self._stored = entities_of(host)
        self._issues: dict[str, list[dict[str, Any]]] | None = None
        self._scoring: set[str] | None = None
        self._has_asked = False
        self._queues: dict[str, list[dict[str, Any]]] = {}
        self._unlisted = 0
        self._has_schemas = False
        self._deleted = 0

    def before_traces(self, experiment: Experiment) -> Iterator[Entity | Failure]:
        """Yield what traces of an experiment may name: scorers, label schemas, issues."""
        if not self._plan.takes_whole(experiment.id):
            return
        self._taken.append(experiment.id)
        if experiment.is_deleted:
            self._deleted += 1  # MLflow lists neither scorers nor label schemas nor queues of it
        else:
            yield from self._read_of(Kind.SCORER, self._scorers, experiment.id)
            yield from self._read_of(Kind.LABEL_SCHEMA, self._label_schemas, experiment.id)
        yield from self._read_of(Kind.ISSUE, self._issues_of, experiment.id)

    def after_traces(self, experiment: Experiment) -> Iterator[Entity | Failure]:
        """Yield what names traces of an experiment: review queues."""
        if self._plan.takes_whole(experiment.id) and not experiment.is_deleted:
            yield from self._read_of(Kind.REVIEW_QUEUE, self._review_queues, experiment.id)

    def of_workspace(self) -> Iterator[Entity | Failure]:
        """Yield what belongs to no experiment, or the datasets of the experiments taken so far."""
        if not self._selection.is_narrow:
            for kind in (kind for kind in KINDS if kind in _READS):
                yield from self._read(kind, self._reading(kind, partial(_READS[kind], self._host)))
        elif self._selection.datasets:
            kind = Kind.EVALUATION_DATASET
            read = self._read(kind, self._reading(kind, partial(_READS[kind], self._host)))
            for item in read:
                if isinstance(item, Failure) or self._plan.takes_dataset(item):
                    yield item
        elif self._taken and self._selection.names_objects:
            yield from self._read(Kind.EVALUATION_DATASET, self._datasets_of_taken)

    def _datasets_of_taken(self) -> Iterable[Entity | Failure]:
        if self._stored is not None:
            return self._stored.datasets_of(self._taken)
        return datasets.datasets(self._host, self._taken)

    def left_out(self) -> Iterator[Unpacked | Failure]:
        """Yield what was seen and not read, and what no archive holds, each with its reason."""
        if not self._selection.is_narrow:
            yield from self._secrets()
        if self._of_files and self._absent:
            kinds = ", ".join(sorted(self._absent))
            reason = f"a server on a folder of files has none of them: {kinds}"
            yield Unpacked("kinds that need a database", 0, at_least=False, reason=reason)
        if self._unlisted and self._has_schemas:
            yield Unpacked(
                "label schemas that no review queue uses",
                0,
                at_least=True,
                reason=f"{self._unlisted} experiments lack MLflow's default one, and the server "
                "would write it in order to list the others",
            )
        if self._deleted and Kind.SCORER not in self._absent:
            yield Unpacked(
                "scorers, label schemas and review queues of deleted experiments",
                0,
                at_least=True,
                reason=f"MLflow does not list them; {self._deleted} such experiments are packed",
            )
        kinds = "jobs, usage rollups, users and their permissions"
        reason = "they belong to the server that runs them"
        if self._unlisted and not self._has_schemas:
            kinds += ", label schemas that no page has shown yet"
            reason += ", or only a write to it could list them"
        yield Unpacked(kinds, 0, at_least=True, reason=reason)

    def _secrets(self) -> Iterator[Unpacked | Failure]:
        """Yield the gateway's secrets by name: what they hold is never read."""
        try:
            names = self._secret_names() if self._host.may_have("secrets") else []
        except ServerError as error:
            absence = self._host.absence(Kind.MODEL_DEFINITION, error, of_files=True)
            if absence.failure:
                yield Failure(Kind.MODEL_DEFINITION, "secrets", absence.failure)
            return
        if names:
            yield Unpacked(
                "gateway_secret",
                len(names),
                at_least=False,
                reason="never packed; create them at the target by name: " + ", ".join(names),
            )

    def _secret_names(self) -> list[str]:
        if self._stored is not None:
            return self._stored.secret_names()
        return sorted(secret_names(self._host))

    def _scorers(self, experiment_id: str) -> Iterable[Entity | Failure]:
        if not self._has_asked:  # else each of many experiments without any costs three calls
            self._has_asked, self._scoring = True, experiments_with_scorers(self._host)
        has_some = self._scoring is None or experiment_id in self._scoring
        return scorers(self._host, experiment_id) if has_some else ()

    def _label_schemas(self, experiment_id: str) -> Iterator[Entity | Failure]:
        def of_queues() -> list[dict[str, Any]]:
            self._unlisted += 1
            self._queues[experiment_id] = queue_documents(self._host, experiment_id)
            return self._queues[experiment_id]

        for schema in label_schemas(self._host, experiment_id, of_queues):
            self._has_schemas = True
            yield schema

    def _review_queues(self, experiment_id: str) -> Iterator[Entity | Failure]:
        queues = self._queues.pop(experiment_id, None)
        if queues is None:
            queues = queue_documents(self._host, experiment_id)
        return review_queues(self._host, experiment_id, queues)

    def _issues_of(self, experiment_id: str) -> Iterator[Entity]:
        if self._issues is None:
            self._issues = all_issues(self._host)
        for document in self._issues.pop(experiment_id, ()):
            yield Entity(Kind.ISSUE, document, experiment_id)

    def _reading(self, kind: Kind, by_mlflow: Callable[..., _Found]) -> Callable[..., _Found]:
        """Return what reads a kind, by experiment where it belongs to one: tables if they can."""
        if self._stored is not None and self._stored.tells(kind):
            return partial(self._stored.of, kind)
        return by_mlflow

    def _read_of(
        self, kind: Kind, by_mlflow: Callable[[str], _Found], experiment_id: str
    ) -> Iterator[Entity | Failure]:
        read = self._reading(kind, by_mlflow)
        yield from self._read(kind, partial(read, experiment_id), experiment_id)

    def _read(
        self, kind: Kind, read: Callable[[], Iterable[Entity | Failure]], experiment_id: str = ""
    ) -> Iterator[Entity | Failure]:
        if kind in self._absent:
            return
        found = False
        try:
            described = KINDS[kind]
            if described.table and not self._host.may_have(described.table):
                return
            if self._stored is not None and not self._stored.tells(kind):
                why = described.by_mlflow or "its model registry is in another place"
                self._host.ask_mlflow(f"{kind.words}: {why}")
            as_of_ms = time.time_ns() // 1_000_000
            for item in read():
                found = True
                if isinstance(item, Entity):
                    item.as_of_ms = as_of_ms
                    if described.files and self._selection.artifacts:
                        item.artifacts = self._files(item, described.files)
                yield item
        except ServerError as error:
            absence = self._host.absence(kind, error, of_files=True)
            is_all = not experiment_id
            if absence.is_said and not found:
                self._absent.add(kind)
                is_all = True
            if found or absence.failure:
                where = "all" if is_all else f"experiment {experiment_id}"
                yield Failure(kind, where, absence.failure or error.message)

    def _files(self, entity: Entity, files: PartFiles) -> Iterator[Artifact | Failure]:
        for part in entity.document[files.at]:
            if (root := files.root(part)) is None:
                continue
            folder = f"{part[files.name]}/"
            try:
                tree = ArtifactTree(self._host, root)
                for path, size_bytes in tree.files():
                    if self._selection.takes_artifact(path):
                        yield Artifact(
                            folder + path, size_bytes, partial(tree.open, path, size_bytes)
                        )
                for path, reason in tree.problems.items():
                    yield Failure(Kind.ARTIFACT, f"{entity.id}/{folder}{path}", reason)
            except (ServerError, StoreError) as error:
                yield Failure(Kind.ARTIFACT, f"{entity.id}/{folder}", error.message)
