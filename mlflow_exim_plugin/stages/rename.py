"""Give experiments and registered models other names on their way to a sink."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_exim_plugin.schema.objects import Experiment, ModelVersion, RegisteredModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.options import Rename
    from mlflow_exim_plugin.schema.objects import StreamItem

__all__ = ["Renaming"]


class Renaming:
    """A stage that renames.

    Args:
        names: New names by old ones.
        every_experiment: Name that all experiments get, so that their runs meet in one.
    """

    def __init__(self, names: Rename, every_experiment: str | None = None) -> None:
        self._names = names
        self._every = every_experiment

    def __call__(self, stream: Iterator[StreamItem]) -> Iterator[StreamItem]:
        """Yield the stream with the new names."""
        for item in stream:
            if isinstance(item, Experiment):
                name = self._every or self._names.experiments.get(item.name, item.name)
                is_renamed = item.is_renamed or name != item.name
                document = {**item.document, "name": name}
                yield replace(item, document=document, is_renamed=is_renamed)
                continue
            if isinstance(item, RegisteredModel | ModelVersion):
                name = self._names.models.get(item.name, item.name)
                yield replace(item, document={**item.document, "name": name})
            else:
                yield item
