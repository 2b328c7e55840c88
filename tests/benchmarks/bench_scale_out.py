"""A set packed in several tasks against one: two processes, the cost of engines, and plans.

    python -m tests.benchmarks.bench_scale_out {processes,engine,unpack,plan} URI [--engine E]
        [--rounds N]

``processes``: the database is packed into a set without an engine and by two processes, in turn;
filled by
``python -m tests.benchmarks.workload experiments ROOT --uri postgresql://...``.
``engine``: the same tasks are run by two processes and by an engine, in turn.
``unpack``: an archive, in place of the URI, goes into new databases of PostgreSQL in the same way.
``plan``: a plan of a database, in a process of its own. ``--runs N`` first makes a SQLite file of
1,000 experiments with N runs, of which the largest has some hundred times as many as most.

Seconds are of a wall clock; of CPU they are those of this process and of its children that ended.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EXPERIMENTS = 1_000
PACK = """
import resource, sys, time
from mlflow_exim_plugin import pack
if __name__ == "__main__":
    uri, folder, engine = sys.argv[1:]
    how = {"engine": engine} if engine != "none" else {}
    start = time.perf_counter()
    report = pack(tracking_uri=uri, set=folder, as_of_ms=1_790_000_000_000, **how)
    wall = time.perf_counter() - start
    cpu = sum(
        u.ru_utime + u.ru_stime
        for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    print(wall, cpu, report.content_root, len(report.snapshot["packs"]), report.ok)
"""
UNPACK = """
import resource, sys, time
from mlflow_exim_plugin import unpack
if __name__ == "__main__":
    archive, uri, files, engine = sys.argv[1:]
    how = {"engine": engine} if engine != "none" else {}
    start = time.perf_counter()
    report = unpack(archive, tracking_uri=uri, artifact_location=files, **how)
    wall = time.perf_counter() - start
    cpu = sum(
        u.ru_utime + u.ru_stime
        for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )
    print(wall, cpu, report.counts["run"].written, report.metric_rows, report.ok)
"""
PLAN = """
import resource, sys, time
from mlflow_exim_plugin import plan
start = time.perf_counter()
found = plan(sys.argv[1], as_of_ms=1_790_000_000_000, parallel=16)
print(
    time.perf_counter() - start,
    time.process_time(),
    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    len(found.entries),
    found.size.runs,
    max(entry.size.members for entry in found.entries),
)
"""


def packed(uri: str, engine: str) -> tuple[float, float, str]:
    """Pack into a new set; return seconds, seconds of CPU and the content root."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "pack_it.py"
        script.write_text(PACK)
        arguments = [sys.executable, str(script), uri, f"{folder}/set", engine]
        ran = subprocess.run(arguments, capture_output=True, text=True, check=False)
        if ran.returncode:
            sys.exit(ran.stderr)
        wall, cpu, root, packs, ok = ran.stdout.split()
        assert ok == "True"
        print(f"  {engine}: {float(wall):.1f} s, {float(cpu):.1f} s of CPU, {packs} archives")
        return float(wall), float(cpu), root


def unpacked(archive: str, engine: str) -> tuple[float, float, str]:
    """Unpack into a new database; return seconds, seconds of CPU here and the runs."""
    from tests.databases import initialise, new_postgres_database

    with tempfile.TemporaryDirectory() as folder, new_postgres_database() as uri:
        initialise(uri)
        script = Path(folder) / "unpack_it.py"
        script.write_text(UNPACK)
        arguments = [sys.executable, str(script), archive, uri, f"{folder}/files", engine]
        ran = subprocess.run(arguments, capture_output=True, text=True, check=False)
        if ran.returncode:
            sys.exit(ran.stderr)
        wall, cpu, runs, rows, ok = ran.stdout.split()
        assert ok == "True"
        print(
            f"  {engine}: {float(wall):.1f} s, {float(cpu):.1f} s of CPU, {runs} runs, {rows} rows"
        )
        return float(wall), float(cpu), f"{runs} {rows}"


def compare(
    do: Callable[[str, str], tuple[float, float, str]], uri: str, engines: list[str], rounds: int
) -> None:
    """Do it by each engine in turn."""
    found: dict[str, list[tuple[float, float]]] = {engine: [] for engine in engines}
    roots = set()
    for _ in range(rounds):
        for engine in engines:
            wall, cpu, root = do(uri, engine)
            found[engine].append((wall, cpu))
            roots.add(root)
    assert len(roots) == 1
    first, *others = engines
    for engine in others:
        ratios = [a[0] / b[0] for a, b in zip(found[first], found[engine], strict=True)]
        of_cpu = [a[1] / b[1] for a, b in zip(found[first], found[engine], strict=True)]
        print(f"{first} / {engine}: {median(ratios):.2f} of time, {median(of_cpu):.2f} of CPU")
    print("load of the machine:", os.getloadavg())


def make_runs(path: Path, count: int) -> None:
    """Fill a SQLite file with runs alone, and a few metric rows."""
    new_sqlite_database(path)
    shares = list(itertools.accumulate(1 / number**0.8 for number in range(1, EXPERIMENTS + 1)))
    rng = random.Random(3)
    start_ms, apart = 1_700_000_000_000, (1 << 128) // count

    def runs() -> Iterator[tuple[object, ...]]:
        for number in range(count):
            run_id = f"{number * apart + rng.getrandbits(64):032x}"
            owner = bisect.bisect(shares, rng.random() * shares[-1]) + 1
            root = f"{path.parent}/files/{owner}/{run_id}/artifacts"
            at_ms = start_ms + number
            yield run_id, f"run-{number}", "FINISHED", at_ms, at_ms + 900, "active", root, owner

    with sqlite3.connect(path) as database:
        database.execute("PRAGMA synchronous = off")
        database.executemany(
            "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage)"
            " VALUES (?, ?, ?, 'active')",
            [(e, f"e{e}", f"{path.parent}/files/{e}") for e in range(1, EXPERIMENTS + 1)],
        )
        database.executemany(
            "INSERT INTO runs (run_uuid, name, status, start_time, end_time, lifecycle_stage,"
            " artifact_uri, experiment_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            runs(),
        )
        database.execute(
            "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan)"
            " SELECT 'loss', 0.5, start_time, run_uuid, 0, 0 FROM runs WHERE rowid % 50 = 0"
        )
    database.close()


def plan_of(uri: str, rounds: int) -> None:
    """Plan a database."""
    for _ in range(rounds):
        command = [sys.executable, "-c", PLAN, uri]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        wall, cpu, peak_mb, entries, runs, most = map(float, ran.stdout.split())
        print(
            f"{runs:,.0f} runs in {entries:,.0f} tasks of {most:,.0f} members at most:"
            f" {wall:.1f} s, {cpu:.1f} s of CPU, {peak_mb:.0f} MB"
        )
    print("load of the machine:", os.getloadavg())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["processes", "engine", "unpack", "plan"])
    parser.add_argument("uri")
    parser.add_argument("--engine", default="dask:2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int)
    asked = parser.parse_args()
    start = time.perf_counter()
    if asked.what == "plan":
        if asked.runs:
            make_runs(Path(asked.uri.removeprefix("sqlite:///")), asked.runs)
            print(json.dumps({"made_in_s": round(time.perf_counter() - start)}))
        plan_of(asked.uri, asked.rounds)
    elif asked.what == "processes":
        compare(packed, asked.uri, ["none", "processes:2"], asked.rounds)
    elif asked.what == "unpack":
        compare(unpacked, asked.uri, ["none", "processes:2"], asked.rounds)
    else:
        compare(packed, asked.uri, ["processes:2", asked.engine], asked.rounds)


if __name__ == "__main__":
    main()
