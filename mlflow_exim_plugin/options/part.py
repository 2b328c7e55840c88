"""One part of what a selection takes, where it is taken in several."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["ALL_IDS", "SelectionPart", "is_within", "within_ids"]

ALL_IDS = ("", "")
"""A range of ids without beginning or end."""

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class SelectionPart:
    """One of several disjoint parts of what a selection takes; together they are all of it.

    What a part needs of another, such as a run's parent or the run of a version, is only referred
    to.

    Attributes:
        experiments: Ids of the experiments that it is of, and of no other.
        runs: Which of their runs: the first id, and the one before which it ends; a text without
            length is no bound. None for none of them. Which of two ids comes first the source says.
        beside_runs: Whether what belongs to these experiments beside their runs is in it.
        beside_experiments: Whether what belongs to no experiment is in it.
    """

    experiments: tuple[str, ...] = ()
    runs: tuple[str, str] | None = None
    beside_runs: bool = False
    beside_experiments: bool = False

    def takes_run(self, run_id: str) -> bool:
        """Whether a run of its experiments is in it, by the order of characters of ids."""
        return self.runs is not None and is_within(run_id, self.runs)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, without what is at its default."""
        default = asdict(SelectionPart())
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value != default[name]
        }

    @classmethod
    def of_json(cls, document: Mapping[str, Any]) -> SelectionPart:
        """Return what :meth:`to_json` gave."""
        runs = document.get("runs")
        return cls(
            experiments=tuple(map(str, document.get("experiments", ()))),
            runs=None if runs is None else (str(runs[0]), str(runs[1])),
            beside_runs=bool(document.get("beside_runs")),
            beside_experiments=bool(document.get("beside_experiments")),
        )


def within_ids(found: Mapping[str, _Value], ids: tuple[str, str]) -> dict[str, _Value]:
    """Return those of some objects whose ids are in a range, by the order of their characters."""
    return {key: of for key, of in found.items() if is_within(key, ids)}


def is_within(identity: str, ids: tuple[str, str]) -> bool:
    """Whether an id is in a range, by the order of characters."""
    first, end = ids
    return identity >= first and (not end or identity < end)
