"""Metric rows on their way: one table in memory for those of many runs, and each run's part of it.

A table costs Arrow some microseconds for whatever is done with it, however few rows it has. So
small runs share one, and what is the same for all of them is done once.
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_right
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.schema.digests import sha256_of
from mlflow_exim_plugin.schema.tables import HISTORY, METRICS, in_one_piece

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["MetricsDigest", "Piece", "RowBatch", "RunRows", "add_piece"]

_NUMBERS = ("step", "timestamp", "value")
_COUNT = struct.Struct("<Q")
_LENGTH = struct.Struct("<I")
_MOST_WAITING = 4096
_TINY_BYTES = 1024
"""A column with fewer is hashed at once: a key of small runs costs three calls less."""


class RowBatch:
    """Rows of one run or of many, each run's together and in order.

    Args:
        table: Schema ``METRICS``.

    Attributes:
        table: The same rows, in one piece.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table.combine_chunks()
        columns = [in_one_piece(self.table.column(name)) for name in ("run_id", "key")]
        starts = _starts(columns)
        ids, keys = (column.take(starts) for column in columns)
        self._ids, self._keys = _shared(ids), keys.to_pylist()
        self._starts: list[int] = starts.to_pylist()
        self._stops = [*self._starts[1:], self.table.num_rows]

    @cached_property
    def words(self) -> list[memoryview]:
        """Bytes of the columns ``step``, ``timestamp`` and ``value``, eight a row."""
        return [_bytes_of(in_one_piece(self.table.column(name))) for name in _NUMBERS]

    def runs(self) -> Iterator[RunRows]:
        """Yield each run's rows."""
        begin, ids = 0, self._ids
        for end in range(1, len(ids) + 1):
            if end == len(ids) or ids[end] != ids[begin]:
                keys, stops = self._keys[begin:end], self._stops[begin:end]
                yield RunRows(self, ids[begin], self._starts[begin], keys, stops)
                begin = end

    def of_run(self, run_id: str, first: int, stop: int) -> RunRows | None:
        """Return the rows from ``first`` to before ``stop``, None where they are not all the run's.

        Nor are no rows at all.
        """
        begin = bisect_right(self._starts, first) - 1
        end = bisect_right(self._starts, stop - 1, lo=max(begin, 0))
        if begin < 0 or first >= stop or any(found != run_id for found in self._ids[begin:end]):
            return None
        stops = self._stops[begin:end]
        stops[-1] = stop
        return RunRows(self, run_id, first, self._keys[begin:end], stops)


class RunRows:
    """Rows of one run, at least one: a part of a batch.

    Attributes:
        batch: The batch.
        run_id: The run.
        first: Where its first row is in the batch.
        keys: Its keys.
        stops: Where in the batch each key's rows end.
    """

    __slots__ = ("batch", "first", "keys", "run_id", "stops")

    def __init__(
        self, batch: RowBatch, run_id: str, first: int, keys: list[str], stops: list[int]
    ) -> None:
        self.batch = batch
        self.run_id = run_id
        self.first = first
        self.keys = keys
        self.stops = stops

    @classmethod
    def of(cls, run_id: str, table: pa.Table) -> RunRows:
        """Return the rows of a table of schema ``HISTORY``, which are a run's, sorted."""
        ids = pa.repeat(pa.scalar(run_id, pa.string()), table.num_rows)
        arrays = [ids, *(table.column(name) for name in HISTORY.names)]
        (rows,) = RowBatch(pa.Table.from_arrays(arrays, schema=METRICS)).runs()
        return rows

    @property
    def num_rows(self) -> int:
        """How many they are."""
        return self.stops[-1] - self.first

    @property
    def table(self) -> pa.Table:
        """The rows with schema ``HISTORY``."""
        return self.batch.table.slice(self.first, self.num_rows).select(HISTORY.names)

    def by_key(self) -> Iterator[tuple[str, pa.Table]]:
        """Yield each key with its rows, schema ``HISTORY``."""
        start = 0
        table = self.table
        for key, stop in zip(self.keys, self.stops, strict=True):
            end = stop - self.first
            yield key, table.slice(start, end - start)
            start = end

    def split(self, rows: int) -> tuple[RunRows, RunRows | None]:
        """Return the first of the rows, so many, and the rest if there is any."""
        if rows >= self.num_rows:
            return self, None
        middle = self.first + rows
        cut = bisect_right(self.stops, middle - 1)
        before = [*self.stops[:cut], middle]
        rest = cut if self.stops[cut] > middle else cut + 1
        return (
            RunRows(self.batch, self.run_id, self.first, self.keys[: cut + 1], before),
            RunRows(self.batch, self.run_id, middle, self.keys[rest:], self.stops[rest:]),
        )

    def without(self, keys: set[str]) -> RunRows | None:
        """Return the rows of other keys, None where there are none."""
        table = self.table
        kept = table.filter(pc.invert(pc.is_in(table.column("key"), pa.array(sorted(keys)))))
        return RunRows.of(self.run_id, kept) if kept.num_rows else None


