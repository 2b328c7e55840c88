"""An archive as MLflow's stores: opening, searching and charts, beside what it was packed of.

    python -m tests.benchmarks.bench_live [--root FOLDER] [--repeat N]

The loads are those of ``workload``: 1,000 and 10,000 runs, and 2M metric rows of 200 runs. All
times are seconds of the processor, of a process that has imported MLflow's stores before. Memory
is what comes on top of these imports, at its peak.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mlflow_exim_plugin import pack
from tests.benchmarks import workload

LOADS: dict[str, tuple[workload.Kind, float]] = {
    "1k runs": ("runs", 0.1),
    "10k runs": ("runs", 1.0),
    "2M rows": ("metrics", 1.0),
}
ASK = """
import json, logging, os, re, sys, time
logging.disable(logging.CRITICAL)
import mlflow
from mlflow import MlflowClient
from mlflow.entities import ViewType
import mlflow.store.tracking.sqlalchemy_store, mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.artifact.artifact_repository_registry
import pandas, pyarrow.parquet
uri = sys.argv[1]
told = {}
def peak():  # what resource tells a process has of the one that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1000
before_mb = peak()
def timed(name, call, times=1):
    start = time.process_time()
    for _ in range(times):
        found = call()
    told[name] = (time.process_time() - start) / times
    return found
client = timed("open", lambda: (c := MlflowClient(uri, uri), c._get_registry_client().store)[0])
told["open_mb"] = peak() - before_mb
ids = [e.experiment_id for e in client.search_experiments(ViewType.ALL)]
in_order = ["attributes.start_time DESC"]
search = lambda: client.search_runs(ids, "", ViewType.ALL, 50, in_order)
search()
runs = timed("search", search, 10)
by_metric = f"metrics.`{sorted(runs[0].data.metrics)[0]}`"
found_by = f"{by_metric} > -1e9"
sorted_search = lambda: client.search_runs(ids, found_by, ViewType.ALL, 50, [by_metric])
sorted_search()
timed("filter", sorted_search, 5)
store = client._tracking_client.store
of = [r.info.run_id for r in runs if r.data.metrics][:20]
keys = sorted(set.intersection(*(set(r.data.metrics) for r in runs if r.info.run_id in of)))
chart = lambda key: store.get_metric_history_bulk_interval(of, key, 320, None, None)
if keys:
    told["points"] = len(timed("chart", lambda: chart(keys[0])))
    if len(keys) > 1:
        timed("next chart", lambda: chart(keys[1]))
told["peak_mb"] = peak() - before_mb
print(json.dumps(told))
"""


def asked(uri: str, cache: Path) -> dict[str, float]:
    """Return what a client's calls cost in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ASK, uri],
        env=os.environ | {"MLFLOW_EXIM_CACHE_DIR": str(cache), "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=True,
    )
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=LOADS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.root or Path(temporary)
        for name, (kind, scale) in LOADS.items():
            if options.only in (None, name):
                _measure(root / name.replace(" ", "-"), name, kind, scale, options.repeat)


def _measure(folder: Path, name: str, kind: workload.Kind, scale: float, repeat: int) -> None:
    archive = folder / "all.tar.zst"
    if not archive.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pack(str(archive), tracking_uri=workload.build(kind, folder, scale=scale))
    source = f"sqlite:///{folder}/mlflow.db"
    rounds = []
    for _ in range(repeat):
        with tempfile.TemporaryDirectory() as cache:
            asked(f"exim://{archive}", Path(cache))  # also makes MLflow's empty tables
            (made,) = Path(cache).glob("[!.e]*.db")
            size_mb = made.stat().st_size / 1e6
            made.unlink()
            first = asked(f"exim://{archive}", Path(cache))
            again = asked(f"exim://{archive}", Path(cache))
        rounds.append((first, again, asked(source, folder)))
    best = [{key: min(r[i][key] for r in rounds) for key in rounds[0][i]} for i in range(3)]
    first, again, there = best
    print(
        f"{name}: first open {first['open']:.2f} s, {first['open_mb']:.0f} MB, "
        f"database {size_mb:.1f} MB; again {again['open']:.3f} s"
    )
    for what in ("search", "filter", "chart", "next chart"):
        if what in again:
            ratio = again[what] / there[what]
            print(
                f"  {what}: {again[what] * 1000:.0f} ms, {ratio:.2f}x of {there[what] * 1000:.0f}"
            )
    print(
        f"  memory beside MLflow: {again['peak_mb']:.0f} MB, the source {there['peak_mb']:.0f} MB"
    )


if __name__ == "__main__":
    main()
