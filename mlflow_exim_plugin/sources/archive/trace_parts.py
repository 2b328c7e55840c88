"""Parts of traces read back: three sorted tables merged into one trace after the other."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.schema.digests import raw_digest
from mlflow_exim_plugin.schema.objects import Trace
from mlflow_exim_plugin.schema.rules import Finding
from mlflow_exim_plugin.schema.traces import (
    TABLES,
    problem_of,
    read_documents,
    trace_digest,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mlflow_exim_plugin.container.members import Members
    from mlflow_exim_plugin.schema.envelope import AttachmentEntry, TableEntry, TracePartEnvelope
    from mlflow_exim_plugin.schema.stored_tables import StoredTable

__all__ = [
    "StoredTrace",
    "hidden_traces",
    "holds_trace",
    "read_part",
    "trace_digests",
    "trace_ids",
    "trace_rows",
]

_BATCH_ROWS, _BATCH_BYTES = 1024, 4 << 20


@dataclass
class StoredTrace:
    """One trace of a part.

    Attributes:
        trace: The trace, its attachments left out.
        attachments: Their entries.
        digest: Content digest that the part states.
    """

    trace: Trace
    attachments: list[AttachmentEntry]
    digest: str

    def check(self, path: str) -> None:
        """Check the trace's digest (E064) and that it is as readers expect it (E063).

        Raises:
            InvalidArchiveError: It is not what the part states, or lacks a field.
        """
        contents = ((a.path, a.size_bytes, a.sha256) for a in self.attachments)
        if (found := trace_digest(self.trace, contents)) != self.digest:
            message = f"trace {self.trace.id} hashes to {found}, not {self.digest}"
            raise _broken("E064", path, message)
        if problem := problem_of(self.trace):
            raise _broken("E063", path, f"trace {self.trace.id}: {problem}")


def read_part(reader: Members, envelope: TracePartEnvelope, path: str) -> Iterator[StoredTrace]:
    """Yield the traces of one part, by id.

    Args:
        reader: Open archive.
        envelope: The part's envelope.
        path: Its member, for messages.

    Raises:
        InvalidArchiveError: A table is not there or not as the format has it (E062), or its rows
            do not belong together (E063).
    """
    attachments: dict[str, list[AttachmentEntry]] = {}
    for entry in envelope.info.attachments:
        attachments.setdefault(entry.trace_id, []).append(entry)
    spans = _Grouped(reader, envelope, "spans", path)
    assessments = _Grouped(reader, envelope, "assessments", path)
    last: str | None = None
    hidden = hidden_traces(reader, envelope)
    for row, info in _rows(reader, envelope, "traces", path):
        trace_id = row["trace_id"]
        if last is not None and trace_id <= last:
            raise _broken("E063", path, f"trace {trace_id} comes after {last}")
        last = trace_id
        trace = Trace(
            {"info": info, "assessments": assessments.take(trace_id, row["assessments"])},
            envelope.mlflow.experiment_id,
            spans.take(trace_id, row["spans"] or 0) if row["spans"] is not None else None,
        )
        trace.digest = row["content_digest"]
        stored = StoredTrace(trace, attachments.pop(trace_id, []), row["content_digest"])
        if trace_id not in hidden:
            yield stored
    spans.end()
    assessments.end()
    if attachments:
        raise _broken("E063", path, f"attachments belong to no trace: {min(attachments)}")


class _Grouped:
    """Rows of a table, handed out trace by trace."""

    def __init__(self, reader: Members, envelope: TracePartEnvelope, table: str, path: str) -> None:
        self._path = path
        self._table = table
        self._rows = _rows(reader, envelope, table, path)
        self._next = next(self._rows, None)

    def take(self, trace_id: str, count: int) -> list[dict[str, Any]]:
        taken: list[dict[str, Any]] = []
        while self._next is not None and self._next[0]["trace_id"] == trace_id:
            if len(taken) == count:
                message = f"trace {trace_id} has more than {count} rows of {self._table}"
                raise _broken("E063", self._path, message)
            taken.append(self._next[1])
            self._next = next(self._rows, None)
        if len(taken) != count:
            message = f"trace {trace_id} has {len(taken)} rows of {self._table}, not {count}"
            raise _broken("E063", self._path, message)
        return taken

    def end(self) -> None:
        if self._next is not None:
            trace_id = self._next[0]["trace_id"]
            raise _broken("E063", self._path, f"{self._table} of {trace_id} belong to no trace")


def holds_trace(reader: Members, envelope: TracePartEnvelope, trace_id: str) -> bool:
    """Tell whether a part has a trace, from one column of its traces.

    Raises:
        InvalidArchiveError: The table is not there or not as the format has it.
    """
    if trace_id in hidden_traces(reader, envelope):
        return False
    ids = _column(reader, envelope, "trace_id")
    return any(pc.any(pc.equal(part, trace_id)).as_py() for part in ids)


def trace_ids(reader: Members, envelope: TracePartEnvelope) -> Iterator[str]:
    """Yield the ids of the traces of a part.

    Raises:
        InvalidArchiveError: The table is not there or not as the format has it.
    """
    hidden = hidden_traces(reader, envelope)
    for part in _column(reader, envelope, "trace_id"):
        yield from (found for found in part.to_pylist() if found not in hidden)


def trace_digests(reader: Members, envelope: TracePartEnvelope) -> bytes:
    """Return the content digests that a part states of its traces, 32 bytes each.

    Raises:
        InvalidArchiveError: The table is not there or not as the format has it.
    """
    digests = bytearray()
    hidden = pa.array(sorted(hidden_traces(reader, envelope)), pa.string())
    names = ["content_digest", "trace_id"] if len(hidden) else ["content_digest"]
    try:
        for part in trace_rows(reader, envelope, names):
            stated = part.column("content_digest")
            if len(hidden):
                stated = stated.filter(pc.invert(pc.is_in(part.column("trace_id"), hidden)))
            digests += b"".join(map(raw_digest, stated.to_pylist()))
    except ValueError as error:
        raise _broken("E064", envelope.info.tables["traces"].member, str(error)) from None
    return bytes(digests)


def trace_rows(
    reader: Members, envelope: TracePartEnvelope, columns: Sequence[str]
) -> Iterator[pa.Table]:
    """Yield some columns of a part's traces, a row group at a time.

    Raises:
        InvalidArchiveError: The table is not there or not as the format has it.
    """
    if (entry := envelope.info.tables.get("traces")) is not None:
        with _opened(reader, entry, "traces") as file:
            for number in range(len(file.groups)):
                yield file.row_group(number, columns)


def _column(reader: Members, envelope: TracePartEnvelope, name: str) -> Iterator[pa.ChunkedArray]:
    """Yield one column of a part's traces, a row group at a time."""
    for table in trace_rows(reader, envelope, [name]):
        yield table.column(0)


