"""``plan``: how a deployment is divided into parts that are packed one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.operations.ends import DEPLOYMENTS, open_source
from mlflow_exim_plugin.options import Opening, Planning, Reading, Selection, Work, flat
from mlflow_exim_plugin.sources.outline import CanBeDivided
from mlflow_exim_plugin.work.division import divided
from mlflow_exim_plugin.work.plan import TaskPlan

if TYPE_CHECKING:
    from mlflow_exim_plugin.operations.ends import OpenSource

__all__ = ["plan", "plan_of"]


@flat()
def plan(
    tracking_uri: str | None = None,
    *,
    opening: Opening = Opening(),
    selection: Selection = Selection(),
    reading: Reading = Reading(),
    planning: Planning = Planning(),
    work: Work = Work(),
) -> TaskPlan:
    """Divide a tracking server or store into parts that are packed one by one.

    A database counts what it has, and is asked for no list of its runs; a server is listed. What
    runs have is estimated from some of them.

    Args:
        tracking_uri: MLflow tracking URI of a database or server; MLflow's own default without it.
        opening: How it is opened; each option is a keyword of its own too, here and below.
        selection: What to take; everything without it.
        reading: How the source is read.
        planning: How it is divided.
        work: How many calls may be under way at once.

    Returns:
        The parts, which ``to_json()`` makes a document of.

    Raises:
        UsageError: The source cannot be divided.
        NotFoundError: A name or id in the selection, or a local store, is not there.
        ServerError: The server cannot be listed, or died.
    """
    with open_source(
        tracking_uri, opening, reading, jobs=work.jobs, contents=False, among=DEPLOYMENTS
    ) as source:
        return plan_of(source, selection, planning.as_of_ms, planning.parallel, work.script)


def plan_of(
    source: OpenSource,
    selection: Selection,
    as_of_ms: int | None,
    parallel: int,
    script: str = "",
) -> TaskPlan:
    """Divide a source that is open.

    Args:
        source: The source.
        selection: What to take.
        as_of_ms: The time that the archives are to tell; now without it.
        parallel: How many tasks will run at once.
        script: The command.

    Raises:
        EximError: See ``plan``.
    """
    stream = source.stream
    if not isinstance(stream, CanBeDivided):
        raise UsageError(
            f"{source.name} cannot be divided: only a database or a server can tell what it has",
            "pack it in one task, without an engine",
        )
    as_of_ms = source.system(script, as_of_ms).export_time_ms
    entries, outline = divided(stream.outlined(selection), selection, parallel)
    return TaskPlan(source.name, as_of_ms, selection, tuple(entries), tuple(outline.failures))
