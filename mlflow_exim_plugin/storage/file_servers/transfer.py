"""A large file as a server sends it: of one version; where a connection breaks, another goes on."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mlflow_exim_plugin.errors import ReplacedError
from mlflow_exim_plugin.storage.file_servers.connections import Closable

if TYPE_CHECKING:
    from mlflow_exim_plugin.storage.file_servers.connections import Connections

__all__ = ["Sending", "ServedVersion", "Transfer"]

_REOPENINGS = 3


@dataclass(frozen=True)
class ServedVersion:
    """What is another when a file was written anew."""

    size_bytes: int
    stamp: str


class Sending(Closable, Protocol):
    """A connection that sends files."""

    def version(self, path: str) -> ServedVersion:
        """Return which version of a file is there."""

    def data(self, path: str, start: int) -> Any:
        """Begin to send a file from a position on; what it returns has ``recv_into``, ``close``."""

    def done(self) -> None:
        """Hear that all of it was sent."""


class Transfer(io.RawIOBase):
    """The bytes of a file.

    Args:
        connections: That it comes by.
        place: Of the file at the server.
        transient: Errors after which another connection goes on.
    """

    def __init__(
        self,
        connections: Connections[Any],
        place: str,
        transient: tuple[type[Exception], ...],
    ) -> None:
        self._connections = connections
        self._place = place
        self._transient = transient
        self._position = 0
        self._reopenings = 0
        self._line: Sending | None = None
        self._data: Any = None
        self._version: ServedVersion | None = None
        self._is_done = False
        self._reopened()

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read bytes into a buffer, and return how many."""
        while not self._is_done:
            try:
                if self._data is None:
                    self._begin()
                if count := int(self._data.recv_into(buffer)):
                    self._position += count
                    return count
                self._end()
            except Exception as error:  # noqa: BLE001 - what each client raises
                self._break_off(error)
        return 0

    def _reopened(self) -> None:
        while self._data is None:
            try:
                self._begin()
            except Exception as error:  # noqa: BLE001 - what each client raises
                self._break_off(error)

    def _break_off(self, error: Exception) -> None:
        """Leave a connection after an error, which is raised where another would help nothing."""
        line = self._line
        self._leave(is_sound=line is not None and line.is_sound_after(error))
        is_lost = isinstance(error, OSError) and line is not None and line.is_lost()
        self._reopenings += 1
        if self._reopenings > _REOPENINGS or not (is_lost or isinstance(error, self._transient)):
            raise error

    def _begin(self) -> None:
        self._line = self._connections.take()
        self._require(self._line.version(self._place))
        self._data = self._line.data(self._place, self._position)

    def _end(self) -> None:
        line, data, version = self._line, self._data, self._version
        if line is None or version is None:
            return
        data.close()
        line.done()
        self._require(line.version(self._place))
        if self._position != version.size_bytes:
            raise ConnectionAbortedError(f"{self._position} of {version.size_bytes} bytes came")
        self._leave(is_sound=True)
        self._is_done = True

    def _leave(self, *, is_sound: bool) -> None:
        line, data = self._line, self._data
        self._line = self._data = None
        if line is not None:
            self._connections.give_back(line, is_sound=is_sound)
        if data is not None:
            data.close()

    def _require(self, version: ServedVersion) -> None:
        self._version = self._version or version
        if self._version != version:
            raise ReplacedError(f"{self._place}: it was replaced while it was being read")

    def close(self) -> None:
        """Close it; closing twice is no error."""
        self._leave(is_sound=False)
        super().close()
