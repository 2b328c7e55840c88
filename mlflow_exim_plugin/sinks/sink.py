"""What every sink offers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.objects import StreamObject
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["Sink"]


class Sink(Protocol):
    """Where a stream ends."""

    parallel: int
    """How many runs or logged models may be written at once; everything else comes one by one."""

    def write(self, item: StreamObject, report: Report) -> None:
        """Write one object with its parts and count it."""

    def finish(self, report: Report) -> None:
        """Write what had to wait for the end."""
