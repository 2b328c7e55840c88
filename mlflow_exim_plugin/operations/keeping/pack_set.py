"""``pack --set``: what is new or changed goes into an archive of a set, and a snapshot says so."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.container.refusal import refuse
from mlflow_exim_plugin.errors import (
    NOTICE,
    ArchiveExistsError,
    InvalidArchiveError,
    NotFoundError,
    StoreError,
    UsageError,
)
from mlflow_exim_plugin.operations.deliver import deliver, redaction_of
from mlflow_exim_plugin.operations.ends import ARCHIVES, DEPLOYMENTS, open_source
from mlflow_exim_plugin.operations.proving.sign import PackedSigner, signed_snapshot
from mlflow_exim_plugin.operations.targets import new_archive, plain_selection
from mlflow_exim_plugin.options import Packing, Selection
from mlflow_exim_plugin.schema.canonical import canonical_bytes
from mlflow_exim_plugin.schema.digests import sha256_of
from mlflow_exim_plugin.sets.merging import NextState, next_state
from mlflow_exim_plugin.sets.publishing import NewSnapshot, begin_set
from mlflow_exim_plugin.sets.recheck import DigestingSink
from mlflow_exim_plugin.sets.recording import RecordingSink
from mlflow_exim_plugin.sets.state import SetState
from mlflow_exim_plugin.sets.stored_rows import rows_of
from mlflow_exim_plugin.sinks.archive.place import PlaceInSet
from mlflow_exim_plugin.sinks.counting import CountingSink
from mlflow_exim_plugin.sources.archive.snapshot.documents import PackEntry
from mlflow_exim_plugin.sources.archive.snapshot.reader import SnapshotReader
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import (
    SetFolder,
    StoredSnapshot,
    snapshot_path,
)
from mlflow_exim_plugin.stages.changes import Changes
from mlflow_exim_plugin.stages.digest import Digests
from mlflow_exim_plugin.stages.marks import Marks
from mlflow_exim_plugin.transfer import transfer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.container.writer import ArchiveWriter
    from mlflow_exim_plugin.operations.ends import OpenSource
    from mlflow_exim_plugin.options import Opening, Reading, Work
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.sink import Sink
    from mlflow_exim_plugin.transfer import Stage

__all__ = ["compact", "pack_into_set"]

_log = logging.getLogger(__name__)

_TRIES = 5
_MANY = 2
_CONTENTS = ("artifacts", "include", "exclude")
"""What is asked for in each snapshot of a set alike: an object has what it had."""


def pack_into_set(
    location: str,
    tracking_uri: str | None,
    opening: Opening,
    selection: Selection,
    reading: Reading,
    packing: Packing,
    work: Work,
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

    Returns:
        What was found: unchanged objects are skipped. ``root`` is that of the snapshot.

    Raises:
        EximError: See ``pack``.
    """
    _require_possible(packing)
    folder = SetFolder(location, opening.storage_options)
    signer = PackedSigner(location, packing)
    for _ in range(_TRIES):
        round_ = _Round(folder, opening, selection, reading, packing, work)
        if (report := round_.run(tracking_uri)) is not None:
            if round_.published is not None:
                signer.sign(report, opening, signed_snapshot(folder, round_.published))
            return report
        _log.log(NOTICE, "Another writer was faster: going again on top of its snapshot.")
    raise StoreError(
        f"{folder}: other writers were faster {_TRIES} times", "run the same command again later"
    )


