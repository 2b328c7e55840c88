"""Complete metric histories of many runs, by the fastest complete way the server offers.

``get-history-bulk`` gives one key of up to 100 runs in one call, but cuts off at 25,000 rows
without saying so: a reply with fewer rows is complete, any other is asked again in halves, and a
single run that fills a reply is read page by page through ``get-history``.
"""

from __future__ import annotations

import itertools
from array import array
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.answers import answered
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.schema.metric_rows import RunRows
from mlflow_exim_plugin.schema.objects import Failure, Kind
from mlflow_exim_plugin.schema.runs import in_ms
from mlflow_exim_plugin.schema.tables import history_table, sort_history

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future, ThreadPoolExecutor

    from mlflow_exim_plugin.host.open.host import Host

__all__ = ["HistoriesAhead", "HistoryReader", "HistorySource", "empty", "failed", "read_history"]

_BULK = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
_BULK_ROWS = 25_000
_BULK_RUNS = 100
_PAGE_ROWS = 25_000


@dataclass
class _Histories:
    """What was read ahead of one run's rows.

    Attributes:
        run_id: The run.
        columns: Rows by key: ``step``, ``timestamp`` and ``value`` in the server's order.
        later: Keys that are too long to hold and are read when they are taken.
        failures: Keys that could not be read.
    """

    run_id: str
    columns: dict[str, Columns] = field(default_factory=dict)
    later: set[str] = field(default_factory=set)
    failures: list[Failure] = field(default_factory=list)


class HistoriesAhead(Protocol):
    """The histories of some runs, on their way."""

    def finish(self) -> dict[str, Iterator[RunRows | Failure]]:
        """Return by run id its rows, sorted, keys going forward, then its failures.

        Raises:
            ServerLostError: The deployment is gone.
        """


class HistorySource(Protocol):
    """Where histories are read."""

    rows_ahead: int
    """Rows that the runs of one ``start`` may have; two of them are held at a time."""

    def close(self) -> None:
        """Let go of what was opened to read."""

    def start(self, runs: dict[str, dict[str, int]]) -> HistoriesAhead:
        """Begin to read the histories of some runs.

        Args:
            runs: Run id to latest step by metric key, the keys being all the run has.
        """


class _HistoryCalls:
    """Calls that are under way for the histories of some runs."""

    def __init__(self, reader: HistoryReader, runs: dict[str, dict[str, int]]) -> None:
        self._reader = reader
        self._found = {run_id: _Histories(run_id) for run_id in runs}
        self._runs = runs
        self._calls: list[tuple[str, list[str], Future[dict[str, Columns] | None]]] = []
        if reader.has_bulk:
            self._plan()

    def finish(self) -> dict[str, Iterator[RunRows | Failure]]:
        """Wait for the calls; long histories are read when they are taken."""
        while self._calls and self._reader.has_bulk:
            calls, self._calls = self._calls, []
            for key, run_ids, call in calls:
                self._settle(key, run_ids, call)
        if not self._reader.has_bulk:
            for run_id, keys in self._runs.items():
                self._found[run_id] = _Histories(run_id, later=set(keys))
        return {
            run_id: self._reader.take(found, self._runs[run_id])
            for run_id, found in self._found.items()
        }

    def _plan(self) -> None:
        """Ask for each key of as many runs a call as a reply is expected to hold."""
        for key in sorted({key for keys in self._runs.values() for key in keys}):
            batch: list[str] = []
            batch_rows = 0
            for run_id, keys in self._runs.items():
                if key not in keys:
                    continue
                # A history is at least one row; where steps count up it is latest step + 1.
                expected = max(1, keys[key] + 1)
                if expected >= _BULK_ROWS:
                    self._found[run_id].later.add(key)
                    continue
                if batch and (batch_rows + expected >= _BULK_ROWS or len(batch) == _BULK_RUNS):
                    self._call(key, batch)
                    batch, batch_rows = [], 0
                batch.append(run_id)
                batch_rows += expected
            if batch:
                self._call(key, batch)

    def _call(self, key: str, run_ids: list[str]) -> None:
        self._calls.append((key, run_ids, self._reader.submit_bulk(key, run_ids)))

    def _settle(
        self, key: str, run_ids: list[str], call: Future[dict[str, Columns] | None]
    ) -> None:
        """Sort one reply's rows to their runs; ask again for what it may have cut off."""
        try:
            reply = call.result()
        except ServerError as error:
            if len(run_ids) == 1:
                self._found[run_ids[0]].failures.append(failed(run_ids[0], key, error.message))
            else:
                self._halve(key, run_ids)
            return
        if reply is None:
            self._reader.has_bulk = False
        elif sum(len(columns) for columns in reply.values()) < _BULK_ROWS:
            for run_id in run_ids:
                if run_id in reply and reply[run_id].reaches(self._runs[run_id][key]):
                    self._found[run_id].columns[key] = reply[run_id]
                else:
                    # What is empty, or ends too soon, is asked for another way.
                    self._found[run_id].later.add(key)
        elif len(run_ids) == 1:
            self._found[run_ids[0]].later.add(key)
        else:
            self._halve(key, run_ids)

    def _halve(self, key: str, run_ids: list[str]) -> None:
        half = len(run_ids) // 2
        self._call(key, run_ids[:half])
        self._call(key, run_ids[half:])


