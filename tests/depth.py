"""What the default run tries in one way or a few, and ``nox -s exhaustive`` in all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["first_of", "one_of"]


def one_of(first: Any, *others: Any) -> list[Any]:
    """Return values as parameters: the first one is tried by default."""
    return first_of(1, [first, *others])


def first_of(count: int, values: Iterable[Any]) -> list[Any]:
    """Return values as parameters: so many are tried by default.

    Args:
        count: How many.
        values: The values; a tuple is one for several arguments.
    """
    return [
        value
        if number < count
        else pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.exhaustive
        )
        for number, value in enumerate(values)
    ]
