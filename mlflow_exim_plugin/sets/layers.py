"""The layers of the next snapshot: one of what changed, and none that is not far larger than it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from mlflow_exim_plugin.sources.archive.snapshot.documents import LayerEntry, PartEntry
from mlflow_exim_plugin.sources.archive.snapshot.layers import (
    StateLayers,
    ids_of,
    newest_of,
    without_gone,
)
from mlflow_exim_plugin.sources.archive.snapshot.tables import write_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pyarrow as pa

    from mlflow_exim_plugin.sets.state import SetState
    from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder

__all__ = ["first_layer", "layer_of", "next_layers"]

_WRITTEN_AT_ONCE = 8
_ROWS_A_PART = 8192
_IDS_A_PART = 16384
_GROWTH = 4
"""A layer has more rows than so many times those of the next: each row is rarely written again."""


def first_layer(folder: SetFolder, state: SetState) -> tuple[LayerEntry, ...]:
    """Write a state as one layer.

    Raises:
        StoreError: The store refused or died.
    """
    return (_written(folder, state.table()),)


def next_layers(
    folder: SetFolder, layers: Sequence[LayerEntry], before: SetState, state: SetState
) -> tuple[LayerEntry, ...]:
    """Write what changed as a layer, together with layers that are not far larger.

    Args:
        folder: The set.
        layers: Those of the snapshot before.
        before: What they hold.
        state: What they are to hold.

    Returns:
        The layers that hold it.

    Raises:
        InvalidArchiveError: A layer is damaged.
        NotFoundError: One is not there.
        StoreError: The store refused or died.
    """
    table = state.changes_since(before)
    if not table.num_rows:
        return tuple(layers)
    kept = [*layers]
    while kept and table.num_rows * _GROWTH >= kept[-1].rows:
        older = newest_of([*StateLayers(folder, [kept.pop()]).tables()])
        table = newest_of([older, table])
    return (*kept, _written(folder, table if kept else without_gone(table)))


def layer_of(folder: SetFolder, states: Iterable[pa.Table], ids: pa.Table) -> LayerEntry:
    """Write a layer.

    Args:
        folder: The set.
        states: Its objects, sorted by path from table to table.
        ids: Where their ids are, sorted.

    Raises:
        StoreError: The store refused or died.
    """
    parts = [part for table in states for part in _parts(folder, "states", table, _ROWS_A_PART)]
    return LayerEntry(
        rows=sum(part.rows for part in parts),
        states=tuple(parts),
        ids=_parts(folder, "ids", ids, _IDS_A_PART),
    )


def _written(folder: SetFolder, table: pa.Table) -> LayerEntry:
    return layer_of(folder, [table], ids_of(table))


def _parts(folder: SetFolder, name: str, table: pa.Table, rows: int) -> tuple[PartEntry, ...]:
    def write(start: int) -> PartEntry:
        part = table.slice(start, rows)
        entry = write_table(folder, name, part)
        return PartEntry(**entry.to_json(), first=part.column(0)[0].as_py())

    with ThreadPoolExecutor(_WRITTEN_AT_ONCE, "exim-layers") as pool:
        return tuple(pool.map(write, range(0, table.num_rows, rows)))