class HistoryReader:
    """Reads histories from one host with bounded parallel calls.

    Args:
        host: Where to read.
        pool: Runs the calls.
        jobs: How many calls the pool runs at once.

    Attributes:
        has_bulk: Whether the server has ``get-history-bulk``, as far as is known.
        rows_ahead: See ``HistorySource``.
    """

    rows_ahead = 250_000

    def __init__(self, host: Host, pool: ThreadPoolExecutor, jobs: int) -> None:
        self.has_bulk = host.is_http and not host.generation.lists_experiments
        self._host = host
        self._pool = pool
        self._jobs = jobs

    def close(self) -> None:
        """Nothing was opened: the connections are the host's."""

    def start(self, runs: dict[str, dict[str, int]]) -> HistoriesAhead:
        """Begin to read the histories of some runs."""
        return _HistoryCalls(self, runs)

    def take(self, histories: _Histories, latest: dict[str, int]) -> Iterator[RunRows | Failure]:
        """Yield a run's rows, sorted, keys going forward, then its failures.

        Args:
            histories: What was read ahead.
            latest: Latest step by key.
        """
        keys = sorted({*histories.columns, *histories.later}, key=lambda key: key.encode())
        if not histories.later:
            tables = [sort_history(histories.columns[key].table(key)) for key in keys]
            if tables:
                yield RunRows.of(histories.run_id, pa.concat_tables(tables))
        else:
            yield from self._take_long(histories, keys, latest)
        yield from histories.failures

    def _take_long(
        self, histories: _Histories, keys: list[str], latest: dict[str, int]
    ) -> Iterator[RunRows | Failure]:
        """Yield key after key, the next few long ones being read meanwhile."""
        ahead: dict[str, Future[pa.Table]] = {}
        waiting = iter([key for key in keys if key in histories.later])
        for key in keys:
            for following in itertools.islice(waiting, 2 * self._jobs - len(ahead)):
                ahead[following] = self._pool.submit(
                    read_history, self._host, histories.run_id, following
                )
            try:
                rows = ahead.pop(key).result() if key in ahead else None
            except ServerError as error:
                yield failed(histories.run_id, key, error.message)
                continue
            if rows is None:
                rows = histories.columns[key].table(key)
            elif rows.num_rows and (last := pc.max(rows.column("step")).as_py()) < latest[key]:
                reason = f"its rows end at step {last}, and its latest metric is of {latest[key]}"
                yield failed(histories.run_id, key, reason)
                continue
            yield sorted_rows(histories.run_id, key, rows)

    def submit_bulk(self, key: str, run_ids: list[str]) -> Future[dict[str, Columns] | None]:
        """Ask for one key of some runs: rows by run id, or None without the endpoint."""
        return self._pool.submit(self._bulk, key, run_ids)

    def _bulk(self, key: str, run_ids: list[str]) -> dict[str, Columns] | None:
        params = [*(("run_id", run_id) for run_id in run_ids), ("metric_key", key)]

        def ask() -> dict[str, Columns] | None:
            rows: dict[str, Columns] = {run_id: Columns() for run_id in run_ids}

            def take_row(row: dict[str, Any]) -> dict[str, Any] | None:
                return rows[row["run_id"]].take_row(row) if "run_id" in row else row

            reply = self._host.get_json(_BULK, params, object_hook=take_row)
            if reply is None:
                return None
            return {run_id: columns for run_id, columns in rows.items() if len(columns)}

        return answered(ask)


