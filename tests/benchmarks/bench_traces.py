"""Traces over HTTP against the calls that any reader must make, in the same run.

    python -m tests.benchmarks.bench_traces [--traces N] [--spans N] [--jobs N] [--root FOLDER]
                                            [--only pack|unpack] [--repeat N]

The floor of reading is ``traces/search`` and ``traces/batchGet`` with as many connections as we
use, the replies thrown away. That of writing is the same spans by OTLP, 200 traces to a call, and
``StartTraceV3`` for each trace, into an empty server: spans first as MLflow's clients write, and
infos first, which servers take in less time, but change where spans last longer than their trace.
Beside them: our reading of the same traces, whole packs and unpacks by the real command, and their
peak memory.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sqlite3
import sys
import tempfile
import time
import uuid
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import requests
from mlflow import MlflowClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.benchmarks.bench_pack import import_seconds, measured, packed
from tests.servers import Server, start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

PAGE = 500
BATCH = 50
START_NS = 1_700_000_000_000_000_000
READ = """
import json, resource, sys, time
from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin.schema.objects import Trace
from mlflow_exim_plugin.sources.server.source import ServerSource
from mlflow_exim_plugin.options import (Selection)
source = ServerSource(Host(sys.argv[1], create=False), jobs=int(sys.argv[2]))
import mlflow.store.artifact.artifact_repository_registry
start = time.perf_counter()
found = [0, 0]
for item in source.stream(Selection()):
    if isinstance(item, Trace):
        found[0] += 1
        found[1] += len(item.spans)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
print(json.dumps({"seconds": seconds, "found": found, "peak_mb": peak}))
"""


def filled(folder: Path, traces: int, spans: int) -> tuple[Server, str]:
    """Start a server that has traces, and return it and their experiment.

    The server itself writes one of them by OTLP. Its rows are copied with the ids, times and texts
    that the server would have given to the others: it would need some 18 ms for each. Every second
    one lasts a millisecond less long than its spans, as MLflow's clients round.
    """
    mould = 1_234_567
    identity = uuid.uuid4().bytes
    with start_server(folder) as server:
        experiment = str(MlflowClient(server.url, server.url).create_experiment("bench"))
        response = requests.post(
            f"{server.url}/v1/traces",
            data=_request([(mould, identity)], spans),
            headers={
                "Content-Type": "application/x-protobuf",
                "x-mlflow-experiment-id": experiment,
            },
            timeout=300,
        )
        response.raise_for_status()
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        for table, column in (
            ("trace_info", "request_id"),
            ("trace_tags", "request_id"),
            ("trace_request_metadata", "request_id"),
            ("spans", "trace_id"),
        ):
            of_mould = f"FROM {table} WHERE {column} = ?"
            read = database.execute(f"SELECT * {of_mould}", [f"tr-{identity.hex()}"])
            # What is computed from other columns cannot be set.
            kept = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
            names = [entry[0] for entry in read.description]
            rows = [{n: v for n, v in zip(names, row, strict=True) if n in kept} for row in read]
            database.execute(f"DELETE {of_mould}", [f"tr-{identity.hex()}"])
            if rows:
                columns = list(rows[0])
                database.executemany(
                    f"INSERT INTO {table} ({', '.join(columns)}) "
                    f"VALUES ({', '.join('?' * len(columns))})",
                    (
                        [_cast(row[name], mould, identity, number) for name in columns]
                        for number in range(traces)
                        for row in rows
                    ),
                )
        database.execute(
            "UPDATE trace_info SET execution_time_ms = execution_time_ms - 1 "
            "WHERE timestamp_ms % 2 = 0"
        )
    return start_server(folder), experiment


def _cast(value: Any, mould: int, identity: bytes, number: int) -> Any:
    """Return what a field of the trace ``mould`` would be in the trace ``number``."""
    if not isinstance(value, int | str):
        return value
    its = uuid.uuid5(uuid.NAMESPACE_OID, str(number)).bytes
    text = str(value)
    for old, new in (
        (identity.hex(), its.hex()),
        (base64.b64encode(identity).decode(), base64.b64encode(its).decode()),
        *(
            (str(START_NS // 1_000_000 + mould + late), str(START_NS // 1_000_000 + number + late))
            for late in (0, 1)
        ),
        (str(mould), str(number)),
        (str(mould)[::-1], str(number)[::-1]),
    ):
        text = text.replace(old, new)
    return type(value)(text)


def _request(traces: list[tuple[int, bytes]], spans: int) -> bytes:
    """Return the OTLP request for traces with these numbers and ids."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number, trace_id in traces:
        for index in range(spans):
            span = scope.spans.add(
                trace_id=trace_id,
                span_id=(index + 1).to_bytes(8, "big"),
                name=f"step {index}",
                start_time_unix_nano=START_NS + number * 1_000_000 + index,
                end_time_unix_nano=START_NS + number * 1_000_000 + 1_500_000 + index,
            )
            if index:
                span.parent_span_id = (1).to_bytes(8, "big")
            span.status.code = Status.STATUS_CODE_OK
            for key, value in _attributes(number, index).items():
                span.attributes.add(key=key).value.string_value = json.dumps(value)
    return request.SerializeToString()


