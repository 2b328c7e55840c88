"""Writes files below a folder, several at once, and tells what became of each."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import EximError, ReplacedError, StoreError
from mlflow_exim_plugin.schema.objects import Failure, Kind
from mlflow_exim_plugin.schema.report import ExtractedFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.schema.objects import Artifact
    from mlflow_exim_plugin.schema.report import Extraction
    from mlflow_exim_plugin.sinks.files.folder import FileFolder

__all__ = ["FileWriter"]

_WAITING = 8
"""For each file that is being written so many more may wait for their turn."""


class FileWriter:
    """Writes files.

    Args:
        folder: Takes them.
        report: Counts and names what becomes of them.
        jobs: How many are written at once.
        progress: Called after each.
    """

    def __init__(
        self,
        folder: FileFolder,
        report: Extraction,
        *,
        jobs: int = 1,
        progress: Callable[[Extraction], None] | None = None,
    ) -> None:
        self._folder = folder
        self._report = report
        self._progress = progress
        self._pool = ThreadPoolExecutor(jobs, "exim-files")
        self._room = threading.BoundedSemaphore(jobs * _WAITING)
        self._under_way: set[Future[None]] = set()

    def put(self, path: str, file: Artifact, kind: Kind | None = None, owner: str = "") -> None:
        """Begin to write a file.

        Args:
            path: Where it goes, below the folder.
            file: The file.
            kind: Kind of the object that it belongs to, None for a member of an archive.
            owner: Id of that object.

        Raises:
            StoreError: No file can be written any more.
        """
        try:
            self._folder.claim(path)
        except StoreError as error:
            self._report.failed(_failure(owner, file, error))
            return
        self._room.acquire()
        self._require_open()
        done = self._pool.submit(self._write, path, file, kind, owner)
        for one in [one for one in self._under_way if one.done()]:
            self._under_way.remove(one)
            one.result()
        self._under_way.add(done)
        done.add_done_callback(lambda _: self._room.release())

    def finish(self) -> None:
        """Wait for all that was begun.

        Raises:
            StoreError: No file can be written any more.
        """
        for done in wait(self._under_way).done:
            done.result()
        self._require_open()

    def close(self) -> None:
        """Begin nothing any more, and end what was begun."""
        self._folder.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _require_open(self) -> None:
        if self._folder.lost is not None:
            raise self._folder.lost

    def _write(self, path: str, file: Artifact, kind: Kind | None, owner: str) -> None:
        if self._folder.lost is not None:
            return
        try:
            is_new = self._folder.put(path, file)
        except ReplacedError as error:
            self._folder.lost = error
        except EximError as error:
            self._report.failed(_failure(owner, file, error))
        else:
            self._report.extracted(
                ExtractedFile(
                    path,
                    file.size_bytes,
                    file.sha256 or "",
                    kind,
                    owner,
                    file.path,
                    was_there=not is_new,
                )
            )
        if self._progress:
            self._progress(self._report)


def _failure(owner: str, file: Artifact, error: EximError) -> Failure:
    return Failure(Kind.ARTIFACT, f"{owner}/{file.path}" if owner else file.path, error.message)
