"""The gate behind a source: what is not like MLflow's objects is a failure, and goes no further."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.schema.canonical import problem_of_json
from mlflow_exim_plugin.schema.documents import CHECKS
from mlflow_exim_plugin.schema.objects import (
    ENTITY_KINDS,
    Entity,
    Experiment,
    Failure,
    Loss,
    ModelVersion,
    RegisteredModel,
    Run,
    StreamItem,
    StreamObject,
    Unpacked,
    closed_after,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["sound"]

_SAYINGS = (Failure, Loss, Unpacked)


def sound(stream: Iterator[StreamItem]) -> Iterator[StreamItem]:
    """Let through what has the form of its kind and whose owner came before it.

    One object that is malformed spoils neither what is written of the others nor their order: it
    becomes one failure, and so does each that belongs to it.
    """
    experiment: str | None = None
    model: str | None = None
    with closed_after(stream):
        for item in stream:
            if isinstance(item, _SAYINGS):
                yield item
                continue
            problem = _problem(item)
            if isinstance(item, Experiment):
                experiment = None if problem else item.id
            elif isinstance(item, RegisteredModel):
                model = None if problem else item.id
            elif not problem:
                problem = _without_owner(item, experiment, model)
            yield Failure(item.kind, _name(item), problem) if problem else item


def _problem(item: StreamObject) -> str:
    if isinstance(item, Run) and item.doubles is not None:
        return ""  # of columns of known types: to look takes as long as to store it
    try:
        if isinstance(item, Entity):
            if not isinstance(item.document[ENTITY_KINDS[item.kind].id_field], str):
                return "it is malformed: its id is no text"
        elif check := CHECKS.get(item.kind):
            check(item.document)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it is malformed: {error}"
    problem = problem_of_json(item.document)
    return f"it is not as the format wants it: {problem}" if problem else ""


def _without_owner(item: StreamObject, experiment: str | None, model: str | None) -> str:
    """Return which owner did not come before an object, empty where it did."""
    if isinstance(item, ModelVersion):
        return "" if item.name == model else f"{item.name!r} itself could not be read"
    if isinstance(item, Entity) and not ENTITY_KINDS[item.kind].of_experiment:
        return ""
    owner: str | None = getattr(item, "experiment_id", None)
    return "" if owner == experiment else f"its experiment {owner} could not be read"


def _name(item: StreamObject) -> str:
    try:
        return item.name if isinstance(item, Experiment) else item.id
    except (KeyError, TypeError, AttributeError, ValueError):
        return "one without an id"
