"""Connections to one server: opened when they are needed, used again, not more than it takes."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from mlflow_exim_plugin.errors import EximError, StoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Closable", "Connections"]


_PATIENCE_SECONDS = 5
"""How long a server that does not answer is asked again."""
_PEACE_SECONDS = 30
"""How long one is left alone that does not answer, or lets nobody in: it may lock who asks."""


class Closable(Protocol):
    """What is asked of a connection here."""

    def is_sound_after(self, error: BaseException) -> bool:
        """Whether nothing is on its way any more after an error."""

    def is_lost(self) -> bool:
        """Whether it is closed, by whomever."""

    def close(self) -> None:
        """Close it; never raises."""


_Connection = TypeVar("_Connection", bound=Closable)


class Connections(Generic[_Connection]):
    """Gives each thread a connection of its own.

    Args:
        connect: Opens one.
        most: How many there may be; a server that refuses one more decides.
    """

    def __init__(self, connect: Callable[[], _Connection], most: int) -> None:
        self._connect = connect
        self._most = most
        self._count = 0
        self._free: list[_Connection] = []
        self._refused: tuple[float, float, Exception] | None = None
        """When it was first so since the last connection, when last, and what was said."""
        self._turn = threading.Condition()

    @contextlib.contextmanager
    def one(self) -> Iterator[_Connection]:
        """Give a connection that nobody else uses."""
        connection = self.take()
        try:
            yield connection
        except BaseException as error:
            self.give_back(connection, is_sound=connection.is_sound_after(error))
            if isinstance(error, OSError) and connection.is_lost():
                raise ConnectionResetError(str(error)) from error
            raise
        self.give_back(connection)

    def take(self) -> _Connection:
        """Take a connection, which is to be given back."""
        while True:
            with self._turn:
                while not self._free and self._count >= self._most:
                    self._turn.wait()
                if self._free:
                    return self._free.pop()
                self._require_answer()
                self._count += 1
            try:
                connection = self._connect()
            except BaseException as error:
                with self._turn:
                    self._count -= 1
                    self._turn.notify()
                    if self._count and isinstance(error, Exception):
                        self._most = self._count
                        continue
                    if isinstance(error, Exception):
                        now = time.monotonic()
                        first = now if self._refused is None else self._refused[0]
                        self._refused = first, now, error
                raise
            self._refused = None
            return connection

    def _require_answer(self) -> None:
        """Leave a server alone that has just been no use.

        Raises:
            StoreError: It has.
        """
        if self._refused is None or self._count:
            return
        first, last, error = self._refused
        if time.monotonic() - last > _PEACE_SECONDS:
            self._refused = None
        elif isinstance(error, EximError):
            raise StoreError(error.message, error.hint) from error
        elif last - first > _PATIENCE_SECONDS:
            raise StoreError(f"it does not answer: {error}") from error

    def close(self) -> None:
        """Close those that nobody uses; more can be opened."""
        with self._turn:
            free, self._free = self._free, []
            self._count -= len(free)
        for connection in free:
            connection.close()

    def give_back(self, connection: _Connection, *, is_sound: bool = True) -> None:
        """Give a connection back; one that is not sound is closed."""
        with self._turn:
            if is_sound:
                self._free.append(connection)
            else:
                self._count -= 1
            self._turn.notify()
        if not is_sound:
            connection.close()
