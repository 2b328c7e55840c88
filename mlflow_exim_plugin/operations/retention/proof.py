"""Whether what a run is here is what it is there: nothing is taken away before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlflow_exim_plugin.comparison.compare import compare
from mlflow_exim_plugin.comparison.result import Comparison
from mlflow_exim_plugin.comparison.rules import RuleSet
from mlflow_exim_plugin.errors import EximError, ServerLostError
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.schema.provenance import MARKS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mlflow_exim_plugin.schema.objects import StreamItem
    from mlflow_exim_plugin.sources.source import Source

__all__ = ["IN_PLACE", "MOVED_AWAY", "Proof", "runs_alone"]

_OWN_MARKS = tuple(f"run.data.tags.{mark}" for mark in sorted(MARKS))
_ALWAYS = ("experiment", *_OWN_MARKS)
"""What is no part of a run: its experiment stays, and our marks say what became of it."""
IN_PLACE = ("run.info.lifecycle_stage",)
"""What differs where a run was deleted in between: its deletion is not what is proven."""
MOVED_AWAY = (
    "run.info.experiment_id",
    "logged_model.info.experiment_id",
    "trace.experiment_id",
    "trace.info.trace_location",
    "trace.info.experiment_id",
)
"""What differs where a run was given to another experiment."""
_SHOWN = 3


def runs_alone(run_ids: Sequence[str]) -> Selection:
    """Return what takes runs with what is theirs, and nothing that they only name."""
    return Selection(runs=tuple(run_ids), alone=True)


@dataclass(frozen=True)
class _Under:
    """A source of which other runs are taken than was asked for."""

    source: Source
    names: Mapping[str, str]

    def stream(self, selection: Selection) -> Iterator[StreamItem]:
        asked = tuple(self.names[run_id] for run_id in selection.runs)
        return self.source.stream(replace(selection, runs=asked))


@dataclass(frozen=True)
class Proof:
    """Compares runs of two sources, with histories and files.

    Attributes:
        a: Where the runs are.
        b: Where they are said to be too.
        rules: Which rules they are compared by, as in ``diff``.
        ignored: Further fields that may differ.
    """

    a: Source
    b: Source
    rules: str = "exact"
    ignored: tuple[str, ...] = ()

    def problems(self, names: Mapping[str, str]) -> dict[str, str]:
        """Return what is wrong with runs that are not the same on both sides, by their ids at A.

        Args:
            names: Ids at B by those at A.

        Raises:
            ServerLostError: A side does not answer any more.
        """
        if not names:
            return {}
        problem = self._problem(names)
        if not problem:
            return {}
        if len(names) == 1:
            return dict.fromkeys(names, problem)
        listed = [*names.items()]
        half = len(listed) // 2
        return self.problems(dict(listed[:half])) | self.problems(dict(listed[half:]))

    def _problem(self, names: Mapping[str, str]) -> str:
        """Return what differs, empty where all is the same."""
        found = Comparison("a", "b", RuleSet(self.rules, (*_ALWAYS, *self.ignored)))
        try:
            b = _Under(self.b, names)
            compare(self.a, b, found, runs_alone([*names]), limit=_SHOWN)
        except ServerLostError:
            raise
        except EximError as error:
            return error.message
        told = [
            f"{side.upper()} cannot be read: {f.id}: {f.reason}" for side, f in found.unreadable
        ]
        for difference in found.differences:
            what = difference.path
            if what == difference.kind.value:
                side = "b" if difference.to_dict().get("b") is not None else "a"
                what = f"{difference.kind.words} {difference.id} is only in {side.upper()}"
            told.append(what)
        runs = found.counts.get(Kind.RUN)
        if not told and (runs is None or runs.equal != len(names)):
            told.append("not all of them were compared")
        return "; ".join(told[:_SHOWN])
