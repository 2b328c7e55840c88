"""Logged models of a deployment: those of each experiment, and deleted ones that runs lead to."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import NotFoundError, ServerError
from mlflow_exim_plugin.host.api.together import listed_of_each
from mlflow_exim_plugin.host.sql.logged_models import logged_models_of
from mlflow_exim_plugin.schema.objects import (
    Artifact,
    Failure,
    Kind,
    LoggedModel,
    Loss,
    Run,
    linked_models,
    model_behind,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import ThreadPoolExecutor

    from mlflow_exim_plugin.host.api.reading import Reader
    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.options import Selection
    from mlflow_exim_plugin.stages.select import Plan

__all__ = ["LoggedModelReader"]

_AHEAD = 50


class LoggedModelReader:
    """Reads the logged models that belong to what is taken.

    No server lists the deleted ones: those are found where runs made or used them. A database
    names them all.

    Args:
        host: The deployment.
        selection: What to take.
        plan: Which experiments and runs are taken; gains the experiments of the models.
        files: Lists the files below an owner's artifact root.
    """

    def __init__(
        self,
        host: Host,
        selection: Selection,
        plan: Plan,
        files: Callable[[str, str | None], list[Artifact | Failure]],
    ) -> None:
        self._host = host
        self._models = logged_models_of(host)
        self._selection = selection
        self._plan = plan
        self._files = files
        self._wanted: dict[str, set[str]] = {}
        self._deleted: dict[str, set[str]] | None = None
        self._listed: dict[str, set[str] | ServerError] = {}
        self._listing: Iterator[tuple[str, set[str] | ServerError]] | None = None
        self._led_to: dict[str, str] = {}
        self._seen: set[str] = set()
        self._passed: set[str] = set()
        self._roots: dict[str, str] = {}
        self._absent = self._answered = False

    def complete(
        self,
        versions: Iterable[dict[str, Any]],
        reader: Reader,
        pool: ThreadPoolExecutor,
    ) -> Iterator[Failure]:
        """Take the models behind versions and those that runs taken alone made or used.

        Args:
            versions: REST's ``ModelVersion`` of the registered models that were named.
            reader: Reads the runs.
            pool: Where calls are made.
        """
        plan = self._plan
        wanted = {model_id for version in versions if (model_id := model_behind(version))}
        alone = [
            run_id
            for experiment_id, runs in plan.chosen.items()
            if not plan.takes_whole(experiment_id)
            for run_id in runs
        ]
        for links in pool.map(lambda run_id: self._links(run_id, reader), sorted(alone)):
            wanted |= links
        for model_id, found in self._located(wanted, pool):
            if isinstance(found, Failure):
                yield found
            elif found:
                plan.chosen.setdefault(found, set())
                self._wanted.setdefault(found, set()).add(model_id)

    def watch(self, run: Run) -> None:
        """Remember which models a run made or used."""
        for model_id in _linked(run.document):
            self._led_to.setdefault(model_id, run.id)

    def of_experiment(
        self, experiment_id: str, pool: ThreadPoolExecutor
    ) -> Iterator[LoggedModel | Failure | Loss]:
        """Yield the models of an experiment whose runs have all been watched, by id."""
        wanted = self._wanted.pop(experiment_id, set())
        whole = self._plan.takes_whole(experiment_id)
        if whole and not self._absent:
            listed = self._listed_of(experiment_id)
            if not isinstance(listed, ServerError):
                wanted |= listed
                self._answered = True
            else:
                absence = self._host.absence(Kind.LOGGED_MODEL, listed)
                self._absent = absence.is_said and not self._answered
                if self._answered or absence.failure:
                    where = "all" if self._absent else f"experiment {experiment_id}"
                    yield Failure(Kind.LOGGED_MODEL, where, absence.failure or listed.message)
        if self._absent and not (self._led_to or wanted):
            return
        if whole and self._selection.deleted:
            wanted |= self._deleted_of(experiment_id, pool)
        yield from self._follow(experiment_id, wanted, pool)
        self._seen |= wanted
        if whole:
            self._passed.add(experiment_id)
        ids = sorted(wanted)
        for start in range(0, len(ids), _AHEAD):
            for item in pool.map(self._read, ids[start : start + _AHEAD]):
                if item is not None:
                    yield item

    def _listed_of(self, experiment_id: str) -> set[str] | ServerError:
        """Return the models of an experiment; those after it are listed in the same call."""
        if self._listing is None:
            whole = [e for e in self._plan.chosen if self._plan.takes_whole(e)]
            self._listing = listed_of_each(whole, self._models.ids_of_some)
        while experiment_id not in self._listed:
            self._listed.update([next(self._listing)])
        return self._listed.pop(experiment_id)

    def holds(self, model_id: str | None, uri: str) -> bool:
        """Whether files at a URI are those of a model that was taken, be it by another part."""
        if model_id is None or (model_id not in self._roots and not self._is_elsewhere(model_id)):
            return False
        root = self._roots[model_id].rstrip("/")
        return uri.startswith(f"models:/{model_id}") or f"{uri}/".startswith(f"{root}/")

    def _is_elsewhere(self, model_id: str) -> bool:
        """Whether another part takes a model; its root is known then."""
        if self._selection.part is None:
            return False
        try:
            info = self._models.read(model_id)["info"]
        except (NotFoundError, ServerError):
            return False
        if info.get("lifecycle_stage") == "deleted" and not self._selection.deleted:
            return False
        if not self._plan.means_whole(str(info["experiment_id"])):
            return False
        self._roots[model_id] = str(info.get("artifact_uri") or "")
        return True

    def of_runs(
        self, experiment_id: str, pool: ThreadPoolExecutor
    ) -> Iterator[LoggedModel | Failure | Loss]:
        """Yield what a part of an experiment's runs brings along, where another has its models.

        That is what the runs lose, and of a server the models that it does not list.
        """
        if self._host.engine is not None:
            yield from self._gone_from_database()
            return
        listed = self._listed_of(experiment_id)
        if not isinstance(listed, ServerError):  # else said by the part that has the models
            self._seen |= listed
        wanted: set[str] = set()
        yield from self._follow(experiment_id, wanted, pool)
        for item in pool.map(self._read, sorted(wanted)):
            if item is not None:
                yield item

    def _gone_from_database(self) -> Iterator[Loss]:
        led_to, self._led_to = self._led_to, {}
        there = self._models.there(sorted(led_to))
        for model_id in sorted(led_to.keys() - there):
            yield _gone(model_id, led_to[model_id])

    def _is_unlisted(self, model_id: str) -> bool:
        """Whether no other part can know of a model that belongs to one."""
        if self._selection.part is None or self._host.engine is not None:
            return False
        info = self._models.read(model_id)["info"]
        return bool(info.get("lifecycle_stage") == "deleted") and self._selection.deleted

    def _follow(
        self, experiment_id: str, wanted: set[str], pool: ThreadPoolExecutor
    ) -> Iterator[Failure | Loss]:
        """Find the models that no listing gave and that runs lead to; adds to the wanted ones."""
        led_to, self._led_to = self._led_to, {}
        for model_id, found in self._located(set(led_to) - wanted - self._seen, pool):
            self._seen.add(model_id)
            if found == experiment_id:
                wanted.add(model_id)
            elif isinstance(found, Failure):
                yield found
            elif found is None:
                yield _gone(model_id, led_to[model_id])
            elif found not in self._plan.chosen and self._is_unlisted(model_id):
                reason = (
                    f"it is deleted and only run {led_to[model_id]} of experiment {experiment_id} "
                    f"leads to it, which is packed in another part than its experiment {found}"
                )
                yield Failure(Kind.LOGGED_MODEL, model_id, reason)
            elif found in self._passed:
                reason = (
                    f"it is deleted and only run {led_to[model_id]} of experiment {experiment_id} "
                    f"leads to it, which came after its own experiment {found}"
                )
                yield Failure(Kind.LOGGED_MODEL, model_id, reason)
            else:
                self._wanted.setdefault(found, set()).add(model_id)

    def _deleted_of(self, experiment_id: str, pool: ThreadPoolExecutor) -> set[str]:
        if self._deleted is None:
            self._deleted = {}
            for model_id, found in self._located(set(self._models.deleted_ids()), pool):
                if isinstance(found, str):
                    self._deleted.setdefault(found, set()).add(model_id)
        return self._deleted.pop(experiment_id, set())

    def _located(
        self, model_ids: set[str], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[str, str | Failure | None]]:
        """Yield ids with the experiment of each; None where it is not given any more."""

        def locate(model_id: str) -> str | Failure | None:
            try:
                return str(self._models.read(model_id)["info"]["experiment_id"])
            except NotFoundError:
                return None
            except ServerError as error:
                return Failure(Kind.LOGGED_MODEL, model_id, error.message)

        ids = sorted(model_ids)
        return zip(ids, pool.map(locate, ids), strict=True)

    def _links(self, run_id: str, reader: Reader) -> set[str]:
        try:
            return _linked(reader.run(run_id))
        except ServerError:
            return set()  # the run itself will be read again, and its failure named

    def _read(self, model_id: str) -> LoggedModel | Failure | None:
        as_of_ms = time.time_ns() // 1_000_000
        try:
            model = LoggedModel(self._models.read(model_id), as_of_ms=as_of_ms)
        except (NotFoundError, ServerError) as error:
            return Failure(Kind.LOGGED_MODEL, model_id, error.message)
        if model.info.get("lifecycle_stage") == "deleted" and not self._selection.deleted:
            return None
        root = str(model.info.get("artifact_uri") or "")
        self._roots[model_id] = root
        if self._selection.artifacts:
            model.artifacts = self._files(model_id, root)
        return model


def _gone(model_id: str, run_id: str) -> Loss:
    what = f"logged model {model_id}, which it made or used, is gone from the source"
    return Loss(Kind.RUN, run_id, what)


def _linked(run: dict[str, Any]) -> set[str]:
    inputs, outputs = linked_models(run)
    return {*inputs, *(model_id for model_id, _ in outputs)}
