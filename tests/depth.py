"""What the default run tries in one way, and ``nox -s exhaustive`` in all of them."""

from __future__ import annotations

from typing import Any

import pytest

__all__ = ["exhaustive", "one_of"]

exhaustive = pytest.mark.exhaustive


def one_of(first: Any, *others: Any) -> list[Any]:
    """Return values as parameters: the first one is tried by default."""
    return [first, *(pytest.param(other, marks=exhaustive) for other in others)]
