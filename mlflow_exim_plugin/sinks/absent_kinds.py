"""Kinds that a deployment does not have: their objects are left out, each kind is named once."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

from mlflow_exim_plugin.schema.objects import Loss
from mlflow_exim_plugin.sinks.counting import skip_whole

if TYPE_CHECKING:
    from mlflow_exim_plugin.kinds import Kind
    from mlflow_exim_plugin.schema.objects import StreamObject
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["ABSENT", "AbsentKinds"]

ABSENT = "the target's MLflow does not have them"


class AbsentKinds:
    """What a deployment was found not to have; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reasons: dict[Kind, str] = {}
        self._left: Counter[Kind] = Counter()

    def __contains__(self, kind: Kind) -> bool:
        return kind in self._reasons

    @property
    def kinds(self) -> frozenset[Kind]:
        """Those found so far."""
        with self._lock:
            return frozenset(self._reasons)

    def add(self, *kinds: Kind, reason: str = ABSENT) -> None:
        """Remember that there are none of some kinds."""
        with self._lock:
            self._reasons |= dict.fromkeys(kinds, reason)

    def leave(self, item: StreamObject, report: Report) -> None:
        """Leave an object of such a kind out, with its parts."""
        with self._lock:
            self._left[item.kind] += 1
        skip_whole(item, self._reasons[item.kind], report)

    def say(self, report: Report) -> None:
        """Name each kind of which something was left out."""
        with self._lock:
            left, self._left = self._left, Counter()
        for kind, count in left.items():
            report.lost(Loss(kind, "*", f"{self._reasons[kind]}: {count} left out"))
