"""Traces as rows: the three tables of a part, and the documents that the stream carries.

A ``Trace``'s document has ``info`` and ``assessments``, its spans are documents too; each becomes
one row. Fields that have no column, or another type than their column, go to ``extra`` as JSON, so
that nothing is lost and the way back gives the same documents. A field that is null, an empty list
or an empty object is the same as none. Source: spec/v1/archive.md, "Traces".
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.schema.canonical import canonical_bytes, parse_json
from mlflow_exim_plugin.schema.digests import sha256_of
from mlflow_exim_plugin.schema.objects import LINKS
from mlflow_exim_plugin.schema.rules import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlflow_exim_plugin.schema.objects import Trace

__all__ = [
    "ASSESSMENTS",
    "COLUMNS",
    "SPANS",
    "TABLES",
    "TRACES",
    "TraceRows",
    "problem_of",
    "read_documents",
    "trace_digest",
    "traces_writer",
]

_TEXTS = pa.map_(pa.string(), pa.string())


@dataclass(frozen=True)
class _Column:
    """One column, which holds the field of the same name.

    Attributes:
        kind: ``text``, ``int``, ``bool``, ``texts`` (object of texts), JSON text of an ``object``
            or of a ``list`` of objects.
    """

    name: str
    kind: str
    meaning: str

    @property
    def arrow(self) -> pa.Field:
        types = {"int": pa.int64(), "bool": pa.bool_(), "texts": _TEXTS}
        return pa.field(self.name, types.get(self.kind, pa.string()))


_TRACE_COLUMNS = (
    _Column("request_time_ms", "int", "start, milliseconds since the Unix epoch, UTC"),
    _Column("execution_duration_ms", "int", "duration; null while it is not known"),
    _Column("state", "text", "`OK`, `ERROR`, `IN_PROGRESS` or `STATE_UNSPECIFIED`"),
    _Column("client_request_id", "text", "id that the application gave"),
    _Column("request_preview", "text", "beginning of the request"),
    _Column("response_preview", "text", "beginning of the response"),
    _Column("tags", "texts", "tags"),
    _Column("trace_metadata", "texts", "metadata that never changes"),
    _Column("extra", "object", "JSON object of all other fields"),
)
_SPAN_COLUMNS = (
    _Column("span_id", "text", "span id, 16 hex digits"),
    _Column("parent_span_id", "text", "span id of the parent; null for a root"),
    _Column(
        "otel_trace_id",
        "text",
        "trace id of OpenTelemetry, 32 hex digits; null where the trace id is `tr-` and these",
    ),
    _Column("name", "text", "name"),
    _Column("start_time_ns", "int", "start, nanoseconds since the Unix epoch, UTC"),
    _Column("end_time_ns", "int", "end in the same way; null while it runs"),
    _Column("status_code", "text", "`UNSET`, `OK` or `ERROR`"),
    _Column("status_message", "text", "what went wrong"),
    _Column("attributes", "object", "JSON object of the attributes"),
    _Column("events", "list", "JSON list of the events"),
    _Column("links", "list", "JSON list of the links to other spans"),
    _Column("extra", "object", "JSON object of all other fields"),
)
_ASSESSMENT_COLUMNS = (
    _Column("assessment_id", "text", "assessment id"),
    _Column("assessment_name", "text", "name; the issue id for an issue"),
    _Column("source", "object", "JSON object with `source_type` and `source_id`"),
    _Column("create_time_ms", "int", "milliseconds since the Unix epoch, UTC"),
    _Column("last_update_time_ms", "int", "milliseconds since the Unix epoch, UTC"),
    _Column("feedback", "object", "JSON object with `value` or `error`"),
    _Column("expectation", "object", "JSON object with `value` or `serialized_value`"),
    _Column("issue", "object", "JSON object with `issue_name`"),
    _Column("rationale", "text", "why"),
    _Column("span_id", "text", "span that it speaks of"),
    _Column("overrides", "text", "assessment that it replaces"),
    _Column("valid", "bool", "false when another one replaces it"),
    _Column("metadata", "texts", "metadata"),
    _Column("extra", "object", "JSON object of all other fields"),
)
COLUMNS = {"traces": _TRACE_COLUMNS, "spans": _SPAN_COLUMNS, "assessments": _ASSESSMENT_COLUMNS}
"""Columns that hold fields of the documents, by table."""
_MAPS = ("tags", "trace_metadata")
_TRACE_ID = pa.field("trace_id", pa.string(), nullable=False)

TRACES = pa.schema(
    [
        _TRACE_ID,
        *(column.arrow for column in _TRACE_COLUMNS),
        pa.field("spans", pa.int64()),
        pa.field("assessments", pa.int64(), nullable=False),
        pa.field("content_digest", pa.string(), nullable=False),
    ]
)
"""One row a trace; ``spans`` counts its spans and is null where the source had no payload."""

SPANS = pa.schema([_TRACE_ID, *(column.arrow for column in _SPAN_COLUMNS)])
"""One row a span."""

ASSESSMENTS = pa.schema([_TRACE_ID, *(column.arrow for column in _ASSESSMENT_COLUMNS)])
"""One row an assessment."""

TABLES = {"traces": TRACES, "spans": SPANS, "assessments": ASSESSMENTS}
"""Schema of each table of a part."""

_REPEATING = {
    "traces": ["state", *(f"{c}.key_value.{p}" for c in _MAPS for p in ("key", "value"))],
    "spans": ["trace_id", "name", "status_code"],
    "assessments": ["trace_id", "assessment_name", "source"],
}
"""Columns whose values come again and again; a dictionary of the others would only cost."""

_BATCH_TRACES = 256


class TraceRows:
    """Collects traces as Arrow tables, so that a part waits in little memory.

    Attributes:
        traces: How many were added.
        size_bytes: Bytes of the tables so far.
    """

    def __init__(self) -> None:
        self.traces = 0
        self.size_bytes = 0
        self.spans = 0
        self.assessments = 0
        self._rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
        self._tables: dict[str, list[pa.Table]] = {name: [] for name in TABLES}

    def add(self, trace: Trace, digest: str) -> None:
        """Add one trace, its spans and its assessments."""
        info = {name: value for name, value in trace.info.items() if name != "trace_id"}
        new = {
            "traces": [
                {
                    **_row(info, _TRACE_COLUMNS),
                    "spans": None if trace.spans is None else len(trace.spans),
                    "assessments": len(trace.assessments),
                    "content_digest": digest,
                }
            ],
            "spans": [_row(span, _SPAN_COLUMNS) for span in trace.spans or ()],
            "assessments": [_row(a, _ASSESSMENT_COLUMNS) for a in trace.assessments],
        }
        for row in new["spans"]:
            if trace.id == f"tr-{row.get('otel_trace_id')}":
                del row["otel_trace_id"]
        for name, rows in new.items():
            for row in rows:
                row["trace_id"] = trace.id
            self._rows[name] += rows
        self.traces += 1
        self.spans += len(new["spans"])
        self.assessments += len(new["assessments"])
        if len(self._rows["traces"]) >= _BATCH_TRACES or len(self._rows["spans"]) >= 4096:
            self._settle()

    def tables(self) -> dict[str, pa.Table]:
        """Return the tables of what was added, each sorted as the spec says."""
        self._settle()
        return {
            "traces": pa.concat_tables(self._tables["traces"]).sort_by("trace_id"),
            "spans": _in_order(self._tables["spans"], SPANS),
            "assessments": _in_order(self._tables["assessments"], ASSESSMENTS),
        }

    def _settle(self) -> None:
        for name, rows in self._rows.items():
            if rows:
                table = pa.Table.from_pylist(rows, schema=TABLES[name])
                self._tables[name].append(table)
                self.size_bytes += table.nbytes
                self._rows[name] = []


def _in_order(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    """Sort by trace; the spans or assessments of one keep the order they came in."""
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    number = pa.array(range(table.num_rows), pa.int64())
    ordered = table.append_column("number", number).sort_by(
        [("trace_id", "ascending"), ("number", "ascending")]
    )
    return ordered.drop_columns(["number"])


def traces_writer(sink: Any, table: str) -> pq.ParquetWriter:
    """Open a Parquet writer with the format's recipe for one of ``TABLES``."""
    return pq.ParquetWriter(
        sink,
        TABLES[table],
        version="2.6",
        compression="zstd",
        compression_level=3,
        use_dictionary=_REPEATING[table],
        write_page_index=True,
        write_page_checksum=True,
        data_page_size=1 << 20,
    )


