"""How much a source has, before anything of it is read: what a division into parts is made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_exim_plugin.options import Selection
    from mlflow_exim_plugin.schema.objects import Failure

__all__ = ["CanBeDivided", "CanBeOutlined", "ExperimentSize", "Outline", "RunSize"]


@dataclass(frozen=True)
class RunSize:
    """What a run has on average.

    Attributes:
        rows: Metric rows.
        files: Artifacts.
        artifact_bytes: Bytes of them all.
    """

    rows: float = 0
    files: float = 0
    artifact_bytes: float = 0


@dataclass(frozen=True)
class ExperimentSize:
    """What an experiment has.

    Attributes:
        id: Its id.
        runs: How many.
        of_run: What one of them has; an estimate.
        logged_models: How many.
        traces: How many.
    """

    id: str
    runs: int
    of_run: RunSize
    logged_models: int = 0
    traces: int = 0


@dataclass
class Outline:
    """What a source has of a selection.

    Attributes:
        experiments: Those that are taken with their runs, by number.
        registered: How many registered models, prompts and versions there are.
        failures: Experiments that cannot be read.
        run_s: Seconds that one run takes to be read.
    """

    experiments: list[ExperimentSize] = field(default_factory=list)
    registered: int = 0
    failures: list[Failure] = field(default_factory=list)
    run_s: float = 0.001


@runtime_checkable
class CanBeDivided(Protocol):
    """A source that knows how much it has."""

    def outlined(self, selection: Selection) -> CanBeOutlined:
        """Return what tells how much of a selection there is."""


class CanBeOutlined(Protocol):
    """What a source has of a selection, and where that can be divided."""

    def outline(self) -> Outline:
        """Return what there is of a selection.

        Raises:
            ServerError: The deployment cannot be listed.
        """

    def cuts(self, pieces: Mapping[str, int]) -> dict[str, list[tuple[str, int]]]:
        """Cut the runs of experiments in about so many pieces of about the same number.

        Args:
            pieces: How many, by experiment.

        Returns:
            Where each piece begins, and how many runs it has, by experiment. The first one begins
            with a text without length.
        """
