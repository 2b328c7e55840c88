"""What to take: a value that sources ask while they list, so that nothing is fetched in vain."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from mlflow_exim_plugin.errors import NotFoundError, ServerError, UsageError
from mlflow_exim_plugin.host.open.absent import is_no_such, is_refused
from mlflow_exim_plugin.options import ALL_IDS, is_glob, matches, version_asked
from mlflow_exim_plugin.schema.objects import (
    SOURCE_RUN,
    Entity,
    Experiment,
    Failure,
    Kind,
    LoggedModel,
    Loss,
    NotThere,
    RegisteredModel,
    Run,
    StreamItem,
    Trace,
    Unpacked,
    linked_models,
)
from mlflow_exim_plugin.schema.provenance import ORIGIN, searches, told
from mlflow_exim_plugin.schema.runs import PARENT, RunHeader

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping

    from mlflow_exim_plugin.options import Selection
    from mlflow_exim_plugin.schema.runs import Listed

__all__ = ["Catalog", "Plan", "Wanted", "take_versions", "within"]

_EXPERIMENT, _RUN, MODELS = "experiment", "run", "registered model or prompt"
_DATASET = "evaluation dataset"
"""What :class:`Wanted` calls them; of models their versions too."""
_KIND_OF = {
    _EXPERIMENT: Kind.EXPERIMENT,
    _RUN: Kind.RUN,
    MODELS: Kind.REGISTERED_MODEL,
    _DATASET: Kind.EVALUATION_DATASET,
}


class Catalog(Protocol):
    """What a source lists runs with."""

    def runs_of_each(
        self,
        experiment_ids: list[str],
        filter_string: str = "",
        ids: tuple[str, str] = ALL_IDS,
    ) -> Iterator[Listed]:
        """Yield experiments, each with the headers of its runs that match a filter, by run id.

        Args:
            experiment_ids: The experiments.
            filter_string: In MLflow's search language.
            ids: The first run id, and the one before which it ends, see ``SelectionPart``.
        """

    def run(self, run_id: str) -> dict[str, Any]:
        """Return REST's ``Run``; raises ``ServerError`` or ``NotFoundError`` without it."""


