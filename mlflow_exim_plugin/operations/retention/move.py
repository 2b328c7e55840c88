"""``move``: runs go to another experiment or deployment, and leave where they were after that."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import (
    ConflictError,
    EximError,
    NotFoundError,
    ServerLostError,
    UsageError,
)
from mlflow_exim_plugin.host.api.writing import HostWriter
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin.host.open.locations import (
    both_uris,
    folder_of_database,
    is_database,
    require_local_store,
)
from mlflow_exim_plugin.host.open.roots import ArtifactRoots
from mlflow_exim_plugin.host.removal.runs import Removal
from mlflow_exim_plugin.operations.copy import copy, is_same_place
from mlflow_exim_plugin.operations.ends import DEPLOYMENTS, open_source, require_source
from mlflow_exim_plugin.operations.retention.proof import MOVED_AWAY, Proof, runs_alone
from mlflow_exim_plugin.operations.retention.uses import runs_in_use
from mlflow_exim_plugin.options import Moving, Opening, Reading, Selection, Work, Writing, flat
from mlflow_exim_plugin.schema.objects import Failure, Kind, Loss, Run, closed_after
from mlflow_exim_plugin.schema.provenance import MOVED, ORIGIN, newest, told
from mlflow_exim_plugin.schema.report import Report
from mlflow_exim_plugin.schema.runs import PARENT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlflow_exim_plugin.operations.ends import OpenSource

__all__ = ["move", "opened_to_remove"]

_SCRIPT = "mlflow_exim_plugin.move"


@flat()
def move(
    target: str | None = None,
    *,
    tracking_uri: str | None = None,
    opening: Opening = Opening(),
    target_opening: Opening = Opening(),
    selection: Selection = Selection(),
    reading: Reading = Reading(),
    moving: Moving = Moving(),
    work: Work = Work(),
) -> Report:
    """Move runs to another experiment, or to another deployment.

    Inside of one database a run keeps its id, and its files stay where they are. Elsewhere a run is
    copied, compared with its copy object by object, and only then deleted where it was, as MLflow's
    API deletes runs: it can be restored there. What was broken off goes on when it is called again.

    Args:
        target: MLflow tracking URI to move to; without it the runs stay where they are.
        tracking_uri: MLflow tracking URI of what has them; MLflow's own default without it.
        opening: How that is opened; each option is a keyword of its own too, here
            and below.
        target_opening: How the target is opened; its keywords begin with ``target_``.
        selection: The runs: named ones, or those of an experiment.
        reading: How the runs are read.
        moving: Where they go.
        work: How much is done at once, and whether at all.

    Returns:
        Counts, failures and losses; ``ok`` is false when a run stayed where it was.

    Raises:
        UsageError: No run is named, or neither a target nor an experiment.
        NotFoundError: A deployment or a name in the selection is not there.
        ServerError: One of the two cannot be reached, or died.
        PartialTransferError: An object failed and ``strict`` was asked for.
    """
    source, _ = both_uris(tracking_uri, opening.registry_uri)
    work = replace(work, script=work.script or _SCRIPT)
    if not (selection.runs or selection.experiments):
        raise UsageError("no run is named that is to be moved", "give -r RUN or -e EXPERIMENT")
    require_source(source, opening, DEPLOYMENTS)
    is_inside = target is None or is_same_place(source, target)
    if is_inside and moving.experiment_name is None:
        raise UsageError(
            "a run that stays at its deployment goes to another experiment",
            "give --experiment-name, or a TARGET",
        )
    if is_inside and is_database(source):
        return _inside(source, opening, selection, reading, moving, work)
    way = _Way(source, source if target is None else target, is_inside, moving)
    return _away(way, (opening, target_opening), selection, reading, work)


@contextlib.contextmanager
def opened_to_remove(
    uri: str, opening: Opening, reading: Reading
) -> Iterator[tuple[Host, Removal]]:
    """Open a deployment of which something is to be taken away."""
    require_local_store(uri)
    roots = ArtifactRoots(
        reading.artifact_roots, folder_of_database(uri), follows_links=reading.follow_links
    )
    with Host(
        uri,
        opening.registry_uri,
        create=True,
        artifacts_destination=opening.artifacts_destination,
        roots=roots,
    ) as host:
        yield host, Removal(host)


def _wanted(source: OpenSource, selection: Selection, report: Report) -> dict[str, Run]:
    """Return the runs that are to be moved, by id; what cannot be moved is told in the report."""
    found: dict[str, Run] = {}
    asked = replace(selection, traces=False, artifacts=False, alone=True)
    with closed_after(source.names.stream(asked)) as stream:
        for item in stream:
            if isinstance(item, Failure):
                report.failed(item)
            elif isinstance(item, Run):
                is_deleted = item.info.get("lifecycle_stage") == "deleted"
                if not is_deleted:
                    found[item.id] = item
                elif MOVED in item.tags:
                    report.skipped(Kind.RUN, item.id, f"it was moved: {item.tags[MOVED]}")
                elif item.id in selection.runs:
                    reason = "it is deleted: restore it, or leave it where it is"
                    report.failed(Failure(Kind.RUN, item.id, reason))
    return found


def _inside(
    uri: str,
    opening: Opening,
    selection: Selection,
    reading: Reading,
    moving: Moving,
    work: Work,
) -> Report:
    """Move runs inside of one database, whose rows say of which experiment a run is."""
    report = Report(dry_run=work.dry_run)
    name = str(moving.experiment_name)
    with open_source(uri, opening.at(uri), reading, contents=False, among=DEPLOYMENTS) as source:
        report.source = source.name
        runs = _wanted(source, selection, report)
    with opened_to_remove(uri, opening, reading) as (host, removal):
        into = _experiment(host, name, moving, work) if runs else ""
        for run in runs.values():
            if run.experiment_id == into:
                report.skipped(Kind.RUN, run.id, f"it is in experiment {name!r}")
                continue
            try:
                if not work.dry_run:
                    removal.put_into(run.id, into)
            except ServerLostError:
                raise
            except EximError as error:
                report.failed(Failure(Kind.RUN, run.id, error.message))
                continue
            report.written(Kind.RUN)
            if (parent := run.tags.get(PARENT)) and parent not in runs:
                what = f"its parent run {parent} stays where it is, and is its parent still"
                report.lost(Loss(Kind.RUN, run.id, what))
    report.ended()
    return report


def _experiment(host: Host, name: str, moving: Moving, work: Work) -> str:
    """Return the id of an experiment, which is made where there is none."""
    with translated(f"looking for experiment {name!r}"):
        there = host.tracking.get_experiment_by_name(name)
    if there is not None:
        return str(there.experiment_id)
    if work.dry_run:
        return ""
    uri = host.tracking_uri
    if moving.artifact_location is None and not uri.startswith("sqlite"):
        raise UsageError(
            f"{host.display_uri} does not say where its server keeps files of a new experiment",
            "make the experiment first, or give the server's artifact root as --artifact-location",
        )
    root = moving.artifact_location
    location = None if root is None else f"{root.rstrip('/')}/{name}"
    return HostWriter(host).create_experiment(name, location, {})


@dataclass(frozen=True)
class _Way:
    """From where to where runs go.

    Attributes:
        source: Where they are.
        target: Where they go.
        is_inside: Whether that is the same server.
        moving: Into what.
    """

    source: str
    target: str
    is_inside: bool
    moving: Moving

    def problems(self, names: Mapping[str, str], a: OpenSource, b: OpenSource) -> dict[str, str]:
        """Return what is not the same of runs and their copies, by run."""
        keeps_ids = all(one == other for one, other in names.items())
        ignored = MOVED_AWAY if self.moving.experiment_name is not None else ()
        rules = "moved" if keeps_ids else "rest"
        return Proof(a.stream, b.stream, rules, ignored).problems(names)

    def copies(self, run_ids: list[str], there: OpenSource) -> dict[str, str]:
        """Return the ids of the copies of runs by theirs."""
        found = {}
        for run_id in run_ids:
            for item in there.names.find(run_id):
                if not isinstance(item, Run) or item.info.get("lifecycle_stage") == "deleted":
                    continue
                is_itself = item.id == run_id
                if (is_itself and not self.is_inside) or newest(told(item.tags, ORIGIN)) == run_id:
                    found[run_id] = item.id
        return found


def _away(
    way: _Way, openings: tuple[Opening, Opening], selection: Selection, reading: Reading, work: Work
) -> Report:
    """Copy runs, compare them with their copies, and delete those that are the same."""
    opening, target_opening = openings
    seen = Report(dry_run=work.dry_run)
    with (
        open_source(
            way.source, opening.at(way.source), reading, contents=False, among=DEPLOYMENTS
        ) as source,
        opened_to_remove(way.source, opening, reading) as (_, removal),
    ):
        runs = _wanted(source, selection, seen)
        used = runs_in_use(removal, source, [*runs])
        for run_id, reasons in used.items():
            reason = f"it stays, for it is in use: {'; '.join(reasons)}"
            seen.failed(Failure(Kind.RUN, run_id, reason))
        leaving = [run_id for run_id in runs if run_id not in used]
        states = {run_id: removal.state_of(run_id) for run_id in leaving}
    if not leaving:
        seen.ended()
        return seen
    report: Report = copy(
        way.source,
        way.target,
        source_opening=opening,
        target_opening=target_opening,
        selection=runs_alone(leaving),
        reading=reading,
        writing=Writing(
            experiment_name=way.moving.experiment_name,
            artifact_location=way.moving.artifact_location,
            # Where ids and times are kept there is nothing that tags would have to tell.
            import_source_tags=way.is_inside or not is_database(way.target),
        ),
        work=work,
    )
    problems = {f.id: f.reason for f in report.recounted(Kind.RUN)}
    if not work.dry_run:
        left = [run_id for run_id in leaving if run_id not in problems]
        problems |= _taken_away(way, openings, reading, {run: states[run] for run in left}, work)
    for run_id in leaving:
        if run_id in problems:
            reason = f"it stays where it was: {problems[run_id]}"
            report.failed(Failure(Kind.RUN, run_id, reason))
        else:
            report.written(Kind.RUN)
    report.add(seen)
    report.ended()
    return report


def _taken_away(
    way: _Way,
    openings: tuple[Opening, Opening],
    reading: Reading,
    states: Mapping[str, list[str]],
    work: Work,
) -> dict[str, str]:
    """Delete the runs that are the same as their copies; return why the others stay."""
    opening, target_opening = openings
    problems: dict[str, str] = {}
    with (
        open_source(way.source, opening.at(way.source), reading, jobs=work.jobs) as a,
        open_source(way.target, target_opening.at(way.target), Reading(), jobs=work.jobs) as b,
    ):
        names = way.copies([*states], b)
        for run_id in states:
            if run_id not in names:
                problems[run_id] = f"{b.name} has no copy of it"
        problems |= way.problems(names, a, b)
        there = b.name
    with opened_to_remove(way.source, opening, reading) as (_, removal):
        for run_id, other in names.items():
            if run_id in problems:
                continue
            try:
                removal.hide(run_id, {MOVED: f"{there} run {other}"}, states[run_id])
            except (ConflictError, NotFoundError) as error:
                problems[run_id] = error.message
    return problems
