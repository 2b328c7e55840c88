"""Complete metric histories of many runs, by the fastest complete way the server offers.

``get-history-bulk`` gives one key of up to 100 runs in one call, but cuts off at 25,000 rows
without saying so: a reply with fewer rows is complete, any other is asked again in halves, and a
single run that fills a reply is read page by page through ``get-history``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.errors import ServerError, ServerLostError
from mlflow_exim_plugin.host.connection import Host, translated
from mlflow_exim_plugin.schema.objects import Failure, Kind
from mlflow_exim_plugin.schema.tables import HISTORY, history_table, sort_history

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["Histories", "HistoryReader"]

_BULK = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
_PAGED = "/api/2.0/mlflow/metrics/get-history"
_BULK_ROWS = 25_000
_BULK_RUNS = 100
_PAGE_ROWS = 25_000
_ROWS_AHEAD = 1_000_000
"""Rows held for the runs of one chunk; longer histories are read when they are taken."""


@dataclass
class Histories:
    """What was read ahead of one run's rows.

    Attributes:
        run_id: The run.
        tables: Rows by key, schema ``HISTORY``, unsorted.
        later: Keys that are too long to hold and are read when they are taken.
        failures: Keys that could not be read.
    """

    run_id: str
    tables: dict[str, list[pa.Table]] = field(default_factory=dict)
    later: list[str] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)


class HistoryReader:
    """Reads histories from one host with bounded parallel calls.

    Args:
        host: Where to read.
        pool: Runs the calls; its size is the number of connections.
    """

    def __init__(self, host: Host, pool: ThreadPoolExecutor) -> None:
        self._host = host
        self._pool = pool
        self._has_bulk = host.is_http

    def read(self, runs: dict[str, dict[str, int]]) -> dict[str, Histories]:
        """Read the histories of some runs.

        Args:
            runs: Run id to latest step by metric key, the keys being all the run has.

        Returns:
            Run id to its histories; long ones are only noted.

        Raises:
            ServerLostError: The server is gone.
        """
        found = {run_id: Histories(run_id) for run_id in runs}
        if self._has_bulk:
            self._read_bulk(runs, found)
        if not self._has_bulk:
            for run_id, keys in runs.items():
                found[run_id].later = sorted(keys)
        return found

    def take(self, histories: Histories) -> Iterator[pa.Table | Failure]:
        """Yield a run's rows, sorted, keys going forward, then its failures."""
        held = [table for tables in histories.tables.values() for table in tables]
        keys = sorted({*histories.tables, *histories.later}, key=lambda key: key.encode())
        if not histories.later:
            if held:
                yield sort_history(pa.concat_tables(held))
        else:
            ahead: dict[str, Future[pa.Table]] = {}
            queue = iter([key for key in keys if key in set(histories.later)])

            def fill() -> None:
                while len(ahead) < 2 * self._pool._max_workers:  # noqa: SLF001 - its size
                    key = next(queue, None)
                    if key is None:
                        return
                    ahead[key] = self._pool.submit(self.read_key, histories.run_id, key)

            for key in keys:
                fill()
                try:
                    table = (
                        ahead.pop(key).result()
                        if key in ahead
                        else pa.concat_tables(histories.tables[key])
                    )
                except ServerLostError:
                    raise
                except ServerError as error:
                    yield _failure(histories.run_id, key, error.message)
                    continue
                if table.num_rows:
                    yield sort_history(table)
                else:
                    yield _empty(histories.run_id, key)
        yield from histories.failures

    def read_key(self, run_id: str, key: str) -> pa.Table:
        """Read one history whole, page after page.

        Args:
            run_id: The run.
            key: The metric's key.

        Returns:
            Rows in the server's order, schema ``HISTORY``.

        Raises:
            ServerError: The server refused.

        Source: ``MlflowClient.get_metric_history``, which would build an object a row.
        """
        if not self._host.is_http:
            with translated(f"reading metric {key!r} of run {run_id}"):
                metrics = self._host.tracking.get_metric_history(run_id, key)
                return history_table(
                    key,
                    [metric.step for metric in metrics],
                    [metric.timestamp for metric in metrics],
                    [metric.value for metric in metrics],
                )
        tables = []
        token: str | None = None
        while True:
            # Servers from 3.1 to 3.13 answer nothing at all without max_results.
            params = [("run_id", run_id), ("metric_key", key), ("max_results", str(_PAGE_ROWS))]
            reply = self._host.get_json(
                _PAGED, [*params, ("page_token", token)] if token else params
            )
            if reply is None:
                raise ServerError(f"run {run_id} or its metric {key!r} is not there any more")
            rows = reply.get("metrics") or []
            with translated(f"reading metric {key!r} of run {run_id}"):
                tables.append(_columns(key, rows))
            following = reply.get("next_page_token")
            if not following or following == token or not rows:
                return pa.concat_tables(tables)
            token = following

    def _read_bulk(self, runs: dict[str, dict[str, int]], found: dict[str, Histories]) -> None:
        pending: list[tuple[str, list[str]]] = []
        rows_ahead = 0
        for key in sorted({key for keys in runs.values() for key in keys}):
            batch: list[str] = []
            batch_rows = 0
            for run_id, keys in runs.items():
                if key not in keys:
                    continue
                # A history is at least one row; where steps count up it is latest step + 1.
                expected = max(1, min(keys[key] + 1, _BULK_ROWS))
                if expected >= _BULK_ROWS or rows_ahead + expected > _ROWS_AHEAD:
                    found[run_id].later.append(key)
                    continue
                if batch and (batch_rows + expected >= _BULK_ROWS or len(batch) == _BULK_RUNS):
                    pending.append((key, batch))
                    batch, batch_rows = [], 0
                batch.append(run_id)
                batch_rows += expected
                rows_ahead += expected
            if batch:
                pending.append((key, batch))
        while pending and self._has_bulk:
            calls = [(k, ids, self._pool.submit(self._bulk, k, ids)) for k, ids in pending]
            pending = []
            for key, ids, call in calls:
                pending += self._settle(key, ids, call, found)

    def _settle(
        self,
        key: str,
        ids: list[str],
        call: Future[pa.Table | None],
        found: dict[str, Histories],
    ) -> list[tuple[str, list[str]]]:
        """Sort one reply's rows to their runs; return what must be asked again."""
        try:
            table = call.result()
        except ServerLostError:
            raise
        except ServerError as error:
            if len(ids) > 1:
                return [(key, ids[: len(ids) // 2]), (key, ids[len(ids) // 2 :])]
            found[ids[0]].failures.append(_failure(ids[0], key, error.message))
            return []
        if table is None:
            self._has_bulk = False
            return []
        if table.num_rows >= _BULK_ROWS:
            if len(ids) > 1:
                return [(key, ids[: len(ids) // 2]), (key, ids[len(ids) // 2 :])]
            found[ids[0]].later.append(key)
            return []
        missing = set(ids)
        start = 0
        for chunk in table.column("run_id").chunks:
            encoded = pc.run_end_encode(chunk)
            begin = 0
            for run_id, end in zip(
                encoded.values.to_pylist(), encoded.run_ends.to_pylist(), strict=True
            ):
                if run_id in found:
                    rows = table.slice(start + begin, end - begin).select(HISTORY.names)
                    found[run_id].tables.setdefault(key, []).append(rows)
                    missing.discard(run_id)
                begin = end
            start += len(chunk)
        for run_id in missing:
            found[run_id].failures.append(_empty(run_id, key))
        return []

    def _bulk(self, key: str, run_ids: list[str]) -> pa.Table | None:
        params = [("run_id", run_id) for run_id in run_ids]
        reply = self._host.get_json(_BULK, [*params, ("metric_key", key)])
        if reply is None:
            return None
        rows = reply.get("metrics") or []
        with translated(f"reading metric {key!r}"):
            ids = pa.array([row["run_id"] for row in rows], pa.string())
            return _columns(key, rows).append_column("run_id", ids)


def _columns(key: str, rows: list[dict[str, Any]]) -> pa.Table:
    # int64 fields are numbers, or strings on servers before 1.23; absent means zero in protobuf.
    return history_table(
        key,
        [int(row.get("step", 0)) for row in rows],
        [int(row.get("timestamp", 0)) for row in rows],
        [float(row.get("value", 0.0)) for row in rows],
    )


def _failure(run_id: str, key: str, reason: str) -> Failure:
    return Failure(Kind.METRIC_HISTORY, f"{run_id}/{key}", reason)


def _empty(run_id: str, key: str) -> Failure:
    return _failure(run_id, key, "the server lists the metric but gives no rows for it")
