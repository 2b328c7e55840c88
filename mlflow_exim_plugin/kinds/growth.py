"""The words in which is described how what a database has of an object grows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LINK", "GrowingRows", "Growth"]

LINK = ("source_type", "source_id", "destination_type", "destination_id")
"""What tells links between objects apart."""


@dataclass(frozen=True)
class GrowingRows:
    """Rows of an object in a table of their own, which are added and do not change.

    Attributes:
        key: Columns that tell them apart.
        ends: Where they are links, which end of them the object is, and of what type.
        is_set: Whether they are set instead: then they may change and go, and prove nothing.
        until: Column that is empty for as long as a row may still change, and is filled then.
        since: Column with the time when a row was added, on the clock of the object's stage.
    """

    key: tuple[str, ...]
    ends: tuple[tuple[str, str], ...] = ()
    is_set: bool = False
    until: str = ""
    since: str = ""


@dataclass(frozen=True)
class Growth:
    """How the objects of a kind grow.

    Attributes:
        stage: Tells from an object's own row how far it has come.
        end: Stage at which it has ended.
        fixed: Columns of its own that never change: another value tells of another object.
        parts: Its rows by table.
        keeps: Columns, and keys of rows that are set, which are the target's own business.
        goes_on: Whether rows are added after its end too. Nothing else changes then.
    """

    stage: Callable[[dict[str, Any]], int]
    end: int
    fixed: frozenset[str]
    parts: dict[str, GrowingRows]
    keeps: frozenset[str] = frozenset()
    goes_on: bool = False
