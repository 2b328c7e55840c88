"""Traces over HTTP against the calls that any reader must make, in the same run.

    python -m tests.benchmarks.bench_traces [--traces N] [--spans N] [--jobs N] [--root FOLDER]

The floor of reading is ``traces/search`` and ``traces/batchGet`` with as many connections as we
use, the replies thrown away. That of writing is the same spans by OTLP, 200 traces to a call, and
then ``StartTraceV3`` for each trace, into an empty server. Beside them: our reading of the same
traces, whole packs and unpacks by the real command, and their peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import uuid
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
from mlflow import MlflowClient
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from tests.benchmarks.bench_pack import import_seconds, measured, packed
from tests.servers import start_server

PAGE = 500
BATCH = 50
START_NS = 1_700_000_000_000_000_000
READ = """
import json, resource, sys, time
from mlflow_exim_plugin.host.connection import Host
from mlflow_exim_plugin.schema.objects import Trace
from mlflow_exim_plugin.sources.client import ClientSource
from mlflow_exim_plugin.stages.select import Selection
source = ClientSource(Host(sys.argv[1], create=False), jobs=int(sys.argv[2]))
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


def build(uri: str, traces: int, spans: int) -> str:
    """Write traces by OTLP, many in one call, and return their experiment."""
    experiment = MlflowClient(uri, uri).create_experiment("bench")
    for start in range(0, traces, 200):
        numbers = range(start, min(start + 200, traces))
        response = requests.post(
            f"{uri}/v1/traces",
            data=_request([(number, uuid.uuid4().bytes) for number in numbers], spans),
            headers={
                "Content-Type": "application/x-protobuf",
                "x-mlflow-experiment-id": experiment,
            },
            timeout=300,
        )
        response.raise_for_status()
    return str(experiment)


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
                end_time_unix_nano=START_NS + number * 1_000_000 + 500_000 + index,
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


def floor(uri: str, experiment: str, connections: int) -> tuple[float, int]:
    """Return the seconds and bytes of the calls alone."""
    start = time.perf_counter()
    sessions = [requests.Session() for _ in range(connections)]
    free: deque[requests.Session] = deque(sessions)
    size_bytes = 0

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
            size_bytes += len(reply.content)
            ids = [trace["trace_id"] for trace in page.get("traces", ())]
            calls += [pool.submit(get, ids[at : at + BATCH]) for at in range(0, len(ids), BATCH)]
            if not page.get("next_page_token"):
                break
            body["page_token"] = page["next_page_token"]
        size_bytes += sum(call.result() for call in calls)
    return time.perf_counter() - start, size_bytes


def write_floor(source: str, experiment: str, target: str, spans: int, connections: int) -> float:
    """Return the seconds of the calls alone that write the same traces to another server."""
    infos: list[dict[str, Any]] = []
    location = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": experiment}}
    body: dict[str, Any] = {"locations": [location], "max_results": PAGE}
    while True:
        reply = requests.post(f"{source}/api/3.0/mlflow/traces/search", json=body, timeout=300)
        infos += reply.json().get("traces", ())
        if not (token := reply.json().get("next_page_token")):
            break
        body["page_token"] = token
    there = MlflowClient(target, target).create_experiment("floor")
    for info in infos:
        info["trace_location"]["mlflow_experiment"]["experiment_id"] = there
        info["tags"].pop("mlflow.artifactLocation", None)
    free: deque[requests.Session] = deque(requests.Session() for _ in range(connections))

    def post(path: str, **arguments: Any) -> None:
        session = free.popleft()
        session.post(f"{target}{path}", timeout=300, **arguments).raise_for_status()
        free.append(session)

    headers = {"Content-Type": "application/x-protobuf", "x-mlflow-experiment-id": there}
    ids = [uuid.UUID(info["trace_id"].removeprefix("tr-")).bytes for info in infos]
    payloads = [
        _request(list(enumerate(ids[at : at + 200], at)), spans) for at in range(0, len(ids), 200)
    ]
    start = time.perf_counter()
    with ThreadPoolExecutor(connections) as pool:
        list(pool.map(lambda data: post("/v1/traces", data=data, headers=headers), payloads))
        list(
            pool.map(
                lambda info: post("/api/3.0/mlflow/traces", json={"trace": {"trace_info": info}}),
                infos,
            )
        )
    return time.perf_counter() - start


def main() -> None:
    """Build, read, pack and unpack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=5_000)
    parser.add_argument("--spans", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--root", type=Path)
    arguments = parser.parse_args()
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with tempfile.TemporaryDirectory(dir=arguments.root) as name:
        folder = Path(name)
        with start_server(folder / "source") as source:
            experiment = build(source.url, arguments.traces, arguments.spans)
            floors, ours = [], []
            for _ in range(3):
                floors.append(floor(source.url, experiment, arguments.jobs))
                command = [sys.executable, "-c", READ, source.url, str(arguments.jobs)]
                ours.append(json.loads(measured(command)["output"]))
            assert ours[0]["found"] == [arguments.traces, arguments.traces * arguments.spans]
            floor_s, size_bytes = min(floors)
            read_s = min(run["seconds"] for run in ours)
            archive = folder / "traces.tar.zst"
            pack = packed(archive, source.url, "--jobs", str(arguments.jobs))
            with start_server(folder / "floor") as empty:
                write_floor_s = write_floor(
                    source.url, experiment, empty.url, arguments.spans, arguments.jobs
                )
        with start_server(folder / "target") as target:
            command = [sys.executable, "-m", "mlflow_exim_plugin", "unpack", str(archive)]
            command += ["--tracking-uri", target.url, "--output", "json"]
            unpack = measured([*command, "--jobs", str(arguments.jobs)])
        start_s = import_seconds()
        many = f"{arguments.traces:,} traces of {arguments.spans} spans"
        print(f"{many}, {arguments.jobs} connections")
        print(f"  search and batchGet alone     {floor_s:8.1f} s  {size_bytes / 1e6:8.1f} MB")
        print(f"  our reading                   {read_s:8.1f} s  {ours[0]['peak_mb']:8.0f} MB")
        print(f"  ratio                         {read_s / floor_s:8.2f}")
        pack_s = pack["seconds"] - start_s
        print(f"  pack beside MLflow's import   {pack_s:8.1f} s  {pack['peak_mb']:8.0f} MB")
        print(f"  archive                       {archive_share(size_bytes, archive)}")
        unpack_s = unpack["seconds"] - start_s
        print(f"  OTLP and StartTraceV3 alone   {write_floor_s:8.1f} s")
        print(f"  unpack beside MLflow's import {unpack_s:8.1f} s  {unpack['peak_mb']:8.0f} MB")
        print(f"  ratio                         {unpack_s / write_floor_s:8.2f}")


def archive_share(size_bytes: int, archive: Path) -> str:
    """Say how large an archive is beside the JSON that the server sent."""
    size = archive.stat().st_size
    return f"{size / 1e6:8.2f} MB, 1/{size_bytes / size:.1f} of the JSON"


if __name__ == "__main__":
    main()