@dataclass
class _Round:
    """One attempt to go on from the newest snapshot."""

    folder: SetFolder
    opening: Opening
    selection: Selection
    reading: Reading
    packing: Packing
    work: Work
    parent: StoredSnapshot | None = field(init=False)
    before: SetState = field(init=False)
    recheck: bool = field(init=False)
    published: StoredSnapshot | None = None

    def __post_init__(self) -> None:
        self.parent = self.folder.newest() if self.folder.is_there() else None
        self.before, self.recheck = self._state()

    def run(self, tracking_uri: str | None) -> Report | None:
        """Pack and publish; None where another writer was faster."""
        redaction = redaction_of(self.packing)
        among = (*DEPLOYMENTS, ARCHIVES)
        unknown = replace(self.reading, marks=Marks({}))
        if self.recheck:
            with open_source(
                tracking_uri, self.opening, unknown, jobs=self.work.jobs, among=among
            ) as opened:
                self._recheck(opened.through(redaction))
        marks = self.before.marks()
        # What is taken out of a document is out of its mark, too: it is not known before that.
        reading = replace(self.reading, marks=marks) if redaction is None else unknown
        with open_source(
            tracking_uri, self.opening, reading, jobs=self.work.jobs, among=among
        ) as opened:
            source = opened.through(redaction)
            self._require_same(source)
            changes = Changes(marks)
            target = _Pack(self, source, changes)
            report = deliver(source, target, self.selection, [changes], self.work)
            for kind, count in changes.unchanged().items():
                since = f"unchanged since snapshot {self.parent.number}" if self.parent else ""
                report.skipped(kind, "*", since, count)
            following = next_state(
                self.before, changes, target.rows, report.failures, self.selection
            )
            if self.work.dry_run:
                return self._told(report, following, target, None)
            begin_set(self.folder)
            new = NewSnapshot(
                self.parent,
                source.system(self.work.script, self.packing.as_of_ms),
                plain_selection(self.selection),
                target.packed,
                following,
                self.packing.keep_until_ms,
            )
            self.published = new.publish(self.folder, report)
        if self.published is None:
            for pack in target.packed:
                self.folder.remove(pack.path)
            return None
        return self._told(report, following, target, self.published)

    def pack_path(self, source: OpenSource, attempt: int) -> str:
        """Return the path of an archive: the same for the same task."""
        task = {
            "source": source.name,
            "as_of_ms": source.system(self.work.script, self.packing.as_of_ms).export_time_ms,
            "selection": plain_selection(self.selection),
            "parent": self.parent.sha256 if self.parent else None,
            "attempt": attempt,
        }
        name = sha256_of(canonical_bytes(task)).hexdigest()
        return f"packs/{name[:2]}/{name}.tar.zst"

    @property
    def block(self) -> int:
        """The first block of numbers of tables that no archive of the set has."""
        return _free_block(self.parent)

    def _state(self) -> tuple[SetState, bool]:
        if self.parent is None:
            return SetState(), False
        info = self.parent.document.info
        try:
            state = SetState.load(self.folder, info)
        except NotFoundError:
            state = None
        if state is not None:
            return state, self.packing.recheck
        _log.log(NOTICE, "%s does not say what to compare with: all is read.", self.folder)
        with contextlib.closing(SnapshotReader(self.folder, self.parent)) as reader:
            return SetState(rows_of(reader)), True

    def _recheck(self, source: OpenSource) -> None:
        """Read all of the source: what has the digest that the set says is unchanged."""
        changes = Changes(Marks({}))
        sink = DigestingSink(changes)
        stages: list[Stage] = [changes, Digests()]
        if source.redaction is not None:
            stages.insert(0, source.redaction)
        transfer(source.stream, sink, self.selection, stages=stages, progress=self.work.progress)
        sink.recognise(self.before)

    def _require_same(self, source: OpenSource) -> None:
        """Refuse another source than the set's, or other parts of its objects."""
        if self.parent is None:
            return
        document = self.parent.document
        was = document.system.mlflow_tracking_uri
        if was != source.name and not self.packing.source_moved:
            raise UsageError(
                f"{self.folder} is a set of {was}, and not of {source.name}",
                "choose another folder, or say --source-moved if it is the same at a new address",
            )
        before, now = document.mlflow.selection, plain_selection(self.selection)
        for name in _CONTENTS:
            if before.get(name) != now.get(name):
                raise UsageError(
                    f"the last snapshot of {self.folder} has {name} {before.get(name, 'all')}",
                    "ask for the same files, or choose another folder",
                )

    def _told(
        self,
        report: Report,
        following: NextState,
        target: _Pack,
        published: StoredSnapshot | None,
    ) -> Report:
        number = published.number if published else (self.parent.number + 1 if self.parent else 1)
        report.snapshot = {
            "set": str(self.folder),
            "number": number,
            "packs": [pack.to_json() for pack in target.packed],
            "gone": len(following.gone),
            "objects": len(following.state.rows),
        }
        report.root = published.sha256 if published else None
        report.content_root = published.document.info.content_root if published else None
        if self.parent is not None and not following.is_sure and not self.selection.is_narrow:
            _log.log(NOTICE, "Not all could be listed, so that nothing is taken for gone.")
        report.ended()
        return report


@dataclass
class _Pack:
    """The archive of a round; see ``OpenTarget``."""

    round_: _Round
    source: OpenSource
    changes: Changes
    packed: list[PackEntry] = field(default_factory=list)
    rows: dict[str, Any] = field(default_factory=dict)
    looks_first = False
    files_at = None

    @contextlib.contextmanager
    def sink(self, source: OpenSource, *, dry_run: bool) -> Iterator[Sink]:
        if dry_run:
            yield CountingSink()
            return
        of, attempt = self.round_, 0
        while True:
            path = of.pack_path(source, attempt)
            of.folder.make_folder_of(path)
            place = PlaceInSet(of.block, of.before.members(), of.before.folded())
            opening = new_archive(
                of.folder.at(path), of.opening, of.packing, of.selection, of.work, place
            )
            stack = contextlib.ExitStack()
            try:
                archive = stack.enter_context(opening)
                break
            except ArchiveExistsError:  # of a process that ended before its snapshot was there
                attempt += 1
        with contextlib.suppress(_NothingNewError), stack:
            with archive.sink(source, dry_run=False) as inner:
                recording = RecordingSink(inner, self.changes)
                yield recording
                if not recording.rows:
                    raise _NothingNewError
            self.rows, writer = recording.rows, archive.written[-1]
        if self.rows:
            self.packed.append(_entry(path, writer, of.block))

    def tell(self, report: Report) -> None:
        """Leave the report alone: what there is to tell is the snapshot."""


class _NothingNewError(Exception):
    """Ends an archive that would hold nothing."""


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
    path, block = f"packs/{name[:2]}/{name}.tar.zst", _free_block(parent)
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
    new = NewSnapshot(
        parent,
        parent.document.system,
        parent.document.mlflow.selection,
        [_entry(path, writer, block)],
        NextState(state, set(), is_sure=True),
        info.kept_until_ms,
        is_compact=True,
    )
    published = new.publish(folder, report)
    if published is None:
        folder.remove(path)
        raise StoreError(f"{folder}: another writer was faster", "run the same command again")
    return published.number


def _free_block(parent: StoredSnapshot | None) -> int:
    packs = parent.document.info.packs if parent else ()
    return max((pack.block for pack in packs), default=-1) + 1


def _entry(path: str, writer: ArchiveWriter, block: int) -> PackEntry:
    return PackEntry(
        path=path,
        root=writer.root,
        size_bytes=writer.bytes_written,
        members=writer.members,
        block=block,
        packed_ms=time.time_ns() // 1_000_000,
    )


def _require_possible(packing: Packing) -> None:
    for name in ("overwrite", "resume", "export_source_tags"):
        if getattr(packing, name):
            raise UsageError(
                f"--{name.replace('_', '-')} is of one archive, and not of a set", "leave it out"
            )
