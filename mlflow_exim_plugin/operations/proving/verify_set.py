"""``verify`` of a set: a snapshot, the archives that it names, and all of them together."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import (
    DigestMismatchError,
    EximError,
    InvalidArchiveError,
    NotFoundError,
    StoreError,
)
from mlflow_exim_plugin.operations.proving.checks import Signers, Verification, broken, look
from mlflow_exim_plugin.schema.rules import Finding
from mlflow_exim_plugin.sources.archive.content_root import content_root_of
from mlflow_exim_plugin.sources.archive.snapshot.reader import SnapshotReader
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import snapshot_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.options import Checking, Opening
    from mlflow_exim_plugin.sources.archive.snapshot.documents import FileEntry, PackEntry
    from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder, StoredSnapshot

__all__ = ["verify_snapshot"]


def verify_snapshot(
    folder: SetFolder, number: int | None, opening: Opening, checking: Checking
) -> Verification:
    """Check a snapshot of a set, and all that makes it.

    Args:
        folder: The set.
        number: The snapshot that its location names, if it does.
        opening: How it is opened, and which snapshot.
        checking: See ``verify``.

    Raises:
        EximError: See ``verify``.
    """
    signers = Signers(checking)
    snapshot = folder.asked(number, opening.snapshot, checking.expected_root)
    info = snapshot.document.info
    findings = [*_chain(folder, snapshot)]
    members, size_bytes, looked_at = 0, 0, list[str]()
    damaged: list[str] = []
    seed = checking.seed
    for pack in info.packs:
        found, sizes, names, seed = _look_at_pack(folder, pack, replace(checking, seed=seed))
        findings += found
        members, size_bytes = members + sizes[0], size_bytes + sizes[1]
        looked_at += [f"{pack.path}: {name}" for name in names]
        damaged += sorted({f.path for f in found if f.code.startswith("E")})
    for entry in filter(None, (info.gone, info.state)):
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
        seed=seed if checking.sample is not None else None,
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


def _look_at_pack(
    folder: SetFolder, pack: PackEntry, checking: Checking
) -> tuple[list[Finding], tuple[int, int], list[str], str | None]:
    """Look at an archive; returns findings, members and bytes, what was looked at, and the seed."""
    try:
        reader = ArchiveReader.open(
            folder.at(pack.path), storage_options=folder.storage_options, expected_root=pack.root
        )
    except NotFoundError:
        missing = Finding("N006", pack.path, "is not there")
        return [missing], (0, 0), [], checking.seed
    except StoreError:
        raise
    except EximError as error:
        listed = getattr(error, "findings", ())
        named = [Finding(f.code, f"{pack.path}: {f.path}", f.message) for f in listed]
        if isinstance(error, DigestMismatchError) or not named:
            named = [Finding("N006", pack.path, error.message)]
        return named, (pack.members, pack.size_bytes), [], checking.seed
    with reader:
        looked_at, seed, findings = look(reader, checking)
        named = [Finding(f.code, f"{pack.path}: {f.path}", f.message) for f in findings]
        if (len(reader), reader.size_bytes) != (pack.members, pack.size_bytes):
            message = f"has {len(reader)} members and {reader.size_bytes} bytes"
            named.append(Finding("N006", pack.path, message))
        return named, (len(reader), reader.size_bytes), looked_at or [], seed or checking.seed


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
    except InvalidArchiveError as error:
        return None, [*error.findings]
    if found != stated:
        return None, [Finding("N007", path, f"its content root is {found}, not {stated}")]
    return found, []
