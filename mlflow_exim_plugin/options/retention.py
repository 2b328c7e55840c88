"""How what is kept elsewhere leaves a deployment, and comes back."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.options.declared import asked
from mlflow_exim_plugin.options.selection import parse_time_ms

__all__ = ["Moving", "Retaining"]


@dataclass(frozen=True)
class Moving:
    """Where moved runs go."""

    experiment_name: str | None = asked(
        "Experiment that the runs go to; it is made where there is none. Without it each goes to "
        "one of the same name, for which a TARGET is needed.",
        default=None,
        metavar="NAME",
    )
    artifact_location: str | None = asked(
        "Artifact root for new experiments; the target's own without it, which a PostgreSQL or "
        "MySQL database cannot tell.",
        default=None,
        metavar="URI",
    )


@dataclass(frozen=True)
class Retaining:
    """What becomes of runs that a policy means."""

    apply: bool = asked(
        "Pack them, prove that they are in the set, and delete them; without it they are only "
        "listed.",
        default=False,
    )
    purge: bool = asked(
        "Free the rows and files of the runs that go, and of no others; for a database.",
        default=False,
    )
    hollow: bool = asked(
        "Keep the runs that go with their params, tags, latest metrics and times, and free their "
        "metric histories and files; for a database.",
        default=False,
    )
    lock_until_ms: int | None = asked(
        "Let the store keep what holds the runs from being removed by anybody until TIME, before "
        "they are deleted: S3's Object Lock in its mode COMPLIANCE.",
        default=None,
        flag="--lock-until",
        metavar="TIME",
        read=functools.partial(parse_time_ms, end=True),
    )
    source_moved: bool = asked(
        "Say that the set's source has another address now, such as that of its database.",
        default=False,
    )

    def __post_init__(self) -> None:
        if self.purge and self.hollow:
            raise UsageError("--purge and --hollow exclude each other")

    @property
    def frees(self) -> bool:
        """Whether rows and files go at once, so that only a database can do it."""
        return self.purge or self.hollow

    @property
    def mode(self) -> str:
        """What becomes of a run that goes: ``archived``, ``hollowed`` or ``purged``."""
        return "purged" if self.purge else "hollowed" if self.hollow else "archived"
