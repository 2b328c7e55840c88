"""How much a deployment has: a database counts, a server is listed."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import NotFoundError, ServerError
from mlflow_exim_plugin.host.open.workspaces import Workspaces, entered, workers
from mlflow_exim_plugin.host.sql.reading import reader_of
from mlflow_exim_plugin.options import matches
from mlflow_exim_plugin.schema.objects import Experiment, Failure, by_number
from mlflow_exim_plugin.sources.artifacts import ArtifactReader
from mlflow_exim_plugin.sources.outline import ExperimentSize, Outline, RunSize
from mlflow_exim_plugin.sources.server.stored_sizes import StoredSizes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.options import Selection

__all__ = ["DeploymentOutline"]

_LISTED_TREES = 64
"""The artifacts of so many runs are listed to estimate those of all."""
_READ_RUNS = 64
"""So many runs of a server are read for that."""
_MARKS = 1024
"""Of the ids of a server's experiment so many are kept to cut it, evenly spread."""
_STORED_RUN_S, _SERVED_RUN_S = 0.001, 0.02
_REGISTERED = ("registered_models", "model_versions")


class DeploymentOutline:
    """Tells how much of a selection there is.

    Args:
        host: The deployment.
        selection: What to take.
        jobs: How many calls may be under way at once.
    """

    def __init__(self, host: Host, selection: Selection, jobs: int) -> None:
        self._host = host
        self._selection = selection
        self._jobs = jobs
        self._reader = reader_of(host)
        self._stored: StoredSizes | None = None
        if host.engine is not None and host.tables is not None:
            self._stored = StoredSizes(host.engine, host.tables, selection)
        self._marks: dict[str, tuple[list[str], int]] = {}
        self._names: list[tuple[str, str]] = []

    def outline(self) -> Outline:
        """Return what there is, see ``CanBeOutlined``."""
        found = Outline(run_s=_SERVED_RUN_S if self._stored is None else _STORED_RUN_S)
        taken: dict[str, list[str]] = {}
        known: set[str] = set()
        for workspace in Workspaces(self._host).to_read():
            with entered(workspace):
                named = self._experiments(found.failures, known)
                if self._stored is None:
                    self._list(found, named)
                    found.registered += self._registered()
                taken[workspace["name"] if workspace else ""] = named
        if self._stored is not None:
            named = [one for some in taken.values() for one in some]
            self._count(self._stored, found, named, known)
            found.registered = sum(map(self._stored.count, _REGISTERED))
        self._require_found()
        found.experiments.sort(key=lambda one: by_number(one.id))
        return found

    def cuts(self, pieces: Mapping[str, int]) -> dict[str, list[tuple[str, int]]]:
        """Cut the runs of experiments, see ``CanBeOutlined``."""
        if self._stored is not None:
            found = self._stored.cuts(pieces)
            return found if not self._selection.filter else _in_order(found)
        return {one: _cut(*self._marks[one], wanted) for one, wanted in pieces.items()}

    def _experiments(self, failures: list[Failure], known: set[str]) -> list[str]:
        """Return the ids of the experiments of a workspace that are taken with their runs."""
        selection, taken = self._selection, []
        for found in self._reader.found_experiments():
            if isinstance(found, Failure):
                failures.append(found)
                continue
            of = Experiment(found)
            known.add(of.id)
            self._names.append((of.id, of.name))
            stage = of.document.get("lifecycle_stage", "active")
            if selection.means_experiment(of.id, of.name, stage):
                taken.append(of.id)
        return taken

    def _require_found(self) -> None:
        for pattern in self._selection.experiments:
            if not any(matches((pattern,), names) for names in self._names):
                there = [name for _, name in self._names]
                raise NotFoundError.among("no experiment matches", pattern, there)

    def _count(
        self, stored: StoredSizes, found: Outline, taken: list[str], known: set[str]
    ) -> None:
        """Add what a database has, also of experiments whose rows are gone."""
        runs = stored.runs()
        logged_models, traces = stored.of_each("logged_models"), stored.of_each("trace_info")
        if not self._selection.names_objects:
            taken = [*taken, *sorted({*runs, *logged_models, *traces} - known)]
        samples = stored.probed()
        for experiment_id in sorted(runs, key=lambda one: -runs[one][0])[:500]:
            samples.update(dict.fromkeys(runs[experiment_id][1], experiment_id))
        rows = stored.metric_rows(sorted(samples))
        of_run = self._averages(samples, rows, stored.artifact_roots(_spread(samples)))
        for one in taken:
            count = runs[one][0] if one in runs else 0
            size = of_run.get(one, of_run[""])
            models = logged_models.get(one, 0)
            found.experiments.append(ExperimentSize(one, count, size, models, traces.get(one, 0)))

    def _list(self, found: Outline, taken: list[str]) -> None:
        """Add what a server lists of a workspace."""
        selection, reader = self._selection, self._reader
        counts: dict[str, int] = {}
        samples: dict[str, str] = {}
        for one, listed in reader.runs_of_each(taken, selection.server_filter()):
            if isinstance(listed, ServerError):
                counts[one] = 0  # the task that it falls to names it
                continue
            ids = sorted(r for r, h in listed.items() if selection.takes_run(h, in_experiment=True))
            counts[one] = len(ids)
            self._marks[one] = (ids[:: max(1, len(ids) // _MARKS)], len(ids))
            samples.update(dict.fromkeys({*ids[:1], *ids[-1:]}, one))
        rows: dict[str, int] = {}
        roots: dict[str, str] = {}
        for run_id in _spread(samples, _READ_RUNS):
            with suppress(ServerError):  # the task that it falls to names it
                run = reader.run(run_id)
                latest = (int(metric.get("step", 0)) for metric in run["data"]["metrics"])
                rows[run_id] = sum(step + 1 for step in latest if step >= 0)
                roots[run_id] = str(run["info"].get("artifact_uri") or "")
        read = {run_id: samples[run_id] for run_id in roots}
        of_run = self._averages(read, rows, roots)
        for one in taken:
            size = of_run.get(one, of_run[""])
            found.experiments.append(ExperimentSize(one, counts.get(one, 0), size))

    def _registered(self) -> int:
        try:
            models, prompts = self._reader.registered_models()
        except ServerError:
            return 0  # the task that it falls to says why
        return len(models) + len(prompts)

    def _averages(
        self, samples: Mapping[str, str], rows: Mapping[str, int], roots: Mapping[str, str]
    ) -> dict[str, RunSize]:
        """Return what a run has on average by experiment, and of all under no id."""
        of_rows: defaultdict[str, list[int]] = defaultdict(list)
        of_files: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        for run_id, owner in samples.items():
            for of in (owner, ""):
                of_rows[of].append(rows.get(run_id, 0))
        for run_id, files in self._files(roots):
            for of in (samples[run_id], ""):
                of_files[of].append(files)
        found = {}
        for owner in {*of_rows, ""}:
            listed = of_files.get(owner) or of_files.get("") or [(0, 0)]
            found[owner] = RunSize(
                rows=_mean(of_rows[owner]),
                files=_mean([number for number, _ in listed]),
                artifact_bytes=_mean([size_bytes for _, size_bytes in listed]),
            )
        return found

    def _files(self, roots: Mapping[str, str]) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield runs, each with the number of its files and their bytes, as far as one can tell."""
        with workers(self._jobs, "exim-outline") as pool:
            reader = ArtifactReader(self._host, self._selection, pool, contents=False)
            under_way = {run_id: reader.start(run_id, root) for run_id, root in roots.items()}
            for run_id, listing in under_way.items():
                listed = listing.result()
                if listed is None or isinstance(listed, Failure):
                    continue  # it is said where it is packed
                sizes = [s for path, s in listed[2] if self._selection.takes_artifact(path)]
                yield run_id, (len(sizes), sum(filter(None, sizes)))


def _mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0


def _spread(samples: Iterable[str], most: int = _LISTED_TREES) -> list[str]:
    """Return some of many ids, evenly spread."""
    ids = sorted(samples)
    return ids[:: max(1, -(-len(ids) // most))]


def _cut(marks: list[str], total: int, wanted: int) -> list[tuple[str, int]]:
    """Cut at marks that are evenly spread over so many ids."""
    wanted = max(1, min(wanted, len(marks)))
    places = [number * len(marks) // wanted for number in range(wanted + 1)]
    share = total / max(1, len(marks))
    return [
        (marks[start] if start else "", round((end - start) * share))
        for start, end in pairwise(places)
    ]


def _in_order(cuts: dict[str, list[tuple[str, int]]]) -> dict[str, list[tuple[str, int]]]:
    """Return cuts in the order of their characters, which is that of what MLflow searched."""
    return {one: sorted(pieces) for one, pieces in cuts.items()}