class Plan:
    """Which runs are taken: the selected ones and their ancestors.

    Args:
        catalog: Lists the runs.
        selection: What was asked for.
        experiments: Every experiment by id.
        wanted: Told which of the names that were asked for are there.

    Attributes:
        chosen: Run ids by experiment id; a taken experiment may have none.
        losses: By run id, a parent that cannot come along.
        logged_models: Ids of logged models that come along with what is taken, in experiments that
            are not taken as a whole.
        unread: Ids of runs that are there and cannot be read; each is a failure that was yielded.
        elsewhere: Runs of the taken experiments that another part holds, as far as they matter.
    """

    def __init__(
        self,
        catalog: Catalog,
        selection: Selection,
        experiments: dict[str, Experiment],
        wanted: Wanted,
    ) -> None:
        self._catalog = catalog
        self._wanted = wanted
        self._selection = selection
        self._experiments = experiments
        self.chosen: dict[str, set[str]] = {}
        self.losses: dict[str, Loss] = {}
        self.logged_models: set[str] = set()
        self.unread: set[str] = set()
        self.elsewhere: set[str] = set()
        self._whole: set[str] = set()
        self._looked_up: dict[str, RunHeader | Failure | None] = {}

    def make(self, runs_of_versions: set[str]) -> Iterator[Failure]:
        """Choose; yields the experiments whose runs cannot be listed, and runs that are unreadable.

        Args:
            runs_of_versions: Runs behind the versions of the models that were named.
        """
        selection, experiments = self._selection, self._experiments
        headers: dict[str, RunHeader] = {}
        taken = [
            e.id
            for e in experiments.values()
            if selection.takes_experiment(e.id, e.name, e.document.get("lifecycle_stage", "active"))
        ]
        self._whole = set(taken)
        names = [name for e in taken for name in (e, experiments[e].name)]
        self._wanted.saw(_EXPERIMENT, names)
        self._wanted.knows(_EXPERIMENT, (e.name for e in experiments.values()))
        globs = list(filter(is_glob, selection.runs))
        self.chosen.update((experiment_id, set()) for experiment_id in taken)
        to_list = list(experiments) if globs else taken
        ids: tuple[str, str] | None = ALL_IDS
        if selection.part is not None:
            to_list, ids = taken, selection.part.runs
        listing = () if ids is None else self._list(to_list, selection.server_filter(), ids)
        for experiment_id, listed in listing:
            if isinstance(listed, Failure):
                yield listed
                continue
            for header in listed.values():
                if selection.takes_run(header, in_experiment=experiment_id in self._whole):
                    headers[header.run_id] = header
        named = set(selection.runs) - set(globs) - set(headers)
        for run_id in (named | runs_of_versions) - headers.keys():
            found = self._header(run_id)
            if isinstance(found, Failure):
                yield found
                self._wanted.saw(_RUN, [run_id])
                continue
            if found is None and run_id in named:
                found = yield from self._copy(run_id)
            if found is not None and (found.lifecycle_stage != "deleted" or selection.deleted):
                headers[found.run_id] = found
                self._wanted.saw(_RUN, [run_id])
        self._wanted.saw(_RUN, headers)
        if not selection.alone:
            yield from self._add_ancestors(headers)
        for header in headers.values():
            self.chosen.setdefault(header.experiment_id, set()).add(header.run_id)
        self._wanted.plans(self.chosen)

    def take_all(self, runs: dict[str, set[str]]) -> None:
        """Choose every run, which takes no look at any of them.

        Args:
            runs: Run ids by experiment id.
        """
        self.chosen = runs
        self._whole = set(runs)
        self._wanted.plans(runs)

    def loss_of(self, run: Run) -> Loss | None:
        """Return what a chosen run loses, None where it loses nothing."""
        if run.id in self.losses:
            return self.losses[run.id]
        parent = run.tags.get(PARENT)
        if not self._selection.means_all_runs or not parent or self.holds(parent):
            return None
        return _without_parent(run.id, parent, "is gone from the source")

    def takes_whole(self, experiment_id: str) -> bool:
        """Whether an experiment is taken with all that belongs to it, not for some runs alone."""
        return experiment_id in self._whole

    def link(self, run: dict[str, Any]) -> None:
        """Take the logged models that a run has as inputs and outputs along; REST's ``Run``."""
        inputs, outputs = linked_models(run)
        self.logged_models.update(model_id for model_id, _ in outputs)
        if not self._selection.alone:
            self.logged_models.update(inputs)

    def takes_logged_model(self, model: LoggedModel) -> bool:
        """Whether a logged model of a chosen experiment is taken."""
        if model.info.get("lifecycle_stage") == "deleted" and not self._selection.deleted:
            return False
        return self.takes_whole(model.experiment_id) or model.id in self.logged_models

    def takes_trace(self, trace: Trace) -> bool:
        """Whether a trace of a chosen experiment is taken."""
        if self.takes_whole(trace.experiment_id):
            return True
        run_id = trace.info.get("trace_metadata", {}).get(SOURCE_RUN)
        return run_id in self.chosen.get(trace.experiment_id, ())

    def takes_dataset(self, dataset: Entity) -> bool:
        """Whether an evaluation dataset is taken: it is named, or of an experiment taken whole."""
        name = str(dataset.document.get("name", ""))
        self._wanted.knows(_DATASET, [name])
        names = dataset.id, str(dataset.document.get("dataset_id", "")), name
        if matches(self._selection.datasets, names):
            self._wanted.saw(_DATASET, names)
            return True
        linked = dataset.document.get("experiment_ids")
        return isinstance(linked, list) and any(self.takes_whole(str(e)) for e in linked)

    def means_whole(self, experiment_id: str) -> bool:
        """Whether an experiment is taken with all that belongs to it, be it by other parts."""
        owner = self._experiments.get(experiment_id)
        if owner is None:
            return False
        stage = owner.document.get("lifecycle_stage", "active")
        return self._selection.means_experiment(owner.id, owner.name, stage)

    def holds(self, run_id: str) -> bool:
        """Whether a run is taken, be it by another part."""
        if any(run_id in runs for runs in self.chosen.values()):
            return True
        found = None if self._selection.part is None else self._header(run_id)
        return isinstance(found, RunHeader) and self._is_elsewhere(found)

    def _is_elsewhere(self, header: RunHeader) -> bool:
        """Whether another part holds a run; of a filter nobody knows."""
        selection = self._selection
        if selection.part is None or selection.filter:
            return False
        if selection.means_all_runs:
            return True
        is_meant = self.means_whole(header.experiment_id)
        return is_meant and selection.takes_run(header, in_experiment=True)

    def _add_ancestors(self, headers: dict[str, RunHeader]) -> Iterator[Failure]:
        queue = [header for header in headers.values() if header.parent]
        while queue:
            child = queue.pop()
            parent = child.parent
            if not parent or parent in headers:
                continue
            found = None if parent in self.unread else self._header(parent)
            if isinstance(found, Failure):
                if self._selection.part is None:  # else the part that has it says so
                    yield found
                found = None
            reason = "cannot be read" if parent in self.unread else "is gone from the source"
            if found and found.lifecycle_stage == "deleted" and not self._selection.deleted:
                found, reason = None, "is deleted and deleted runs are left out"
            if found is not None and self._is_elsewhere(found):
                continue
            if found is None:
                self.losses[child.run_id] = _without_parent(child.run_id, parent, reason)
                continue
            headers[parent] = found
            queue.append(found)

    def _list(
        self, experiment_ids: list[str], clause: str, ids: tuple[str, str] = ALL_IDS
    ) -> Iterator[tuple[str, dict[str, RunHeader] | Failure]]:
        for experiment_id, found in self._catalog.runs_of_each(experiment_ids, clause, ids):
            if not isinstance(found, ServerError):
                yield experiment_id, found
                continue
            if self._selection.filter and is_refused(found):
                raise UsageError(f"--filter: {found.message}") from found
            yield experiment_id, Failure(Kind.RUN, f"experiment {experiment_id}", found.message)

    def _copy(self, source_id: str) -> Generator[Failure, None, RunHeader | None]:
        """Return the copy of a run that has this id elsewhere, None without one.

        Yields the experiments whose runs cannot be listed.
        """
        if not source_id.isalnum():
            return None
        for named in searches(ORIGIN, f"LIKE '%{source_id}%'"):
            for _, listed in self._list(list(self._experiments), named):
                if isinstance(listed, Failure):
                    yield listed
                    continue
                for header in listed.values():
                    origins = told(Run(self._catalog.run(header.run_id)).tags, ORIGIN)
                    if source_id in origins.split():
                        return header
        return None

    def _header(self, run_id: str) -> RunHeader | Failure | None:
        """Return a run, None where there is none, or where the stream says why it is not read."""
        if run_id not in self._looked_up:  # many runs have one parent
            self._looked_up[run_id] = self._looked_at(run_id)
        return self._looked_up[run_id]

    def _looked_at(self, run_id: str) -> RunHeader | Failure | None:
        try:
            document = self._catalog.run(run_id)
        except NotFoundError:
            return None
        except ServerError as error:
            if is_no_such(error):
                return None
            self.unread.add(run_id)
            return Failure(Kind.RUN, run_id, error.message)
        return RunHeader.of(document)


