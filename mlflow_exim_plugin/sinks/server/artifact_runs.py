"""Runs that hold files which the target has no other place for."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from mlflow_exim_plugin.schema.provenance import ARTIFACT_RUNS, OF_GROUP, ORIGIN
from mlflow_exim_plugin.sinks.server.ids import KnownRun, Planned

if TYPE_CHECKING:
    from mlflow_exim_plugin.sinks.server.target import ServerTarget

__all__ = ["ArtifactRuns"]


class ArtifactRuns:
    """Makes artifact_runs, and finds those of an interrupted or earlier unpack.

    Args:
        target: The deployment and how to write to it.
    """

    def __init__(self, target: ServerTarget) -> None:
        self._writer = target.writer
        self._reader = target.reader
        self._options = target.options
        self._experiment: str | None = None
        self._lock = threading.Lock()

    def run(
        self, origin: str, group: str, name: str, user_id: str, start_time_ms: int | None
    ) -> KnownRun:
        """Return the run that holds the files of one object.

        Args:
            origin: What identifies the object.
            group: What it belongs to.
            name: Name for a new run.
            user_id: User of a new run.
            start_time_ms: Start of a new run.
        """
        experiment_id = self._made_experiment()
        if isinstance(experiment_id, Planned):
            return KnownRun(Planned(origin), f"{Planned(origin)}/artifacts")
        for info, tags in self._reader.marked([experiment_id], ORIGIN, f"= '{origin}'"):
            if info.lifecycle_stage != "deleted":
                return KnownRun.of_tags(info.run_id, info.artifact_uri, tags)
        if self._options.dry_run:
            return KnownRun(Planned(origin), f"{Planned(origin)}/artifacts")
        run_id, root = self._writer.create_run(
            experiment_id,
            self._options.importer or user_id,
            start_time_ms,
            name,
            {ORIGIN: origin, OF_GROUP: group},
        )
        return KnownRun(run_id, root)

    def _made_experiment(self) -> str:
        with self._lock:
            if self._experiment is None:
                there = {d["name"]: d["experiment_id"] for d in self._reader.experiments()}
                self._experiment = there.get(ARTIFACT_RUNS)
            if self._experiment is None and self._options.dry_run:
                self._experiment = Planned(ARTIFACT_RUNS)
            elif self._experiment is None:
                self._experiment = self._writer.create_experiment(
                    ARTIFACT_RUNS, self._options.artifact_location, {}
                )
            return self._experiment
