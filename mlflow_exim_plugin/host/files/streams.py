"""Streams of files that come from far: held to their size, begun again where they broke."""

from __future__ import annotations

import io
import shutil
from typing import TYPE_CHECKING, Any, BinaryIO

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.errors import translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = [
    "BrokenReplyError",
    "MeasuredStream",
    "RejoinedStream",
    "ResumingStream",
    "TemporaryFile",
    "TranslatedStream",
]

_REOPENINGS = 2


class MeasuredStream(io.RawIOBase):
    """A stream that has as many bytes as were listed, unless the file itself has changed."""

    def __init__(
        self,
        stream: BinaryIO,
        path: str,
        size_bytes: int,
        files: Callable[[], Iterable[tuple[str, int]]],
    ) -> None:
        self._stream = stream
        self._path = path
        self._listed = size_bytes
        self._files = files
        self._came = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read bytes into a buffer, and return how many."""
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._came += len(data)
        if not data and len(buffer) and self._came != self._listed:
            now = dict(self._files()).get(self._path)
            if now != self._came:
                raise ServerError(
                    f"artifact {self._path}: {self._came} bytes came, {self._listed} are listed"
                )
        return len(data)

    def close(self) -> None:
        """Close it; closing twice is no error."""
        self._stream.close()
        super().close()


class RejoinedStream(io.RawIOBase):
    """A stream of which the beginning was read already.

    Args:
        beginning: What was read.
        rest: The stream.
    """

    def __init__(self, beginning: bytes, rest: BinaryIO) -> None:
        self._beginning = memoryview(beginning)
        self._rest = rest

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read bytes into a buffer, and return how many."""
        data = self._beginning[: len(buffer)] or self._rest.read(len(buffer))
        self._beginning = self._beginning[len(data) :]
        buffer[: len(data)] = data
        return len(data)


class TranslatedStream(io.RawIOBase):
    """A stream whose errors, of any type a store may raise, become ours."""

    def __init__(self, stream: Any, doing: str) -> None:
        self._stream = stream
        self._doing = doing

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read bytes into a buffer, and return how many."""
        with translated(self._doing):
            data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close it; closing twice is no error."""
        self._stream.close()
        super().close()


class TemporaryFile(io.FileIO):
    """A file that takes its folder with it when it is closed."""

    def __init__(self, path: str, folder: str) -> None:
        super().__init__(path, "rb")
        self._folder = folder

    def close(self) -> None:
        """Close it; closing twice is no error."""
        super().close()
        shutil.rmtree(self._folder, ignore_errors=True)


class BrokenReplyError(ServerError):
    """The server began to send a file and did not come to its end."""


class ResumingStream(io.RawIOBase):
    """Bytes of an HTTP reply that starts again after a broken connection.

    Servers before 3.17 ignore ``Range``, so a new reply is read up to where the old one broke.
    """

    def __init__(self, start: Callable[[], Iterator[bytes]]) -> None:
        self._start = start
        self._chunks = start()
        self._position = 0
        self._reopenings = 0
        # The first bytes are asked for at once: what is not there must fail when it is opened.
        self._rest = memoryview(self._next())

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read bytes into a buffer, and return how many."""
        if not self._rest:
            self._rest = memoryview(self._next())
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        self._position += count
        return count

    def _next(self) -> bytes:
        while True:
            try:
                return next((chunk for chunk in self._chunks if chunk), b"")
            except BrokenReplyError:
                if self._reopenings == _REOPENINGS:
                    raise  # of this file alone: whether the server is gone, the next call says
            self._reopenings += 1
            self._chunks = self._start()
            skip = self._position
            while skip:
                chunk = next(self._chunks, b"")
                if not chunk:
                    raise ServerError("the artifact became shorter while it was being read")
                if len(chunk) > skip:
                    return chunk[skip:]
                skip -= len(chunk)
