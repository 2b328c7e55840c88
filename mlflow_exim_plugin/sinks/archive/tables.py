"""Tables of an archive: the metric rows of many runs, and many traces, to a file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.schema.metric_rows import add_piece
from mlflow_exim_plugin.schema.tables import ROW_GROUP_ROWS, ROWS_PER_PART, metrics_writer
from mlflow_exim_plugin.schema.traces import TraceRows, traces_writer

if TYPE_CHECKING:
    import pyarrow.parquet as pq

    from mlflow_exim_plugin.container.writer import ArchiveWriter
    from mlflow_exim_plugin.schema.metric_rows import Piece, RunRows
    from mlflow_exim_plugin.schema.objects import Trace

__all__ = ["MetricsParts", "TraceParts"]

_TRACES_PER_PART = 20_000
_PART_BYTES = 16 << 20
"""A part of traces is closed when its tables hold this much: it waits in memory."""
_GROUP_ROWS = 8192


class MetricsParts:
    """The metrics files of one experiment, each filled to about a million rows.

    Args:
        writer: Open archive.
        experiment: Folder of the experiment.
        first: Number of the first file.
    """

    def __init__(self, writer: ArchiveWriter, experiment: str, first: int = 0) -> None:
        self._archive = writer
        self._experiment = experiment
        self._number = first
        self._rows = 0
        self._waiting: list[Piece] = []
        self._waiting_rows = 0
        self._buffer: pa.BufferOutputStream | None = None
        self._parquet: pq.ParquetWriter | None = None

    def append(self, rows: RunRows) -> list[dict[str, Any]]:
        """Add some of a run's rows; return where they are."""
        ranges = []
        left: RunRows | None = rows
        while left is not None:
            taken, left = left.split(ROWS_PER_PART - self._rows)
            count = taken.num_rows
            member = layout.metrics_member(self._experiment, self._number)
            ranges.append({"member": member, "first_row": self._rows, "rows": count})
            add_piece(self._waiting, taken)
            self._waiting_rows += count
            self._rows += count
            self._write_groups(self._rows == ROWS_PER_PART)
        return ranges

    def close(self) -> None:
        """Write the last file, if any rows are left."""
        if self._rows:
            self._write_groups(last=True)

    def _write_groups(self, last: bool) -> None:
        while self._waiting_rows >= ROW_GROUP_ROWS or (last and self._waiting_rows):
            group = self._next_group()
            if self._parquet is None:
                self._buffer = pa.BufferOutputStream()
                self._parquet = metrics_writer(self._buffer)
            self._parquet.write_table(group, row_group_size=ROW_GROUP_ROWS)
            del group
            pa.default_memory_pool().release_unused()  # or the peaks of all threads add up
        if last and self._parquet is not None and self._buffer is not None:
            self._parquet.close()
            data = self._buffer.getvalue().to_pybytes()
            self._archive.add(layout.metrics_member(self._experiment, self._number), data)
            self._parquet = self._buffer = None
            self._number += 1
            self._rows = 0

    def _next_group(self) -> pa.Table:
        """Take the rows of a row group from those that wait."""
        pieces, rows = [], 0
        waiting, self._waiting = self._waiting, []
        for batch, first, stop in waiting:
            end = min(stop, first + ROW_GROUP_ROWS - rows)
            if first < end:
                pieces.append(batch.table.slice(first, end - first))
                rows += end - first
            if end < stop:
                self._waiting.append((batch, end, stop))
        self._waiting_rows -= rows
        return pa.concat_tables(pieces)


class TraceParts:
    """The parts of one experiment's traces.

    Args:
        writer: Open archive.
        experiment: Folder of the experiment.
        first: Number of the first file.
    """

    def __init__(self, writer: ArchiveWriter, experiment: str, first: int = 0) -> None:
        self._archive = writer
        self._experiment = experiment
        self._number = first
        self._rows = TraceRows()
        self._digests: list[tuple[str, str]] = []

    @property
    def is_full(self) -> bool:
        """Whether the open part should be closed before another trace comes."""
        rows = self._rows
        return rows.traces >= _TRACES_PER_PART or rows.size_bytes >= _PART_BYTES

    def append(self, trace: Trace, digest: str) -> None:
        """Add one trace to the open part."""
        self._rows.add(trace, digest)
        self._digests.append((trace.id, digest))

    def close(self) -> tuple[str, dict[str, Any], list[tuple[str, str]]] | None:
        """Write the tables of the open part, if it has any.

        Returns:
            The member of its envelope, the entries of its tables, and id and digest of each trace.
        """
        if not self._digests:
            return None
        entries: dict[str, Any] = {}
        for name, table in self._rows.tables().items():
            if not table.num_rows:
                continue
            buffer = io.BytesIO()
            with traces_writer(buffer, name) as parquet:
                parquet.write_table(table, row_group_size=_GROUP_ROWS)
            member = layout.trace_table_member(self._experiment, name, self._number)
            self._archive.add(member, buffer.getvalue())
            entries[name] = {"member": member, "rows": table.num_rows}
        envelope = layout.trace_part_member(self._experiment, self._number)
        digests, self._digests = self._digests, []
        self._rows = TraceRows()
        self._number += 1
        return envelope, entries, digests