Piece = tuple[RowBatch, int, int]
"""Rows of a batch, from one to before another, be they one run's or many's."""


def add_piece(pieces: list[Piece], rows: RunRows) -> None:
    """Add rows to some that wait; those that follow each other in a batch are one piece of it."""
    batch, first, stop = rows.batch, rows.first, rows.stops[-1]
    if pieces and pieces[-1][0] is batch and pieces[-1][2] == first:
        first = pieces.pop()[1]
    pieces.append((batch, first, stop))


class MetricsDigest:
    """Digest over one run's rows, fed in sorted batches of any size.

    For each key in UTF-8 byte order it covers the key's length (u32) and bytes, the number of rows
    (u64) and the SHA-256 of the steps, timestamps and values, each column as little-endian 64-bit
    words. Source: spec/v1/archive.md, "Content digests".
    """

    def __init__(self) -> None:
        self.rows = 0
        self.keys = 0
        self._outer = hashlib.sha256()
        self._open: _OpenKey | None = None

    def update(self, rows: RunRows) -> None:
        """Add rows; keys must not go backwards from one call to the next."""
        steps, timestamps, values = rows.batch.words
        opened = self._open
        finished: list[bytes] = []
        start = 8 * rows.first
        for key, stop in zip(rows.keys, rows.stops, strict=True):
            end = 8 * stop
            words = steps[start:end], timestamps[start:end], values[start:end]
            if opened is not None and opened[0] == key:
                _, size_bytes, columns = opened
                for column, more in zip(columns, words, strict=True):
                    column.update(more)
                opened = key, size_bytes + end - start, columns
            else:
                if opened is not None:
                    finished += _finished(opened)
                    self.keys += 1
                    if len(finished) > _MOST_WAITING:
                        self._outer.update(b"".join(finished))
                        finished.clear()
                hashed = hashlib.sha256 if end - start < _TINY_BYTES else sha256_of
                columns = hashed(words[0]), hashed(words[1]), hashed(words[2])
                opened = key, end - start, columns
            start = end
        self._open = opened
        self._outer.update(b"".join(finished))
        self.rows += rows.num_rows

    def hexdigest(self) -> str:
        """Finish and return ``sha256:`` and 64 hex digits."""
        if self._open is not None:
            self._outer.update(b"".join(_finished(self._open)))
            self._open = None
            self.keys += 1
        return "sha256:" + self._outer.hexdigest()


_OpenKey: TypeAlias = "tuple[str, int, tuple[hashlib._Hash, ...]]"  # noqa: SLF001 - typeshed's
"""A key whose rows are coming: its name, and size and digest of each column so far."""


def _finished(opened: _OpenKey) -> tuple[bytes, ...]:
    """Return what a key adds to the digest of its run."""
    key, size_bytes, (steps, timestamps, values) = opened
    name = key.encode()
    start = _LENGTH.pack(len(name)) + name + _COUNT.pack(size_bytes >> 3)
    return start, steps.digest(), timestamps.digest(), values.digest()


def _starts(columns: list[pa.Array]) -> pa.Array:
    """Return where any of some columns has another value than the row before, and the first row."""
    if not len(columns[0]):
        return pa.array([], pa.uint64())
    differs = [pc.not_equal(column[1:], column[:-1]) for column in columns]
    first, *others = differs
    for other in others:
        first = pc.or_(first, other)
    after = pc.add(pc.indices_nonzero(first), pa.scalar(1, pa.uint64()))
    return pa.concat_arrays([pa.array([0], pa.uint64()), after])


def _shared(texts: pa.Array) -> list[str]:
    """Return texts of which most are the one before, each in memory once."""
    found = texts.dictionary_encode()
    names = found.dictionary.to_pylist()
    return [names[index] for index in found.indices.to_pylist()]


def _bytes_of(numbers: pa.Array) -> memoryview:
    """Return the 64-bit words of an array without nulls."""
    data = memoryview(numbers.buffers()[1] or b"")
    return data[8 * numbers.offset : 8 * (numbers.offset + len(numbers))]
