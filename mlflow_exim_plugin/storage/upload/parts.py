"""A file that is sent to a store in parts, while the next of them are written."""

from __future__ import annotations

import contextlib
import logging
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Protocol

from mlflow_exim_plugin.errors import NOTICE
from mlflow_exim_plugin.redaction import redact_text, redact_url
from mlflow_exim_plugin.storage.upload.under_way import note

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Parts", "Upload"]

_log = logging.getLogger(__name__)

_PART_BYTES = 5 << 20
"""The least that S3 takes: what counts is how many are on their way, which take memory."""
_PARTS_OF_A_SIZE = 1000
_DOUBLINGS = 7
"""Parts of S3 are 10,000 at most: the longer a file is, the longer its parts are."""
_UNDER_WAY_BYTES = 70 << 20
"""Python's sockets keep a second copy of what waits there."""
_END_BYTES = 1 << 16
_PATIENCE_S = 1.0
"""How long an upload that is given up waits for the parts that are on their way."""


class Upload(Protocol):
    """A file on its way to a store: nothing of it is at its name before it is published.

    What a store raises goes through, as it is.

    Attributes:
        parallel: How many parts may be on their way at once; 1 is one after the other.
        part_bytes: How long each part but the last must be; None leaves it to the sender.
    """

    parallel: int
    part_bytes: int | None

    def put(self, data: bytes) -> None:
        """Write all of a small file, and publish it.

        Raises:
            FileExistsError: Something is at its name, and is not to be overwritten.
        """

    def go_on(self, left: Sequence[str]) -> bool:
        """Have the parts that are there already not sent again; whether the store keeps such.

        What is of no use is removed.

        Args:
            left: What others began and left, the first ones first.
        """

    def begin(self) -> str | None:
        """Begin a file of parts; what is told removes it for :meth:`remove`, if a file is left."""

    def send(self, number: int, data: bytes) -> None:
        """Write a part; the first is number 1."""

    def publish(self) -> None:
        """Let the file that has all its parts be at its name.

        Raises:
            FileExistsError: Something is at its name, and is not to be overwritten.
        """

    def abandon(self) -> None:
        """Remove what was begun."""

    def remove(self, left: str) -> None:
        """Remove what another began and left."""


class Parts:
    """Cuts what is written into parts, of which some are on their way to the store.

    What a store raises goes through, as it is, with the next call.

    Args:
        upload: Takes the parts.
        url: Of the file that is written.

    Attributes:
        end: The last bytes that were written.
        bytes_written: How many were written.
    """

    def __init__(self, upload: Upload, url: str) -> None:
        self.bytes_written = 0
        self._stay = False
        self._upload = upload
        self._url = url
        self._pieces: list[bytes] = []
        self._piece_bytes = 0
        self._number = 0
        self._under_way: set[Future[None]] = set()
        self._pool = ThreadPoolExecutor(upload.parallel, "mlflow-exim-upload")
        self._noted = contextlib.ExitStack()
        self.end = b""

    def go_on(self, left: Sequence[str]) -> None:
        """Send no parts again that are there of what others began, and leave those that are sent.

        Args:
            left: What others began and left, the first ones first.
        """
        self._stay = self._upload.go_on(left)

    def write(self, data: bytes) -> None:
        """Append the bytes."""
        self.bytes_written += len(data)
        self._pieces.append(data)
        self._piece_bytes += len(data)
        while self._piece_bytes >= (size_bytes := self._next_bytes()):
            whole = b"".join(self._pieces)
            self._pieces = [whole[size_bytes:]]
            self._piece_bytes = len(self._pieces[0])
            self._send(whole[:size_bytes])

    def publish(self) -> None:
        """Send what is left, wait for all parts, and let the file be at its name."""
        rest = b"".join(self._pieces)
        if not self._number:
            self._keep_end(rest)
            self._upload.put(rest)
        else:
            if rest:
                self._send(rest)
            self._wait_until(0)
            self._upload.publish()
        self.close()

    def close(self) -> None:
        """Forget what is under way, once the file is at its name."""
        self._noted.close()
        self._pool.shutdown()

    def abandon(self) -> None:
        """Remove what was sent, unless it is to stay; if that fails, what is left stays noted."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        # A part that comes after its upload was removed would stay.
        waited = wait(self._under_way, timeout=_PATIENCE_S)
        if self._stay:
            self._noted.__exit__(*sys.exc_info())  # the note stays
            return
        try:
            self._upload.abandon()
        except Exception as error:  # noqa: BLE001 - stores have no common base of errors
            self._noted.__exit__(type(error), error, error.__traceback__)  # the note stays
            shown = redact_url(self._url)
            _log.log(
                NOTICE,
                "%s: what was sent cannot be removed: %s. `mlflow exim leftovers %s --clear` does, "
                "and so does the next pack to that name.",
                shown,
                redact_text(str(error), self._url),
                shown,
            )
        else:
            if not any(future.running() for future in waited.not_done):
                self._noted.close()

    def _next_bytes(self) -> int:
        return self._upload.part_bytes or _PART_BYTES << min(
            self._number // _PARTS_OF_A_SIZE, _DOUBLINGS
        )

    def _send(self, data: bytes) -> None:
        if not self._number and (left := self._upload.begin()):
            self._noted.enter_context(note(self._url, left))
        self._number += 1
        at_once = max(1, min(self._upload.parallel, _UNDER_WAY_BYTES // len(data)))
        self._wait_until(at_once - 1)
        self._keep_end(data)
        self._under_way.add(self._pool.submit(self._upload.send, self._number, data))

    def _wait_until(self, under_way: int) -> None:
        """Wait until at most so many are under way, whichever of them come first."""
        while len(self._under_way) > under_way:
            done, self._under_way = wait(self._under_way, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()

    def _keep_end(self, data: bytes) -> None:
        self.end = (self.end + data)[-_END_BYTES:] if len(data) < _END_BYTES else data[-_END_BYTES:]