def _without_parent(run_id: str, parent: str, reason: str) -> Loss:
    what = f"its parent run {parent} {reason}; the tag {PARENT} keeps the id"
    return Loss(Kind.RUN, run_id, what)


def within(
    workspace: Entity | Failure | None, stream: Iterator[StreamItem], selection: Selection
) -> Iterator[StreamItem]:
    """Yield a workspace before the first object of its stream, even of none if all was asked for.

    Args:
        workspace: The workspace; None for the default one, which is always there.
        stream: What is taken of it.
        selection: What was asked for.
    """
    if workspace is not None and not selection.is_narrow:
        yield workspace
        workspace = None
    for item in stream:
        if workspace is not None and not isinstance(item, Failure | Loss | Unpacked):
            yield workspace
            workspace = None
        yield item


def take_versions(
    model: RegisteredModel,
    ids: Iterable[str],
    selection: Selection,
    wanted: Wanted,
    documents: Callable[[], Iterable[Mapping[str, Any]]],
) -> tuple[RegisteredModel, Callable[[str], bool]] | None:
    """Return a registered model, without the aliases of what stays, and which versions come.

    Args:
        model: One that ``selection`` takes.
        ids: Those of its versions, also of what cannot be read; the last segment is the number.
        selection: What was asked for.
        wanted: Told what is there.
        documents: Gives those of its versions, for their stages.

    Returns:
        What tells by its id whether a version comes; that also holds for an id without a number.
        None where versions are asked for and the model has none of them.
    """
    numbers = set(filter(None, map(_number_of, ids)))

    def stages() -> dict[int, str]:
        found = ((document.get("version"), document) for document in documents())
        return {
            int(str(n)): str(of.get("current_stage", "")) for n, of in found if str(n).isdecimal()
        }

    asked = selection.versions_asked(model.name, numbers, model.aliases, stages)
    if asked is None:
        wanted.saw(MODELS, [model.name])
        return model, lambda _: True
    wanted.saw(MODELS, asked)
    if not asked:
        return None
    taken = {number for numbers in asked.values() for number in numbers}
    if listed := model.document.get("aliases"):
        aliases = [entry for entry in listed if int(entry["version"]) in taken]
        model = replace(model, document={**model.document, "aliases": aliases})
    return model, lambda identity: _number_of(identity) in {None, *taken}


