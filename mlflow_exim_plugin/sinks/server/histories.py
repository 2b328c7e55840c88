"""One run's metric rows to a deployment: full batches out, every row compared as it comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.api.halving import send_halving
from mlflow_exim_plugin.host.api.histories import read_history
from mlflow_exim_plugin.host.api.writing import BATCH_METRICS, HostWriter
from mlflow_exim_plugin.host.sql.stored_values import as_stored
from mlflow_exim_plugin.schema.objects import Failure, Kind, Loss
from mlflow_exim_plugin.schema.tables import HISTORY, sort_history

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.metric_rows import RunRows
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["HistoryLog"]

_ROWS_HELD = 200_000
"""Rows that wait to be compared; a longer history is held whole, but only one."""
_IDENTITY = ["key", "step", "timestamp", "bits"]


class HistoryLog:
    """Logs the histories of one run.

    Args:
        writer: Single writes to the deployment.
        source_id: The run at the source, for the report.
        run_id: The run at the target.
        report: Counts and names what happens.
        resumes: Whether rows may be there already.
        is_strict: Whether rows that the deployment refuses are a failure.
        dry_run: Say what the target would keep of them, and log nothing.
    """

    def __init__(
        self,
        writer: HostWriter,
        source_id: str,
        run_id: str,
        report: Report,
        *,
        resumes: bool,
        is_strict: bool = False,
        dry_run: bool = False,
    ) -> None:
        self._writer = writer
        self._source_id = source_id
        self._run_id = run_id
        self._report = report
        self._resumes = resumes
        self._is_strict = is_strict
        self._refused: dict[str, list[tuple[pa.Table, str]]] = {}
        self._dry_run = dry_run
        self._unsent: list[pa.Table] = []
        self._unsent_rows = 0
        self._uncompared: dict[str, list[pa.Table]] = {}
        self._uncompared_rows = 0
        self._whole = True

    def add(self, run_rows: RunRows) -> None:
        """Log rows, sorted, keys going forward from call to call.

        Raises:
            ServerError: The target refused.
        """
        for key, rows in run_rows.by_key():
            if self._uncompared_rows >= _ROWS_HELD and key not in self._uncompared:
                self._settle()
            kept = self._without_refused(key, rows)
            self._uncompared.setdefault(key, []).append(kept)
            self._uncompared_rows += kept.num_rows
            if self._dry_run:
                continue
            missing = self._missing(key, kept) if self._resumes else kept
            self._unsent.append(missing)
            self._unsent_rows += missing.num_rows
        self._send(at_least=BATCH_METRICS)

    def finish(self) -> bool:
        """Send and compare what is left; return whether every row arrived."""
        self._settle()
        return self._whole

    def _settle(self) -> None:
        self._send(at_least=1)
        for key, tables in self._uncompared.items():
            self._compare(key, pa.concat_tables(tables))
        self._uncompared, self._uncompared_rows = {}, 0

    def _send(self, *, at_least: int) -> None:
        if self._unsent_rows < at_least:
            return
        table = pa.concat_tables(self._unsent)
        start = 0
        while table.num_rows - start >= at_least:
            self._log(table.slice(start, BATCH_METRICS))
            start += BATCH_METRICS
        rest = table.slice(start)
        self._unsent, self._unsent_rows = [rest], rest.num_rows

    def _log(self, rows: pa.Table) -> None:
        """Log a batch; of one that is refused the rows that are at fault are found."""

        def send(places: list[int]) -> None:
            self._writer.log_metrics(self._run_id, rows.slice(places[0], len(places)))

        batch = list(range(rows.num_rows))
        for place, error in send_halving([batch], send, self._writer.host.refused):
            row = rows.slice(place, 1)
            key = row.column("key")[0].as_py()
            self._refused.setdefault(key, []).append((row, error.message))

    def _without_refused(self, key: str, rows: pa.Table) -> pa.Table:
        kept = rows.filter(pc.greater_equal(rows.column("timestamp"), 0))
        if refused := rows.num_rows - kept.num_rows:
            self._fail(key, f"{refused} rows have a time before 1970, which MLflow's API refuses")
        return kept

    def _missing(self, key: str, rows: pa.Table) -> pa.Table:
        """Return the rows that an interrupted unpack, or an older archive, left out."""
        there = as_stored(read_history(self._writer.host, self._run_id, key))
        if not there.num_rows:
            return rows
        wanted = as_stored(rows).append_column("at", pa.array(range(rows.num_rows)))
        left = _bits(wanted).join(_bits(there), _IDENTITY, join_type="left anti")
        return rows.take(left.column("at").combine_chunks().sort())

    def _compare(self, key: str, sent: pa.Table) -> None:
        """Read one history back and compare it row by row."""
        sent = self._taken(key, sent)
        if not sent.num_rows:
            return
        try:
            there = sort_history(self._read_back(key, sent))
        except ServerError as error:
            self._fail(key, error.message)
            return
        difference = _difference(sort_history(sent), there)
        if difference is None:
            self._fail(key, f"{sent.num_rows} rows were sent, {there.num_rows} others came back")
            return
        self._report.written(Kind.METRIC_HISTORY)
        self._report.add_rows(sent.num_rows)
        if difference:
            self._report.lost(Loss(Kind.METRIC_HISTORY, f"{self._source_id}/{key}", difference))

    def _taken(self, key: str, sent: pa.Table) -> pa.Table:
        """Return the rows of a history without those that were refused, which are named."""
        if key not in self._refused:
            return sent
        rows, reasons = zip(*self._refused.pop(key), strict=True)
        wanted = sent.append_column("at", pa.array(range(sent.num_rows)))
        left = _bits(wanted).join(_bits(pa.concat_tables(rows)), _IDENTITY, join_type="left anti")
        taken = sent.take(left.column("at").combine_chunks().sort())
        what = f"the target refuses {sent.num_rows - taken.num_rows} rows: {reasons[0]}"
        if self._is_strict:
            self._fail(key, what)
        elif taken.num_rows:
            self._report.lost(Loss(Kind.METRIC_HISTORY, f"{self._source_id}/{key}", what))
        else:
            self._report.skipped(Kind.METRIC_HISTORY, f"{self._source_id}/{key}", what)
        return taken

    def _read_back(self, key: str, sent: pa.Table) -> pa.Table:
        host = self._writer.host
        if not self._dry_run:
            return read_history(host, self._run_id, key)
        if host.is_server_of_files or not (host.is_http or host.engine):
            return sent  # files keep every row as it came
        return as_stored(sent).group_by(HISTORY.names).aggregate([]).select(HISTORY.names)

    def _fail(self, key: str, reason: str) -> None:
        self._report.failed(Failure(Kind.METRIC_HISTORY, f"{self._source_id}/{key}", reason))
        self._whole = False


def _bits(rows: pa.Table) -> pa.Table:
    """Return rows with the value as its bits, which compare NaN and zeros exactly."""
    value = rows.column("value").combine_chunks()
    return rows.append_column("bits", value.view(pa.uint64())).drop_columns(["value"])


def _distinct(rows: pa.Table) -> pa.Table:
    return _bits(as_stored(rows)).group_by(_IDENTITY).aggregate([])


def _difference(sent: pa.Table, there: pa.Table) -> str | None:
    """Say how a sorted history came back: empty for exactly, None for wrongly."""
    if _bits(sent).equals(_bits(there)):
        return ""
    wanted, found = _distinct(sent), _distinct(there)
    same = wanted.join(found, _IDENTITY, join_type="inner").num_rows
    if not same == wanted.num_rows == there.num_rows:
        return None
    notes = []
    if repeated := sent.num_rows - there.num_rows:
        notes.append(f"{repeated} identical rows are kept once")
    if pc.any(pc.is_inf(sent.column("value"))).as_py():
        notes.append("infinities are kept as the largest double")
    return ", ".join(notes or ["negative zeros are kept as zeros"])
