"""Batches that a deployment refuses, sent again in halves until what it refuses stands alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from mlflow_exim_plugin.errors import ServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["send_entries", "send_halving"]

Entry = TypeVar("Entry")


def send_halving(
    batches: Iterable[list[Entry]],
    send: Callable[[list[Entry]], None],
    refuses: Callable[[ServerError], bool] = lambda _: True,
) -> list[tuple[Entry, ServerError]]:
    """Send batches in their order.

    Args:
        batches: None of them empty.
        send: Sends some of a batch's entries in one call.
        refuses: Whether an error is about what was sent, so that less may help.

    Returns:
        The entries that were refused alone, each with what the deployment said.

    Raises:
        ServerLostError: The deployment does not answer any more.
        ServerError: It said something else.
    """
    refused: list[tuple[Entry, ServerError]] = []
    for batch in batches:
        unsent = [batch]
        while unsent:
            entries = unsent.pop()
            try:
                send(entries)
            except ServerError as error:
                if not refuses(error):
                    raise
                if len(entries) == 1:
                    refused.append((entries[0], error))
                else:
                    half = len(entries) // 2
                    unsent += [entries[half:], entries[:half]]
    return refused


def send_entries(
    entries: dict[str, str], limit: int, send: Callable[[dict[str, str]], None]
) -> dict[str, ServerError]:
    """Send params or tags, at most ``limit`` in one call.

    Returns:
        Those that were refused alone, each with what the deployment said.

    Raises:
        ServerLostError: The deployment does not answer any more.
    """
    listed = list(entries.items())
    batches = (listed[start : start + limit] for start in range(0, len(listed), limit))
    refused = send_halving(batches, lambda batch: send(dict(batch)))
    return {key: error for (key, _), error in refused}
