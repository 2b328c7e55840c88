"""An archive unpacked in several tasks into one database, whose server takes many writers.

Ids are kept, so that no task has to know what another one made: experiments come first, then all
runs, in disjoint ranges of ids, then what names them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import EximError, UsageError
from mlflow_exim_plugin.host.open.locations import both_uris, is_database
from mlflow_exim_plugin.operations.deliver import deliver, redaction_of, to_deployment
from mlflow_exim_plugin.operations.ends import open_source
from mlflow_exim_plugin.operations.targets import open_target
from mlflow_exim_plugin.options import OnConflict, Opening, Selection, SelectionPart, Work, Writing
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.schema.report import Report
from mlflow_exim_plugin.sources.outline import CanBeDivided
from mlflow_exim_plugin.work.division import divided
from mlflow_exim_plugin.work.engines import engine_asked
from mlflow_exim_plugin.work.running import done_by_engine

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mlflow_exim_plugin.options import Scaling
    from mlflow_exim_plugin.work.plan import Entry

__all__ = ["UnpackTask", "unpack_part", "unpacked", "unpacked_in_tasks"]

_SOURCES = ("archive", "export")


@dataclass(frozen=True, repr=False)
class UnpackTask:
    """What is unpacked; it says no more of itself than its part, for engines log what they get.

    Attributes:
        archive: Path or fsspec URL, as each worker reaches it.
        tracking_uri: The target, as each worker reaches it; MLflow's own default without it.
        opening: How the two are opened.
        selection: What is taken.
        writing: How objects are put onto the target.
        work: How much is done at once, and whether at all.
        root: Root digest that the archive must have: what all tasks read is one archive.
    """

    archive: str
    tracking_uri: str | None
    opening: Opening
    selection: Selection
    writing: Writing
    work: Work
    root: str | None = None

    def __repr__(self) -> str:
        return f"UnpackTask({self.selection.part})"


def unpacked(task: UnpackTask) -> Report:
    """Unpack what is selected.

    Raises:
        EximError: See ``unpack``.
    """
    opening, writing, work = task.opening, task.writing, task.work
    redaction = redaction_of(writing)
    with (
        open_source(task.archive, opening, among=_SOURCES) as opened,
        open_target(task.tracking_uri, opening, writing, task.selection, work) as target,
    ):
        known = None if opened.archive is None else opened.archive.reader.root
        if task.root not in {None, known}:
            raise UsageError(f"{opened.name} is another archive than it was", "begin again")
        source = opened.through(redaction)
        stages = to_deployment(source.system(work.script), writing)
        return deliver(source, target, task.selection, stages, work)


def unpack_part(task: UnpackTask) -> dict[str, Any] | EximError:
    """Unpack one part; to be called by a worker.

    Returns:
        The report as JSON values, of all but experiments and workspaces, which were there before;
        or why nothing was done, which another attempt would not change: engines repeat what raises.
    """
    try:
        report = unpacked(task)
    except EximError as error:
        return error
    for kind in (Kind.EXPERIMENT, Kind.WORKSPACE):
        report.recounted(kind)
    return report.to_dict()


def unpacked_in_tasks(task: UnpackTask, scaling: Scaling) -> Report:
    """Unpack what is selected in several tasks.

    Args:
        task: All of it.
        scaling: What runs the tasks.

    Raises:
        UsageError: The target is none that several can write to, or the source none to be divided.
        EximError: See ``unpack``. What other tasks unpacked stays, and another time goes on.
        EngineError: Workers were lost.
    """
    engine = engine_asked(scaling)
    uri, _ = both_uris(task.tracking_uri, task.opening.registry_uri)
    _require_possible(uri, task.writing, task.work)
    with open_source(task.archive, task.opening, among=_SOURCES) as source:
        if source.archive is None or not isinstance(source.stream, CanBeDivided):
            raise UsageError(f"{source.name} cannot be divided", "unpack it without an engine")
        asked = source.stream.outlined(task.selection)
        entries, outline = divided(asked, task.selection, engine.planned_for)
        root = source.archive.reader.root
    experiments = tuple(of.id for of in outline.experiments)
    base = replace(task.selection, runs=(), models=(), versions=(), datasets=())
    first = replace(
        task,
        tracking_uri=uri,
        selection=replace(base, part=SelectionPart(experiments)),
        writing=replace(task.writing, preserve_ids=True),
        root=root,
    )
    report = unpacked(first)
    for failure in outline.failures:
        report.failed(failure)
    at_once = replace(
        first,
        writing=replace(first.writing, among_others=True),
        work=replace(task.work, progress=None),
    )
    rounds = [
        [replace(at_once, selection=part) for part in parts]
        for parts in _rounds(entries, base, experiments)
    ]
    for _, told in done_by_engine(engine, unpack_part, rounds):
        report.take(Report.of_dict(told))
        if task.work.progress is not None:
            task.work.progress(report)
    report.ended()
    return report


def _require_possible(uri: str, writing: Writing, work: Work) -> None:
    if not is_database(uri) or uri.startswith("sqlite") or writing.preserve_ids is False:
        raise UsageError(
            f"{redact_url(uri)}: several tasks unpack into a database of a server, with ids kept",
            "give a postgresql:// or mysql:// URI, or leave --engine out",
        )
    if writing.on_conflict is OnConflict.FAIL or work.strict:
        raise UsageError(
            "several tasks cannot tell all that is refused before the first object is written",
            "leave out --strict and --on-conflict fail, or --engine",
        )


def _rounds(
    entries: Iterable[Entry], base: Selection, experiments: tuple[str, ...]
) -> list[list[Selection]]:
    """Return what is unpacked at once: runs, then what is beside them, then all else."""
    runs, beside, rest = [], [], []
    for entry in entries:
        part = entry.selection.part
        if part is None:
            rest.append(entry.selection)
            continue
        if part.beside_experiments:  # with the numbers that those have there
            rest.append(replace(entry.selection, part=replace(part, experiments=experiments)))
            continue
        if part.runs is not None:
            runs.append(replace(base, part=replace(part, beside_runs=False)))
        if part.beside_runs:
            beside.append(replace(base, part=replace(part, runs=None)))
    if base.names_objects and beside:  # what several of these experiments have goes once
        beside = [replace(base, part=SelectionPart(experiments, beside_runs=True))]
    return [runs, beside, rest]
