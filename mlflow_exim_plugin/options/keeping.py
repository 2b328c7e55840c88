"""What of a set is kept, and what goes."""

from __future__ import annotations

from dataclasses import dataclass, fields

from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.options.declared import asked
from mlflow_exim_plugin.options.selection import age_s

__all__ = ["Forgetting", "Pruning"]


def _count(what: str) -> int:
    keep = f"Keep {what}."
    found: int = asked(keep, default=0, metavar="N", least=0)
    return found


@dataclass(frozen=True)
class Forgetting:
    """Which snapshots of a set are kept: all that one of the rules keeps, and the newest."""

    keep_last: int = _count("the last N snapshots")
    keep_daily: int = _count("the last snapshot of each of the last N days (UTC) that have one")
    keep_weekly: int = _count("the last snapshot of each of the last N weeks that have one")
    keep_monthly: int = _count("the last snapshot of each of the last N months that have one")
    keep_yearly: int = _count("the last snapshot of each of the last N years that have one")
    apply: bool = asked("Do it; without it, only what would be done is told.", default=False)

    def require_rule(self) -> None:
        """Refuse to go on where nothing says what is kept.

        Raises:
            UsageError: No rule is given.
        """
        if not any(getattr(self, of.name) for of in fields(self) if of.name != "apply"):
            raise UsageError("nothing says what to keep", "add --keep-last 3, or --keep-daily 30")


@dataclass(frozen=True)
class Pruning:
    """What no snapshot of a set needs, and how it goes."""

    compact: bool = asked(
        "Before, pack the newest snapshot anew into one archive: what it has of many is copied as "
        "it is, and a new snapshot names that one.",
        default=False,
    )
    grace_s: int = asked(
        "Leave what was packed less than AGE ago, such as 12h or 7d: it may be of a pack that has "
        "no snapshot yet.",
        default=86_400,
        flag="--older-than",
        metavar="AGE",
        read=age_s,
        typed="1d",
    )
    apply: bool = asked("Do it; without it, only what would be done is told.", default=False)
