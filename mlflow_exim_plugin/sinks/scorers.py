"""What both sinks know of scorers: the numbers of their versions, the endpoints that they call.

A scorer names endpoints of the gateway inside of its own JSON text.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.schema.canonical import canonical_bytes
from mlflow_exim_plugin.sinks.policy import say_moved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from mlflow_exim_plugin.schema.objects import Entity
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["called_endpoints", "content_of", "numbers_after", "say_renumbered", "with_endpoints"]

_SCHEME = "gateway:/"
_GATEWAY = f'"{_SCHEME}'
"""How the JSON of a scorer begins to name an endpoint; MLflow shows names and stores ids."""


def called_endpoints(serialized: str) -> list[str]:
    """Return the endpoints of the gateway that a scorer calls."""
    if _GATEWAY not in serialized:
        return []
    try:
        return list(_called(json.loads(serialized)))
    except (RecursionError, ValueError):
        return []  # it is none that could call any


def _called(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value.startswith(_SCHEME):
        yield value.removeprefix(_SCHEME)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        yield from _called(one)


def with_endpoints(serialized: str, called: Callable[[str], str]) -> str:
    """Return a scorer that calls other endpoints.

    Args:
        serialized: JSON text of the scorer.
        called: Gives what an endpoint is to be called.
    """
    first, *rest = serialized.split(_GATEWAY)
    parts = [first]
    for part in rest:
        name, quote, after = part.partition('"')
        parts.append(f"{_GATEWAY}{called(name)}{quote}{after}")
    return "".join(parts)


def content_of(serialized: str) -> bytes:
    """Return what tells a version of a scorer from others."""
    try:
        return canonical_bytes(json.loads(serialized))
    except ValueError:
        return serialized.encode("utf-8", "surrogatepass")


def numbers_after(there: Mapping[int, str], wanted: Iterable[str]) -> list[int]:
    """Return the numbers that versions have at the target.

    Args:
        there: Its versions by number; a version has the number of one with the same content.
        wanted: Those that come, in order; what is new comes after all that are there.
    """
    known = [(number, content_of(serialized)) for number, serialized in sorted(there.items())]
    numbers, start = [], 0
    for content in map(content_of, wanted):
        same = (n for n in range(start, len(known)) if known[n][1] == content)
        found = next(same, len(known))
        if found == len(known):
            known.append((known[-1][0] + 1 if known else 1, content))
        start = found + 1
        numbers.append(known[found][0])
    return numbers


def say_renumbered(entity: Entity, numbers: Iterable[int], report: Report) -> None:
    """Name the versions of a scorer that have other numbers at the target."""
    olds = [int(version["scorer_version"]) for version in entity.document["versions"]]
    say_moved(entity, zip(olds, numbers, strict=True), report)