def _attributes(number: int, index: int) -> dict[str, Any]:
    text = f"question {number} about step {index}: " + "the quick brown fox jumps " * 8
    return {
        "mlflow.spanType": "LLM" if index else "CHAIN",
        "mlflow.spanInputs": {"messages": [{"role": "user", "content": text}]},
        "mlflow.spanOutputs": {"choices": [{"index": 0, "text": text[::-1]}]},
        "temperature": 0.7,
        "user": {"id": number, "name": "ü"},
    }


def floor(uri: str, experiment: str, connections: int) -> tuple[float, int, list[float]]:
    """Return the seconds and bytes of the calls alone, and the seconds of each page of search."""
    start = time.perf_counter()
    sessions = [requests.Session() for _ in range(connections)]
    free: deque[requests.Session] = deque(sessions)
    size_bytes = 0
    pages_s: list[float] = []

    def get(trace_ids: list[str]) -> int:
        session = free.popleft()
        reply = session.get(
            f"{uri}/api/3.0/mlflow/traces/batchGet", params={"trace_ids": trace_ids}, timeout=300
        )
        free.append(session)
        return len(reply.content)

    location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}
    body: dict[str, Any] = {
        "locations": [location],
        "max_results": PAGE,
        "order_by": ["timestamp_ms ASC"],
    }
    calls: list[Future[int]] = []
    with ThreadPoolExecutor(connections) as pool, requests.Session() as lister:
        while True:
            reply = lister.post(f"{uri}/api/3.0/mlflow/traces/search", json=body, timeout=300)
            page = reply.json()
            pages_s.append(reply.elapsed.total_seconds())
            size_bytes += len(reply.content)
            ids = [trace["trace_id"] for trace in page.get("traces", ())]
            calls += [pool.submit(get, ids[at : at + BATCH]) for at in range(0, len(ids), BATCH)]
            if not page.get("next_page_token"):
                break
            body["page_token"] = page["next_page_token"]
        size_bytes += sum(call.result() for call in calls)
    return time.perf_counter() - start, size_bytes, pages_s


def listed(uri: str, experiment: str) -> Iterator[dict[str, Any]]:
    """Yield the infos of all traces."""
    location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}
    body: dict[str, Any] = {"locations": [location], "max_results": PAGE}
    while True:
        page = requests.post(f"{uri}/api/3.0/mlflow/traces/search", json=body, timeout=300).json()
        yield from page.get("traces", ())
        if not (token := page.get("next_page_token")):
            return
        body["page_token"] = token


def write_floor(
    infos: list[dict[str, Any]], target: str, spans: int, connections: int, *, infos_first: bool
) -> float:
    """Return the seconds of the calls alone that write the same traces to another server."""
    there = MlflowClient(target, target).create_experiment("floor")
    free: deque[requests.Session] = deque(requests.Session() for _ in range(connections))

    def post(path: str, **arguments: Any) -> None:
        session = free.popleft()
        session.post(f"{target}{path}", timeout=300, **arguments).raise_for_status()
        free.append(session)

    def start(info: dict[str, Any]) -> None:
        place = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": there}}
        of_source = {"mlflow.artifactLocation", "mlflow.trace.spansLocation"}
        tags = {key: value for key, value in info["tags"].items() if key not in of_source}
        sent = info | {"trace_location": place, "tags": tags}
        post("/api/3.0/mlflow/traces", json={"trace": {"trace_info": sent}})

    def log(at: int) -> None:
        headers = {"Content-Type": "application/x-protobuf", "x-mlflow-experiment-id": there}
        part = infos[at : at + 200]
        ids = [uuid.UUID(info["trace_id"].removeprefix("tr-")).bytes for info in part]
        post("/v1/traces", data=_request(list(enumerate(ids, at)), spans), headers=headers)

    steps: list[tuple[Callable[[Any], None], Iterable[Any]]] = [
        (log, range(0, len(infos), 200)),
        (start, infos),
    ]
    started = time.perf_counter()
    with ThreadPoolExecutor(connections) as pool:
        for step, entries in reversed(steps) if infos_first else steps:
            waiting = iter(entries)
            while some := list(islice(waiting, 1000)):
                list(pool.map(step, some))
    return time.perf_counter() - started


