"""Files that mention old ids, found while their bytes stream by."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, cast

from mlflow_exim_plugin.schema.objects import Artifact, Failure
from mlflow_exim_plugin.stages.watched import WatchedStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["Mentions"]

_FILES_NAMED = 10


class Mentions:
    """Finds texts in files while their bytes stream by.

    Args:
        texts: What is looked for.
    """

    def __init__(self, texts: list[bytes]) -> None:
        self._texts = texts
        self._found: dict[str, None] = {}

    def watch(self, artifacts: Iterable[Artifact | Failure]) -> Iterator[Artifact | Failure]:
        """Yield the same artifacts; whoever reads them, reads them through here."""
        for artifact in artifacts:
            if isinstance(artifact, Artifact):
                yield replace(artifact, open=partial(self._opened, artifact))
            else:
                yield artifact

    def named(self) -> str:
        """Return the paths of the files that were read and have one of the texts."""
        paths = sorted(self._found)
        more = len(paths) - _FILES_NAMED
        return ", ".join(paths[:_FILES_NAMED]) + (f" and {more} more" if more > 0 else "")

    def _opened(self, artifact: Artifact) -> BinaryIO:
        def found() -> None:
            self._found[artifact.path] = None

        return cast("BinaryIO", WatchedStream(artifact.open(), _Search(self._texts, found)))


class _Search:
    """Looks for texts in the bytes of a stream."""

    def __init__(self, texts: list[bytes], found: Callable[[], None]) -> None:
        self._texts = texts
        self._found: Callable[[], None] | None = found
        self._overlap = max(map(len, texts), default=1) - 1
        self._before = b""

    def restart(self) -> None:
        self._before = b""

    def see(self, data: bytes) -> None:
        if self._found is None:
            return
        window = self._before + data
        if any(text in window for text in self._texts):
            self._found()
            self._found = None
        self._before = window[-self._overlap :] if self._overlap else b""