def _number_of(version: str) -> int | None:
    number = version.rpartition("/")[2]
    return int(number) if number.isdecimal() else None


class Wanted:
    """Names that were asked for and not seen yet, in whichever workspace they may be.

    Args:
        selection: What was asked for.
        planned: Told how many objects of a kind will come, for who waits for them.
    """

    def __init__(self, selection: Selection, planned: dict[Kind, int] | None = None) -> None:
        self._selection = selection
        self._planned = {} if planned is None else planned
        self._planned.clear()
        self._missing = self._asked()
        self._known: dict[str, list[str]] = {}

    def plans(self, runs: Mapping[str, Collection[str]]) -> None:
        """Note which runs of experiments are chosen, of one workspace after the other."""
        chosen = sum(map(len, runs.values()))
        self._planned[Kind.RUN] = self._planned.get(Kind.RUN, 0) + chosen

    def saw(self, kind: str, names: Iterable[str]) -> None:
        """Note what is there."""
        known = list(names)
        self._missing[kind] = [p for p in self._missing[kind] if not matches((p,), known)]

    def saw_unread(self, model: str) -> None:
        """Note a registered model that is there and cannot be read, whatever is asked of it."""
        asked = self._missing[MODELS]
        bases = {pattern: (version_asked(pattern) or (pattern,))[0] for pattern in asked}
        self.saw(MODELS, [model, *(p for p, base in bases.items() if matches((base,), (model,)))])

    def knows(self, kind: str, names: Iterable[str]) -> None:
        """Note what there is, taken or not, to say what may have been meant."""
        if self._missing[kind]:
            self._known.setdefault(kind, []).extend(names)

    def takes_model(self, name: str) -> bool:
        """Whether a registered model that is there is taken, with all its versions or some."""
        self.knows(MODELS, [name])
        return self._selection.takes_model(name)

    def missing(self, *, datasets: bool = False) -> Iterator[NotThere]:
        """Yield the names that matched nothing: the rest goes on.

        Args:
            datasets: Those of evaluation datasets, which come last, and not those of the rest.

        Raises:
            NotFoundError: There is no rest. A misspelling must not pass as success.
        """
        asked = self._asked()
        absent = [
            (kind, name)
            for kind, names in self._missing.items()
            for name in names
            if (kind == _DATASET) == datasets
        ]
        if absent and len(absent) == sum(map(len, asked.values())):
            if len(absent) > 1:
                named = "; ".join(f"no {kind} matches {name!r}" for kind, name in absent)
                raise NotFoundError(named, self._near(*absent[0]).hint)
            raise self._near(*absent[0])
        for kind, name in absent:
            error = self._near(kind, name)
            hint = f" ({error.hint})" if error.hint else ""
            yield NotThere(_KIND_OF[kind], name, f"there is none of this name{hint}")

    def _near(self, kind: str, name: str) -> NotFoundError:
        return NotFoundError.among(f"no {kind} matches", name, self._known.get(kind, ()))

    def _asked(self) -> dict[str, list[str]]:
        selection = self._selection
        if selection.part is not None:  # what is in no part was named when it was divided
            return {_EXPERIMENT: [], _RUN: [], MODELS: [], _DATASET: []}
        return {
            _EXPERIMENT: list(selection.experiments),
            _RUN: list(selection.runs),
            MODELS: list(selection.models),
            _DATASET: list(selection.datasets),
        }
