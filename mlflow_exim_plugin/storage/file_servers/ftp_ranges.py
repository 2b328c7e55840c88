"""Ranges of an archive behind FTP: each on a connection of its own, as one sends one at a time."""

from __future__ import annotations

import ftplib
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.storage.file_servers.connections import Connections
from mlflow_exim_plugin.storage.file_servers.ftp import LOST, FtpLine
from mlflow_exim_plugin.storage.file_systems import file_system
from mlflow_exim_plugin.storage.pinned import Changed, FileVersion, PinnedSource

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    _Result = TypeVar("_Result")

__all__ = ["FtpSource"]


class FtpSource(PinnedSource):
    """A file of an FTP server, by its size and the time of its change."""

    at_once = 4

    def _begin(self) -> tuple[FileVersion, bytes]:
        self._stores: list[Any] = []
        self._lines = Connections(self._connect, self.at_once)
        return self._asked(self._version), b""

    def _connect(self) -> FtpLine:
        store, self._path = file_system(self._url, self._storage_options)
        self._stores.append(store)  # which takes its connection with it
        return FtpLine(store.ftp)

    def _get(self, start: int, end: int) -> bytes:
        def get(line: FtpLine) -> bytes:
            data = line.part(self._path, start, end)
            if self._version(line) != self.version:
                raise Changed
            return data

        return self._asked(get)

    def _version(self, line: FtpLine) -> FileVersion:
        found = line.version(self._path)
        return FileVersion(found.size_bytes, found.stamp)

    def _asked(self, ask: Callable[[FtpLine], _Result]) -> _Result:
        with self._lines.one() as line:
            try:
                return ask(line)
            except ftplib.error_perm as error:
                if line.has_folder(self._path):
                    raise self._no_file() from error
                if line.is_missing(self._path):
                    raise FileNotFoundError(self._path) from error
                raise

    def _transient(self) -> tuple[type[Exception], ...]:
        return LOST

    def close(self) -> None:
        """Close its connections."""
        self._lines.close()
        self._stores.clear()
