"""Whole packs against what the same server, or ``tar``, does at its best in the same run.

    python -m tests.benchmarks.bench_pack [histories|database|runs|artifacts|large] [--scale F]
        [--root FOLDER]

``histories``  200 runs of 20 metrics with 500 steps through ``mlflow server`` over HTTP, beside the
               fastest complete way that this server offers to read them: ``get-history`` per run
               and key, or ``get-history-bulk`` with every reply under its silent cut-off.
``database``   the same rows straight from their SQLite file, beside bare scans of the table with
               Python's ``sqlite3`` and with ADBC, ten runs a query, sorted and written as Parquet.
``runs``       10k runs of 10 params, 5 metrics and 7 tags from a SQLite file, beside reading the
               same rows with SQLAlchemy's core.
``artifacts``  1 GB of artifacts from a local store, beside ``tar`` with ``zstd -1 -T2``.
``large``      one artifact of 5 GB: memory.

Each pack is the real command in a process of its own; memory is that process's peak.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import mlflow
import requests

from tests.benchmarks.workload import build
from tests.servers import start_server

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECTIONS = 4
BULK_ROWS = 25_000
ROUNDS = 7
"""What takes seconds is done so often, in turn with what it is compared with."""
RUN_TABLES = (
    "runs",
    "params",
    "tags",
    "latest_metrics",
    "metrics",
    "inputs",
    "input_tags",
    "datasets",
)
"""Where the rows of the workload's small runs are."""
SQL_STORE = "mlflow.tracking, mlflow.store.tracking.sqlalchemy_store"
"""What MLflow imports for a database."""
MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps({
    "seconds": time.perf_counter() - start,
    "peak_mb": usage.ru_maxrss / 1000,
    "cpu_seconds": usage.ru_utime + usage.ru_stime,
    "exit_code": done.returncode,
    "output": done.stdout.decode(),
}))
"""


def measured(command: list[str]) -> dict[str, Any]:
    """Run a command in a process of its own and return its time and peak memory.

    What it imports is compiled once and for all, as it is for whoever has installed it.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *command],
        stdout=subprocess.PIPE,
        check=True,
        env=environment,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def packed(archive: Path, uri: str, *options: str) -> dict[str, Any]:
    """Pack with the real command."""
    command = [sys.executable, "-m", "mlflow_exim_plugin", "pack", str(archive)]
    result = measured(
        [*command, "--tracking-uri", uri, "--output", "json", "--overwrite", *options]
    )
    if result["exit_code"]:
        raise SystemExit(f"pack failed: {result['output']}")
    result["report"] = json.loads(result["output"])
    return result


def import_seconds(module: str = "mlflow.tracking", times: int = 3) -> float:
    """Return how long MLflow's own import takes, which every command pays.

    As our commands do, it ends without a last search for garbage.
    """
    command = [sys.executable, "-c", f"import gc, {module}; gc.freeze()"]
    runs = [measured(command) for _ in range(times)]
    return float(min(run["seconds"] for run in runs))


