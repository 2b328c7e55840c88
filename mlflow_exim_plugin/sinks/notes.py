"""Losses that many objects share, each named once with how many it concerns."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from mlflow_exim_plugin.schema.objects import Kind, Loss

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["Notes"]


class Notes:
    """Collects losses; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._noted: dict[tuple[Kind, str], tuple[str, int]] = {}

    def add(self, kind: Kind, identity: str, what: str) -> None:
        """Note that something of an object is kept differently, or not at all."""
        with self._lock:
            first, count = self._noted.get((kind, what), (identity, 0))
            self._noted[kind, what] = (first, count + 1)

    def say(self, report: Report) -> None:
        """Put each loss into a report: by its object, or for all by how many and the first."""
        for (kind, what), (first, count) in self._noted.items():
            if count == 1:
                report.lost(Loss(kind, first, what))
            else:
                report.lost(Loss(kind, "*", f"{what} ({count} times, first {first})"))
        self._noted.clear()
