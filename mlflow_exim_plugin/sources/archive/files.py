"""The files of an archive's objects by the names that MLflow lists them under."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.paths import decode_segment, encode_segment
from mlflow_exim_plugin.schema.envelope import (
    EntityEnvelope,
    LoggedModelEnvelope,
    RunEnvelope,
    VersionEnvelope,
)
from mlflow_exim_plugin.schema.objects import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow_exim_plugin.schema.envelope import ArtifactEntry
    from mlflow_exim_plugin.schema.objects import Trace
    from mlflow_exim_plugin.sources.archive.archive import Archive

__all__ = ["ArchiveFiles"]

_REMEMBERED = 64


class ArchiveFiles:
    """Finds the files of objects; safe to use from many threads.

    Args:
        archive: Open archive.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._turn = threading.Lock()
        self._found: OrderedDict[str, dict[str, ArtifactEntry]] = OrderedDict()

    def of(self, kind: Kind, place: str) -> dict[str, ArtifactEntry]:
        """Return the files of an object by path, none where the archive does not have it.

        Args:
            kind: Its kind.
            place: Its envelope, for a trace its folder of attachments.

        Raises:
            InvalidArchiveError: Its envelope is damaged.
        """
        with self._turn:
            if place not in self._found:
                self._found[place] = {entry.path: entry for entry in self._entries(kind, place)}
                if len(self._found) > _REMEMBERED:
                    self._found.popitem(last=False)
            self._found.move_to_end(place)
            return self._found[place]

    def trace(self, folder: str) -> Trace | None:
        """Return the trace whose folder of attachments is given, None where there is none."""
        identity = decode_segment(folder.rpartition("/")[2])
        return None if identity is None else self._archive.trace(identity)

    def _entries(self, kind: Kind, place: str) -> Iterable[ArtifactEntry]:
        archive = self._archive
        if kind is Kind.TRACE:
            return self._attachments(place)
        if place not in archive.reader:
            return ()
        match kind:
            case Kind.RUN:
                return archive.document(RunEnvelope, place).info.artifacts
            case Kind.LOGGED_MODEL:
                return archive.document(LoggedModelEnvelope, place).info.artifacts
            case Kind.MODEL_VERSION | Kind.PROMPT_VERSION:
                return archive.document(VersionEnvelope, place).info.artifacts
            case _:
                return archive.document(EntityEnvelope, place).info.artifacts

    def _attachments(self, folder: str) -> Iterable[ArtifactEntry]:
        segment = folder.rpartition("/")[2]
        experiment = folder.split("/")[-4]
        return [
            entry
            for part in self._archive.trace_parts(decode_segment(experiment))
            for entry in part.info.attachments
            if encode_segment(entry.trace_id) == segment
        ]