def listed_runs(uri: str) -> dict[str, dict[str, int]]:
    """Return latest step by key of every run."""
    client = mlflow.MlflowClient(uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs: dict[str, dict[str, int]] = {}
    token = None
    while True:
        page = client.search_runs(experiments, "", 3, 1000, page_token=token)
        for run in page:
            runs[run.info.run_id] = {m.key: m.step for m in run.data._metric_objs}
        token = page.token
        if not token:
            return runs


def in_parallel(calls: list[list[tuple[str, str]]], get: Callable[..., int]) -> tuple[float, int]:
    start = time.perf_counter()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        rows = sum(pool.map(get, calls))
    return time.perf_counter() - start, rows


def read_each(url: str, runs: dict[str, dict[str, int]]) -> tuple[float, int]:
    """Read ``get-history`` per run and key, to the last page."""
    session = requests.Session()

    def get(params: list[tuple[str, str]]) -> int:
        rows = 0
        token: str | None = None
        while True:
            extra = [("page_token", token)] if token else []
            reply = session.get(
                f"{url}/api/2.0/mlflow/metrics/get-history", params=[*params, *extra]
            ).json()
            rows += len(reply.get("metrics", ()))
            token = reply.get("next_page_token")
            if not token:
                return rows

    calls = [
        [("run_id", run), ("metric_key", key), ("max_results", "25000")]
        for run, keys in runs.items()
        for key in keys
    ]
    return in_parallel(calls, get)


def read_bulk(url: str, runs: dict[str, dict[str, int]]) -> tuple[float, int]:
    """Read ``get-history-bulk`` with as many runs a call as stay under the cut-off."""
    session = requests.Session()

    def get(params: list[tuple[str, str]]) -> int:
        reply = session.get(f"{url}/ajax-api/2.0/mlflow/metrics/get-history-bulk", params=params)
        rows = len(reply.json()["metrics"])
        ids = [pair for pair in params if pair[0] == "run_id"]
        key = params[-1]
        if rows < BULK_ROWS or len(ids) == 1:
            return rows
        half = len(ids) // 2
        return get([*ids[:half], key]) + get([*ids[half:], key])

    calls: list[list[tuple[str, str]]] = []
    for key in sorted({key for keys in runs.values() for key in keys}):
        batch: list[str] = []
        rows = 0
        for run, keys in runs.items():
            expected = keys.get(key, -1) + 1
            if not expected:
                continue
            if batch and (rows + expected >= BULK_ROWS or len(batch) == 100):
                calls.append([*(("run_id", r) for r in batch), ("metric_key", key)])
                batch, rows = [], 0
            batch.append(run)
            rows += expected
        calls.append([*(("run_id", r) for r in batch), ("metric_key", key)])
    return in_parallel(calls, get)


def histories(root: Path, scale: float) -> None:
    """Pack 2M rows over HTTP."""
    uri = build("metrics", root / "load", scale=scale)
    with start_server(root / "server", backend_store_uri=uri) as server:
        runs = listed_runs(server.url)
        ours = packed(root / "histories.tar.zst", server.url, "--jobs", str(CONNECTIONS))
        each_s, each_rows = read_each(server.url, runs)
        bulk_s, bulk_rows = read_bulk(server.url, runs)
        again = packed(root / "histories.tar.zst", server.url, "--jobs", str(CONNECTIONS))
    ours["seconds"] = min(ours["seconds"], again["seconds"])
    rows = ours["report"]["metric_rows"]
    assert rows == each_rows == bulk_rows, (rows, each_rows, bulk_rows)
    size_bytes = (root / "histories.tar.zst").stat().st_size
    floor_s = min(each_s, bulk_s)
    start_s = import_seconds()
    print(f"{len(runs)} runs, {rows:,} rows over HTTP, {CONNECTIONS} connections")
    print(f"  get-history per run and key   {each_s:8.1f} s")
    print(f"  get-history-bulk              {bulk_s:8.1f} s")
    print(f"  pack --jobs {CONNECTIONS}                 {ours['seconds']:8.1f} s")
    print(f"  ratio to the faster           {ours['seconds'] / floor_s:8.2f}")
    print(f"  ... beside MLflow's import    {(ours['seconds'] - start_s) / floor_s:8.2f}")
    print(f"  archive                       {size_bytes / rows:8.2f} bytes a row")
    print(f"  peak memory                   {ours['peak_mb']:8.0f} MB")


SCAN = """
import itertools, json, sqlite3, sys, time
import pyarrow as pa, pyarrow.parquet as pq
start = time.perf_counter()
path, target, driver = sys.argv[1:]
database = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
runs = [run for run, in database.execute("SELECT run_uuid FROM runs ORDER BY run_uuid")]
names = ["run_uuid", "key", "step", "timestamp", "value", "is_nan"]
types = [pa.string(), pa.string(), pa.int64(), pa.int64(), pa.float64(), pa.int64()]
schema = pa.schema(list(zip(names, types)))
query = f"SELECT {','.join(names)} FROM metrics WHERE run_uuid IN (SELECT value FROM json_each(?))"
if driver == "adbc":
    from adbc_driver_sqlite import dbapi
    cursor = dbapi.connect(f"file:{path}?mode=ro").cursor()
    cursor.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": "50000"})
def read(chunk):
    if driver == "adbc":
        cursor.execute(query, [json.dumps(chunk)])
        return cursor.fetch_arrow_table()
    rows = database.execute(query, [json.dumps(chunk)]).fetchall()
    return pa.Table.from_arrays([pa.array(c, t) for c, t in zip(zip(*rows), types)], schema=schema)
with pq.ParquetWriter(target, schema, compression="zstd") as writer:
    for at in range(0, len(runs), 10):
        table = read(runs[at : at + 10])
        writer.write_table(table.sort_by([(n, "ascending") for n in names[:4]]))
print(time.perf_counter() - start)
"""
READ_ROWS = """
import sys, time
import sqlalchemy
engine = sqlalchemy.create_engine(f"sqlite:///{sys.argv[1]}")
tables = sqlalchemy.MetaData()
tables.reflect(engine)
start, rows = time.perf_counter(), 0
with engine.connect() as connection:
    for name in sys.argv[2:]:
        rows += len(connection.execute(sqlalchemy.select(tables.tables[name])).all())
print(time.perf_counter() - start)
"""


def shortest(root: Path) -> Callable[[], float]:
    """Return what packs a SQLite file of one run and tells its seconds: any pack takes them."""
    uri = build("runs", root / "one", scale=0)
    return lambda: float(packed(root / "one.tar.zst", uri)["seconds"])


def show_rounds(ours: list[dict[str, Any]], starts_s: list[float], floors_s: list[float]) -> None:
    """Print the middle of all rounds; a ratio is of what ran in one round."""
    packs_s = [run["seconds"] for run in ours]
    beside_s = [pack_s - start_s for pack_s, start_s in zip(packs_s, starts_s, strict=True)]
    ratios = sorted(own_s / floor_s for own_s, floor_s in zip(beside_s, floors_s, strict=True))
    print(f"  pack                          {median(packs_s):8.2f} s")
    print(f"  ... beside the shortest pack  {median(beside_s):8.2f} s")
    print(
        f"  ratio                         {median(ratios):8.2f}"
        f"  ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )
    print(f"  peak memory                   {max(run['peak_mb'] for run in ours):8.0f} MB")


def database(root: Path, scale: float) -> None:
    """Pack 2M rows from their SQLite file."""
    uri = build("metrics", root / "load", scale=scale)
    path = uri.removeprefix("sqlite:///")
    floors: dict[str, list[float]] = {"sqlite3": [], "adbc": []}
    ours, starts_s, start = [], [], shortest(root)
    for _ in range(ROUNDS):
        starts_s.append(start())
        for driver, seconds in floors.items():
            scan = measured([sys.executable, "-c", SCAN, path, str(root / "scan.parquet"), driver])
            seconds.append(float(scan["output"]))
        ours.append(packed(root / "database.tar.zst", uri))
    print(f"{ours[0]['report']['metric_rows']:,} rows from SQLite")
    for driver, seconds in floors.items():
        print(f"  {driver:>7} to Parquet alone      {median(seconds):8.2f} s")
    show_rounds(ours, starts_s, [min(pair) for pair in zip(*floors.values(), strict=True)])


def runs(root: Path, scale: float) -> None:
    """Pack 10k small runs from their SQLite file."""
    uri = build("runs", root / "load", scale=scale)
    path = uri.removeprefix("sqlite:///")
    ours, reads, starts_s, start = [], [], [], shortest(root)
    for _ in range(ROUNDS):
        starts_s.append(start())
        reads.append(
            float(measured([sys.executable, "-c", READ_ROWS, path, *RUN_TABLES])["output"])
        )
        ours.append(packed(root / "runs.tar.zst", uri, "--no-artifacts"))
    count = ours[0]["report"]["counts"]["run"]["written"]
    print(f"{count:,} runs from SQLite, without artifacts")
    print(f"  SQLAlchemy's core alone       {median(reads):8.2f} s")
    show_rounds(ours, starts_s, reads)


def artifacts(root: Path, scale: float) -> None:
    """Pack 1 GB of artifacts from a local store."""
    uri = build("artifacts", root / "load", scale=scale)
    folder = root / "load" / "artifacts"
    ours, tars = [], []
    for _ in range(3):
        start = time.perf_counter()
        with (root / "tar.tar.zst").open("wb") as output:
            subprocess.run(
                ["tar", "-C", str(folder), "-I", "zstd -1 -T2", "-cf", "-", "."],
                stdout=output,
                check=True,
            )
            os.fsync(output.fileno())
        tars.append(time.perf_counter() - start)
        ours.append(packed(root / "artifacts.tar.zst", uri, "--level", "1"))
    best = min(ours, key=lambda run: run["seconds"])
    size_mb = best["report"]["artifact_bytes"] / 1e6
    beside_s = best["seconds"] - import_seconds()
    print(f"{size_mb:,.0f} MB of artifacts from a local store, zstd level 1, synced to disk")
    print(f"  tar, zstd -1 -T2              {min(tars):8.1f} s  {size_mb / min(tars):8.0f} MB/s")
    print(f"  pack                          {best['seconds']:8.1f} s")
    print(f"  ... beside MLflow's import    {beside_s:8.1f} s  {size_mb / beside_s:8.0f} MB/s")
    print(f"  speed as a share of tar's     {min(tars) / beside_s:8.2f}")
    print(f"  peak memory                   {best['peak_mb']:8.0f} MB")


def large(root: Path, scale: float) -> None:
    """Pack one artifact of 5 GB."""
    uri = f"sqlite:///{root / 'large.db'}"
    client = mlflow.MlflowClient(uri)
    experiment = client.create_experiment("large", (root / "files").as_uri())
    run = client.create_run(experiment)
    folder = root / "files" / run.info.run_id / "artifacts"
    folder.mkdir(parents=True)
    with (folder / "weights.bin").open("wb") as file:
        for _ in range(int(5_000 * scale)):
            file.write(os.urandom(1_000_000))
    ours = packed(root / "large.tar.zst", uri)
    size_mb = ours["report"]["artifact_bytes"] / 1e6
    print(f"one artifact of {size_mb:,.0f} MB")
    print(f"  pack                          {ours['seconds']:8.1f} s")
    print(f"  peak memory                   {ours['peak_mb']:8.0f} MB")


def main() -> None:
    """Run the benchmarks that are named, or all."""
    known = {
        "histories": histories,
        "database": database,
        "runs": runs,
        "artifacts": artifacts,
        "large": large,
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmarks", nargs="*", choices=[[], *known], default=[])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--root", type=Path)
    arguments = parser.parse_args()
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for name in arguments.benchmarks or known:
        with tempfile.TemporaryDirectory(dir=arguments.root) as root:
            known[name](Path(root), arguments.scale)


if __name__ == "__main__":
    main()
