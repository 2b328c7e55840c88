"""What is new or changed since a snapshot, packed into an archive of its set: all, or a part."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import (
    NOTICE,
    ArchiveExistsError,
    InvalidArchiveError,
    NotFoundError,
    UsageError,
)
from mlflow_exim_plugin.operations.deliver import deliver, redaction_of
from mlflow_exim_plugin.operations.ends import ARCHIVES, DEPLOYMENTS, open_source
from mlflow_exim_plugin.operations.targets import new_archive
from mlflow_exim_plugin.schema.canonical import canonical_bytes
from mlflow_exim_plugin.schema.digests import sha256_of
from mlflow_exim_plugin.sets.merging import FoundAtSource, found_by
from mlflow_exim_plugin.sets.recheck import DigestingSink
from mlflow_exim_plugin.sets.recording import RecordingSink
from mlflow_exim_plugin.sets.state import SetState
from mlflow_exim_plugin.sets.stored_rows import rows_of
from mlflow_exim_plugin.sinks.archive.place import PlaceInSet
from mlflow_exim_plugin.sinks.counting import CountingSink
from mlflow_exim_plugin.sources.archive.snapshot.documents import PackEntry
from mlflow_exim_plugin.sources.archive.snapshot.reader import SnapshotReader
from mlflow_exim_plugin.stages.changes import Changes
from mlflow_exim_plugin.stages.digest import Digests
from mlflow_exim_plugin.stages.marks import Marks
from mlflow_exim_plugin.transfer import transfer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.container.writer import ArchiveWriter
    from mlflow_exim_plugin.operations.ends import OpenSource
    from mlflow_exim_plugin.options import Opening, Packing, Reading, Selection, Work
    from mlflow_exim_plugin.schema.envelope import System
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.sink import Sink
    from mlflow_exim_plugin.sources.archive.snapshot.set_folder import (
        SetFolder,
        StoredSnapshot,
    )
    from mlflow_exim_plugin.transfer import Stage

__all__ = ["Outcome", "Round", "entry_of", "free_block"]

_log = logging.getLogger(__name__)

_CONTENTS = ("artifacts", "include", "exclude")
"""What is asked for in each snapshot of a set alike: an object has what it had."""


@dataclass(frozen=True)
class Outcome:
    """What a round, or a part of it, packed.

    Attributes:
        system: Who packed it, and when.
        report: What was packed and what is unchanged.
        found: What is at the source.
        packs: The archives that are new, in order.
        notes: Files of the set that are of no use once the snapshot is there.
        may_remove: Whether the archives are nobody else's, should another writer be faster.
    """

    system: System
    report: Report
    found: FoundAtSource
    packs: list[PackEntry]
    notes: list[str] = field(default_factory=list)
    may_remove: bool = True


@dataclass
class Round:
    """One attempt to go on from the newest snapshot, or one part of it.

    Attributes:
        of_part: The snapshot to go on from and the block of numbers of tables, of a part.
        parent: The snapshot to go on from.
        before: What it has.
        stored: What its layers hold, None where it has none.
        recheck: Whether all is to be read.
    """

    folder: SetFolder
    opening: Opening
    selection: Selection
    reading: Reading
    packing: Packing
    work: Work
    of_part: tuple[StoredSnapshot | None, int] | None = None
    parent: StoredSnapshot | None = field(init=False)
    before: SetState = field(init=False)
    stored: SetState | None = field(init=False, default=None)
    recheck: bool = field(init=False)

    def __post_init__(self) -> None:
        if self.of_part is not None:
            self.parent = self.of_part[0]
        else:
            self.parent = self.folder.newest() if self.folder.is_there() else None
        self.before, self.recheck = self._state()

    def packed(self, tracking_uri: str | None) -> Outcome:
        """Pack what is new or changed."""
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
            self.require_same(source)
            changes = Changes(marks)
            target = _Pack(self, source, changes)
            report = deliver(source, target, self.selection, [changes], self.work)
            for kind, count in changes.unchanged().items():
                since = f"unchanged since snapshot {self.parent.number}" if self.parent else ""
                report.skipped(kind, "*", since, count)
            found = found_by(self.before, changes, target.rows, report.failures)
            system = source.system(self.work.script, self.packing.as_of_ms)
            return Outcome(system, report, found, target.packed)

    def pack_path(self, source: OpenSource, attempt: int) -> str:
        """Return the path of an archive: the same for the same task."""
        task = {
            "source": source.name,
            "as_of_ms": source.system(self.work.script, self.packing.as_of_ms).export_time_ms,
            "selection": self.selection.to_json(),
            "parent": self.parent.sha256 if self.parent else None,
            "attempt": attempt,
        }
        name = sha256_of(canonical_bytes(task)).hexdigest()
        return f"packs/{name[:2]}/{name}.tar.zst"

    @property
    def block(self) -> int:
        """The first block of numbers of tables that no archive of the set has."""
        return free_block(self.parent) if self.of_part is None else self.of_part[1]

    def _state(self) -> tuple[SetState, bool]:
        if self.parent is None:
            return SetState(), False
        info = self.parent.document.info
        try:
            state = SetState.load(self.folder, info, self.selection.part)
        except NotFoundError:
            state = None
        if state is None:
            _log.log(NOTICE, "%s does not say what to compare with: all is read.", self.folder)
            with contextlib.closing(SnapshotReader(self.folder, self.parent)) as reader:
                state = SetState(rows_of(reader))
                state.place(reader.block_of)
                return state, True
        if info.layers:
            self.stored = state
        elif self.of_part is None:
            with (
                contextlib.suppress(InvalidArchiveError, NotFoundError),  # none of them is left
                contextlib.closing(SnapshotReader(self.folder, self.parent)) as reader,
            ):
                state.place(reader.block_of)
        state = self._without_lost(state, self.parent)
        if self.packing.recheck:
            state = SetState(dict(state.rows))  # whose marks are made anew
        return state, self.packing.recheck

    def _without_lost(self, state: SetState, parent: StoredSnapshot) -> SetState:
        """Let what lies in an archive that is lost by now be packed again, if the source has it."""
        sizes = self.folder.sizes("packs")
        packs = parent.document.info.packs
        if all(sizes.get(pack.path) == pack.size_bytes for pack in packs):
            return state
        members = {row.member or path: path for path, row in state.rows.items()}
        try:
            with contextlib.closing(SnapshotReader(self.folder, parent)) as reader:
                lost = [one.path for one in reader.lost]
        except (InvalidArchiveError, NotFoundError):  # none of them is left
            lost = [*members]
        known = (members[path] for path in lost if path in members)
        unknown = {path: replace(state.rows[path], mark=b"") for path in known}
        return SetState({**state.rows, **unknown})

    def _recheck(self, source: OpenSource) -> None:
        """Read all of the source: what has the digest that the set says is unchanged."""
        changes = Changes(Marks({}))
        sink = DigestingSink(changes)
        stages: list[Stage] = [changes, Digests()]
        if source.redaction is not None:
            stages.insert(0, source.redaction)
        transfer(source.stream, sink, self.selection, stages=stages, progress=self.work.progress)
        sink.recognise(self.before)

    def require_same(self, source: OpenSource) -> None:
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
        before, now = document.mlflow.selection, self.selection.to_json()
        for name in _CONTENTS:
            if before.get(name) != now.get(name):
                raise UsageError(
                    f"the last snapshot of {self.folder} has {name} {before.get(name, 'all')}",
                    "ask for the same files, or choose another folder",
                )


@dataclass
class _Pack:
    """The archive of a round; see ``OpenTarget``."""

    round_: Round
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
                recording = RecordingSink(inner, self.changes, of.block)
                yield recording
                if not recording.rows:
                    raise _NothingNewError
            self.rows, writer = recording.rows, archive.written[-1]
        if self.rows:
            self.packed.append(entry_of(path, writer, of.block))

    def tell(self, report: Report) -> None:
        """Leave the report alone: what there is to tell is the snapshot."""


class _NothingNewError(Exception):
    """Ends an archive that would hold nothing."""


def free_block(parent: StoredSnapshot | None) -> int:
    """Return the first block of numbers of tables that no archive of a snapshot has."""
    packs = parent.document.info.packs if parent else ()
    return max((pack.block for pack in packs), default=-1) + 1


def entry_of(path: str, writer: ArchiveWriter, block: int) -> PackEntry:
    """Return what a snapshot says of an archive that was just written.

    Args:
        path: Its path in the set.
        writer: Wrote it.
        block: Which block of numbers its tables have.
    """
    return PackEntry(
        path=path,
        root=writer.root,
        size_bytes=writer.bytes_written,
        members=writer.members,
        block=block,
        packed_ms=time.time_ns() // 1_000_000,
    )
