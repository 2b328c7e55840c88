"""Ranges of files behind SSH: many requests on their way, on open files of one connection."""

from __future__ import annotations

import contextlib
import socket
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.storage.file_systems import file_system
from mlflow_exim_plugin.storage.pinned import Changed, FileVersion, PinnedSource

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["SILENCE_SECONDS", "SshSource"]

SILENCE_SECONDS = 60.0
"""After which a server that says nothing is given up."""


class SshSource(PinnedSource):
    """A file of an SSH server, by its size and the time of its change."""

    at_once = 3
    """The others fill the line while one waits for an answer; there is one connection."""

    def _begin(self) -> tuple[FileVersion, bytes]:
        self._files: list[Any] = []
        self._free: SimpleQueue[Any] = SimpleQueue()
        self._store, self._path = file_system(self._url, self._storage_options)
        if self._store.isdir(self._path):
            raise self._no_file()
        with self._opened() as file:
            return _version_of(file), b""

    def _get(self, start: int, end: int) -> bytes:
        with self._opened() as file:
            # More at once than one answer has costs paramiko twice the time.
            step = int(file.MAX_REQUEST_SIZE)
            data = b"".join(file.readv([(a, min(step, end - a)) for a in range(start, end, step)]))
            if _version_of(file) != self.version:
                raise Changed
            return data

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        """Give the file, open on a channel of its own: paramiko's are for one thread at a time."""
        try:
            file = self._free.get_nowait()
        except Empty:
            channel = self._store.client.open_sftp()
            channel.get_channel().settimeout(SILENCE_SECONDS)
            # Requests are small: each would wait until the one before was confirmed.
            line = channel.get_channel().get_transport().sock
            with contextlib.suppress(AttributeError, OSError):  # it may be no socket, but a command
                line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            file = channel.open(self._path, "rb")
            self._files.append(file)
        yield file
        self._free.put(file)  # after an error nobody knows what is still on its way

    def close(self) -> None:
        """Close its channels; the connection is fsspec's."""
        files, self._files = self._files, []
        for file in files:
            file.close()
            file.sftp.close()


def _version_of(file: Any) -> FileVersion:
    attributes = file.stat()
    return FileVersion(attributes.st_size or 0, str(attributes.st_mtime))
