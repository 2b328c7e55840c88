"""``restore``: a run that left its deployment comes back from the set that has it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import InvalidArchiveError, NotFoundError, ServerError
from mlflow_exim_plugin.host.open.locations import both_uris
from mlflow_exim_plugin.operations.ends import DEPLOYMENTS, open_source, require_source
from mlflow_exim_plugin.operations.retention.move import opened_to_remove
from mlflow_exim_plugin.operations.retention.proof import IN_PLACE, Proof, runs_alone
from mlflow_exim_plugin.operations.unpack import unpack
from mlflow_exim_plugin.options import Opening, Reading, Work, Writing, flat
from mlflow_exim_plugin.schema.objects import Experiment, Failure, Run, closed_after
from mlflow_exim_plugin.schema.provenance import ARCHIVED, HOLLOW, PURGING
from mlflow_exim_plugin.sets.events import snapshot_that_has
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import (
    SetFolder,
    snapshot_number,
    snapshot_path,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_exim_plugin.host.removal.runs import Removal
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["restore"]

_SCRIPT = "mlflow_exim_plugin.restore"


@flat()
def restore(
    run_id: str,
    set: str,  # noqa: A002 - what `pack` calls it
    *,
    tracking_uri: str | None = None,
    artifact_location: str | None = None,
    opening: Opening = Opening(),
    work: Work = Work(),
) -> Report:
    """Put a run back that left its deployment, with all that the set has of it.

    A deleted run is restored, a hollow one gets its histories and files again, and one whose rows
    were freed is written anew, in a database with its id. What came back is compared with the set
    before the marks of the run are taken off.

    Args:
        run_id: The run.
        set: Path or fsspec URL of the set.
        tracking_uri: MLflow tracking URI; MLflow's own default without it.
        artifact_location: Artifact root for an experiment that is gone too, where the deployment is
            a PostgreSQL or MySQL database.
        opening: How the two are opened; each option is a keyword of its own too, here
            and below.
        work: How much is done at once, and whether at all.

    Returns:
        What was written.

    Raises:
        NotFoundError: The set does not have the run, or one of the two is not there.
        ServerError: The deployment refused, or the run is not what the set has.
        InvalidArchiveError: The set is damaged.
        StoreError: The set cannot be read.
    """
    uri, _ = both_uris(tracking_uri, opening.registry_uri)
    work = replace(work, script=work.script or _SCRIPT)
    require_source(uri, opening, DEPLOYMENTS)
    folder = SetFolder(set, opening.storage_options)
    with opened_to_remove(uri, opening, Reading()) as (_, removal):
        marks = removal.marks_of(run_id)
        where = folder.at(snapshot_path(_number(folder, run_id, marks or {})))
        root = artifact_location
        if removal.is_direct:
            root = root or _root_of_others(removal, where, opening, run_id)
        if marks is not None and not work.dry_run:
            removal.show(run_id)
            if not {HOLLOW, PURGING} & {*marks}:
                removal.unmark(run_id)  # all of it was there
            if HOLLOW in marks:
                _fill(removal, where, opening, run_id)
    report: Report = unpack(
        where,
        tracking_uri=uri,
        opening=replace(opening, snapshot=None),
        selection=runs_alone([run_id]),
        writing=Writing(artifact_location=root),
        work=work,
    )
    if work.dry_run or not report.ok:
        return report
    with opened_to_remove(uri, opening, Reading()) as (_, removal):
        if removal.marks_of(run_id) is None:  # MLflow's API made it another id
            return report
        removal.show(run_id)  # it may have been deleted before it was put into the set
        removal.unmark(run_id)  # what is hollow is read without what it lacks
        with (
            open_source(uri, opening.at(uri), jobs=work.jobs, among=DEPLOYMENTS) as there,
            open_source(where, opening) as kept,
        ):
            proof = Proof(there.stream, kept.stream, "moved", IN_PLACE)
            problems = proof.problems({run_id: run_id})
        if problems:
            if marks and HOLLOW in marks:
                removal.mark(run_id, marks)
            raise ServerError(f"run {run_id} is not what the set has: {problems[run_id]}")
    return report


def _fill(removal: Removal, where: str, opening: Opening, run_id: str) -> None:
    """Write the metric rows of a hollow run."""
    from mlflow_exim_plugin.sinks.database.metrics import MetricRows

    with (
        open_source(where, opening) as kept,
        closed_after(kept.stream.stream(runs_alone([run_id]))) as stream,
        removal.filling(run_id) as tables,
    ):
        rows = MetricRows(tables)
        rows.resume(run_id, [])
        for item in stream:
            for part in item.histories if isinstance(item, Run) else ():
                if isinstance(part, Failure):
                    raise InvalidArchiveError(f"{part.id} cannot be read: {part.reason}")
                rows.add(part)
        rows.end(run_id)
        rows.finish()


def _root_of_others(removal: Removal, where: str, opening: Opening, run_id: str) -> str | None:
    """Return the root that the run's experiment has its folder in, None where that is gone too."""
    with (
        open_source(where, opening) as kept,
        closed_after(kept.names.stream(runs_alone([run_id]))) as stream,
    ):
        name = next((item.name for item in stream if isinstance(item, Experiment)), "")
    place = removal.place_of_experiment(name)
    return place.rstrip("/").rpartition("/")[0] if place else None


def _number(folder: SetFolder, run_id: str, marks: Mapping[str, str]) -> int:
    """Return the snapshot that has a run.

    Raises:
        NotFoundError: None has it.
    """
    for mark in (PURGING, HOLLOW, ARCHIVED):
        place = marks.get(mark, "")
        if place.startswith(f"{folder}/"):
            return snapshot_number(place)
    number = snapshot_that_has(folder, run_id)
    if number is None:
        newest = folder.newest()
        if newest is None:
            raise NotFoundError(f"{folder} has no snapshot")
        number = newest.number
    return number
