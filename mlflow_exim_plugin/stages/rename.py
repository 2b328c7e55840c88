"""Give objects other names on their way to a sink."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import NOTICE
from mlflow_exim_plugin.schema.objects import (
    Entity,
    Experiment,
    Kind,
    ModelVersion,
    RegisteredModel,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlflow_exim_plugin.options import Rename
    from mlflow_exim_plugin.schema.objects import StreamItem

__all__ = ["Renaming"]

_log = logging.getLogger(__name__)


class Renaming:
    """A stage that renames.

    Args:
        names: New names by old ones.
        every_experiment: Name that all experiments get, so that their runs meet in one.
    """

    def __init__(self, names: Rename, every_experiment: str | None = None) -> None:
        self._names = names
        self._every = every_experiment
        self._unused = {*names.experiments, *names.models, *names.names}

    def __call__(self, stream: Iterator[StreamItem]) -> Iterator[StreamItem]:
        """Yield the stream with the new names."""
        for item in stream:
            if isinstance(item, Experiment):
                name = self._every or self._new(item.name, self._names.experiments)
                is_renamed = item.is_renamed or name != item.name
                document = {**item.document, "name": name}
                yield replace(item, document=document, is_renamed=is_renamed)
            elif isinstance(item, RegisteredModel | ModelVersion):
                name = self._new(item.name, self._names.models)
                yield replace(item, document={**item.document, "name": name})
            elif isinstance(item, Entity) and item.kind is Kind.EVALUATION_DATASET:
                name = self._new(str(item.document.get("name", "")), {})
                yield replace(item, document={**item.document, "name": name})
            else:
                yield item
        for old in sorted(self._unused):
            _log.log(NOTICE, "Nothing was called %r, which was to be renamed.", old)

    def _new(self, name: str, of_kind: Mapping[str, str]) -> str:
        for names in (of_kind, self._names.names):
            if name in names:
                self._unused.discard(name)
                return names[name]
        for old, new in self._names.names.items():
            start, star, end = old.partition("*")
            if (
                star
                and len(name) >= len(start) + len(end)
                and name.startswith(start)
                and name.endswith(end)
            ):
                self._unused.discard(old)
                return new.replace("*", name[len(start) : len(name) - len(end)])
        return name
