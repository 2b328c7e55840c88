"""Give objects on their way the tags that say what they were at the source."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_exim_plugin.schema.lineage import export_tags, import_tags
from mlflow_exim_plugin.schema.objects import (
    Entity,
    Experiment,
    Kind,
    LoggedModel,
    ModelVersion,
    RegisteredModel,
    Run,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeGuard

    from mlflow_exim_plugin.schema.envelope import System
    from mlflow_exim_plugin.schema.lineage import Tagged
    from mlflow_exim_plugin.schema.objects import StreamItem

__all__ = ["ExportTags", "ImportTags"]


class ImportTags:
    """A stage before a server: copies keep what the server sets anew.

    The tags stand beside the object's own, so that one which the target refuses costs no more than
    itself. It comes before ``Rename``: the tags have the names of the source.

    Args:
        system: Where and when the objects were read.
    """

    def __init__(self, system: System) -> None:
        self._system = system

    def __call__(self, stream: Iterator[StreamItem]) -> Iterator[StreamItem]:
        """Yield the stream with source tags."""
        for item in stream:
            if _takes_tags(item):
                yield replace(item, source_tags=import_tags(item, self._system))
            else:
                yield item


class ExportTags:
    """A stage before an archive: packed runs carry the tags of the older generation.

    Args:
        system: Where and when the objects are read.
    """

    def __init__(self, system: System) -> None:
        self._system = system

    def __call__(self, stream: Iterator[StreamItem]) -> Iterator[StreamItem]:
        """Yield the stream with runs that have more tags."""
        name = ""
        for item in stream:
            if isinstance(item, Experiment):
                name = item.name
            if isinstance(item, Run):
                yield _with_tags(item, export_tags(item, name, self._system))
            else:
                yield item


def _takes_tags(item: StreamItem) -> TypeGuard[Tagged]:
    if isinstance(item, Entity):
        return item.kind is Kind.EVALUATION_DATASET
    return isinstance(item, Experiment | Run | LoggedModel | RegisteredModel | ModelVersion)


def _with_tags(run: Run, added: dict[str, str]) -> Run:
    tags = [{"key": k, "value": v} for k, v in sorted((added | run.tags).items())]
    data = {**run.document.get("data", {}), "tags": tags}
    return replace(run, document={**run.document, "data": data}, stored=None)
