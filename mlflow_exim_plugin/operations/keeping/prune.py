"""``prune``: what no snapshot of a set needs any more goes."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import NotFoundError
from mlflow_exim_plugin.operations.keeping.forget import require_set
from mlflow_exim_plugin.operations.keeping.pack_set import compact
from mlflow_exim_plugin.operations.keeping.set_tasks import MAX_NOTE_BYTES, TASKS
from mlflow_exim_plugin.options import Opening, Pruning, Work, flat
from mlflow_exim_plugin.schema.canonical import parse_json

if TYPE_CHECKING:
    from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder

__all__ = ["Pruned", "Unneeded", "prune"]

_TABLES = ("lists", "states", "ids")


@dataclass
class Unneeded:
    """A file of a set that no snapshot names.

    Attributes:
        path: Its path in the set.
        size_bytes: Its size.
        removed: Whether it was removed.
        stays: Why it stays; empty where it goes.
    """

    path: str
    size_bytes: int
    removed: bool = False
    stays: str = ""


@dataclass
class Pruned:
    """What was found.

    Attributes:
        files: All that no snapshot names.
        compacted: Number of the snapshot that stands for many archives, None without one.
    """

    files: list[Unneeded] = field(default_factory=list)
    compacted: int | None = None

    @property
    def freed_bytes(self) -> int:
        """Bytes that were freed."""
        return sum(file.size_bytes for file in self.files if file.removed)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON values."""
        return {
            "ok": True,
            "compacted": self.compacted,
            "freed_bytes": self.freed_bytes,
            "files": [asdict(file) for file in self.files],
        }


@flat()
def prune(
    location: str,
    *,
    opening: Opening = Opening(),
    pruning: Pruning = Pruning(),
    work: Work = Work(),
) -> Pruned:
    """Remove archives and tables of a set that none of its snapshots names.

    Args:
        location: Path or fsspec URL of the set.
        opening: How it is opened; each option is a keyword of its own too, here and below.
        pruning: How, and whether anything is removed.
        work: How much is done at once.

    Raises:
        NotFoundError: There is no such set.
        InvalidArchiveError: A snapshot is damaged: then nothing is removed.
        StoreError: The store refused or died.
    """
    folder = require_set(location, opening)
    result = Pruned()
    if pruning.compact and pruning.apply:
        result.compacted = compact(folder, opening, work)
    needed: set[str] = set()
    for snapshot in folder.each():
        info = snapshot.document.info
        needed.update(pack.path for pack in info.packs)
        needed.update(entry.path for entry in info.tables)
    needed |= _under_way(folder)
    for path, size_bytes in _all_of(folder).items():
        if path in needed:
            continue
        one = Unneeded(path, size_bytes)
        one.stays = _why_it_stays(folder, path, pruning.grace_s)
        if pruning.apply and not one.stays:
            one.removed = folder.remove(path)
        result.files.append(one)
    return result


def _under_way(folder: SetFolder) -> set[str]:
    """Return what notes of a pack in several tasks name, whose snapshot is not there yet."""
    found: set[str] = set()
    for name in folder.names(TASKS):
        with contextlib.suppress(NotFoundError):  # it is there now
            noted = parse_json(folder.read(f"{TASKS}/{name}", MAX_NOTE_BYTES), name)
            for key in ("pack", "rows"):
                named = noted.get(key) if isinstance(noted, dict) else None
                if isinstance(named, dict) and isinstance(named.get("path"), str):
                    found.add(named["path"])
    return found


def _all_of(folder: SetFolder) -> dict[str, int]:
    """Return the sizes of all archives and tables by their paths."""
    found: dict[str, int] = {}
    for above in ("packs", *_TABLES):
        found |= folder.sizes(above)
    return found


def _why_it_stays(folder: SetFolder, path: str, grace_s: int) -> str:
    """Return why a file stays that no snapshot names, empty where it goes."""
    if grace_s == 0:
        return ""
    written_ms = folder.modified_ms(path)
    if written_ms is None:
        return "its store does not tell how old it is: --older-than 0s removes it"
    if written_ms > time.time_ns() // 1_000_000 - grace_s * 1000:
        return "it may be of a pack that has no snapshot yet"
    return ""
