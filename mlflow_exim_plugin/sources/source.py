"""What every source offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.schema.objects import StreamItem
    from mlflow_exim_plugin.stages.select import Selection

__all__ = ["Source"]


class Source(Protocol):
    """Where a stream begins."""

    def stream(self, selection: Selection) -> Iterator[StreamItem]:
        """Yield what is selected, in dependency order."""
