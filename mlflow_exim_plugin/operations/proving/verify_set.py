"""``verify`` of a set: a snapshot, the archives that it names, and all of them together."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import (
    DigestMismatchError,
    EximError,
    InvalidArchiveError,
    NotFoundError,
    StoreError,
)
from mlflow_exim_plugin.kinds import Kind
from mlflow_exim_plugin.operations.proving.checks import (
    Signers,
    Verification,
    broken,
    look,
    seeded,
)
from mlflow_exim_plugin.schema.rules import Finding
from mlflow_exim_plugin.sets.state import SetState
from mlflow_exim_plugin.sources.archive.content_root import content_root_of
from mlflow_exim_plugin.sources.archive.snapshot.layers import (
    StateLayers,
    ids_of,
    newest_of,
    without_gone,
)
from mlflow_exim_plugin.sources.archive.snapshot.reader import SnapshotReader
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder, snapshot_path
from mlflow_exim_plugin.work.engines import engine_asked
from mlflow_exim_plugin.work.running import done_by_engine

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import pyarrow as pa

    from mlflow_exim_plugin.options import Checking, Opening, Scaling
    from mlflow_exim_plugin.sources.archive.snapshot.documents import (
        FileEntry,
        PackEntry,
        PartEntry,
    )
    from mlflow_exim_plugin.sources.archive.snapshot.set_folder import StoredSnapshot

__all__ = ["verify_snapshot"]


@dataclass(frozen=True, repr=False)
class _Look:
    """An archive of a set that is to be looked at; says its name alone, for engines log it."""

    folder: str
    storage_options: Mapping[str, Any] | None
    pack: PackEntry
    checking: Checking

    def __repr__(self) -> str:
        return f"verify({self.pack.path})"


@dataclass(frozen=True)
class _Looked:
    """What was seen of an archive."""

    findings: list[Finding]
    members: int
    size_bytes: int
    looked_at: list[str] = field(default_factory=list)


def verify_snapshot(
    folder: SetFolder,
    number: int | None,
    opening: Opening,
    checking: Checking,
    scaling: Scaling,
) -> Verification:
    """Check a snapshot of a set, and all that makes it.

    Args:
        folder: The set.
        number: The snapshot that its location names, if it does.
        opening: How it is opened, and which snapshot.
        checking: See ``verify``.
        scaling: What looks at archives in tasks of their own, if anything.

    Raises:
        EximError: See ``verify``.
    """
    signers = Signers(checking)
    snapshot = folder.asked(number, opening.snapshot, checking.expected_root)
    info = snapshot.document.info
    findings = [*_chain(folder, snapshot)]
    members, size_bytes, looked_at = 0, 0, list[str]()
    damaged: list[str] = []
    checking = seeded(checking)
    for pack, looked in zip(
        info.packs, _looked(folder, info.packs, checking, scaling), strict=True
    ):
        findings += looked.findings
        members, size_bytes = members + looked.members, size_bytes + looked.size_bytes
        looked_at += [f"{pack.path}: {name}" for name in looked.looked_at]
        damaged += sorted({f.path for f in looked.findings if f.code.startswith("E")})
    for entry in info.tables:
        findings += _look_at_table(folder, entry)
    content_root = None
    if checking.level == "full" and not broken(findings):
        content_root, problems = _whole(folder, snapshot)
        findings += problems
    where = folder.at(snapshot_path(snapshot.number))
    signatures, problems, is_signed = signers.check(where, snapshot.sha256, opening)
    return Verification(
        claimed_root=snapshot.sha256,
        members=members,
        size_bytes=size_bytes,
        expected_root=checking.expected_root,
        findings=findings + problems,
        damaged=damaged,
        level=checking.level,
        looked_at=None if checking.level == "full" else looked_at,
        seed=checking.seed,
        content_root=content_root,
        signed=is_signed,
        signatures=signatures,
    )


def _chain(folder: SetFolder, snapshot: StoredSnapshot) -> Iterator[Finding]:
    """Follow the snapshots before one, as far as they are there."""
    there = set(folder.numbers())
    while (parent := snapshot.document.info.parent) is not None:
        path = snapshot_path(snapshot.number)
        if parent.number >= snapshot.number:
            yield Finding("N004", path, f"its parent has the number {parent.number}")
            return
        if parent.number not in there:
            return  # it was forgotten, and with it what was before
        try:
            before = folder.snapshot(parent.number)
        except InvalidArchiveError as error:
            yield from error.findings
            return
        if before.sha256 != parent.sha256:
            message = f"its parent hashes to {before.sha256}, not {parent.sha256}"
            yield Finding("N004", path, message)
            return
        snapshot = before


def _looked(
    folder: SetFolder, packs: Sequence[PackEntry], checking: Checking, scaling: Scaling
) -> list[_Looked]:
    """Look at all archives, in their order."""
    if not scaling.is_asked:
        return [_look_at_pack(folder, pack, checking) for pack in packs]
    alone = replace(checking, progress=None)
    looks = [_Look(folder.url, folder.storage_options, pack, alone) for pack in packs]
    done = {
        task.pack.path: looked
        for task, looked in done_by_engine(engine_asked(scaling), look_at_one, [looks])
    }
    return [done[pack.path] for pack in packs]


def look_at_one(task: _Look) -> _Looked | EximError:
    """Look at an archive of a set; to be called by a worker.

    Returns:
        What was seen, or why the store gave nothing.
    """
    try:
        return _look_at_pack(SetFolder(task.folder, task.storage_options), task.pack, task.checking)
    except EximError as error:
        return error


def _look_at_pack(folder: SetFolder, pack: PackEntry, checking: Checking) -> _Looked:
    try:
        reader = ArchiveReader.open(
            folder.at(pack.path), storage_options=folder.storage_options, expected_root=pack.root
        )
    except NotFoundError:
        missing = Finding("N006", pack.path, "is not there")
        return _Looked([missing], 0, 0)
    except StoreError:
        raise
    except EximError as error:
        listed = getattr(error, "findings", ())
        named = [Finding(f.code, f"{pack.path}: {f.path}", f.message) for f in listed]
        if isinstance(error, DigestMismatchError) or not named:
            named = [Finding("N006", pack.path, error.message)]
        return _Looked(named, pack.members, pack.size_bytes)
    with reader:
        looked_at, _, findings = look(reader, checking)
        named = [Finding(f.code, f"{pack.path}: {f.path}", f.message) for f in findings]
        if (len(reader), reader.size_bytes) != (pack.members, pack.size_bytes):
            message = f"has {len(reader)} members and {reader.size_bytes} bytes"
            named.append(Finding("N006", pack.path, message))
        return _Looked(named, len(reader), reader.size_bytes, looked_at or [])


def _look_at_table(folder: SetFolder, entry: FileEntry) -> Iterator[Finding]:
    try:
        folder.table(entry)
    except NotFoundError:
        yield Finding("N005", entry.path, "is not there")
    except InvalidArchiveError as error:
        yield from error.findings


def _whole(folder: SetFolder, snapshot: StoredSnapshot) -> tuple[str | None, list[Finding]]:
    """Return the content root of all archives together, and what is wrong with it."""
    stated = snapshot.document.info.content_root
    path = snapshot_path(snapshot.number)
    try:
        with contextlib.closing(SnapshotReader(folder, snapshot)) as reader:
            found = content_root_of(reader)
            problem = _layers_say(folder, snapshot, reader)
    except InvalidArchiveError as error:
        return None, [*error.findings]
    if found != stated:
        return None, [Finding("N007", path, f"its content root is {found}, not {stated}")]
    if problem:
        return found, [Finding("N009", path, problem)]
    return found, []


def _layers_say(folder: SetFolder, snapshot: StoredSnapshot, reader: SnapshotReader) -> str:
    """Return what layers say otherwise than the archives; empty where they say the same."""
    info = snapshot.document.info
    layers = StateLayers(folder, info.layers)
    tables, ids = [*layers.tables()], [*layers.ids()]
    for layer, table, listed in zip(info.layers, tables, ids, strict=True):
        of_parts = (("states", layer.states, table), ("ids", layer.ids, listed))
        for name, parts, rows in of_parts:
            if not _is_cut_so(parts, rows):
                return f"the {name} of a layer are not sorted, or not cut as it says"
        if table.num_rows != layer.rows or not ids_of(table).equals(listed.combine_chunks()):
            return "a layer has other ids or another number of rows than it says"
    if not tables:
        return ""
    state = SetState.of_table(without_gone(newest_of(tables)))
    if state.content_root() != info.content_root:
        return "its layers are another state than its archives"
    for path, row in state.rows.items():
        if row.kind is Kind.TRACE or row.block is None:
            continue
        if reader.block_of(row.member or path) != row.block:
            return f"a layer says that {path} is in another archive than it is"
    return ""


def _is_cut_so(parts: Sequence[PartEntry], rows: pa.Table) -> bool:
    """Whether the rows of a layer are sorted, and its parts begin where it says."""
    found = rows.column(0).to_pylist()
    starts = itertools.accumulate((part.rows for part in parts), initial=0)
    firsts = [found[start] for start in starts if start < len(found)]
    return firsts == [part.first for part in parts] and found == sorted(found)
