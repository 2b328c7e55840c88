"""The metrics files of an archive: row ranges, with the last few files kept open."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, BinaryIO

import pyarrow as pa

from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.schema.metric_rows import RowBatch, RunRows
from mlflow_exim_plugin.schema.rules import Finding
from mlflow_exim_plugin.schema.tables import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pyarrow.dataset as ds

    from mlflow_exim_plugin.container.members import Members
    from mlflow_exim_plugin.schema.envelope import MetricsRange
    from mlflow_exim_plugin.schema.stored_tables import StoredTable

__all__ = ["MetricsTables"]

_OPEN_PARTS = 4


class MetricsTables:
    """Row ranges of an archive's metrics files.

    Args:
        reader: Open archive.
    """

    def __init__(self, reader: Members) -> None:
        self._reader = reader
        self._open: OrderedDict[str, StoredTable] = OrderedDict()
        self._group: tuple[str, int, RowBatch] | None = None
        self._read_by_arrow: list[BinaryIO] = []

    def rows(self, run_id: str, part: MetricsRange) -> Iterator[RunRows]:
        """Yield the rows of one range, at most a row group at a time.

        Raises:
            InvalidArchiveError: The file is not there, not as the format has it, or the rows
                belong to another run.
        """
        file = self._file(part.member)
        first, wanted = part.first_row, part.first_row + part.rows
        if wanted > file.num_rows:
            raise _broken(
                "E053", part.member, f"has {file.num_rows} rows, run {run_id} needs {wanted}"
            )
        start = 0
        for number, rows_of_group in enumerate(file.groups):
            end = start + rows_of_group
            if start < wanted and end > first:
                group = self._row_group(part.member, number, file)
                rows = group.of_run(run_id, max(first, start) - start, min(wanted, end) - start)
                if rows is None:
                    raise _broken("E053", part.member, f"rows of run {run_id} belong to another")
                yield rows
            start = end

    def dataset(self, members: Iterable[str]) -> ds.Dataset:
        """Return the rows of some of the files, which can be read until this is closed.

        Raises:
            InvalidArchiveError: One is not as the format has it.
        """
        import pyarrow.dataset as ds

        parquet, parts = ds.ParquetFileFormat(), []
        for member in members:
            # What Arrow finds no column of it fills with nulls, so the columns are looked at here.
            self._reader.open_table(member, METRICS, "E059").close()
            stream = self._reader.open_member(member)
            self._read_by_arrow.append(stream)
            parts.append(parquet.make_fragment(pa.PythonFile(stream, "r")))
        return ds.FileSystemDataset(parts, METRICS, parquet)

    def close(self) -> None:
        """Close the files that are open."""
        for stream in self._read_by_arrow:
            stream.close()
        self._read_by_arrow.clear()
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _file(self, member: str) -> StoredTable:
        if member in self._open:
            self._open.move_to_end(member)
            return self._open[member]
        if member not in self._reader:
            raise _broken("E053", member, "is named by a run but is not in the archive")
        file = self._reader.open_table(member, METRICS, "E059")
        self._open[member] = file
        if len(self._open) > _OPEN_PARTS:
            self._open.popitem(last=False)[1].close()
        return file

    def _row_group(self, member: str, number: int, file: StoredTable) -> RowBatch:
        if self._group is None or self._group[:2] != (member, number):
            self._group = (member, number, RowBatch(file.row_group(number)))
        return self._group[2]


def _broken(code: str, path: str, message: str) -> InvalidArchiveError:
    return InvalidArchiveError(
        f"{path} {message}", "run `verify` to see all damage", [Finding(code, path, message)]
    )