def trace_digest(trace: Trace, attachments: Iterable[tuple[str, int, str]] = ()) -> str:
    """Return what says that a trace is unchanged, whoever packed it and when.

    Args:
        trace: The trace.
        attachments: Path, size in bytes and SHA-256 of each attachment.

    Raises:
        ValueError: A text is none that UTF-8 can hold, or a number is not finite.

    Source: spec/v1/archive.md, "Content digests".
    """
    body: dict[str, Any] = {
        "info": _present(trace.info),
        "assessments": [_present(assessment) for assessment in trace.assessments],
        "spans": None if trace.spans is None else [_present(span) for span in trace.spans],
    }
    listed = sorted(attachments)
    if listed:
        body["attachments"] = [list(entry) for entry in listed]
    return "sha256:" + sha256_of(canonical_bytes(body)).hexdigest()


def problem_of(trace: Trace) -> str:
    """Return what a trace lacks that every one has, empty when it lacks nothing.

    Fields that have another type than their column stand in ``extra``, so that columns alone do not
    say that a document is as readers expect it.

    Source: spec/v1/archive.md, "Traces".
    """
    fields: list[tuple[dict[str, Any], dict[str, type], str]] = [
        (trace.info, _OF_INFO, "the trace"),
        *((a, _OF_ASSESSMENT, "an assessment") for a in trace.assessments),
    ]
    for span in trace.spans or ():
        fields.append((span, _OF_SPAN, f"span {span.get('span_id')}"))
        for name, of in (("events", _OF_EVENT), ("links", _OF_LINK)):
            listed = span.get(name) or []
            if not isinstance(listed, list) or not all(isinstance(e, dict) for e in listed):
                return f"{name} of span {span.get('span_id')} is no list of objects"
            fields += [(entry, of, f"{name} of span {span.get('span_id')}") for entry in listed]
    for name in LINKS & trace.info.keys():
        listed = trace.info[name]
        if not isinstance(listed, list) or not all(isinstance(e, str) for e in listed):
            return f"{name} of the trace is no list of texts"
    for document, types, owner in fields:
        for name, kind in types.items():
            value = document.get(name)
            if value is None and kind is dict and (types is _OF_INFO or types is _OF_SPAN):
                continue  # a column without a value is the same as an empty one
            if not isinstance(value, kind) or type(value) is bool:
                return f"{name} of {owner} is {value!r:.40}"
    return ""


