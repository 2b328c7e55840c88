"""``pack --set``: what is new or changed goes into archives of a set, and a snapshot says so."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.refusal import refuse
from mlflow_exim_plugin.errors import (
    NOTICE,
    InvalidArchiveError,
    StoreError,
    UsageError,
)
from mlflow_exim_plugin.operations.deliver import deliver
from mlflow_exim_plugin.operations.ends import ARCHIVES, open_source
from mlflow_exim_plugin.operations.keeping.round import Outcome, Round, entry_of, free_block
from mlflow_exim_plugin.operations.keeping.set_tasks import packed_in_tasks
from mlflow_exim_plugin.operations.proving.sign import PackedSigner, signed_snapshot
from mlflow_exim_plugin.operations.targets import new_archive
from mlflow_exim_plugin.options import Packing, Selection
from mlflow_exim_plugin.schema.digests import sha256_of
from mlflow_exim_plugin.sets.merging import NextState, next_state
from mlflow_exim_plugin.sets.publishing import NewSnapshot, begin_set
from mlflow_exim_plugin.sets.state import SetState
from mlflow_exim_plugin.sets.stored_rows import rows_of
from mlflow_exim_plugin.sinks.archive.place import PlaceInSet
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import (
    SetFolder,
    StoredSnapshot,
    snapshot_path,
)

if TYPE_CHECKING:
    from mlflow_exim_plugin.options import Opening, Reading, Scaling, Work
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["compact", "pack_into_set"]

_log = logging.getLogger(__name__)

_TRIES = 5
_MANY = 2


def pack_into_set(
    location: str,
    tracking_uri: str | None,
    opening: Opening,
    selection: Selection,
    reading: Reading,
    packing: Packing,
    work: Work,
    scaling: Scaling,
) -> Report:
    """Pack what is new or changed since the newest snapshot of a set, and publish the next one.

    Args:
        location: Path or fsspec URL of the set's folder; it becomes one.
        tracking_uri: See ``pack``.
        opening: How the two are opened.
        selection: What to take; what is not asked for is in the snapshot as it was.
        reading: How the source is read.
        packing: How archives are written.
        work: How much is done at once, and whether at all.
        scaling: What does it in several tasks, if anything.

    Returns:
        What was found: unchanged objects are skipped. ``root`` is that of the snapshot.

    Raises:
        EximError: See ``pack``.
    """
    _require_possible(packing, scaling)
    folder = SetFolder(location, opening.storage_options)
    signer = PackedSigner(location, packing)
    for _ in range(_TRIES):
        round_ = Round(folder, opening, selection, reading, packing, work)
        if scaling.is_asked and not work.dry_run:
            packed = packed_in_tasks(round_, tracking_uri, scaling)
        else:
            packed = round_.packed(tracking_uri)
        failures = packed.report.failures
        following = next_state(round_.before, packed.found, failures, selection)
        if work.dry_run:
            return _told(round_, packed, following, None)
        published = _published(round_, packed, following)
        if published is not None:
            report = _told(round_, packed, following, published)
            signer.sign(report, opening, signed_snapshot(folder, published))
            return report
        _log.log(NOTICE, "Another writer was faster: going again on top of its snapshot.")
    raise StoreError(
        f"{folder}: other writers were faster {_TRIES} times", "run the same command again later"
    )


def _published(round_: Round, packed: Outcome, following: NextState) -> StoredSnapshot | None:
    """Publish what was packed; None where another writer was faster."""
    folder = round_.folder
    begin_set(folder)
    new = NewSnapshot(
        round_.parent,
        packed.system,
        round_.selection.to_json(),
        packed.packs,
        following,
        round_.packing.keep_until_ms,
        stored=round_.stored,
    )
    published = new.publish(folder, packed.report)
    tables = () if published is None else published.document.info.tables
    for note in {*packed.notes} - {table.path for table in tables}:
        folder.remove(note)
    if published is None and packed.may_remove:
        for pack in packed.packs:
            folder.remove(pack.path)
    return published


def _told(
    round_: Round,
    packed: Outcome,
    following: NextState,
    published: StoredSnapshot | None,
) -> Report:
    report = packed.report
    number = published.number if published else (round_.parent.number + 1 if round_.parent else 1)
    report.snapshot = {
        "set": str(round_.folder),
        "number": number,
        "packs": [pack.to_json() for pack in packed.packs],
        "gone": len(following.gone),
        "objects": len(following.state.rows),
    }
    report.root = published.sha256 if published else None
    report.content_root = published.document.info.content_root if published else None
    if round_.parent is not None and not following.is_sure and not round_.selection.is_narrow:
        _log.log(NOTICE, "Not all could be listed, so that nothing is taken for gone.")
    report.ended()
    return report


def _require_possible(packing: Packing, scaling: Scaling) -> None:
    for name in ("overwrite", "resume", "export_source_tags"):
        if name == "resume" and scaling.is_asked:
            continue
        if getattr(packing, name):
            raise UsageError(
                f"--{name.replace('_', '-')} is of one archive, and not of a set", "leave it out"
            )


def compact(folder: SetFolder, opening: Opening, work: Work) -> int | None:
    """Pack the newest snapshot of a set into one archive, and publish the snapshot that names it.

    Returns:
        The number of that snapshot; None where the set has one archive or none.

    Raises:
        InvalidArchiveError: An archive is damaged, so that the new one would not hold the same.
        StoreError: The store refused or died, or another writer was faster.
    """
    parent = folder.newest()
    if parent is None or len(parent.document.info.packs) < _MANY:
        return None
    info = parent.document.info
    packing = Packing(as_of_ms=parent.document.system.export_time_ms)
    name = sha256_of(f"compact {parent.sha256}".encode()).hexdigest()
    path, block = f"packs/{name[:2]}/{name}.tar.zst", free_block(parent)
    folder.make_folder_of(path)
    where = folder.at(snapshot_path(parent.number))
    with open_source(where, replace(opening, snapshot=None), among=(ARCHIVES,)) as opened:
        assert opened.archive is not None  # noqa: S101 - it is among no others
        state = SetState.load(folder, info) or SetState(rows_of(opened.archive.reader))
        place = PlaceInSet(block, state.members(), state.folded())
        with new_archive(folder.at(path), opening, packing, Selection(), work, place) as archive:
            report = deliver(opened.for_archive(), archive, Selection(), [], work)
            if report.content_root != info.content_root:
                raise refuse(
                    InvalidArchiveError,
                    "N007",
                    f"{folder}/{snapshot_path(parent.number)}",
                    "is not what its archives hold together",
                    "run `verify` on the set",
                )
    writer = archive.written[-1]
    state.place(lambda _: block)
    new = NewSnapshot(
        parent,
        parent.document.system,
        parent.document.mlflow.selection,
        [entry_of(path, writer, block)],
        NextState(state, set(), is_sure=True),
        info.kept_until_ms,
        is_compact=True,
    )
    published = new.publish(folder, report)
    if published is None:
        folder.remove(path)
        raise StoreError(f"{folder}: another writer was faster", "run the same command again")
    return published.number
