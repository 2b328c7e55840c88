"""How much an archive has, by its members and some of its runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.paths import decode_segment
from mlflow_exim_plugin.errors import InvalidArchiveError, NotFoundError
from mlflow_exim_plugin.options import matches
from mlflow_exim_plugin.schema.envelope import ExperimentEnvelope, RunEnvelope, TracePartEnvelope
from mlflow_exim_plugin.schema.objects import ENTITY_KINDS, Failure, Kind, by_number
from mlflow_exim_plugin.sources.outline import ExperimentSize, Outline, RunSize

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from mlflow_exim_plugin.options import Selection
    from mlflow_exim_plugin.sources.archive.archive import Archive, Tree

__all__ = ["ArchiveOutline", "with_all_in_it"]

_READ_RUNS = 4
"""So many runs of each experiment are read to estimate what all of them have."""
_RUN_S = 0.002


class ArchiveOutline:
    """Tells how much of a selection there is, see ``CanBeOutlined``.

    Args:
        archive: Open archive.
        selection: What to take.
    """

    def __init__(self, archive: Archive, selection: Selection) -> None:
        self._archive = archive
        self._selection = selection
        self._runs: dict[str, list[str]] = {}

    def outline(self) -> Outline:
        """Return what there is of a selection; a damaged experiment is a failure.

        Raises:
            NotFoundError: An experiment that was asked for is not in the archive.
        """
        found = Outline(run_s=_RUN_S)
        names: list[tuple[str, str]] = []
        for tree in self._archive.trees:
            for segment, path in tree.experiments.items():
                try:
                    told = self._archive.document(ExperimentEnvelope, path).mlflow.experiment
                except InvalidArchiveError as error:
                    found.failures += with_all_in_it(self._archive, tree, segment, error)
                    continue
                identity, name = str(told["experiment_id"]), str(told["name"])
                names.append((identity, name))
                stage = str(told.get("lifecycle_stage", "active"))
                if self._selection.means_experiment(identity, name, stage):
                    found.experiments.append(self._size(tree, segment, identity))
            found.registered += len(tree.models) + sum(map(len, tree.versions.values()))
        for pattern in self._selection.experiments:
            if not any(matches((pattern,), some) for some in names):
                there = [name for _, name in names]
                raise NotFoundError.among("no experiment matches", pattern, there)
        if not self._selection.names_objects:
            found.failures += [
                Failure(lost.kind, lost.path, lost.reason)
                for lost in self._archive.lost
                if not lost.has_earlier
            ]
        found.experiments.sort(key=lambda one: by_number(one.id))
        return found

    def cuts(self, pieces: Mapping[str, int]) -> dict[str, list[tuple[str, int]]]:
        """Cut the runs of experiments in pieces of about the same number."""
        found = {}
        for one, wanted in pieces.items():
            ids = self._runs[one]
            starts = [len(ids) * number // wanted for number in range(wanted)]
            found[one] = [
                (ids[start] if start else "", end - start)
                for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)
            ]
        return found

    def _size(self, tree: Tree, segment: str, identity: str) -> ExperimentSize:
        runs = tree.runs.get(segment, {})
        self._runs[identity] = sorted(filter(None, map(decode_segment, runs)))
        paths = [*runs.values()]
        traces = tree.traces.get(segment, ()) if self._selection.traces else ()
        return ExperimentSize(
            identity,
            len(runs),
            self._of_run(paths[:: max(1, len(paths) // _READ_RUNS)][:_READ_RUNS]),
            len(tree.logged_models.get(segment, ())),
            _traces_in(self._archive, traces),
        )

    def _of_run(self, paths: Iterable[str]) -> RunSize:
        rows = files = size_bytes = count = 0
        for path in paths:
            try:
                info = self._archive.document(RunEnvelope, path).info
            except InvalidArchiveError:
                continue  # the part that it falls to names it
            count += 1
            rows += info.metrics.rows if info.metrics else 0
            files += len(info.artifacts)
            size_bytes += sum(entry.size_bytes for entry in info.artifacts)
        if not count:
            return RunSize()
        return RunSize(rows / count, files / count, size_bytes / count)


def with_all_in_it(
    archive: Archive, tree: Tree, segment: str, error: InvalidArchiveError
) -> Iterator[Failure]:
    """Yield an experiment whose document is damaged, and all that it takes with it."""
    path = tree.experiments[segment]
    yield Failure(Kind.EXPERIMENT, path, error.message)
    folder = path.rpartition("/")[0]
    reason = "the document of their experiment is damaged"
    for kind, name, lost in (
        (Kind.RUN, "runs", len(tree.runs.get(segment, ()))),
        (Kind.LOGGED_MODEL, "logged_models", len(tree.logged_models.get(segment, ()))),
        (Kind.TRACE, "traces", _traces_in(archive, tree.traces.get(segment, ()))),
        *(
            (kind, spec.folder, len(tree.entities.get((kind, segment), ())))
            for kind, spec in ENTITY_KINDS.items()
        ),
    ):
        if lost:
            yield Failure(kind, f"{folder}/{name}/", reason, lost)


def _traces_in(archive: Archive, parts: Iterable[str]) -> int:
    count = 0
    for path in parts:
        try:
            count += archive.document(TracePartEnvelope, path).mlflow.traces
        except InvalidArchiveError:
            count += 1  # at least
    return count