def read_history(host: Host, run_id: str, key: str) -> pa.Table:
    """Read one history whole, page after page.

    Args:
        host: Where to read.
        run_id: The run.
        key: The metric's key.

    Returns:
        Rows in the server's order, schema ``HISTORY``.

    Raises:
        ServerError: The server refused.

    Source: ``MlflowClient.get_metric_history``, which would build an object a row.
    """
    if not host.is_http:
        with translated(f"reading metric {key!r} of run {run_id}"):
            metrics = host.tracking.get_metric_history(run_id, key)
            return history_table(
                key,
                [metric.step for metric in metrics],
                [metric.timestamp for metric in metrics],
                [metric.value for metric in metrics],
            )
    generation = host.generation
    columns = Columns(of_0x=generation.is_0x)
    token: str | None = None
    while True:
        params = [(generation.run_id, run_id), ("metric_key", key)]
        if generation.takes_more:
            # Servers from 3.1 to 3.13 answer nothing at all without max_results.
            params.append(("max_results", str(_PAGE_ROWS)))
        if token:
            params.append(("page_token", token))
        page, following = answered(partial(_page, host, params))
        if page is None:
            raise ServerError(f"run {run_id} or its metric {key!r} is not there any more")
        columns.extend(page)
        # Some servers' token points at itself; what is missing then is missed by its last step.
        if not following or following == token or not len(page):
            return columns.table(key)
        token = following


def _page(host: Host, params: list[tuple[str, str]]) -> tuple[Columns | None, str | None]:
    columns = Columns()
    endpoint = f"{host.generation.api}/metrics/get-history"
    reply = host.get_json(endpoint, params, object_hook=columns.take_row)
    return (None, None) if reply is None else (columns, reply.get("next_page_token"))


class Columns:
    """Rows of one history as three columns of machine numbers, filled while JSON is parsed.

    Args:
        of_0x: Whether they are of MLflow before 1.0.
    """

    __slots__ = ("_of_0x", "_step", "_timestamp", "_value")

    def __init__(self, *, of_0x: bool = False) -> None:
        self._of_0x = of_0x
        self._step = array("q")
        self._timestamp = array("q")
        self._value = array("d")

    def __len__(self) -> int:
        return len(self._value)

    def reaches(self, step: int) -> bool:
        """Whether there is a row of a step, or a later one."""
        return max(self._step, default=step) >= step

    def extend(self, others: Columns) -> None:
        """Take the rows of another page."""
        self._step.extend(others._step)
        self._timestamp.extend(others._timestamp)
        self._value.extend(others._value)

    def take_row(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """Take a row out of a reply; what is no row stays in it.

        int64 fields are numbers, or strings before MLflow 1.23; absent means zero in protobuf. NaN
        and infinities are bare words or strings.
        """
        if "key" not in row:
            return row
        step, timestamp = row.get("step", 0), row.get("timestamp", 0)
        # What is no whole number must not become one, as int() of a fraction would.
        self._step.append(step if step.__class__ is int else int(str(step)))
        self._timestamp.append(timestamp if timestamp.__class__ is int else int(str(timestamp)))
        self._value.append(float(row.get("value", 0.0)))
        return None

    def table(self, key: str) -> pa.Table:
        """Return the rows with schema ``HISTORY``."""
        timestamps = in_ms(self._timestamp) if self._of_0x else self._timestamp
        return history_table(key, self._step, timestamps, self._value)


def sorted_rows(run_id: str, key: str, rows: pa.Table) -> RunRows | Failure:
    """Return the rows of a key in order, a failure where there are none."""
    return RunRows.of(run_id, sort_history(rows)) if rows.num_rows else empty(run_id, key)


def failed(run_id: str, key: str, reason: str) -> Failure:
    """Say that a history could not be read."""
    return Failure(Kind.METRIC_HISTORY, f"{run_id}/{key}", reason)


def empty(run_id: str, key: str) -> Failure:
    """Say that a run lists a metric and nothing of it is there."""
    return failed(run_id, key, "the server lists the metric but gives no rows for it")
