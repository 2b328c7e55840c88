"""Before a target that sets times anew: what it lists newest first comes oldest first.

Sources give logged models and registered models by id and name. A target's lists, newest first, are
those of the source only where they are made in the order in which the source's were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.schema.objects import (
    Failure,
    LoggedModel,
    Loss,
    ModelVersion,
    RegisteredModel,
    StreamItem,
    Unpacked,
    created_ms,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["oldest_first"]

_HELD = 10_000
"""So many objects are held back at most; of more, each so many are in order."""


def oldest_first(stream: Iterator[StreamItem]) -> Iterator[StreamItem]:
    """Yield a stream in which neighbours of a kind are sorted by their age.

    Logged models are neighbours in an experiment, prompts and registered models in a workspace,
    each with its versions. What is no object is passed on at once.
    """
    held: list[tuple[LoggedModel | RegisteredModel, list[ModelVersion]]] = []
    count = 0
    for item in stream:
        if isinstance(item, Failure | Loss | Unpacked):
            yield item
            continue
        if isinstance(item, ModelVersion) and held:
            held[-1][1].append(item)
            count += 1
            continue
        if held and (item.kind is not held[0][0].kind or count >= _HELD):
            yield from _sorted(held)
            held, count = [], 0
        if isinstance(item, LoggedModel | RegisteredModel):
            held.append((item, []))
            count += 1
        else:
            yield item
    yield from _sorted(held)


def _sorted(
    held: list[tuple[LoggedModel | RegisteredModel, list[ModelVersion]]],
) -> Iterator[StreamItem]:
    held.sort(key=lambda one: created_ms(one[0]))
    for owner, versions in held:
        yield owner
        yield from versions
