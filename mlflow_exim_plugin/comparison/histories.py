"""What is kept of a run's metric rows to compare them: digests by key."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.host.sql.stored_values import as_stored
from mlflow_exim_plugin.schema.metric_rows import MetricsDigest, RunRows
from mlflow_exim_plugin.schema.tables import sort_history

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["History", "history_digests"]

_COLUMNS = ["key", "step", "timestamp", "value"]


class History(NamedTuple):
    """One key's rows.

    Attributes:
        key: The metric's key.
        rows: How many rows there are.
        digest: Digest of the rows.
        stored: Digest of what a SQL store keeps of them.
    """

    key: str
    rows: int
    digest: str
    stored: str


class _Key:
    """Digests of one key's rows, which come sorted and in any number of tables."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._exact = MetricsDigest()
        self._stored = MetricsDigest()
        self._held: pa.Table | None = None

    def update(self, rows: pa.Table) -> None:
        _add(self._exact, rows)
        if self._held is not None:
            rows = pa.concat_tables([self._held, rows])
        stored = _distinct(as_stored(rows))
        # Other rows of the last moment may come with the next table.
        last = stored.slice(stored.num_rows - 1)
        is_last = pc.and_(
            *(pc.equal(stored.column(name), last.column(name)[0]) for name in _COLUMNS[1:3])
        )
        self._held = stored.filter(is_last)
        _add(self._stored, stored.slice(0, stored.num_rows - self._held.num_rows))

    def finish(self) -> History:
        rows = self._exact.rows
        if self._held is not None:
            _add(self._stored, self._held)
        return History(self.key, rows, self._exact.hexdigest(), self._stored.hexdigest())


def history_digests(histories: Iterator[RunRows]) -> Iterator[History]:
    """Yield what is kept of each key of a run.

    Args:
        histories: Its rows, sorted, keys never going backwards.
    """
    current: _Key | None = None
    for part in histories:
        for key, rows in part.by_key():
            if current is None or current.key != key:
                if current is not None:
                    yield current.finish()
                current = _Key(key)
            current.update(rows)
    if current is not None:
        yield current.finish()


def _add(digest: MetricsDigest, rows: pa.Table) -> None:
    if rows.num_rows:
        digest.update(RunRows.of("", rows))


def _distinct(rows: pa.Table) -> pa.Table:
    """Return rows sorted and without repetitions."""
    rows = sort_history(rows)
    bits = rows.column("value").combine_chunks().view(pa.uint64())
    moments = (rows.column(name).combine_chunks() for name in ("step", "timestamp"))
    step, timestamp, value = (pc.equal(c[1:], c[:-1]) for c in (*moments, bits))
    repeats = pc.and_(pc.and_(step, timestamp), value)
    if not pc.any(repeats).as_py():
        return rows
    return rows.filter(pa.concat_arrays([pa.array([True]), pc.invert(repeats)]))
