"""The log of an archive: an event for each step that its objects took, from the first source on."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.schema.canonical import canonical_bytes, document_bytes

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.envelope import System
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["Step"]

_MOST_SELECTION_BYTES = 800
_MOST_NAMED = 6
_MOST_REASON = 100
"""So that an event is a page and not a report: all of it is in ``archive.json``."""


@dataclass(frozen=True)
class Step:
    """A step of objects into an archive.

    Attributes:
        system: Who takes it, when, and from where.
        events: The log of the archive that they come from, as stored; empty where there is none, or
            where it may not come along.
        earlier: What is said of that archive, None for another source.
        lost: Why its log does not come along though it should.
    """

    system: System
    events: tuple[bytes, ...] = ()
    earlier: dict[str, Any] | None = None
    lost: str = ""

    def event(self, selection: dict[str, Any], report: Report, content_root: str) -> bytes:
        """Return the event of this step.

        Args:
            selection: What was asked for.
            report: What came of it.
            content_root: That of the archive.
        """
        info: dict[str, Any] = {"content_root": content_root, "selection": _short(selection)}
        left_out = _left_out(report)
        if self.lost:
            left_out.append({"kind": "log", "count": 1, "reason": self.lost[:_MOST_REASON]})
        if left_out:
            info["left_out"] = left_out
        if report.losses:
            info["lossy"] = len(report.losses)
        if self.earlier is not None:
            info["earlier"] = self.earlier
        return document_bytes({"system": self.system.to_json(), "info": info})


def _short(selection: dict[str, Any]) -> dict[str, Any]:
    whole = canonical_bytes(selection)
    if len(whole) <= _MOST_SELECTION_BYTES:
        return selection
    return {"sha256": hashlib.sha256(whole).hexdigest()}


def _left_out(report: Report) -> list[dict[str, Any]]:
    """Return what was left out by kind and reason, what is most first."""
    counts: Counter[tuple[str, str]] = Counter()
    for failure in report.failures:
        counts[str(failure.kind), failure.reason[:_MOST_REASON]] += failure.count
    for seen in report.unpacked:
        counts[seen.kind, seen.reason[:_MOST_REASON]] += seen.seen
    named = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    listed = [{"kind": k, "count": n, "reason": why} for (k, why), n in named[:_MOST_NAMED]]
    if rest := sum(count for _, count in named[_MOST_NAMED:]):
        listed.append({"kind": "*", "count": rest, "reason": "data/archive.json names all"})
    return listed
