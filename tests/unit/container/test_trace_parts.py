from __future__ import annotations

import gc
import io
import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.container.writer import ArchiveWriter
from mlflow_exim_plugin.errors import InvalidArchiveError, NotFoundError
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.envelope import System
from mlflow_exim_plugin.schema.objects import Kind, Trace
from mlflow_exim_plugin.schema.report import Report
from mlflow_exim_plugin.sinks.archive.sink import ArchiveSink
from mlflow_exim_plugin.sources.archive.archive import Archive
from mlflow_exim_plugin.sources.archive.source import ArchiveSource
from mlflow_exim_plugin.transfer import transfer
from samples import generate, mlflow3

if TYPE_CHECKING:
    from collections.abc import Iterator


class Stream:
    """A source that gives what it was made of."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def stream(self, _: Selection) -> Iterator[Any]:
        yield from self._items


def packed(items: Any) -> tuple[bytes, Report]:
    out = io.BytesIO()
    report = Report()
    with ArchiveWriter(out, base_directory="a", workers=0) as writer:
        sink = ArchiveSink(writer, System.now("test", "3", "x"))
        transfer(Stream(items), sink, Selection(), report=report)
    return out.getvalue(), report


def many(count: int, text: str = "") -> Iterator[Any]:
    yield generate.experiment("1", "iris")
    for number in range(count):
        otel_id = f"{number * 2654435761 % 2**64:032x}"
        attributes = {"mlflow.spanInputs": f"{text}{number}"}
        spans = [mlflow3.span(n, otel_trace_id=otel_id, attributes=attributes) for n in range(5)]
        info = {"trace_id": f"tr-{otel_id}", "request_time_ms": number}
        yield Trace({"info": info, "assessments": []}, "1", spans)


def opened(data: bytes) -> Archive:
    return Archive(ArchiveReader.from_source(generate.Bytes(data)))


@pytest.mark.exhaustive
def test_traces_fill_several_parts_and_all_come_back() -> None:
    data, report = packed(many(45_000))
    assert report.ok
    assert report.counts[Kind.TRACE].written == 45_000
    assert report.counts[Kind.SPAN].written == 225_000
    with opened(data) as archive:
        parts = [part.mlflow.traces for part in archive.trace_parts()]
        assert sum(parts) == 45_000
        assert max(parts) <= 20_000
        assert len(parts) > 2
        ids = {trace.id for trace in archive.traces("1")}
        assert len(ids) == 45_000
        wanted = f"tr-{44_999 * 2654435761 % 2**64:032x}"
        assert archive.trace(wanted).info["request_time_ms"] == 44_999
        with pytest.raises(NotFoundError):
            archive.trace("tr-none")


@pytest.mark.usefixtures("little_to_collect")
def test_a_part_waits_in_little_memory_however_large_its_spans() -> None:
    gc.collect()
    pa.default_memory_pool().release_unused()
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    highest = 0

    def watched() -> Iterator[Any]:
        nonlocal highest
        for item in many(3000, "x" * 20_000):
            highest = max(highest, pa.total_allocated_bytes() - before)
            yield item

    data, report = packed(watched())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.counts[Kind.TRACE].written == 3000
    assert highest < 160 << 20  # of 300 MB of spans
    assert peak < 200 << 20
    with opened(data) as archive:
        assert len(list(archive.trace_parts())) >= 5


def test_a_trace_that_cannot_be_kept_is_one_named_failure() -> None:
    good, bad = (mlflow3.trace(name, [], tags={}) for name in ("good", "bad"))
    bad.document["info"]["request_preview"] = "half a pair \ud800"
    data, report = packed([generate.experiment("1", "iris"), bad, good])
    assert [(f.kind, f.id) for f in report.failures] == [(Kind.TRACE, "bad")]
    with opened(data) as archive:
        assert [trace.id for trace in archive.traces()] == ["good"]


def streamed(data: bytes, selection: Selection | None = None) -> list[Any]:
    with opened(data) as archive:
        return list(ArchiveSource(archive).stream(selection or Selection()))


def test_a_damaged_trace_is_named_and_the_others_come() -> None:
    def change(rows: dict[str, list[dict[str, Any]]]) -> None:
        rows["spans"][0]["name"] = "forged"

    items = streamed(generate.traces(change).data())
    assert [(f.kind, f.count) for f in items if hasattr(f, "reason")] == [(Kind.TRACE, 1)]
    assert sum(isinstance(item, Trace) for item in items) == 2


def test_rows_that_belong_to_nobody_cost_the_rest_of_their_part_and_are_counted() -> None:
    def change(rows: dict[str, list[dict[str, Any]]]) -> None:
        rows["spans"][-1]["trace_id"] = "tr-zzz"

    items = streamed(generate.traces(change).data())
    failed = sum(f.count for f in items if hasattr(f, "reason"))
    came = sum(isinstance(item, Trace) for item in items)
    assert (came, failed) == (1, 2)


@pytest.mark.parametrize("table", ["traces", "spans", "assessments"])
def test_a_table_that_is_gone_is_named(table: str) -> None:
    tree = generate.Tree("mlflow3")
    del tree.members[f"data/experiments/1/traces/{table}-00000.parquet"]
    with opened(tree.forgery().data()) as archive, pytest.raises(InvalidArchiveError) as caught:
        list(archive.traces())
    assert [finding.code for finding in caught.value.findings] == ["E062"]


def test_selections_leave_traces_out_or_take_those_of_a_run() -> None:
    data = generate.good()["mlflow3"]
    kinds = [getattr(item, "kind", None) for item in streamed(data, Selection(traces=False))]
    assert Kind.TRACE not in kinds
    assert Kind.REVIEW_QUEUE in kinds
    of_run = streamed(data, Selection(runs=(mlflow3.RUN,)))
    assert [str(item.kind) for item in of_run] == ["experiment", "run", "trace", "trace", "trace"]
    assert json.dumps(of_run[2].document)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start_time_ns", 1.5),
        ("span_id", None),
        ("name", 7),
        ("events", [{"name": "x", "attributes": {}}]),
        ("links", ["x"]),
        ("attributes", [1]),
    ],
)
def test_spans_that_no_reader_could_use_cost_themselves_alone(field: str, value: Any) -> None:
    strange = mlflow3.trace("strange", [mlflow3.span(1, **{field: value})])
    data, report = packed([generate.experiment("1", "iris"), strange])
    assert [(f.kind, f.id) for f in report.failures] == [(Kind.SPAN, "strange")]
    with opened(data) as archive:
        (trace,) = archive.traces()
        assert (trace.spans, len(trace.assessments)) == (None, 2)
