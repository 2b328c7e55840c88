"""Threads that do one thing in the order in which they came to it."""

from __future__ import annotations

import threading

__all__ = ["InTurn"]


class InTurn:
    """What one thread is in at a time: who came first goes first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._came = self._left = 0

    def __enter__(self) -> None:
        with self._changed:
            turn, self._came = self._came, self._came + 1
            self._changed.wait_for(lambda: turn == self._left)

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._left += 1
            self._changed.notify_all()
