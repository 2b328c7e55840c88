"""Give experiments and registered models other names on their way to a sink."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import NotFoundError, UsageError
from mlflow_exim_plugin.schema.objects import Experiment, ModelVersion, RegisteredModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.schema.objects import StreamItem

__all__ = ["Rename"]


class Rename:
    """A stage that renames.

    Args:
        experiments: New experiment name by old name.
        models: New registered model name by old name.
        every_experiment: Name that all experiments get, so that their runs meet in one.
    """

    def __init__(
        self,
        experiments: dict[str, str] | None = None,
        models: dict[str, str] | None = None,
        every_experiment: str | None = None,
    ) -> None:
        self._experiments = experiments or {}
        self._models = models or {}
        self._every = every_experiment

    @classmethod
    def from_file(cls, path: str, every_experiment: str | None = None) -> Rename:
        """Read ``{"experiments": {"old": "new"}, "models": {"old": "new"}}``.

        Raises:
            NotFoundError: There is no such file.
            UsageError: It is not such a document.
        """
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            names = [document.get("experiments", {}), document.get("models", {})]
            unknown = set(document) - {"experiments", "models"}
        except FileNotFoundError:
            raise NotFoundError(f"there is no file {path}") from None
        except (OSError, ValueError, AttributeError) as error:
            raise UsageError(f"{path} is no JSON object of names: {error}") from None
        if unknown or not all(
            isinstance(part, dict) and all(isinstance(v, str) for v in part.values())
            for part in names
        ):
            raise UsageError(
                f"{path}: expected {{'experiments': {{old: new}}, 'models': {{old: new}}}}"
            )
        return cls(document.get("experiments"), document.get("models"), every_experiment)

    def __call__(self, stream: Iterator[StreamItem]) -> Iterator[StreamItem]:
        """Yield the stream with the new names."""
        for item in stream:
            if isinstance(item, Experiment):
                name = self._every or self._experiments.get(item.name, item.name)
                yield replace(item, document={**item.document, "name": name})
            elif isinstance(item, RegisteredModel | ModelVersion):
                name = self._models.get(item.name, item.name)
                yield replace(item, document={**item.document, "name": name})
            else:
                yield item
