"""What a listing says of a run, and its tags in which MLflow keeps the ids of other objects."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.schema.objects import Run

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LOGGED_MODELS", "PARENT", "RunHeader", "with_changed_entries", "with_new_run_ids"]

PARENT = "mlflow.parentRunId"
LOGGED_MODELS = "mlflow.log-model.history"


@dataclass(frozen=True)
class RunHeader:
    """What a listing says of a run, enough to choose it.

    Attributes:
        run_id: The run.
        experiment_id: Its experiment.
        lifecycle_stage: ``active`` or ``deleted``.
        start_time_ms: Start, ms since the Unix epoch.
        parent: Run id of the parent, None without one.
    """

    run_id: str
    experiment_id: str
    lifecycle_stage: str
    start_time_ms: int
    parent: str | None

    @classmethod
    def of(cls, document: dict[str, Any]) -> RunHeader:
        """Take the header from REST's ``Run``."""
        run = Run(document)
        return cls(
            run.id,
            run.experiment_id,
            run.info.get("lifecycle_stage", "active"),
            run.info.get("start_time", 0),
            run.tags.get(PARENT),
        )


def with_new_run_ids(history: str, new_id: Callable[[str], str]) -> str:
    """Give the entries of ``mlflow.log-model.history`` the run ids of the target.

    Args:
        history: The tag's value.
        new_id: Returns what a run of the source is called at the target.
    """

    def change(entry: dict[str, Any]) -> None:
        old = str(entry.get("run_id"))
        if "run_id" in entry and new_id(old) != old:
            entry["run_id"] = new_id(old)

    return with_changed_entries(history, change)


def with_changed_entries(text: str, change: Callable[[dict[str, Any]], None]) -> str:
    """Change each object of a list in JSON; a text that is none, or has none to change, stays."""
    try:
        entries = json.loads(text)
    except ValueError:
        return text
    before = copy.deepcopy(entries)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            change(entry)
    return text if entries == before else json.dumps(entries)
