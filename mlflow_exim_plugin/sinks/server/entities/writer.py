"""The kinds that are one document each to a deployment: which family writes them, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.open.absent import is_absent
from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.schema.objects import Entity, Kind
from mlflow_exim_plugin.sinks.counting import skip_whole
from mlflow_exim_plugin.sinks.server.entities import datasets, gateway, judges, registries

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.server.target import Destination, FamilyWriter, ServerTarget

__all__ = ["EntityWriter"]

_ORDER = list(KINDS)
_FAMILIES = (judges, datasets, gateway, registries)


class EntityWriter:
    """Writes every kind whose objects are ``Entity``, as far as the target's MLflow has it."""

    def __init__(self, target: ServerTarget) -> None:
        self._writers: dict[Kind, FamilyWriter] = {}
        for family in _FAMILIES:
            self._writers |= family.writers(target, self._writers)
        self._absent = target.absent
        self._refusals = target.ids.refusals

    def write(self, entity: Entity, to: Destination, report: Report) -> None:
        """Write one object.

        Raises:
            ConflictError: The target has a namesake of that name and the policy is ``fail``.
            ServerError: The target refused the object.
        """
        writer = self._writers.get(entity.kind)
        if writer is None:
            skip_whole(entity, "this version does not put them back", report)
            return
        if entity.kind in self._absent:
            self._absent.leave(entity, report)
            return
        if _ORDER.index(entity.kind) > _ORDER.index(Kind.ENDPOINT):  # which scorers wait for
            self._writers[Kind.SCORER].finish(report)
        try:
            writer.write(entity, to, report)
        except ServerError as error:
            if not is_absent(error):
                name = str(entity.document.get(KINDS[entity.kind].name) or entity.id)
                self._refusals[entity.kind, entity.id] = (name, error.message)
                raise
            self._absent.add(entity.kind)
            self._absent.leave(entity, report)

    def finish(self, report: Report) -> None:
        """Write what had to wait."""
        for writer in self._writers.values():
            writer.finish(report)
