"""Fixity of some members: chosen by a seed, so that the same ones can be looked at again."""

from __future__ import annotations

import hashlib
import heapq
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.member_stream import wrong_digest
from mlflow_exim_plugin.errors import InvalidArchiveError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mlflow_exim_plugin.container.reader import ArchiveReader
    from mlflow_exim_plugin.schema.rules import Finding

__all__ = ["choose_members", "verify_members"]

_PIECE_BYTES = 1 << 20
_ASKED_AHEAD = 8


def choose_members(reader: ArchiveReader, percent: float, seed: str) -> list[str]:
    """Return a share of the members, at least one, sorted by path.

    They are those with the smallest SHA-256 of seed, LF and path: whoever has the seed and the
    manifests knows them, in any language.
    """
    count = max(1, round(len(reader) * percent / 100))
    start = hashlib.sha256(f"{seed}\n".encode())

    def rank(path: str) -> bytes:
        digest = start.copy()
        digest.update(path.encode())
        return digest.digest()

    return sorted(heapq.nsmallest(count, reader.paths(), key=rank))


def verify_members(
    reader: ArchiveReader,
    paths: Sequence[str],
    *,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Finding]:
    """Check the frames and digests of some members.

    Args:
        reader: An open archive.
        paths: The members.
        jobs: Threads that read.
        progress: Called with the bytes done and their total.

    Returns:
        What breaks a rule, in the order of the file.

    Raises:
        StoreError: The file cannot be read.
    """
    # In the order of the file: what lies beside each other is decompressed once.
    places = [(reader.data_offset(reader.place_of(path)), path) for path in paths]
    ordered = [path for _, path in sorted(places)]
    reader.expect(ordered)
    total_bytes = sum(reader.member(path).size_bytes for path in ordered)
    done_bytes = 0
    findings: dict[Finding, None] = {}
    """A frame that is damaged is so for every member in it."""
    with ThreadPoolExecutor(jobs, "exim-verify") as pool:
        waiting: deque[tuple[str, Future[list[Finding]]]] = deque()
        for path in (*ordered, None):
            while waiting and (path is None or len(waiting) >= jobs * _ASKED_AHEAD):
                done, result = waiting.popleft()
                findings.update(dict.fromkeys(result.result()))
                done_bytes += reader.member(done).size_bytes
                if progress is not None:
                    progress(done_bytes, total_bytes)
            if path is not None:
                waiting.append((path, pool.submit(_findings_of, reader, path)))
    return list(findings)


def _findings_of(reader: ArchiveReader, path: str) -> list[Finding]:
    try:
        with reader.open_member(path) as stream:
            for _ in iter(partial(stream.read, _PIECE_BYTES), b""):
                continue
    except InvalidArchiveError as error:
        own = wrong_digest(path).findings  # a damaged frame damages what is in it
        return [*(found for found in error.findings if found.path != path), *own]
    return []
