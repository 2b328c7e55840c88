"""Sink ``files``: writes the files of what comes below a folder, and nothing else of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.schema.objects import (
    Entity,
    Failure,
    LoggedModel,
    ModelVersion,
    Run,
)
from mlflow_exim_plugin.sinks.sink import Capabilities

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.schema.objects import Artifact, StreamObject
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.files.places import Places
    from mlflow_exim_plugin.sinks.files.writer import FileWriter

__all__ = ["FileSink"]


class FileSink:
    """Writes files.

    Args:
        writer: Writes each.
        places: Knows which folder belongs to which object.
        takes: Whether a file is taken, by its path at its object and as MLflow shows it.
    """

    parallel = 1
    capabilities = Capabilities()

    def __init__(
        self, writer: FileWriter, places: Places, takes: Callable[[tuple[str, ...]], bool]
    ) -> None:
        self._writer = writer
        self._places = places
        self._takes = takes

    def write(self, item: StreamObject, report: Report) -> None:
        """Begin to write the files of an object."""
        folder = self._places.of(item)
        if not isinstance(item, Run | LoggedModel | ModelVersion | Entity):
            return
        # MLflow shows the files of a logged model below its run, in a folder of its name.
        shown = f"{item.info.get('name')}/" if isinstance(item, LoggedModel) else ""
        taken: list[Artifact] = []
        for file in item.artifacts:
            if isinstance(file, Failure):
                report.failed(file)
            elif self._takes((file.path, shown + file.path)):
                taken.append(file)
        stored = [file.stored for file in taken if file.stored is not None]
        if stored:
            stored[0].reader.expect(member.path for member in stored)
        for file in taken:
            self._places.keep(folder, file.path)
            self._writer.put(folder + file.path, file, item.kind, item.id)

    def finish(self, report: Report) -> None:
        """Wait for all files."""
        del report
        self._writer.finish()
