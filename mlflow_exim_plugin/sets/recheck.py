"""What the source has, read to its last byte and compared with the digests of a set."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_exim_plugin.schema.canonical import content_digest
from mlflow_exim_plugin.schema.digests import raw_digest, sha256_of_stream
from mlflow_exim_plugin.schema.objects import (
    Artifact,
    Entity,
    Experiment,
    Failure,
    ModelVersion,
    RegisteredModel,
    Run,
    Trace,
)
from mlflow_exim_plugin.schema.traces import trace_digest
from mlflow_exim_plugin.sets.state import Row, SetState
from mlflow_exim_plugin.sinks.sink import Capabilities
from mlflow_exim_plugin.stages.marks import path_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow_exim_plugin.schema.objects import StreamObject
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.stages.changes import Changes

__all__ = ["DigestingSink"]


class DigestingSink:
    """Reads all objects, and writes nothing; the stage ``Digests`` stands before it.

    Args:
        changes: The first stage.
    """

    capabilities = Capabilities()
    parallel = 1

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._digests: dict[str, bytes] = {}

    def write(self, item: StreamObject, report: Report) -> None:
        """Read one object with its parts.

        Raises:
            ServerError: A part cannot be read.
        """
        failed: list[Failure] = []
        digest = _digest_of(item, failed)
        for failure in failed:
            report.failed(failure)
        if digest and not failed:
            self._digests[path_of(item, self._changes.tree)] = raw_digest(digest)

    def finish(self, report: Report) -> None:
        """Do nothing: what is read counts for nothing."""

    def recognise(self, state: SetState) -> None:
        """Give what has the digest that a state says the mark that it has now, all else none."""
        found = SetState({path: Row(seen.kind, b"") for path, seen in self._changes.seen.items()})
        for path, digest in self._digests.items():
            found.rows[path] = replace(found.rows[path], content_digest=digest)
        found.settle_owners(self._changes.owners)
        for path, row in state.rows.items():
            now = found.rows.get(path)
            same = now is not None and now.content_digest == row.content_digest
            mark = self._changes.seen[path].mark if same else b""
            state.rows[path] = replace(row, mark=mark)


def _digest_of(item: StreamObject, failed: list[Failure]) -> str | None:
    """Return the content digest of an object once all of it is read; None where it has none."""
    if isinstance(item, Experiment | RegisteredModel):
        return None
    if isinstance(item, Trace):
        return trace_digest(item, _contents(item.attachments, failed))
    if isinstance(item, ModelVersion):
        files = _contents(item.artifacts, failed)
        return content_digest({"model_version": item.document}, artifacts=files)
    if isinstance(item, Entity):
        files = _contents(item.artifacts, failed)
        return content_digest({str(item.kind): item.document}, artifacts=files)
    histories = item.histories if isinstance(item, Run) else ()
    failed.extend(rows for rows in histories if isinstance(rows, Failure))
    _contents(item.artifacts, failed)
    return item.digest


def _contents(
    artifacts: Iterable[Artifact | Failure], failed: list[Failure]
) -> list[tuple[str, int, str]]:
    found = []
    for artifact in artifacts:
        if isinstance(artifact, Failure):
            failed.append(artifact)
        else:
            sha256, size_bytes = sha256_of_stream(artifact.open())
            found.append((artifact.path, size_bytes, sha256))
    return found
