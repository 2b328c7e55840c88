"""Metric files: one a key, one row a line, ``timestamp value [step [dataset digest]]``.

A line that is damaged costs itself, never its neighbours.
"""

from __future__ import annotations

import io
from array import array
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mlflow_exim_plugin.schema.metric_rows import RowBatch
from mlflow_exim_plugin.schema.runs import in_ms
from mlflow_exim_plugin.schema.tables import METRICS, in_one_piece, sort_history

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlflow_exim_plugin.schema.metric_rows import RunRows

__all__ = ["MetricFile", "Rows", "latest_of_model", "sorted_rows"]

_LARGE_BYTES = 256 << 10
"""From here on Arrow's reader is faster than a loop, which also knows what to do with bad lines."""
_NAMED_LINES = 3
_LEAST, _MOST = -(1 << 63), (1 << 63) - 1
"""Whole numbers of 64 bits."""
_TYPES = (pa.int64(), pa.float64(), pa.int64())


class MetricFile:
    """What a metric file holds.

    Args:
        content: Its bytes.
        of_0x: Whether MLflow before 1.0 wrote it: with times in seconds, and the latest row last.

    Attributes:
        steps: Of each row, in the file's order.
        timestamps: Likewise.
        values: Likewise.
        problem: What is wrong with it, empty where nothing is.
        size_bytes: Size of the file.
    """

    steps: Sequence[int]
    timestamps: Sequence[int]
    values: Sequence[float]

    def __init__(self, content: bytes, *, of_0x: bool = False) -> None:
        self._of_0x = of_0x
        self.problem = ""
        self.size_bytes = len(content)
        is_large = len(content) >= _LARGE_BYTES and content.endswith(b"\n")
        if not (self._read_plain(content) if is_large else self._read_row(content)):
            self._read_lines(content)
        if of_0x:
            self.timestamps = in_ms(self.timestamps)

    @property
    def latest(self) -> tuple[int, int, float]:
        """Step, timestamp and value of the row that MLflow calls the latest."""
        if self._of_0x or len(self.steps) == 1:
            return self.steps[-1], self.timestamps[-1], self.values[-1]
        return max(zip(self.steps, self.timestamps, self.values, strict=True))

    def _read_row(self, content: bytes) -> bool:
        """Read a file of one row of three fields; returns whether it is one."""
        if not content.endswith(b"\n") or content.count(b"\n") > 1 or b"\r" in content:
            return False
        try:
            timestamp, value, step = content.split()
            row = int(step), int(timestamp), float(value)
        except ValueError:
            return False
        if not (_LEAST <= row[0] <= _MOST and _LEAST <= row[1] <= _MOST):
            return False
        # To make an array takes as long as all that was done so far.
        self.steps, self.timestamps, self.values = row[:1], row[1:2], row[2:]
        return True

    def _read_lines(self, content: bytes) -> None:
        steps, timestamps, values = array("q"), array("q"), array("d")
        bad: list[int] = []
        lines = content.splitlines()
        ends = content.endswith((b"\n", b"\r"))
        before = 0
        for number, line in enumerate(lines, 1):
            fields = line.split()
            if not ends and number == len(lines) and len(fields) < before:
                bad.append(number)
                continue
            before = len(fields)
            try:
                timestamp, value = int(fields[0]), float(fields[1])
                row = array("q", (_step(fields), timestamp))
            except (ValueError, IndexError, OverflowError):
                bad.append(number)
                continue
            steps.append(row[0])
            timestamps.append(row[1])
            values.append(value)
        self.steps, self.timestamps, self.values = steps, timestamps, values
        self.problem = _problem(bad, len(steps))
        if lines and not ends and not self.problem:
            self.problem = f"line {len(lines)} has no end and may be cut; it is read as it stands"

    def _read_plain(self, content: bytes) -> bool:
        """Read a file of whole rows of three fields; returns whether it is one."""
        from pyarrow import csv

        names = ["timestamp", "value", "step"]
        try:
            table = csv.read_csv(
                io.BytesIO(content),
                csv.ReadOptions(column_names=names, use_threads=False),
                csv.ParseOptions(delimiter=" ", quote_char=False, ignore_empty_lines=False),
                csv.ConvertOptions(
                    null_values=[],
                    column_types={
                        "timestamp": pa.int64(),
                        "value": pa.float64(),
                        "step": pa.int64(),
                    },
                ),
            )
        except pa.ArrowInvalid:
            return False
        self.timestamps, self.steps = (
            array("q", _bytes_of(table.column(name))) for name in ("timestamp", "step")
        )
        self.values = array("d", _bytes_of(table.column("value")))
        return True