def hidden_traces(reader: Members, envelope: TracePartEnvelope) -> frozenset[str]:
    """Return the ids of a part's traces that are not to be seen where it is read."""
    entry = envelope.info.tables.get("traces")
    return frozenset() if entry is None else reader.hidden_traces(entry.member)


@contextlib.contextmanager
def _opened(reader: Members, entry: TableEntry, table: str) -> Iterator[StoredTable]:
    """Open a table and check what it says of itself."""
    member = entry.member
    if member not in reader:
        raise _broken("E062", member, "is named by a part but is not in the archive")
    file = reader.open_table(member, TABLES[table], "E062")
    with contextlib.closing(file):
        if file.num_rows != entry.rows:
            message = f"has {file.num_rows} rows, its part says {entry.rows}"
            raise _broken("E063", member, message)
        yield file


def _rows(
    reader: Members, envelope: TracePartEnvelope, table: str, path: str
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield each row of a table as Arrow has it and as a document."""
    entry = envelope.info.tables.get(table)
    if entry is None:
        if table == "traces":
            raise _broken("E062", path, "it names no table of traces")
        return
    with _opened(reader, entry, table) as file:
        for number in range(len(file.groups)):
            group = file.row_group(number)
            # A row of JSON takes many times its text.
            at_once = _BATCH_BYTES * len(group) // max(group.nbytes, 1)
            for batch in group.to_batches(max(1, min(_BATCH_ROWS, at_once))):
                rows = batch.to_pylist()
                yield from zip(rows, read_documents(table, rows, entry.member), strict=True)


def _broken(code: str, path: str, message: str) -> InvalidArchiveError:
    return InvalidArchiveError(
        f"{path}: {message}", "run `verify` to see all damage", [Finding(code, path, message)]
    )
