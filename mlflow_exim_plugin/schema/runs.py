"""What a listing says of a run, its tags that name other objects, and what it was told by once."""

from __future__ import annotations

import copy
import json
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from mlflow_exim_plugin.schema.objects import Run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from mlflow_exim_plugin.errors import ServerError

__all__ = [
    "LOGGED_MODELS",
    "PARENT",
    "SOURCE_TYPES",
    "TAGS_OF_FIELDS",
    "Listed",
    "RunHeader",
    "in_ms",
    "with_changed_entries",
    "with_new_run_ids",
    "with_tags_of",
]

PARENT = "mlflow.parentRunId"
LOGGED_MODELS = "mlflow.log-model.history"
SOURCE_TYPES = {1: "NOTEBOOK", 2: "JOB", 3: "PROJECT", 4: "LOCAL", 1000: "UNKNOWN"}
TAGS_OF_FIELDS = {
    "name": "mlflow.runName",
    "source_name": "mlflow.source.name",
    "source_type": "mlflow.source.type",
    "source_version": "mlflow.source.git.commit",
    "entry_point_name": "mlflow.project.entryPoint",
    "user_id": "mlflow.user",
}
"""What was a field of a run before MLflow 1.0, and is a tag since."""
_SECONDS_END = 10**11
"""A larger time is none in seconds, but in milliseconds: of 1973 or later."""


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


Listed: TypeAlias = "tuple[str, dict[str, RunHeader] | ServerError]"
"""An experiment with the headers of its runs by id, or why they cannot be listed."""


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


def with_tags_of(own: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a run as later versions have them.

    Args:
        own: Those of ``TAGS_OF_FIELDS`` that it has.
        tags: Its tags, which win.
    """
    return {TAGS_OF_FIELDS[name]: value for name, value in own.items()} | dict(tags)


def in_ms(timestamps: Iterable[int]) -> array[int]:
    """Return times of metrics in ms, which clients before 1.0 gave in seconds."""
    return array("q", (t if abs(t) >= _SECONDS_END else t * 1000 for t in timestamps))