def read_documents(table: str, rows: Iterable[dict[str, Any]], path: str) -> Iterator[Any]:
    """Turn rows of one of ``TABLES`` back into documents.

    Args:
        table: Which table.
        rows: Rows as Arrow gives them.
        path: Member path, for messages.

    Yields:
        The documents; of fields that may be empty, those that readers look for are there.

    Raises:
        InvalidArchiveError: A JSON column does not hold JSON.
    """
    for row in rows:
        document = copy.deepcopy(_EMPTY[table]) | _document(row, COLUMNS[table], path)
        trace_id = str(row["trace_id"])
        if table == "traces":
            document["trace_id"] = trace_id
        elif table == "spans" and trace_id.startswith("tr-"):
            document.setdefault("otel_trace_id", trace_id.removeprefix("tr-"))
        yield document


_OF_INFO: dict[str, type] = {"tags": dict, "trace_metadata": dict}
_OF_ASSESSMENT: dict[str, type] = {"assessment_name": str}
_OF_SPAN: dict[str, type] = {
    "span_id": str,
    "otel_trace_id": str,
    "name": str,
    "start_time_ns": int,
    "status_code": str,
    "attributes": dict,
}
_OF_EVENT: dict[str, type] = {"name": str, "time_ns": int, "attributes": dict}
_OF_LINK: dict[str, type] = {"trace_id": str, "span_id": str, "attributes": dict}
"""What is always there, and its type."""

_EMPTY: dict[str, dict[str, Any]] = {
    "traces": {"tags": {}, "trace_metadata": {}},
    "spans": {
        "parent_span_id": None,
        "end_time_ns": None,
        "status_message": None,
        "attributes": {},
        "events": [],
        "links": [],
    },
    "assessments": {},
}
"""Fields that a document always has, where a row has none."""

_JSON = ("object", "list")
_PYTHON = {"text": str, "bool": bool}


def _present(document: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in document.items() if v is not None and v not in ([], {})}


def _fits(value: Any, kind: str) -> bool:
    if kind == "object":
        return isinstance(value, dict)
    if kind == "list":
        return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)
    if kind == "texts":
        return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
    if kind == "int":
        return type(value) is int and -(2**63) <= value < 2**63
    return isinstance(value, _PYTHON[kind])


def _row(document: dict[str, Any], columns: tuple[_Column, ...]) -> dict[str, Any]:
    """Take a document apart into columns; what fits into none goes to ``extra``."""
    rest = _present(document)
    row: dict[str, Any] = {}
    for column in columns[:-1]:
        if column.name in rest and _fits(rest[column.name], column.kind):
            value = rest.pop(column.name)
            if column.kind in _JSON:
                value = _json(value)
            elif column.kind == "texts":
                value = list(value.items())
            row[column.name] = value
    if rest:
        row["extra"] = _json(rest)
    return row


def _document(row: dict[str, Any], columns: tuple[_Column, ...], path: str) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for column in columns:
        value = row[column.name]
        if value is None:
            continue
        if column.kind in _JSON:
            value = parse_json(value.encode("utf-8"), path)
            if not _fits(value, column.kind):
                raise _broken(path, f"column {column.name} does not hold JSON of its kind")
        elif column.kind == "texts":
            value = dict(value)
        document[column.name] = value
    extra: dict[str, Any] = document.pop("extra", {})
    return document | extra


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _broken(path: str, message: str) -> InvalidArchiveError:
    return InvalidArchiveError(
        f"{path}: {message}",
        "run `verify` to see all damage",
        [Finding("E063", path, message)],
    )
