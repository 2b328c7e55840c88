"""One version of a file, read by ranges: what the sources of all stores share."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import NotFoundError, ReplacedError, StoreError
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.storage.file_systems import store_errors
from mlflow_exim_plugin.storage.retries import retried

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["TAIL_BYTES", "Changed", "FileVersion", "PinnedSource", "seconds_for"]

TAIL_BYTES = 1 << 20
"""What is asked for when a file is opened: its end, which is all of a small one."""


def seconds_for(size_bytes: int) -> float:
    """Return how long so many bytes are waited for: a minute, and as long as a bad line takes."""
    return 60 + size_bytes / 10_000


@dataclass(frozen=True)
class FileVersion:
    """Which version of a file is read.

    Attributes:
        size_bytes: Its size.
        mark: What its store calls it: ETag, generation, time of change. Empty where nothing tells.
        kept_as: What it can be asked for by, also after another took its name, where its store
            keeps versions.
    """

    size_bytes: int = 0
    mark: str = ""
    kept_as: str = ""


class Changed(Exception):  # noqa: N818 - what a store answers, never shown
    """What is at the name is not the version that is read."""


class PinnedSource(ABC):
    """Ranges of one version of a file; can be pickled, and is then of the same version.

    Args:
        url: Where it lies.
        storage_options: For the file system, see fsspec.
        pinned: The version that it must have; None takes what is there.

    Attributes:
        version: What is read.
    """

    at_once = 14
    """How many ranges are asked for at once."""
    busy: tuple[type[Exception], ...] = ()
    """What is said by a server that is better soon, where its client does not ask again."""

    def __init__(
        self, url: str, storage_options: Mapping[str, Any] | None, pinned: FileVersion | None
    ) -> None:
        self.name = redact_url(url)
        self.requests = 0
        self.bytes_read = 0
        self._url = url
        self._storage_options = storage_options
        self._lock = threading.Lock()
        self._pinned = pinned or FileVersion()
        with store_errors(url, "open"):
            try:
                self.version, self._tail = retried(self._begin, self.busy)
            except FileNotFoundError as error:
                if pinned is None:
                    raise
                raise self._replaced() from error
        if pinned is not None and pinned != self.version:
            self.close()
            raise self._replaced()

    @property
    def size_bytes(self) -> int:
        """Size of the file."""
        return self.version.size_bytes

    def read_range(self, start: int, end: int) -> bytes:
        """Return exactly the bytes ``[start, end)``.

        Raises:
            ReplacedError: Another file is at the name now.
            StoreError: The store refused or died.
        """
        size_bytes = self.version.size_bytes
        if not 0 <= start <= end <= size_bytes:
            raise StoreError(f"{self.name}: {size_bytes} bytes hold no range {start} to {end}")
        if start == end:
            return b""
        tail_start = size_bytes - len(self._tail)
        if start >= tail_start:
            return self._tail[start - tail_start : end - tail_start]
        with store_errors(self._url, "read"):
            try:
                data = retried(lambda: self._get(start, end), self._transient())
            except (Changed, FileNotFoundError) as error:
                raise self._replaced() from error
        self._count(data)
        if len(data) != end - start:
            raise StoreError(
                f"{self.name}: asked for {end - start} bytes at {start}, got {len(data)}"
            )
        return data

    def close(self) -> None:  # noqa: B027 - most hold nothing: fsspec shares its sessions
        """Let go of the file; closing twice is no error."""

    def _transient(self) -> tuple[type[Exception], ...]:
        """Return the errors that pass by once it was open, where the client does not ask again."""
        return self.busy

    @abstractmethod
    def _begin(self) -> tuple[FileVersion, bytes]:
        """Return the version that is there, and of its end what came with that."""

    @abstractmethod
    def _get(self, start: int, end: int) -> bytes:
        """Return a range of the version.

        Raises:
            Changed: Another is there.
            FileNotFoundError: None is.
        """

    def _count(self, data: bytes = b"") -> None:
        """Count one request."""
        with self._lock:
            self.requests += 1
            self.bytes_read += len(data)

    def _replaced(self) -> ReplacedError:
        return ReplacedError(
            f"{self.name}: it was replaced while being read",
            "run the command again to read what is there now",
        )

    def _no_file(self) -> NotFoundError:
        return NotFoundError(
            f"{self.name} is not a file", "name an archive; ls lists those that a folder has"
        )

    def __reduce__(self) -> tuple[Callable[..., PinnedSource], tuple[Any, ...]]:
        return type(self), (self._url, self._storage_options, self.version)
