"""Tell the default experiment that nobody used: MLflow makes one at every server."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_exim_plugin.schema.objects import Entity, Experiment, ModelVersion, RegisteredModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.schema.objects import StreamItem

__all__ = ["marks_unused_default"]


def marks_unused_default(stream: Iterator[StreamItem]) -> Iterator[StreamItem]:
    """A stage that marks the default experiment where nothing of it comes.

    What belongs to an experiment follows it at once.
    """
    held: Experiment | None = None
    for item in stream:
        if held is not None:
            yield replace(held, is_unused_default=_begins_another(item, held))
            held = None
        if isinstance(item, Experiment) and _may_be_unused(item):
            held = item
        else:
            yield item
    if held is not None:
        yield replace(held, is_unused_default=True)


def _may_be_unused(experiment: Experiment) -> bool:
    document = experiment.document
    is_default = (experiment.id, experiment.name) == ("0", "Default")
    is_active = document.get("lifecycle_stage", "active") == "active"
    return is_default and is_active and not document.get("tags")


def _begins_another(item: StreamItem, experiment: Experiment) -> bool:
    if isinstance(item, Entity):
        return item.experiment_id != experiment.id
    return isinstance(item, Experiment | RegisteredModel | ModelVersion)
