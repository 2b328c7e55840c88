"""A set packed in several tasks: a plan, what a worker does of it, and all of them together.

A task holds texts, numbers and options, and no connection. It is named by all that its archive is
made of; what became of it is noted in the set under that name until the snapshot is there, so that
a task that runs again, of a lost worker or of an attempt that was broken off, changes nothing.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson

from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import ArchiveExistsError, EximError, NotFoundError
from mlflow_exim_plugin.operations.ends import DEPLOYMENTS, open_source
from mlflow_exim_plugin.operations.keeping.plan import plan_of
from mlflow_exim_plugin.operations.keeping.round import Outcome, Round
from mlflow_exim_plugin.schema.canonical import canonical_bytes, document_bytes
from mlflow_exim_plugin.schema.digests import sha256_of
from mlflow_exim_plugin.schema.report import Report
from mlflow_exim_plugin.sets.merging import FoundAtSource
from mlflow_exim_plugin.sets.publishing import begin_set
from mlflow_exim_plugin.sets.state import SetState
from mlflow_exim_plugin.sources.archive.snapshot.documents import FileEntry, PackEntry
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder
from mlflow_exim_plugin.sources.archive.snapshot.tables import LAYER, read_table, write_table
from mlflow_exim_plugin.version import __version__
from mlflow_exim_plugin.work.engines import engine_asked
from mlflow_exim_plugin.work.plan import TaskPlan
from mlflow_exim_plugin.work.running import done_by_engine

if TYPE_CHECKING:
    from mlflow_exim_plugin.operations.ends import OpenSource
    from mlflow_exim_plugin.options import Opening, Packing, Reading, Scaling, Selection, Work

__all__ = ["MAX_NOTE_BYTES", "TASKS", "PartTask", "pack_part", "packed_in_tasks"]

MAX_NOTE_BYTES = 1 << 30
TASKS = "tasks"
"""Folder of a set with notes of tasks that are under way."""


@dataclass(frozen=True, repr=False)
class PartTask:
    """One part of a plan.

    Engines write what a task is given into their logs, where it fails: it says its name alone, and
    not the URI with its password.

    Attributes:
        folder: Path or fsspec URL of the set, as each worker reaches it.
        parent: Number and digest of the snapshot to go on from; None for the first one.
        block: Which block of numbers its tables have.
        source: What is read, without secrets.
        tracking_uri: How that is opened.
        selection: What is taken.
        opening: How the two are opened.
        reading: How the source is read.
        packing: How the archive is written; it says as of when.
        work: How much is done at once.
    """

    folder: str
    parent: tuple[int, str] | None
    block: int
    source: str
    tracking_uri: str | None
    selection: Selection
    opening: Opening
    reading: Reading
    packing: Packing
    work: Work

    def __repr__(self) -> str:
        return f"PartTask({self.path})"

    @property
    def path(self) -> str:
        """Where it is noted in the set what became of it."""
        packing = self.packing
        made_of = {
            "source": self.source,
            "as_of_ms": packing.as_of_ms,
            "selection": self.selection.to_json(),
            "parent": self.parent and self.parent[1],
            "block": self.block,
            "level": packing.level,
            "redact": list(packing.redact),
            "package_version": __version__,
        }
        return f"{TASKS}/{sha256_of(canonical_bytes(made_of)).hexdigest()}.json"


@dataclass(frozen=True)
class DonePart:
    """What became of a task.

    Attributes:
        pack: The archive, None where nothing is new.
        rows: The table of the objects of this part.
        unpacked: See ``FoundAtSource``.
        owners: See ``FoundAtSource``.
        report: See ``Report.to_dict``.
    """

    pack: dict[str, Any] | None
    rows: dict[str, Any]
    unpacked: list[str]
    owners: dict[str, dict[str, Any]]
    report: dict[str, Any]

    def found(self, folder: SetFolder) -> FoundAtSource:
        """Return what it found."""
        table = read_table(folder, FileEntry.model_validate(self.rows), LAYER)
        return FoundAtSource(SetState.of_table(table).rows, set(self.unpacked), self.owners)


def pack_part(task: PartTask) -> DonePart | EximError:
    """Pack one part; to be called by a worker.

    Returns:
        What became of it, be it in an earlier call; or why nothing did, which another attempt would
        not change: engines repeat what raises.
    """
    try:
        folder = SetFolder(task.folder, task.opening.storage_options)
        if (earlier := _noted(folder, task)) is not None:
            return earlier
        done = _packed(folder, task)
        try:
            folder.put(task.path, document_bytes(vars(done)))
        except ArchiveExistsError:  # the same task ran twice at once, and the other was faster
            return _noted(folder, task) or done
    except EximError as error:
        return error
    return done


def _packed(folder: SetFolder, task: PartTask) -> DonePart:
    parent = None if task.parent is None else folder.snapshot(task.parent[0])
    round_ = Round(
        folder,
        task.opening,
        task.selection,
        task.reading,
        task.packing,
        task.work,
        (parent, task.block),
    )
    packed = round_.packed(task.tracking_uri)
    state = SetState(packed.found.rows)
    state.settle_owners(packed.found.owners)  # what they list is of this part alone, yet
    entry = write_table(folder, "states", state.table())
    return DonePart(
        packed.packs[0].to_json() if packed.packs else None,
        entry.to_json(),
        sorted(packed.found.unpacked),
        packed.found.owners,
        packed.report.to_dict(),
    )


def _noted(folder: SetFolder, task: PartTask) -> DonePart | None:
    """Return what became of a task earlier, if its archive is there as it was."""
    try:
        done = DonePart(**orjson.loads(folder.read(task.path, MAX_NOTE_BYTES)))
        if done.pack is not None:
            location = folder.at(done.pack["path"])
            root, options = done.pack["root"], folder.storage_options
            ArchiveReader.open(location, storage_options=options, expected_root=root).close()
        folder.size_bytes(done.rows["path"])
    except NotFoundError:
        return None
    return done


def packed_in_tasks(round_: Round, tracking_uri: str | None, scaling: Scaling) -> Outcome:
    """Pack what is new or changed in several tasks.

    Args:
        round_: What goes on from where.
        tracking_uri: The source, as each worker reaches it.
        scaling: What runs the tasks.

    Raises:
        EximError: A task failed as a whole; what others packed stays, and ``resume`` goes on.
        EngineError: Workers were lost.
    """
    engine = engine_asked(scaling)
    if tracking_uri is None:
        tracking_uri = os.environ.get("MLFLOW_TRACKING_URI")  # which workers may not have
    folder, parent = round_.folder, round_.parent
    begin_set(folder)
    with open_source(
        tracking_uri,
        round_.opening,
        round_.reading,
        jobs=round_.work.jobs,
        contents=False,
        among=DEPLOYMENTS,
    ) as source:
        round_.require_same(source)
        path, plan = _plan(round_, source, engine.planned_for)
        system = source.system(round_.work.script, plan.as_of_ms)
    tasks = [
        PartTask(
            folder.url,
            None if parent is None else (parent.number, parent.sha256),
            round_.block + number,
            plan.source,
            tracking_uri,
            entry.selection,
            round_.opening,
            round_.reading,
            replace(
                round_.packing, as_of_ms=plan.as_of_ms, passphrase=None, sign=None, resume=False
            ),
            replace(round_.work, progress=None),
        )
        for number, entry in enumerate(plan.entries)
    ]
    report = Report()
    report.source = plan.source
    done: dict[int, DonePart] = {}
    for task, part in done_by_engine(engine, pack_part, [tasks]):
        done[task.block] = part
        report.take(Report.of_dict(part.report))
        if round_.work.progress is not None:
            round_.work.progress(report)
    for failure in plan.failures:
        report.failed(failure)
    parts = [done[task.block] for task in tasks]
    found = FoundAtSource()
    for part in parts:
        found.take(part.found(folder))
    packs = [PackEntry.model_validate(part.pack) for part in parts if part.pack is not None]
    tables = (str(part.rows["path"]) for part in parts)
    notes = [path, *(task.path for task in tasks), *tables]
    return Outcome(system, report, found, packs, notes, may_remove=False)


def _plan(round_: Round, source: OpenSource, parallel: int) -> tuple[str, TaskPlan]:
    """Return the plan and where it is noted; that of an attempt that is to be gone on with."""
    folder, work = round_.folder, round_.work
    asked = {
        "source": source.name,
        "selection": round_.selection.to_json(),
        "parent": round_.parent.sha256 if round_.parent else None,
    }
    path = f"{TASKS}/{sha256_of(canonical_bytes(asked)).hexdigest()}.json"
    if round_.packing.resume:
        with contextlib.suppress(NotFoundError):
            return path, TaskPlan.of_text(folder.read(path, MAX_NOTE_BYTES))
    plan = plan_of(source, round_.selection, round_.packing.as_of_ms, parallel, work.script)
    folder.remove(path)
    with contextlib.suppress(ArchiveExistsError):  # another writer's, at this very moment
        folder.put(path, document_bytes(plan.to_json()))
    return path, plan
