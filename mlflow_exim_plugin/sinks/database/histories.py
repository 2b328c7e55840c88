"""The metric rows of a run that a database has, beside those that come: what is missing there."""

from __future__ import annotations

import sys
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.sql.stored_values import as_stored
from mlflow_exim_plugin.schema.metric_rows import RunRows
from mlflow_exim_plugin.schema.objects import Failure
from mlflow_exim_plugin.schema.tables import HISTORY, sort_history
from mlflow_exim_plugin.sinks.database.metrics import differs_from_before

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Self

    from mlflow_exim_plugin.sinks.database.target import DatabaseTarget

__all__ = ["HistoryComparison"]

_ROWS_AT_ONCE = 100_000
"""Rows that are compared at once; a key that has more of them is compared alone."""
_ROWS_OF_ONE_QUERY = 500_000


class HistoryComparison:
    """Compares the rows of one run; a context manager.

    What is missing waits in a file: whether it may be written is known when all has been compared.

    Args:
        target: The database.
        run_id: The run there.

    Attributes:
        keys: Keys that came.
        grown: Those of them of which the target lacks rows.
        infinite: Those of them that get rows which were infinite.
        rows: How many rows it lacks.
        failures: What could not be read.
    """

    def __init__(self, target: DatabaseTarget, run_id: str) -> None:
        self._target = target
        self._run_id = run_id
        self.keys: set[str] = set()
        self.grown: set[str] = set()
        self.infinite: set[str] = set()
        self.rows = 0
        self.failures: list[Failure] = []
        self._folder = tempfile.TemporaryDirectory(prefix="mlflow-exim-")
        self._path = str(Path(self._folder.name) / "missing.arrows")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def compare(self, histories: Iterable[RunRows | Failure]) -> bool:
        """Compare rows, sorted, keys going forward from one part to the next.

        Returns:
            Whether the target has rows that did not come.

        Raises:
            ServerError: The target's rows cannot be read.
        """
        own = self._rows_of_run
        with (
            translated("keeping metric rows until all are compared"),
            pa.OSFile(self._path, "wb") as file,
            pa.ipc.new_stream(file, HISTORY) as waiting,
        ):
            for rows in self._whole_keys(histories):
                keys = pc.unique(rows.column("key"))
                self.keys.update(keys.to_pylist())
                missing, matched = _beside(rows, self._rows_there(keys))
                own -= matched
                self.rows += missing.num_rows
                self.grown.update(pc.unique(missing.column("key")).to_pylist())
                self.infinite |= _infinite_among(rows, missing)
                waiting.write_table(missing)
        return own > 0

    def missing(self) -> Iterator[RunRows]:
        """Yield the rows that the target lacks, in the order in which they came."""
        with pa.OSFile(self._path) as file, pa.ipc.open_stream(file) as waiting:
            for batch in waiting:
                if batch.num_rows:
                    yield RunRows.of(self._run_id, pa.Table.from_batches([batch]))

    def _whole_keys(self, histories: Iterable[RunRows | Failure]) -> Iterator[pa.Table]:
        """Yield tables that have all rows of their keys."""
        whole: list[pa.Table] = []
        going_on: list[pa.Table] = []
        last = None
        for part in histories:
            if isinstance(part, Failure):
                self.failures.append(part)
                continue
            table, key = part.table, part.keys[-1]
            rows = table
            if key != last:
                start = pc.index(table.column("key"), key).as_py()
                whole += [*going_on, table.slice(0, start)]
                rows, going_on, last = table.slice(start), [], key
                if sum(some.num_rows for some in whole) >= _ROWS_AT_ONCE:
                    yield pa.concat_tables(whole)
                    whole = []
            going_on.append(rows)
        if whole or going_on:
            yield pa.concat_tables([*whole, *going_on])

    @cached_property
    def _rows_of_run(self) -> int:
        with self._target.lock:
            return self._target.tables.count("metrics", run_uuid=self._run_id)

    @cached_property
    def _all_there(self) -> pa.Table:
        with self._target.lock:
            return self._target.tables.metric_rows(self._run_id)

    def _rows_there(self, keys: pa.Array) -> pa.Table:
        """Return the target's rows of some keys."""
        if self._rows_of_run <= _ROWS_OF_ONE_QUERY:
            there = self._all_there
        else:
            with self._target.lock:
                tables = self._target.tables
                found = [tables.metric_rows(self._run_id, key) for key in keys.to_pylist()]
            there = pa.concat_tables(found)
        return there.filter(pc.is_in(there.column("key"), keys)).select(HISTORY.names)


def _infinite_among(coming: pa.Table, missing: pa.Table) -> set[str]:
    """Return the keys that had infinities, of which rows are missing that may have been those."""
    is_infinite = pc.is_inf(coming.column("value"))
    if not pc.any(is_infinite).as_py():
        return set()
    is_largest = pc.equal(pc.abs(missing.column("value")), sys.float_info.max)
    had = coming.filter(is_infinite).column("key").to_pylist()
    return {*had} & {*missing.filter(is_largest).column("key").to_pylist()}


def _beside(coming: pa.Table, there: pa.Table) -> tuple[pa.Table, int]:
    """Compare rows as a SQL store keeps them.

    By their order and not by hashes, many of which are the same for small whole numbers.

    Returns:
        The rows that come and are not there, each once, and how many come and are.
    """
    # The order is stable: of equal rows those that are there stand first.
    both = sort_history(
        pa.concat_tables(
            as_stored(rows).append_column("comes", pa.repeat(comes, rows.num_rows))
            for rows, comes in ((there, False), (coming, True))
        )
    )
    comes, value = (both.column(name).combine_chunks() for name in ("comes", "value"))
    rows = both.append_column("bits", value.view(pa.uint64()))
    starts = differs_from_before(rows, ["key", "step", "timestamp", "bits"])
    ends = pa.concat_arrays([starts.slice(1), pa.array([True])])
    missing = both.filter(pc.and_(starts, comes)).select(HISTORY.names)
    unmatched = pc.sum(pc.and_(ends, pc.invert(comes))).as_py() or 0
    return missing, there.num_rows - unmatched
