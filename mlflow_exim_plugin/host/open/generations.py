"""Servers of MLflow before 1.28, which answer otherwise: one table, and how they are told apart.

Told from what they answer, never from a version. A status alone is no answer: the first servers
send their page (200) for whatever path they do not know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

__all__ = ["SEARCH", "TODAY", "Ask", "Generation", "generation_of"]

Ask = Callable[[str, list[tuple[str, str]]], "dict[str, Any] | None"]
"""GETs an endpoint with a query: gives the JSON object that comes, None where it is absent."""


@dataclass(frozen=True)
class Generation:
    """What sets the servers of some versions apart.

    Attributes:
        name: Who they are, for people.
        api: Path that their calls begin with.
        run_id: What the id of a run is called in a question.
        file: Path of the call that sends a file of a run.
        lists_experiments: Whether their experiments can only be listed, not searched.
        takes_more: Whether a question may have fields that the server does not know.
        is_0x: Whether there is nothing but experiments and runs, whose times of metrics may be in
            seconds, and whose sources are no tags.
    """

    name: str
    api: str = "/api/2.0/mlflow"
    run_id: str = "run_id"
    file: str = "/get-artifact"
    lists_experiments: bool = True
    takes_more: bool = True
    is_0x: bool = False

    @property
    def experiments(self) -> str:
        """Path of the call that lists experiments."""
        return f"{self.api}/experiments/list"

    @property
    def runs(self) -> str:
        """Path of the call that gives the runs of an experiment."""
        return f"{self.api}/runs/search"

    def registry(self, ask: Ask) -> str | None:
        """Return where a registry is that can only be listed, None where there is no such.

        Args:
            ask: Asks the server.
        """
        models = f"{self.api}/registered-models"
        if not self.lists_experiments or ask(f"{models}/search", []) is not None:
            return None
        paths = models, f"{_PREVIEW}/registered-models"
        return next((path for path in paths if ask(f"{path}/list", []) is not None), None)

    def has(self, endpoint: str) -> bool:
        """Whether a server may know a path; the first ones know few."""
        return not self.is_0x or endpoint == self.file or endpoint.startswith(f"{self.api}/")


TODAY = Generation("a server of MLflow 1.28 or later", lists_experiments=False)
SEARCH = f"{TODAY.api}/experiments/search"
"""What a server of MLflow 1.28 or later has."""
_PREVIEW = "/api/2.0/preview/mlflow"
_FROM_1_0 = Generation("a server of MLflow 1.0 to 1.27")
_FROM_0_5 = Generation("a server of MLflow 0.5 to 0.9", _PREVIEW, "run_uuid", is_0x=True)
_FROM_0_1 = Generation(
    "a server of MLflow 0.1 to 0.4",
    _PREVIEW,
    "run_uuid",
    f"{_PREVIEW}/artifacts/get",
    takes_more=False,
    is_0x=True,
)
_ALL = [("view_type", "ALL")]


def generation_of(ask: Ask, *, has_search: Callable[[], bool]) -> Generation:
    """Return what a server is; one that shows nothing of the earlier ones is of today.

    Args:
        ask: Asks it; None for whatever is no JSON object.
        has_search: Asks whether it can search experiments.
    """

    @cache  # two of them have one path
    def has_listed(path: str) -> bool:
        # Each of them has made an experiment: who has none is another.
        listed = (ask(path, _ALL) or {}).get("experiments")
        return isinstance(listed, list) and bool(listed)

    for generation in (_FROM_1_0, _FROM_0_5, _FROM_0_1):
        if not has_listed(generation.experiments):
            continue
        if generation is _FROM_1_0 and has_search():
            return TODAY  # 1.28 to 1.30 have both
        # Up to 0.4 a field that is not known ends in an error, and this one came with 0.8.
        more = [("run_view_type", "ALL")]
        if generation is not _FROM_0_5 or ask(generation.runs, more) is not None:
            return generation
    return TODAY
