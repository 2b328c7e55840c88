"""What every source offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.options import Selection
    from mlflow_exim_plugin.schema.objects import Entity, Kind, LoggedModel, Run, StreamItem

__all__ = ["SearchableSource", "Source"]


class Source(Protocol):
    """Where a stream begins."""

    def stream(self, selection: Selection) -> Iterator[StreamItem]:
        """Yield what is selected, in dependency order."""


class SearchableSource(Source, Protocol):
    """A source that also knows what it has without reading all of it.

    Attributes:
        planned: How many objects of a kind its stream will have, as soon as it knows that.
    """

    planned: dict[Kind, int]

    def experiment_ids(self) -> Iterator[str]:
        """Yield the ids of all experiments that there are, taken or not."""

    def find(self, identity: str) -> Iterator[Run | LoggedModel | Entity]:
        """Yield what has an id, or had it at an earlier server, without its parts."""
