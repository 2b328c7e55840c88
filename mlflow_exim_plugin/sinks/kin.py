"""Runs that are at a target under another id: what they are to have of what comes.

A tag says what a run was made of, and tags are copied with a run by whoever makes one like it: that
it is there is not said on their word alone.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.schema.lineage import is_source_tag
from mlflow_exim_plugin.schema.objects import key_values
from mlflow_exim_plugin.schema.provenance import is_provenance
from mlflow_exim_plugin.schema.runs import LOGGED_MODELS, PARENT

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RUN_STATES", "RunState", "own_tags"]

RUN_STATES = ("status", "start_time", "end_time", "lifecycle_stage")
_AS_CREATED = {"status": "RUNNING", "start_time": 0, "end_time": 0, "lifecycle_stage": "active"}
_NOT_ITS_OWN = {PARENT, LOGGED_MODELS, "mlflow.user"}
"""Tags that name other objects, which have other ids there, or whoever unpacked it."""


def own_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a run that it has wherever it is."""
    return {
        key: value
        for key, value in tags.items()
        if not (is_provenance(key) or is_source_tag(key) or key in _NOT_ITS_OWN)
    }


@dataclass(frozen=True)
class RunState:
    """What a run has wherever it is, but for its histories and files.

    Attributes:
        info: The fields of its info, and their values.
        params: Values by key.
        tags: Values by key.
        metrics: The latest values by key.
    """

    info: dict[str, Any]
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, str]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> RunState:
        """Take it of a run as REST has it."""
        info, data = document["info"], document.get("data") or {}
        return cls(
            {name: info.get(name) or _AS_CREATED[name] for name in RUN_STATES},
            key_values(data.get("params")),
            own_tags(key_values(data.get("tags"))),
            {m["key"]: _stored(float(m["value"])) for m in data.get("metrics") or ()},
        )

    def fingerprint(self) -> int:
        """Return a number that two of one process share which are the same."""
        parts = (self.info, self.params, self.tags, self.metrics)
        return hash(tuple(frozenset(part.items()) for part in parts))

    def lacking(self, there: RunState) -> list[str]:
        """Return what of it another one has otherwise, or not at all."""
        parts = {
            "params": (self.params, there.params),
            "tags": (self.tags, there.tags),
            "metrics": (self.metrics, there.metrics),
        }
        return [name for name, value in self.info.items() if there.info[name] != value] + [
            name for name, (comes, has) in parts.items() if not comes.items() <= has.items()
        ]


def _stored(value: float) -> str:
    """Return a metric's value as a SQL store keeps it, as it compares."""
    return repr(math.copysign(sys.float_info.max, value) if math.isinf(value) else value)
