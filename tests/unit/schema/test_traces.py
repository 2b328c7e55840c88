from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.schema.objects import Trace
from mlflow_exim_plugin.schema.traces import TABLES, TraceRows, read_documents, trace_digest

OTEL = "0123456789abcdef" * 2


def trace(trace_id: str = f"tr-{OTEL}", **parts: Any) -> Trace:
    info = {"trace_id": trace_id, **parts.pop("info", {})}
    assessments = parts.pop("assessments", [])
    return Trace({"info": info, "assessments": assessments}, "1", **parts)


def through_tables(*traces: Trace) -> list[Trace]:
    """Put traces into tables and take them out again, each with its spans."""
    rows = TraceRows()
    for item in traces:
        rows.add(item, trace_digest(item))
    tables = {name: table.to_pylist() for name, table in rows.tables().items()}
    documents = {name: list(read_documents(name, tables[name], "m")) for name in TABLES}
    found = []
    for row, info in zip(tables["traces"], documents["traces"], strict=True):

        def of(name: str, trace_id: str = row["trace_id"]) -> list[dict[str, Any]]:
            pairs = zip(tables[name], documents[name], strict=True)
            return [document for r, document in pairs if r["trace_id"] == trace_id]

        item = Trace({"info": info, "assessments": of("assessments")}, "1")
        item.spans = None if row["spans"] is None else of("spans")
        assert trace_digest(item) == row["content_digest"]
        found.append(item)
    return found


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["request_time_ms", "state", "tags", "trace_metadata", "x_later", "attributes", "events",
     "otel_trace_id", "source", "valid", "metadata", "name", "extra", "end_time_ns"]
)  # fmt: skip
DOCUMENT = st.dictionaries(FIELDS, VALUE, max_size=8)


def present(document: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in document.items() if v is not None and v not in ([], {})}


@settings(deadline=None)
@given(DOCUMENT, st.none() | st.lists(DOCUMENT, max_size=3), st.lists(DOCUMENT, max_size=3))
def test_any_document_comes_back_from_its_row(
    info: dict[str, Any], spans: list[dict[str, Any]] | None, assessments: list[dict[str, Any]]
) -> None:
    before = trace("any id", info=info, spans=spans, assessments=assessments)
    (after,) = through_tables(before)
    assert json.dumps(present(after.info), sort_keys=True) == json.dumps(
        present(before.info), sort_keys=True
    )
    assert after.assessments == [present(document) for document in assessments]
    if spans is None:
        assert after.spans is None
    else:
        assert [present(span) for span in after.spans or ()] == [present(span) for span in spans]


def test_traces_are_sorted_and_their_spans_keep_their_order() -> None:
    spans = [{"span_id": number, "otel_trace_id": OTEL} for number in ("b", "a", "c")]
    traces = through_tables(
        trace("tr-z", spans=spans), trace(spans=spans), trace("tr-a", spans=[]), trace("é")
    )
    assert [item.id for item in traces] == [f"tr-{OTEL}", "tr-a", "tr-z", "é"]
    assert [present(s) for s in traces[0].spans or ()] == spans
    assert traces[0].spans == traces[2].spans
    assert (traces[1].spans, traces[3].spans) == ([], None)


def test_the_trace_id_of_opentelemetry_is_not_stored_twice() -> None:
    rows = TraceRows()
    for item in (
        trace(spans=[{"span_id": "1", "otel_trace_id": OTEL}]),
        trace("other", spans=[{"span_id": "2", "otel_trace_id": OTEL}]),
    ):
        rows.add(item, trace_digest(item))
    column = rows.tables()["spans"].column("otel_trace_id").to_pylist()
    assert column == [OTEL, None]


def test_a_digest_sees_every_part() -> None:
    one = trace(spans=[{"span_id": "1"}], assessments=[{"assessment_id": "a"}])
    others = [
        trace("other", spans=[{"span_id": "1"}], assessments=[{"assessment_id": "a"}]),
        trace(spans=[{"span_id": "2"}], assessments=[{"assessment_id": "a"}]),
        trace(spans=[{"span_id": "1"}], assessments=[]),
        trace(spans=[], assessments=[{"assessment_id": "a"}]),
        trace(spans=None, assessments=[{"assessment_id": "a"}]),
    ]
    digests = {trace_digest(item) for item in (one, *others)}
    digests.add(trace_digest(one, [("attachments/a", 1, "0" * 64)]))
    assert len(digests) == len(others) + 2
    assert trace_digest(one, ()) == trace_digest(one)


@pytest.mark.parametrize("value", [float("nan"), "\ud800"])
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"surrogates|JSON"):
        trace_digest(trace(spans=[{"attributes": {"x": value}}]))


def test_a_column_that_is_no_json_is_named() -> None:
    rows = TraceRows()
    item = trace(spans=[{"attributes": {"x": 1}}], info={"x_later": 1})
    rows.add(item, trace_digest(item))
    tables = {name: table.to_pylist() for name, table in rows.tables().items()}
    tables["spans"][0]["attributes"] = "{"
    tables["traces"][0]["extra"] = "[]"
    for name, code in (("spans", "E050"), ("traces", "E063")):
        with pytest.raises(InvalidArchiveError) as caught:
            list(read_documents(name, tables[name], "member"))
        assert [finding.code for finding in caught.value.findings] == [code]
