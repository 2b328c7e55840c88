"""Source ``client``: all that a deployment's own API shows, read with bounded parallel calls."""

from __future__ import annotations

import itertools
import time
from collections import deque
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import EximError, NotFoundError, ServerError
from mlflow_exim_plugin.host.answers import is_no_answer
from mlflow_exim_plugin.host.api.first_runs import FirstReader
from mlflow_exim_plugin.host.api.histories import HistoriesAhead, HistoryReader, HistorySource
from mlflow_exim_plugin.host.entities.datasets import dataset_headers
from mlflow_exim_plugin.host.open.absent import is_absent
from mlflow_exim_plugin.host.open.workspaces import DEFAULT, Workspaces, entered, workers
from mlflow_exim_plugin.host.sql.histories import StoredHistories
from mlflow_exim_plugin.host.sql.logged_models import logged_models_of
from mlflow_exim_plugin.host.sql.reading import reader_of
from mlflow_exim_plugin.host.sql.runs import RowsOfRuns, StoredRuns
from mlflow_exim_plugin.schema.lineage import is_or_was
from mlflow_exim_plugin.schema.objects import (
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
    StreamItem,
    Unpacked,
    by_number,
    closed_after,
    created_ms,
)
from mlflow_exim_plugin.schema.provenance import HOLLOW
from mlflow_exim_plugin.sources.artifacts import ArtifactReader
from mlflow_exim_plugin.sources.server.ahead import made_ahead, next_begun
from mlflow_exim_plugin.sources.server.entities import EntityReader
from mlflow_exim_plugin.sources.server.known import KnownState
from mlflow_exim_plugin.sources.server.logged_models import LoggedModelReader
from mlflow_exim_plugin.sources.server.outline import DeploymentOutline
from mlflow_exim_plugin.sources.server.traces import TraceSource
from mlflow_exim_plugin.stages.select import Plan, Wanted, take_versions, within
from mlflow_exim_plugin.stages.sound import sound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from concurrent.futures import Future, ThreadPoolExecutor

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.options import Selection
    from mlflow_exim_plugin.sources.artifacts import Listing
    from mlflow_exim_plugin.stages.marks import Marks

__all__ = ["ServerSource"]

_RUNS_AHEAD = 100
_STORED_RUNS_AHEAD = 1000
_FILES_AHEAD = 32
"""Of so many runs the first files are on their way."""
_BYTES_AHEAD = 2 << 20
"""So much is read of runs at once, without their histories; Python makes ten times that of it."""
_ROWS_OF_KEY = 25_000
"""So many rows are expected of a key at most: its last step may be any number."""


