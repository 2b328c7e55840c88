"""The state of a snapshot in layers: what a later one has stands for what an earlier one has.

Each layer is cut in parts by path, and once more by id, so that to find one object takes one part
of each layer at most, however many objects there are. Source: spec/v1/set.md, "Layers".
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.sources.archive.snapshot.tables import IDS, LAYER, STATE, read_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlflow_exim_plugin.sources.archive.snapshot.documents import (
        LayerEntry,
        PartEntry,
        SnapshotInfo,
    )
    from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder

__all__ = ["PlacedObject", "StateLayers", "ids_of", "newest_of", "state_table", "without_gone"]

_READ_AT_ONCE = 8
_KEPT_PARTS = 16
_ALL = (("", "\U0010ffff"),)
_SEGMENT = (
    r"^(?P<folder>.*/experiments/[^/]+/(?:runs|logged_models|traces)/)"
    r"(?P<segment>[^/]+)(?:/(?:run|logged_model)\.json)?$"
)


@dataclass(frozen=True)
class PlacedObject:
    """Where an object of a state lies.

    Attributes:
        content_digest: 32 bytes.
        member: Its envelope, empty where that is what its name says.
        block: The block of the archive that has it, None where no layer says.
    """

    content_digest: bytes
    member: str
    block: int | None


class StateLayers:
    """The layers of a snapshot, of which only what is asked for is read; safe for many threads.

    What is not there, damaged or refused is raised as ``tables.read_table`` does.

    Args:
        folder: The set.
        layers: The layers, the oldest first.
    """

    def __init__(self, folder: SetFolder, layers: Sequence[LayerEntry]) -> None:
        self._layers = layers
        self._states = [[part.first for part in layer.states] for layer in layers]
        self._ids = [[part.first for part in layer.ids] for layer in layers]
        self._state = lru_cache(_KEPT_PARTS)(lambda part: read_table(folder, part, LAYER))
        self._id = lru_cache(_KEPT_PARTS)(lambda part: read_table(folder, part, IDS))

    def table(self, ranges: Sequence[tuple[str, str]] = _ALL) -> pa.Table:
        """Return the objects of the state, sorted by path, schema ``LAYER``.

        Args:
            ranges: From where to where paths are needed; there may be others among them.
        """
        return without_gone(newest_of([*self.tables(ranges)]))

    def tables(self, ranges: Sequence[tuple[str, str]] = _ALL) -> Iterator[pa.Table]:
        """Yield the tables of all layers, the oldest first, what is gone among them."""
        for layer, firsts in zip(self._layers, self._states, strict=True):
            wanted: set[int] = set()
            for start, end in ranges:
                before = max(bisect_right(firsts, start) - 1, 0)
                wanted.update(range(before, bisect_left(firsts, end)))
            some = [layer.states[number] for number in sorted(wanted)]
            with ThreadPoolExecutor(_READ_AT_ONCE, "exim-layers") as pool:
                parts = [*pool.map(self._state.__wrapped__, some)]
            yield pa.concat_tables(parts) if parts else LAYER.empty_table()

    def ids(self) -> Iterator[pa.Table]:
        """Yield where each layer says that ids are, the oldest first."""
        for layer in self._layers:
            parts = [self._id.__wrapped__(part) for part in layer.ids]
            yield pa.concat_tables(parts) if parts else IDS.empty_table()

    def place(self, path: str) -> PlacedObject | None:
        """Return where an object lies, None where the state has none.

        Args:
            path: Its path in the state.
        """
        for layer, firsts in zip(reversed(self._layers), reversed(self._states), strict=True):
            at = bisect_right(firsts, path) - 1
            if at < 0:
                continue
            table = self._state(layer.states[at])
            row = pc.index(table.column("path"), path).as_py()
            if row >= 0:
                kind, digest, member, block = (
                    table.column(name)[row].as_py()
                    for name in ("kind", "content_digest", "member", "block")
                )
                return PlacedObject(digest, member, block) if kind else None
        return None

    def folders(self, segment: str) -> list[str]:
        """Return the folders in which objects may be whose ids a segment encodes, sorted."""
        found: set[str] = set()
        for layer, firsts in zip(self._layers, self._ids, strict=True):
            start = max(bisect_left(firsts, segment) - 1, 0)
            for part in _until(layer.ids, firsts, start, segment):
                table = self._id(part)
                same = pc.equal(table.column("segment"), segment)
                found.update(table.column("folder").filter(same).to_pylist())
        return sorted(found)


def state_table(
    folder: SetFolder, info: SnapshotInfo, ranges: Sequence[tuple[str, str]] = _ALL
) -> pa.Table | None:
    """Return the objects of a state, schema ``LAYER``; None where nothing says them.

    Args:
        folder: The set.
        info: What the snapshot says.
        ranges: From where to where paths are needed; there may be others among them.

    Raises:
        InvalidArchiveError: A table is damaged.
        NotFoundError: One is not there.
        StoreError: The store refused or died.
    """
    if info.layers:
        return StateLayers(folder, info.layers).table(ranges)
    if info.state is None:
        return None
    table = read_table(folder, info.state, STATE)
    return table.append_column(LAYER.field("block"), pa.nulls(table.num_rows, pa.int64()))


def newest_of(tables: Sequence[pa.Table]) -> pa.Table:
    """Return the rows of several layers, of each path the newest one's, sorted by path.

    Args:
        tables: The layers, the oldest first.
    """
    found = LAYER.empty_table()
    for table in tables:
        if not table.num_rows or not found.num_rows:
            found = table if table.num_rows else found
            continue
        is_newer = pc.is_in(found.column("path"), value_set=table.column("path"))
        found = pa.concat_tables([found.filter(pc.invert(is_newer)), table]).sort_by("path")
    return found


def without_gone(table: pa.Table) -> pa.Table:
    """Return the rows of what is not gone."""
    return table.filter(pc.not_equal(table.column("kind"), ""))


def ids_of(table: pa.Table) -> pa.Table:
    """Return where the ids of a layer are, schema ``IDS``, sorted."""
    found = pc.extract_regex(without_gone(table).column("path"), _SEGMENT)
    found = pa.chunked_array(found.chunks, found.type).drop_null()
    columns = [pc.struct_field(found, name) for name in IDS.names]
    listed = pa.Table.from_arrays(columns, schema=IDS)
    return listed.sort_by([("segment", "ascending"), ("folder", "ascending")])


def _until(
    parts: Sequence[PartEntry], firsts: Sequence[str], start: int, last: str
) -> Iterator[PartEntry]:
    """Yield the parts from one on that begin with something up to ``last``."""
    for part, first in zip(parts[start:], firsts[start:], strict=True):
        if first > last:
            return
        yield part
