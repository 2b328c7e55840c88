"""What MLflow before 1.0 said of a run in another way, and how that is said since."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["SOURCE_TYPES", "TAGS_OF_FIELDS", "in_ms", "with_tags_of"]

SOURCE_TYPES = {1: "NOTEBOOK", 2: "JOB", 3: "PROJECT", 4: "LOCAL", 1000: "UNKNOWN"}
TAGS_OF_FIELDS = {
    "name": "mlflow.runName",
    "source_name": "mlflow.source.name",
    "source_type": "mlflow.source.type",
    "source_version": "mlflow.source.git.commit",
    "entry_point_name": "mlflow.project.entryPoint",
    "user_id": "mlflow.user",
}
"""What was a field of a run, and is a tag since."""
_SECONDS_END = 10**11
"""A larger time is none in seconds, but in milliseconds: of 1973 or later."""


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
