"""A stream that shows what is read from it to somebody else."""

from __future__ import annotations

import io
from typing import Any, BinaryIO, Protocol

__all__ = ["WatchedStream", "Watcher"]


class Watcher(Protocol):
    """Sees the bytes of one stream in their order."""

    def restart(self) -> None:
        """The stream went elsewhere: what was seen so far does not count."""

    def see(self, data: bytes) -> None:
        """Bytes were read; none at the end of the stream."""


class WatchedStream(io.RawIOBase):
    """Reads another stream.

    Args:
        stream: Where the bytes come from.
        watcher: Sees them.
    """

    def __init__(self, stream: BinaryIO, watcher: Watcher) -> None:
        super().__init__()
        self._stream = stream
        self._watcher = watcher

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read at most as many bytes as the buffer takes."""
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._watcher.see(data)
        return len(data)

    def seekable(self) -> bool:
        """Whether the other stream is."""
        return self._stream.seekable()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go elsewhere."""
        self._watcher.restart()
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        """Return the position of the other stream."""
        return self._stream.tell()

    def close(self) -> None:
        """Close both."""
        self._stream.close()
        super().close()
