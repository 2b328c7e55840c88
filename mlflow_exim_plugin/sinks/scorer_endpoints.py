"""Endpoints of the gateway that a scorer calls, inside of its own JSON text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["calls_endpoint", "with_endpoints"]

_GATEWAY = '"gateway:/'
"""How the JSON of a scorer begins to name an endpoint; MLflow shows names and stores ids."""


def calls_endpoint(serialized: str) -> bool:
    """Whether a scorer calls an endpoint of the gateway."""
    return _GATEWAY in serialized


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
