"""What is read while what came before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from mlflow_exim_plugin.host.open.workspaces import workers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

__all__ = ["made_ahead", "next_begun"]

_Item = TypeVar("_Item")


def made_ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """Yield the same items, making the next one while the last one is used."""
    end = object()
    with workers(1, "exim-ahead") as maker:
        following: Future[Any] = maker.submit(next, items, end)
        while (item := following.result()) is not end:
            following = maker.submit(next, items, end)
            yield item


def next_begun(items: Iterator[_Item]) -> Iterator[_Item]:
    """Yield the same items, each after the next one was asked for."""
    last = next(items, None)
    while last is not None:
        following = next(items, None)
        yield last
        last = following
