"""What every sink offers, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mlflow_exim_plugin.kinds import KINDS, Kind
from mlflow_exim_plugin.schema.objects import Loss

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.objects import StreamObject
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["Capabilities", "Sink"]


@dataclass(frozen=True)
class Capabilities:
    """What a sink can keep; what it cannot is said from here and not guessed.

    Attributes:
        keeps_ids: Whether objects keep their ids.
        keeps_times: Whether they keep the times when they were made and last changed.
        keeps_infinities: Whether metric values may be infinite.
        lacks: Kinds that the target does not know, as far as that can be told before writing.
        longest_name: How many characters the name of an experiment or registered model may have;
            0 for any number, as far as is known.
        longest_texts: Characters that a param or tag is cut to where it is refused, one length
            after the other; the columns of a database tell theirs.
    """

    keeps_ids: bool = True
    keeps_times: bool = True
    keeps_infinities: bool = True
    lacks: frozenset[Kind] = frozenset()
    longest_name: int = 0
    longest_texts: tuple[int, ...] = ()

    def say_what_is_new(self, report: Report) -> None:
        """Name once what is set anew in every object of a kind that was written."""
        if self.keeps_ids and self.keeps_times:
            return
        for described in KINDS.values():
            parts = [(described.parts[1], described.parts_anew)] if described.parts else []
            for kind, what in [(described.kind, described.anew), *parts]:
                if what and kind in report.counts and report.counts[kind].written:
                    report.lost(Loss(kind, "*", what, is_usual=True))


class Sink(Protocol):
    """Where a stream ends."""

    parallel: int
    """How many runs or logged models may be written at once; everything else comes one by one."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can keep."""

    def write(self, item: StreamObject, report: Report) -> None:
        """Write one object with its parts and count it."""

    def finish(self, report: Report) -> None:
        """Write what had to wait for the end."""
