"""How much may be read ahead: one room of memory for all that a process reads from far stores."""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["ROOM", "Room"]


class Room:
    """Bytes that may wait in memory, or be on their way there; safe to use from many threads.

    Args:
        size_bytes: So many.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._left = size_bytes
        self._given: deque[int] = deque()
        self._lock = threading.Lock()

    def take(self, size_bytes: int, leaving_bytes: int = 0) -> bool:
        """Whether so many more may be, and then some are left; if so they are taken."""
        with self._lock:
            while self._given:
                self._left += self._given.popleft()
            if self._left - size_bytes < leaving_bytes:
                return False
            self._left -= size_bytes
            return True

    def give(self, size_bytes: int) -> None:
        """Give back what was taken; without a lock, as what is collected as garbage does it too."""
        self._given.append(size_bytes)

    @property
    def left_bytes(self) -> int:
        """How many more may be."""
        self.take(0)
        return self._left


ROOM = Room(64 << 20)
"""Of this process."""
