"""``pack --set``: what is new or changed goes into an archive of a set, and a snapshot says so."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import (
    NOTICE,
    ArchiveExistsError,
    NotFoundError,
    StoreError,
    UsageError,
)
from mlflow_exim_plugin.operations.deliver import deliver, redaction_of
from mlflow_exim_plugin.operations.ends import ARCHIVES, DEPLOYMENTS, open_source
from mlflow_exim_plugin.operations.targets import new_archive, plain_selection
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
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder, StoredSnapshot
from mlflow_exim_plugin.stages.changes import Changes
from mlflow_exim_plugin.stages.digest import Digests
from mlflow_exim_plugin.stages.marks import Marks
from mlflow_exim_plugin.transfer import transfer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.operations.ends import OpenSource
    from mlflow_exim_plugin.options import Opening, Packing, Reading, Selection, Work
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.sink import Sink
    from mlflow_exim_plugin.transfer import Stage

__all__ = ["pack_into_set"]

_log = logging.getLogger(__name__)

_TRIES = 5
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
    for _ in range(_TRIES):
        round_ = _Round(folder, opening, selection, reading, packing, work)
        if (report := round_.run(tracking_uri)) is not None:
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

    def __post_init__(self) -> None:
        self.parent = self.folder.newest() if self.folder.is_there() else None
        self.before, self.recheck = self._state()

    def run(self, tracking_uri: str | None) -> Report | None:
        """Pack and publish; None where another writer was faster."""
        redaction = redaction_of(self.packing)
        among = (*DEPLOYMENTS, ARCHIVES)
        if self.recheck:
            with open_source(
                tracking_uri, self.opening, self.reading, jobs=self.work.jobs, among=among
            ) as opened:
                self._recheck(opened.through(redaction))
        marks = self.before.marks()
        # What is taken out of a document is out of its mark, too.
        seen_early = None if redaction is not None else marks
        reading = replace(self.reading, marks=seen_early)
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
            )
            published = new.publish(self.folder, report)
        if published is None:
            for pack in target.packed:
                self.folder.remove(pack.path)
            return None
        return self._told(report, following, target, published)

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
        packs = self.parent.document.info.packs if self.parent else ()
        return max((pack.block for pack in packs), default=-1) + 1

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
            self.packed.append(
                PackEntry(
                    path=path,
                    root=writer.root,
                    size_bytes=writer.bytes_written,
                    members=writer.members,
                    block=of.block,
                    packed_ms=time.time_ns() // 1_000_000,
                )
            )

    def tell(self, report: Report) -> None:
        """Leave the report alone: what there is to tell is the snapshot."""


class _NothingNewError(Exception):
    """Ends an archive that would hold nothing."""


def _require_possible(packing: Packing) -> None:
    for name in ("overwrite", "resume", "export_source_tags"):
        if getattr(packing, name):
            raise UsageError(
                f"--{name.replace('_', '-')} is of one archive, and not of a set", "leave it out"
            )
