"""Give objects that come from no archive their content digest, once their parts have gone by."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, cast

from mlflow_exim_plugin.schema.canonical import content_digest
from mlflow_exim_plugin.schema.metric_rows import MetricsDigest
from mlflow_exim_plugin.schema.objects import Artifact, Failure, LoggedModel, Run
from mlflow_exim_plugin.stages.watched import WatchedStream

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlflow_exim_plugin.schema.metric_rows import RunRows
    from mlflow_exim_plugin.schema.objects import StreamItem

__all__ = ["Digests"]


class Digests:
    """A stage before a server: runs and logged models get their ``digest`` while they are written.

    It stands where their rows and files have been read to the end, and nowhere else. This stage
    comes last: what it yields is what the sink must hold.

    Source: spec/v1/archive.md, "Content digests".
    """

    def __call__(self, stream: Iterator[StreamItem]) -> Iterator[StreamItem]:
        """Yield the stream with objects that watch their own parts."""
        for item in stream:
            if isinstance(item, Run) and item.digest is None:
                yield _watched_run(item)
            elif isinstance(item, LoggedModel) and item.digest is None:
                yield _watched_model(item)
            else:
                yield item


def _watched_run(run: Run) -> Run:
    watched = replace(run)
    digest = MetricsDigest()
    is_whole = True

    def histories() -> Iterator[RunRows | Failure]:
        nonlocal is_whole
        is_whole = False
        failed = False
        for rows in run.histories:
            if isinstance(rows, Failure):
                failed = True
            else:
                digest.update(rows)
            yield rows
        is_whole = not failed

    def artifacts() -> Iterator[Artifact | Failure]:
        files = _Files()
        yield from files.watch(run.artifacts)
        if is_whole and files.are_whole:
            metrics = digest.hexdigest() if digest.rows else None
            watched.digest = content_digest({"run": run.document}, metrics, files.contents)

    watched.histories, watched.artifacts = histories(), artifacts()
    return watched


def _watched_model(model: LoggedModel) -> LoggedModel:
    watched = replace(model)

    def artifacts() -> Iterator[Artifact | Failure]:
        files = _Files()
        yield from files.watch(model.artifacts)
        if files.are_whole:
            watched.digest = content_digest(
                {"logged_model": model.document}, artifacts=files.contents
            )

    watched.artifacts = artifacts()
    return watched


class _Files:
    """Hashes files while they are read.

    Attributes:
        contents: Path, size in bytes and SHA-256 of each that was read to its end.
        are_whole: Whether that is all of them.
    """

    def __init__(self) -> None:
        self.contents: list[tuple[str, int, str]] = []
        self.are_whole = True

    def watch(self, artifacts: Iterable[Artifact | Failure]) -> Iterator[Artifact | Failure]:
        """Yield the same artifacts; whoever reads them, reads them through here."""
        for artifact in artifacts:
            if isinstance(artifact, Failure):
                self.are_whole = False
                yield artifact
                continue
            hashing = _Hashing()
            yield replace(artifact, open=partial(_opened, artifact, hashing))
            if hashing.is_whole:
                entry = (artifact.path, hashing.size_bytes, hashing.sha256.hexdigest())
                self.contents.append(entry)
            else:
                self.are_whole = False


class _Hashing:
    """The digest of what a stream gave from its start to its end."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.size_bytes = 0
        self.sha256 = hashlib.sha256()
        self.is_whole = False

    def see(self, data: bytes) -> None:
        self.size_bytes += len(data)
        self.sha256.update(data)
        self.is_whole = not data


def _opened(artifact: Artifact, hashing: _Hashing) -> BinaryIO:
    hashing.restart()
    return cast("BinaryIO", WatchedStream(artifact.open(), hashing))
