"""How work is divided into tasks, and what runs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.options.declared import asked, for_programs
from mlflow_exim_plugin.options.selection import parse_time_ms

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ["Planning", "Scaling"]


@dataclass(frozen=True)
class Planning:
    """How work is divided."""

    parallel: int = asked(
        "How many tasks will run at once: there are some for each of them, where there is enough "
        "to do.",
        default=4,
        least=1,
    )
    as_of_ms: int | None = asked(
        "The TIME that all archives will say they were packed at, ISO 8601 in UTC or ms; "
        "SOURCE_DATE_EPOCH or now without it.",
        default=None,
        flag="--as-of",
        metavar="TIME",
        read=parse_time_ms,
    )

    def __post_init__(self) -> None:
        if self.parallel < 1:
            raise UsageError(f"at least 1 task runs at once, not {self.parallel}")


@dataclass(frozen=True)
class Scaling:
    """What runs the work in several tasks.

    Attributes:
        executor: Runs the tasks in place of an engine; it is not shut down.
    """

    engine: str | None = asked(
        "Work in several tasks: processes:N on this machine, or a cluster at dask://HOST:PORT, "
        "ray://HOST:PORT or spark://HOST:PORT; dask:N, ray:N and spark:N start one here.",
        default=None,
        metavar="ENGINE",
    )
    executor: Executor | None = for_programs(None)

    def __post_init__(self) -> None:
        if self.engine is not None and self.executor is not None:
            raise UsageError("an engine and an executor exclude each other", "give one of them")

    @property
    def is_asked(self) -> bool:
        """Whether work is to be done in several tasks."""
        return self.engine is not None or self.executor is not None
