"""What a deployment lacks: objects of a kind are left out and named once, long names are cut."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

from mlflow_exim_plugin.schema.objects import Loss
from mlflow_exim_plugin.sinks.counting import skip_whole
from mlflow_exim_plugin.sinks.policy import LONGEST_NAME

if TYPE_CHECKING:
    from mlflow_exim_plugin.errors import ServerError
    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.kinds import Kind
    from mlflow_exim_plugin.schema.objects import StreamObject
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["ABSENT", "AbsentKinds"]

ABSENT = "the target's MLflow does not have them"


class AbsentKinds:
    """What a deployment was found not to have; safe to use from several threads.

    Args:
        host: The deployment.

    Attributes:
        longest_name: How many characters of a name it was found to hold, 0 before.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._lock = threading.Lock()
        self._reasons: dict[Kind, str] = {}
        self._left: Counter[Kind] = Counter()
        self.longest_name = 0

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

    def learn(self, kind: Kind, error: ServerError) -> bool:
        """Remember that there are none of a kind where an error says so and is believed.

        Returns:
            Whether that is so.
        """
        absence = self._host.absence(kind, error)
        is_absent = absence.is_said and not absence.failure
        if is_absent:
            self.add(kind)
        return is_absent

    def learn_length(self, name: str, error: ServerError) -> bool:
        """Remember how long a name may be where one was refused that is longer.

        Returns:
            Whether that is so.
        """
        is_too_long = len(name) > LONGEST_NAME and self._host.refused(error)
        if is_too_long:
            self.longest_name = LONGEST_NAME
        return is_too_long

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