class ServerSource:
    """Reads one deployment through MLflow's own client.

    Args:
        host: The deployment.
        jobs: How many calls may be under way at once.
        contents: False reads no metric rows and no artifact bytes, for a dry run.
        marks: Those of an earlier state: runs that are as they were come without rows and files.
    """

    def __init__(
        self, host: Host, *, jobs: int = 4, contents: bool = True, marks: Marks | None = None
    ) -> None:
        self._host = host
        self._contents = contents
        self._marks = marks
        self._reader = FirstReader(host) if host.generation.is_0x else reader_of(host)
        self._workspaces = Workspaces(host)
        self._jobs = jobs
        self.planned: dict[Kind, int] = {}

    @property
    def uri(self) -> str:
        """The tracking URI without secrets."""
        return self._host.display_uri

    @property
    def mlflow_version(self) -> str:
        """Version of the MLflow client."""
        return self._host.mlflow_version

    def stream(self, selection: Selection) -> Iterator[StreamItem]:
        """Yield what is selected, in dependency order.

        Raises:
            NotFoundError: A name or id that was asked for is not there.
            ServerError: The deployment cannot be listed at all.
        """
        return sound(self._stream(selection))

    def _stream(self, selection: Selection) -> Iterator[StreamItem]:
        wanted = Wanted(selection, self.planned)
        try:
            choices = [_Choice(workspace) for workspace in self._workspaces.to_read()]
        except ServerError as error:
            raise self._no_server(error)  # noqa: B904 - often the very same
        for choice in choices:
            with entered(choice.workspace):
                yield from self._choose(choice, selection, wanted)
        yield from wanted.missing()
        left_out: set[Unpacked] = set()
        for choice in choices:
            with entered(choice.workspace):
                for item in self._of_workspace(choice, selection):
                    if isinstance(item, Unpacked):
                        if item in left_out:
                            continue  # said of an earlier workspace in the same words
                        left_out.add(item)
                    yield item
        yield from wanted.missing(datasets=True)

    def _no_server(self, error: ServerError) -> EximError:
        """Return what to raise where nothing can be listed: it may be no server of MLflow's."""
        if not is_no_answer(error):
            return error
        return NotFoundError(
            f"there is no MLflow server at {self.uri}: {error.message}",
            "check that the address is that of a tracking server",
        )

    def experiment_ids(self) -> Iterator[str]:
        """Yield the ids of all experiments.

        Raises:
            ServerError: They cannot be listed.
        """
        for workspace in self._workspaces.to_read():
            with entered(workspace):
                yield from [str(d["experiment_id"]) for d in self._reader.experiments()]

    def outlined(self, selection: Selection) -> DeploymentOutline:
        """Return what tells how much of a selection there is."""
        return DeploymentOutline(self._host, selection, self._jobs)

    def find(self, identity: str) -> Iterator[Run | LoggedModel | Entity]:
        """Yield what has an id or had it at an earlier place, without its parts.

        Raises:
            ServerError: The deployment cannot be searched.
        """
        for workspace in self._workspaces.to_read():
            with entered(workspace):
                try:
                    for item in self._candidates(identity):
                        if is_or_was(item, identity):
                            yield item
                except ServerError as error:
                    if not is_absent(error):
                        raise

    def _candidates(self, identity: str) -> Iterator[Run | LoggedModel | Entity]:
        experiment_ids = [d["experiment_id"] for d in self._reader.experiments()]
        if identity.startswith("m-"):
            for experiment_id in experiment_ids:
                for document in logged_models_of(self._host).documents(experiment_id):
                    yield LoggedModel(document)
        elif identity.startswith("d-"):
            for header in dataset_headers(self._host).values():
                yield Entity(Kind.EVALUATION_DATASET, header)
        else:
            for run_id in self._reader.copies(identity, experiment_ids):
                yield Run(self._reader.run(run_id))

    def _of_workspace(self, choice: _Choice, selection: Selection) -> Iterator[StreamItem]:
        """Yield a workspace before the first of what is taken of it."""
        document = choice.workspace
        workspace = None
        if document is not None and document["name"] != DEFAULT:
            workspace = Entity(Kind.WORKSPACE, document, as_of_ms=time.time_ns() // 1_000_000)
        yield from within(workspace, self._chosen(choice, selection), selection)

    def _choose(
        self, choice: _Choice, selection: Selection, wanted: Wanted
    ) -> Iterator[StreamItem]:
        """Choose what is taken of a workspace."""
        part = selection.part
        experiments: dict[str, Experiment] = {}
        unread: set[str] = set()
        unlisted: ServerError | None = None
        try:
            for found in self._reader.found_experiments():
                if isinstance(found, Failure):
                    unread.add(found.id)
                    if part is None:  # else said once, where it is divided
                        yield found
                else:
                    experiments[found["experiment_id"]] = Experiment(found)
        except ServerError as error:
            if selection.is_narrow:
                raise
            unlisted = error
        for owner in self._reader.owners_without(unread, part.experiments if part else None):
            named = f"lost-{owner}"
            experiments[owner] = Experiment({"experiment_id": owner, "name": named})
            what = f"it cannot be read: what belongs to it stands in an experiment {named!r}"
            yield Loss(Kind.EXPERIMENT, owner, what)
        experiments = {key: experiments[key] for key in sorted(experiments, key=by_number)}
        models: list[tuple[str, Kind]] = []
        prompts: list[str] = []
        try:
            if self._needs_registry(selection):
                registered, prompts = self._reader.registered_models()
            else:
                registered = []
        except ServerError as error:
            if selection.models:
                raise
            absence = self._host.absence(Kind.REGISTERED_MODEL, error)
            if part is not None and not part.beside_experiments:
                pass  # the part that it belongs to says so
            elif absence.failure or self._reader.has_registry:
                reason = absence.failure or error.message
                yield Failure(Kind.REGISTERED_MODEL, "all", reason)
            elif not absence.is_open:
                reason = "this server has no model registry"
                yield Unpacked("registered models and prompts", 0, at_least=False, reason=reason)
        else:
            models = [
                (name, kind)
                for kind, names in ((Kind.PROMPT, prompts), (Kind.REGISTERED_MODEL, registered))
                for name in names
                if wanted.takes_model(name)
            ]
        if unlisted is not None:
            if not models:
                raise self._no_server(unlisted)
            yield Failure(Kind.EXPERIMENT, "all", unlisted.message)
        versions: dict[str, _Versions] = {}
        for name, kind in list(models) if selection.models else ():
            try:
                of_model = _taken(self._versions(name, kind), selection, wanted)
            except ServerError:
                # It is read again in its turn, and the failure named.
                wanted.saw_unread(name)
                continue
            if of_model is None:
                models.remove((name, kind))
            else:
                versions[name] = of_model
        plan = Plan(self._reader, selection, experiments, wanted)
        yield from plan.make({str(v["run_id"]) for v in _sound(versions) if v.get("run_id")})
        unread_runs, self._reader.unread = self._reader.unread, []
        yield from (failure for failure in unread_runs if failure.id not in plan.unread)
        if part is not None and part.beside_runs and part.runs is None and not self._is_database:
            for _, listed in self._reader.runs_of_each(list(plan.chosen)):
                if not isinstance(listed, ServerError):  # the parts with the runs name it
                    plan.elsewhere.update(listed)
        choice.experiments, choice.models, choice.versions = experiments, models, versions
        choice.prompts = prompts
        choice.plan = plan

    @property
    def _is_database(self) -> bool:
        return self._host.engine is not None

    def _needs_registry(self, selection: Selection) -> bool:
        """Whether anything is taken of the registry, or servers asked for links to its prompts."""
        part = selection.part
        if part is None or part.beside_experiments:
            return True
        return part.beside_runs and not self._is_database

    def _prompt_versions(self, prompts: list[str]) -> list[str]:
        """Return the versions of prompts, each as ``NAME/NUMBER``."""
        found = []
        for name in prompts:
            try:
                versions = self._reader.model_versions(name, {}, Kind.PROMPT)
            except ServerError:
                continue  # named when it is read
            found += [f"{name}/{version['version']}" for version in versions]
        return found

    def _chosen(self, choice: _Choice, selection: Selection) -> Iterator[StreamItem]:
        """Yield what was chosen of a workspace, in dependency order."""
        experiments, models, versions = choice.experiments, choice.models, choice.versions
        plan = choice.plan
        entities = EntityReader(self._host, selection, plan)
        with workers(self._jobs, "exim-read") as pool:
            files = ArtifactReader(self._host, selection, pool, contents=self._contents)
            logged_models = LoggedModelReader(self._host, selection, plan, files.files)
            yield from logged_models.complete(_sound(versions), self._reader, pool)
            known_state = KnownState.of(self._marks, choice.workspace)
            traces = TraceSource(
                self._host,
                pool,
                self._jobs,
                selection,
                plan,
                contents=self._contents,
                known=known_state,
            )
            yield from traces.find_links(lambda: self._prompt_versions(choice.prompts))
            taken = [e for e in experiments.values() if e.id in plan.chosen]
            if selection.oldest_first:
                taken.sort(key=created_ms)
            run_ids = [run_id for e in taken for run_id in sorted(plan.chosen[e.id])]
            # Of all experiments in a row: those of the next are on their way before its turn.
            with closed_after(self._runs(run_ids, plan.losses, files, pool, known_state)) as runs:
                for experiment in taken:
                    yield experiment
                    for item in itertools.islice(runs, len(plan.chosen[experiment.id])):
                        if isinstance(item, Run):
                            logged_models.watch(item)
                        yield item
                    if not selection.takes_beside_runs:
                        yield from logged_models.of_runs(experiment.id, pool)
                        continue
                    yield from logged_models.of_experiment(experiment.id, pool)
                    yield from entities.before_traces(experiment)
                    yield from traces.of_experiment(experiment.id)
                    yield from entities.after_traces(experiment)
            for name, kind in models:
                known = versions.get(name)
                for of_model in self._model(name, kind, known, selection):
                    if of_model.kind is Kind.MODEL_VERSION and isinstance(of_model, ModelVersion):
                        of_model.artifacts = self._version_files(
                            of_model, files, plan, logged_models
                        )
                    yield of_model
            yield from files.said()
        yield from entities.of_workspace()
        yield from entities.left_out()
        if unproven := sorted(self._host.unproven):
            reason = f"a proxy may say so, and it tells no version: {', '.join(unproven)}"
            what = "kinds that the server says it does not have"
            yield Unpacked(what, 0, at_least=True, reason=reason)
        if unread := self._host.unread:
            reason = f"this MLflow does not know them: {', '.join(unread)}"
            what = "tables and columns of a newer schema"
            yield Unpacked(what, seen=len(unread), at_least=False, reason=reason)
        if unmapped := self._host.unmapped:
            reason = f"they are none of MLflow's that are known here: {', '.join(unmapped)}"
            what = "table or column that is not carried"
            yield Unpacked(what, seen=len(unmapped), at_least=False, reason=reason)

    def _runs(
        self,
        run_ids: list[str],
        losses: dict[str, Loss],
        files: ArtifactReader,
        pool: ThreadPoolExecutor,
        known: KnownState | None,
    ) -> Iterator[Run | Failure]:
        """Yield a run, or why it cannot be read, for each id."""
        engine = self._host.engine
        histories: HistorySource = (
            HistoryReader(self._host, pool, self._jobs)
            if engine is None
            else StoredHistories(engine)
        )
        with closing(histories):
            documents = self._documents(run_ids, pool)
            # The next group's rows are on their way before this one's last is used.
            groups = self._groups(documents, histories, files, known)
            for started in next_begun(groups):
                yield from self._started(started, losses, files)

    def _started(
        self, started: _Group, losses: dict[str, Loss], files: ArtifactReader
    ) -> Iterator[Run | Failure]:
        rows = started.reading.finish()
        coming, ready = deque(started.runs), deque[Run | Failure]()
        started.runs.clear()  # what was used is not to stay in memory
        while coming or ready:
            # Files of the next runs begin to come while those of this one are written.
            while (
                coming and len(ready) < _FILES_AHEAD and (not ready or started.is_listed(coming[0]))
            ):
                run = coming.popleft()
                run_id = run.id
                if isinstance(run, Run) and run_id not in started.unchanged:
                    run.histories = rows.pop(run_id)
                    run.artifacts = files.take(started.listings.pop(run_id).result())
                    if run_id in losses:
                        run.issues = (losses[run_id],)
                    if (place := run.tags.get(HOLLOW)) is not None:
                        run.histories = ()
                        what = f"it is hollow: its metric histories and files are in {place}"
                        run.issues = (*run.issues, Loss(Kind.RUN, run_id, what))
                ready.append(run)
            yield ready.popleft()

    def _documents(
        self, run_ids: list[str], pool: ThreadPoolExecutor
    ) -> Iterator[list[Run | Failure]]:
        """Yield some runs at a time, with the moment each was read."""

        def read(run_id: str) -> Run | Failure:
            as_of_ms = time.time_ns() // 1_000_000
            try:
                return Run(self._reader.run(run_id), as_of_ms=as_of_ms)
            except ServerError as error:
                return Failure(Kind.RUN, run_id, error.message)

        if self._host.engine is None:
            some = range(0, len(run_ids), _RUNS_AHEAD)
            yield from made_ahead(
                list(pool.map(read, run_ids[start : start + _RUNS_AHEAD])) for start in some
            )
            return
        with closing(StoredRuns(self._host.engine)) as stored:
            for some_ids, tables in made_ahead(_tables(stored, run_ids)):
                found = tables.runs() if tables else {}
                yield [found[run_id] if run_id in found else read(run_id) for run_id in some_ids]

    def _groups(
        self,
        documents: Iterable[list[Run | Failure]],
        histories: HistorySource,
        files: ArtifactReader,
        known: KnownState | None,
    ) -> Iterator[_Group]:
        """Yield runs whose rows are being read, as many at a time as memory allows."""
        for chunk in documents:
            listings = self._listings(chunk, files)
            unchanged = known.runs_among(chunk, listings, files, histories) if known else set[str]()
            runs: list[Run | Failure] = []
            steps: dict[str, dict[str, int]] = {}
            rows = 0
            for run in chunk:
                if isinstance(run, Run) and run.id not in unchanged:
                    latest = _latest_steps(run.document)
                    expected = 0
                    for step in latest.values():
                        expected += min(step + 1, _ROWS_OF_KEY) if step > 0 else 1
                    if runs and rows + expected > histories.rows_ahead:
                        yield _Group(runs, histories.start(steps), listings, unchanged)
                        runs, steps, rows = [], {}, 0
                    steps[run.id] = latest if self._contents else {}
                    rows += expected
                runs.append(run)
            if runs:
                yield _Group(runs, histories.start(steps), listings, unchanged)

    def _listings(
        self, runs: list[Run | Failure], files: ArtifactReader
    ) -> dict[str, Future[Listing]]:
        return {
            run.id: files.start(run.id, run.info.get("artifact_uri"))
            for run in runs
            if isinstance(run, Run)
        }

    def _versions(self, name: str, kind: Kind) -> _Versions:
        as_of_ms = time.time_ns() // 1_000_000
        model = RegisteredModel(self._reader.registered_model(name), kind, as_of_ms=as_of_ms)
        try:
            return model, self._reader.found_versions(name, model.aliases, kind)
        except ServerError as error:
            return model, [Failure(VERSION_KINDS[kind], f"{name}/", error.message)]

    def _model(
        self,
        name: str,
        kind: Kind,
        known: _Versions | None,
        selection: Selection,
    ) -> Iterator[RegisteredModel | ModelVersion | Failure]:
        try:
            found = known or _taken(self._versions(name, kind), selection, Wanted(selection))
        except ServerError as error:
            yield Failure(kind, name, error.message)
            return
        if found is None:
            return
        model, versions = found
        yield model
        for document in versions:
            if isinstance(document, Failure):
                yield document
                continue
            yield ModelVersion(document, as_of_ms=model.as_of_ms, kind=VERSION_KINDS[kind])

    def _version_files(
        self,
        version: ModelVersion,
        files: ArtifactReader,
        plan: Plan,
        logged_models: LoggedModelReader,
    ) -> list[Artifact | Failure]:
        """Return the files of a version that no packed run or logged model holds."""
        if not files.takes_any:
            return []
        try:
            root = self._reader.download_uri(version.name, version.version)
        except ServerError as error:
            return [Failure(Kind.ARTIFACT, f"{version.id}/", error.message)]
        root = root or str(version.document.get("source") or "")
        return files.of_version(version, root, plan, logged_models)


_Versions = tuple[RegisteredModel, list[dict[str, Any] | Failure]]
"""A registered model or prompt, and its versions."""


class _Choice:
    """What is taken of one workspace.

    Attributes:
        workspace: REST's ``Workspace``, None where the deployment has none.
    """

    def __init__(self, workspace: dict[str, Any] | None) -> None:
        self.workspace = workspace
        self.experiments: dict[str, Experiment] = {}
        self.models: list[tuple[str, Kind]] = []
        self.prompts: list[str] = []
        self.versions: dict[str, _Versions] = {}
        self.plan: Plan


@dataclass
class _Group:
    """Some runs whose rows and file lists are being read."""

    runs: list[Run | Failure]
    reading: HistoriesAhead
    listings: dict[str, Future[Listing]]
    unchanged: set[str]

    def is_listed(self, run: Run | Failure) -> bool:
        """Whether a run's files have been listed."""
        listing = self.listings.get(run.id)
        return listing is None or listing.done()


def _tables(
    stored: StoredRuns, run_ids: list[str]
) -> Iterator[tuple[list[str], RowsOfRuns | None]]:
    """Yield ids and rows of some runs at a time; no rows where one of them is broken."""
    start, count = 0, _RUNS_AHEAD
    while some := run_ids[start : start + count]:
        tables = None
        with suppress(ServerError):  # each is read alone, and the broken one is named
            tables = stored.read(some)
        yield some, tables
        start += count
        if tables is not None:
            count = min(_BYTES_AHEAD // tables.bytes_a_run + 1, _STORED_RUNS_AHEAD)


def _latest_steps(document: dict[str, Any]) -> dict[str, int]:
    return {m["key"]: int(m.get("step", 0)) for m in document["data"]["metrics"]}


def _taken(found: _Versions, selection: Selection, wanted: Wanted) -> _Versions | None:
    """Return a model with those of its versions that are taken, None where it has none of them."""
    model, listed = found

    def identity(version: dict[str, Any] | Failure) -> str:
        if isinstance(version, Failure):
            return version.id
        return f"{model.name}/{version['version']}"

    taken = take_versions(
        model,
        map(identity, listed),
        selection,
        wanted,
        lambda: [version for version in listed if not isinstance(version, Failure)],
    )
    if taken is None:
        return None
    return taken[0], [version for version in listed if taken[1](identity(version))]


def _sound(versions: dict[str, _Versions]) -> Iterator[dict[str, Any]]:
    """Yield the versions of models that can be read."""
    for _, listed in versions.values():
        yield from (version for version in listed if not isinstance(version, Failure))
