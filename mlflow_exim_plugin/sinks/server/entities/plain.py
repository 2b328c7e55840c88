"""Kinds without tags of ours to a deployment: equal fields say that one is there already."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.schema.objects import Loss
from mlflow_exim_plugin.sinks.policy import TargetName, differing, find_name, names_of
from mlflow_exim_plugin.sinks.references import follow
from mlflow_exim_plugin.sinks.server.ids import Planned
from mlflow_exim_plugin.sinks.server.target import FamilyWriter, look_elsewhere

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.schema.objects import Entity, Kind
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.server.target import Destination, ServerTarget

    Referring = Callable[[Entity], tuple[dict[str, Any], list[Loss]]]
    """Gives the document as it is written, and what it loses; ``ServerError`` refuses it."""

__all__ = ["Calls", "PlainWriter"]


class _Create(Protocol):
    def __call__(
        self, host: Host, to: Destination, name: str, document: dict[str, Any], /
    ) -> str | dict[str, Any]:
        """Create an object and return its id, or its document as the target has it."""


@dataclass(frozen=True)
class Calls:
    """How a kind is read and made at a deployment.

    Attributes:
        listed: Gives its documents, of one experiment where it belongs to one.
        create: Makes one.
        require: Refuses one that the target cannot take, as far as can be told beforehand.
        may_change: Fields that tell twins apart and stay the target's own.
        may_go: Fields that older targets do not keep.
    """

    listed: Callable[[Host, str], Iterable[dict[str, Any]]]
    create: _Create
    require: Callable[[Host, dict[str, Any]], None] = lambda _, __: None
    may_change: tuple[str, ...] = ()
    may_go: tuple[str, ...] = ()


class PlainWriter(FamilyWriter):
    """Writes the objects of one kind.

    Args:
        target: The deployment.
        kind: The kind.
        calls: How it is read and made.
        refer: Says more of an object whose references were followed.
    """

    def __init__(
        self, target: ServerTarget, kind: Kind, calls: Calls, refer: Referring | None = None
    ) -> None:
        super().__init__(target)
        self._described = KINDS[kind]
        self._calls = calls
        self._refer: Referring = refer or (lambda entity: (entity.document, []))
        self._there: dict[str, list[dict[str, Any]]] = {}

    def write(self, entity: Entity, to: Destination, report: Report) -> None:
        """Write one object, or leave it to the one that is there."""
        described, dry_run = self._described, self._target.options.dry_run
        self._listed(to.experiment_id)  # a target without the kind says so
        wanted, losses = follow(entity, self._target.ids.get, self._target.ids.refusals)
        wanted, more = self._refer(replace(entity, document=wanted))
        named = self._named(entity, wanted, to.experiment_id, report)
        if named.there is not None:
            self._know(entity, str(named.there[described.id_field]))
            if not named.is_left:
                differs = differing(wanted, named.there, *self._calls.may_change)
                keeps = f" and keeps its own {' and '.join(differs)}" if differs else ""
                report.skipped(entity.kind, entity.id, f"{named.reason}{keeps}")
            return
        new_id: str = Planned(entity.id)
        self._calls.require(self._target.host, wanted)
        if not dry_run:
            to.restore()
            made = self._calls.create(self._target.host, to, named.name, wanted)
            if isinstance(made, dict):
                had = filter(wanted.get, self._calls.may_go)
                if gone := differing(wanted, made, *had):
                    what = f"the target does not keep its {' and '.join(gone)}"
                    losses.append(Loss(entity.kind, entity.id, what))
                made = str(made[described.id_field])
            new_id = made
        if described.unique:
            known = wanted | {described.name: named.name, described.id_field: new_id}
            self._listed(to.experiment_id).append(known)
        for loss in (*losses, *more):
            report.lost(loss)
        self._know(entity, new_id)
        report.written(entity.kind)

    def _named(
        self, entity: Entity, wanted: dict[str, Any], owner: str, report: Report
    ) -> TargetName[dict[str, Any]]:
        described, there = self._described, self._listed(owner)
        name = str(wanted.get(described.name, ""))
        if described.unique:
            by_name = {str(document[described.name]): document for document in there}
            names = names_of(entity.kind, wanted, by_name.get)
            return find_name(entity, name, names, self._target.options.on_conflict, report)
        twins = [twin for twin in there if not differing(wanted, twin, *described.same)]
        if not twins:
            return TargetName(name)
        # Twins are told apart by what may change, then by their order.
        best = min(twins, key=lambda twin: len(differing(wanted, twin, *self._calls.may_change)))
        there.remove(best)
        return TargetName(name, best, is_ours=True, reason="it is there already")

    def _listed(self, owner: str) -> list[dict[str, Any]]:
        if owner not in self._there:
            is_new = isinstance(owner, Planned)
            if is_new:
                look_elsewhere(self._listed)
            self._there[owner] = [] if is_new else [*self._calls.listed(self._target.host, owner)]
        return self._there[owner]

    def _know(self, entity: Entity, target_id: str) -> None:
        self._target.ids.know(entity.kind, entity.id, target_id)