class Rows:
    """Rows of many runs that wait to become one table."""

    def __init__(self) -> None:
        self._runs: list[tuple[str, int]] = []
        self._keys: list[tuple[str, int]] = []
        self._steps, self._timestamps, self._values = array("q"), array("q"), array("d")

    def __len__(self) -> int:
        return len(self._values)

    def add(self, run_id: str, key: str, file: MetricFile) -> None:
        """Add all rows of a file."""
        count = len(file.steps)
        self._runs.append((run_id, count))
        self._keys.append((key, count))
        self._steps.extend(file.steps)
        self._timestamps.extend(file.timestamps)
        self._values.extend(file.values)

    def by_run(self) -> Iterator[RunRows]:
        """Yield the rows of each run that has any, in order of their ids."""
        if not len(self):
            return
        table = pa.Table.from_arrays(
            [
                _repeated(self._runs),
                _repeated(self._keys),
                _numbers(self._steps, pa.int64()),
                _numbers(self._timestamps, pa.int64()),
                _numbers(self._values, pa.float64()),
            ],
            schema=METRICS,
        )
        yield from RowBatch(sort_history(table, "run_id")).runs()


def latest_of_model(
    content: bytes,
) -> tuple[dict[tuple[str | None, str | None], tuple[int, int, float, str]], str]:
    """Return the latest row of a logged model's metric by dataset, and what is wrong with the file.

    A row is ``timestamp value step run [dataset digest]``; it comes back as step, timestamp, value
    and run.
    """
    latest: dict[tuple[str | None, str | None], tuple[int, int, float, str]] = {}
    bad: list[int] = []
    for number, line in enumerate(content.splitlines(), 1):
        name: str | None
        digest: str | None
        try:
            timestamp, value, step, run_id, *dataset = line.decode().split()
            row = int(step), int(timestamp), float(value), run_id
            name, digest = (" ".join(dataset[:-1]), dataset[-1]) if dataset[1:] else (None, None)
        except ValueError:
            bad.append(number)
            continue
        known = latest.get((name, digest))
        if known is None or row[:3] > known[:3]:
            latest[name, digest] = row
    return latest, _problem(bad, len(latest))


def _problem(bad: list[int], read: int) -> str:
    if not bad:
        return "" if read else "it is empty"
    lines = ", ".join(map(str, bad[:_NAMED_LINES]))
    more = f" and {len(bad) - _NAMED_LINES} more" if len(bad) > _NAMED_LINES else ""
    return f"line {lines}{more} is damaged" + ("; the others are read" if read else "")


def _numbers(column: Any, kind: pa.DataType) -> pa.Array:
    return pa.Array.from_buffers(kind, len(column), [None, pa.py_buffer(column)])


def _bytes_of(column: pa.ChunkedArray) -> bytes:
    return bytes(in_one_piece(column).to_numpy().tobytes())


def _step(fields: list[bytes]) -> int:
    """Return a row's step; MLflow itself says zero of rows with a dataset, which have five fields.

    Raises:
        ValueError: It is no row.
    """
    if len(fields) == 4:
        raise ValueError(fields)
    return 0 if len(fields) in (2, 5) else int(fields[2])


def sorted_rows(run_id: str, key: str, file: MetricFile) -> RunRows:
    """Return the rows of one file, which has some."""
    rows = Rows()
    rows.add(run_id, key, file)
    (found,) = rows.by_run()
    return found


def _repeated(texts: list[tuple[str, int]]) -> pa.Array:
    """Return an array in which each text stands so many times."""
    ends = pa.array([i for i, (_, count) in enumerate(texts) for _ in range(count)], pa.int32())
    return pa.array([text for text, _ in texts], pa.string()).take(ends)
