"""Where an object goes at the target: to its name, to its copy, or beside a namesake."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.api.writing import HostWriter
from mlflow_exim_plugin.host.open.absent import is_absent
from mlflow_exim_plugin.host.sql.reading import reader_of
from mlflow_exim_plugin.schema.objects import Loss
from mlflow_exim_plugin.sinks.server.source_tags import SourceTagWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.host.api.reading import Reader
    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.options import Writing
    from mlflow_exim_plugin.schema.objects import Entity
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.absent_kinds import AbsentKinds
    from mlflow_exim_plugin.sinks.server.ids import IdMap

__all__ = ["Destination", "FamilyWriter", "ServerTarget", "attempt", "look_elsewhere"]


@dataclass(frozen=True)
class ServerTarget:
    """What the writer of every kind works with.

    Attributes:
        host: The deployment.
        options: How to write.
        ids: Source ids to target ids.
        writer: Single writes to it.
        reader: Reads from it.
        source_tags: Writes source tags.
        absent: Kinds that it was found not to have.
    """

    host: Host
    options: Writing
    ids: IdMap
    writer: HostWriter
    reader: Reader
    source_tags: SourceTagWriter
    absent: AbsentKinds

    @classmethod
    def of(cls, host: Host, options: Writing, ids: IdMap, absent: AbsentKinds) -> ServerTarget:
        """Make the parts that belong to a deployment."""
        writer, reader = HostWriter(host), reader_of(host)
        return cls(host, options, ids, writer, reader, SourceTagWriter(), absent)


@dataclass(frozen=True)
class Destination:
    """Where the objects of one source experiment go.

    Attributes:
        experiment_id: Id at the target; empty for what belongs to no experiment.
        restore: Restores the experiment if it is deleted: then it takes nothing.
    """

    experiment_id: str
    restore: Callable[[], None]


class FamilyWriter(ABC):
    """Writes the objects of one kind.

    Args:
        target: The deployment.
    """

    def __init__(self, target: ServerTarget) -> None:
        self._target = target

    @abstractmethod
    def write(self, entity: Entity, to: Destination, report: Report) -> None:
        """Write one object and count it.

        Raises:
            ServerError: The target refused it, or lacks what it needs; nothing was counted.
        """

    def finish(self, report: Report) -> None:
        """Write what had to wait for objects of other kinds: nothing, for most."""
        del report


def look_elsewhere(look: Callable[[str], object]) -> None:
    """Look into an experiment that is there, where a dry run would make the one that is meant.

    Args:
        look: Looks into an experiment for objects of one kind.

    Raises:
        ServerError: The target does not have the kind at all.
    """
    try:
        look("0")
    except ServerError as error:
        if is_absent(error):
            raise


def attempt(call: Callable[[], object], otherwise: Loss, report: Report) -> bool:
    """Make a call whose refusal costs a detail alone, and name the detail.

    Args:
        call: The call.
        otherwise: What is lost then; the reason follows what it says.
        report: Names the loss.

    Returns:
        Whether the target took it.
    """
    try:
        call()
    except ServerError as error:
        why = "the target's MLflow does not have this" if is_absent(error) else error.message
        what = f"{otherwise.what}: {why}" if otherwise.what else why
        report.lost(Loss(otherwise.kind, otherwise.id, what))
        return False
    return True