def main() -> None:
    """Fill, read, pack and unpack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=5_000)
    parser.add_argument("--spans", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--only", choices=["pack", "unpack"])
    parser.add_argument("--repeat", type=int, default=3, help="readings, the best of which count")
    arguments = parser.parse_args()
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    print(f"{arguments.traces:,} traces of {arguments.spans} spans, {arguments.jobs} connections")
    with tempfile.TemporaryDirectory(dir=arguments.root) as name:
        folder = Path(name)
        archive = folder / "traces.tar.zst"
        infos: list[dict[str, Any]] = []
        size_bytes = 0
        source, experiment = filled(folder / "source", arguments.traces, arguments.spans)
        with source:
            if arguments.only != "unpack":
                size_bytes = measure_reading(source, experiment, arguments)
            pack = packed(archive, source.url, "--jobs", str(arguments.jobs))
            if arguments.only != "pack":
                infos += listed(source.url, experiment)
        start_s = import_seconds()
        tell("pack beside MLflow's import", pack["seconds"] - start_s, pack["peak_mb"])
        archive_bytes = archive.stat().st_size
        share = f", 1/{size_bytes / archive_bytes:.1f} of the JSON" if size_bytes else ""
        print(f"  archive {archive_bytes / 1e6:.2f} MB{share}", flush=True)
        if infos:
            measure_writing(archive, infos, start_s, folder, arguments)


def measure_reading(source: Server, experiment: str, arguments: argparse.Namespace) -> int:
    """Tell the floor of reading beside our reading, and return the bytes that the server sent."""
    floors, ours = [], []
    for _ in range(arguments.repeat):
        floors.append(floor(source.url, experiment, arguments.jobs))
        command = [sys.executable, "-c", READ, source.url, str(arguments.jobs)]
        ours.append(json.loads(measured(command)["output"]))
    assert ours[0]["found"] == [arguments.traces, arguments.traces * arguments.spans]
    floor_s, size_bytes, pages_s = min(floors)
    read_s = min(run["seconds"] for run in ours)
    tell(f"search and batchGet alone, {size_bytes / 1e6:.0f} MB of JSON", floor_s)
    tell("our reading", read_s, ours[0]["peak_mb"])
    print(f"  ratio {read_s / floor_s:.2f}")
    tenth = max(1, len(pages_s) // 10)
    first_s, last_s = sum(pages_s[:tenth]) / tenth, sum(pages_s[-tenth:]) / tenth
    print(f"  a page of search: {first_s:.2f} s in the first tenth, {last_s:.2f} s in the last")
    return size_bytes


def measure_writing(
    archive: Path,
    infos: list[dict[str, Any]],
    start_s: float,
    folder: Path,
    arguments: argparse.Namespace,
) -> None:
    """Tell the floors of writing beside our unpack."""
    floors = {}
    for infos_first in (False, True):
        with start_server(folder / f"floor-{infos_first}") as empty:
            floors[infos_first] = write_floor(
                infos, empty.url, arguments.spans, arguments.jobs, infos_first=infos_first
            )
    tell("OTLP, then StartTraceV3 alone", floors[False])
    tell("StartTraceV3, then OTLP alone", floors[True])
    with start_server(folder / "target") as target:
        command = [sys.executable, "-m", "mlflow_exim_plugin", "unpack", str(archive)]
        command += ["--tracking-uri", target.url, "--output", "json"]
        unpack = measured([*command, "--jobs", str(arguments.jobs)])
    counts = json.loads(unpack["output"])["counts"]
    assert counts["trace"]["written"] == arguments.traces, counts
    assert counts["span"]["written"] == arguments.traces * arguments.spans, counts
    unpack_s = unpack["seconds"] - start_s
    tell("unpack beside MLflow's import", unpack_s, unpack["peak_mb"])
    print(f"  ratios {unpack_s / floors[False]:.2f} and {unpack_s / floors[True]:.2f}")


def tell(what: str, seconds: float, peak_mb: float | None = None) -> None:
    """Print one line at once."""
    memory = "" if peak_mb is None else f"{peak_mb:8.0f} MB"
    print(f"  {what:45} {seconds:8.1f} s{memory}", flush=True)


if __name__ == "__main__":
    main()
