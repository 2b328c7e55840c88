"""The kinds that are one document each to a deployment: which family writes them, and when."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.open.absent import is_absent
from mlflow_exim_plugin.host.sql.text_limits import shortened
from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.schema.objects import Entity, Failure, Kind, Loss
from mlflow_exim_plugin.sinks.counting import parts_of, skip_whole
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
        self._is_strict = target.options.is_strict

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
            self._put(writer, entity, to, report)
        except ServerError as error:
            if not self._absent.learn(entity.kind, error):
                for kind, count in parts_of(entity):
                    reason = f"its {entity.kind.words} could not be written"
                    report.failed(Failure(kind, f"{entity.id}/*", reason, count))
                name = str(entity.document.get(KINDS[entity.kind].name) or entity.id)
                self._refusals[entity.kind, entity.id] = (name, error.message)
                raise
            self._absent.leave(entity, report)

    def _put(self, writer: FamilyWriter, entity: Entity, to: Destination, report: Report) -> None:
        """Write an object, with shorter texts where it is refused as it is."""
        try:
            writer.write(entity, to, report)
        except ServerError as error:
            shorter, notes = shortened(entity)
            if is_absent(error) or self._is_strict or not notes:
                raise
            try:
                writer.write(shorter, to, report)
            except ServerError:
                raise error from None
            for note in notes:
                what = f"the target cannot hold all of it: {note}"
                report.lost(Loss(entity.kind, entity.id, what))

    def finish(self, report: Report) -> None:
        """Write what had to wait."""
        for writer in self._writers.values():
            writer.finish(report)
