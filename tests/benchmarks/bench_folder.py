"""An ``mlruns`` folder read by the package, against MLflow's own store in the same run.

    python -m tests.benchmarks.bench_folder [--scale F] [--each N] [--root FOLDER]

10 experiments of 1,000 runs with 10 params, 5 metrics of one step and 7 tags, a file with every
20th run; with ``--each N``, N of each. MLflow's own store searches the runs of each experiment, and
no more: for each history it would look through all folders, which 100 of them tell. The package
reads all histories and lists all files besides. Each is a process of its own, in turn; what an
interpreter imports is not counted. The files were just written, so none of them waits for a disk.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from tests.benchmarks.bench_pack import packed
from tests.benchmarks.workload import EPOCH_MS, NOTES, RUN_INTERVAL_MS, USERS

ROUNDS = 5
EXPERIMENTS = 10
RUNS = 1_000
MLFLOW = """
import sys, time
from mlflow.store.tracking.file_store import FileStore
from mlflow.entities import ViewType
store = FileStore(sys.argv[1])
start, cpu, found, histories = time.perf_counter(), time.process_time(), 0, []
for experiment in store.search_experiments(ViewType.ALL):
    token = None
    while True:
        page = store.search_runs(
            [experiment.experiment_id], "", ViewType.ALL, max_results=50_000, page_token=token
        )
        for run in page:
            found += len(run.data.params) + len(run.data.tags) + len(run.data.metrics)
            histories += [(run.info.run_id, key) for key in run.data.metrics]
        token = page.token
        if not token:
            break
searched = time.perf_counter(), time.process_time()
for run_id, key in histories[:: max(1, len(histories) // 100)]:
    assert len(store.get_metric_history(run_id, key)) == 1
history_seconds = (time.perf_counter() - searched[0]) / 100
start, cpu = start + time.perf_counter() - searched[0], cpu + time.process_time() - searched[1]
"""
OURS = """
import sys, time
from mlflow_exim_plugin.operations.ends import open_source
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.metric_rows import RunRows
from mlflow_exim_plugin.schema.objects import Run
import mlflow_exim_plugin.sources.folder.source
with open_source(sys.argv[1]) as opened:
    start, cpu, found = time.perf_counter(), time.process_time(), 0
    history_seconds = 0
    for item in opened.stream.stream(Selection()):
        if isinstance(item, Run):
            found += len(item.document["data"]["params"]) + len(item.document["data"]["tags"])
            found += sum(rows.num_rows for rows in item.histories if isinstance(rows, RunRows))
            list(item.artifacts)
"""
SAY = """
import json, resource
print(json.dumps({
    "seconds": time.perf_counter() - start,
    "cpu_seconds": time.process_time() - cpu,
    "found": found,
    "history_seconds": history_seconds,
    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
}))
"""


def build(root: Path, *, scale: float = 1.0, each: int = 0) -> Path:
    """Write the files that MLflow's store would have written; returns their folder.

    Args:
        root: Where to.
        scale: Of the number of runs.
        each: How many params, metrics and tags a run has at least.
    """
    chance = random.Random(7)
    folder = root / "mlruns"
    for number in range(EXPERIMENTS):
        experiment_id = str(100_000_000_000_000_000 + number)
        experiment = folder / experiment_id
        experiment.mkdir(parents=True)
        meta = {
            "artifact_location": experiment.as_uri(),
            "creation_time": EPOCH_MS,
            "experiment_id": experiment_id,
            "last_update_time": EPOCH_MS,
            "lifecycle_stage": "active",
            "name": f"experiment {number}",
        }
        _write_meta(experiment, meta)
        for index in range(round(RUNS * scale)):
            write_run(experiment, index, chance, each)
    return folder


def write_run(experiment: Path, index: int, chance: random.Random, each: int) -> Path:
    """Write the files of a run; returns their folder."""
    run_id = f"{chance.getrandbits(128):032x}"
    folder = experiment / run_id
    started = EPOCH_MS + index * RUN_INTERVAL_MS
    user = chance.choice(USERS)
    for part in ("artifacts", "metrics", "params", "tags"):
        (folder / part).mkdir(parents=True)
    meta = {
        "artifact_uri": f"{folder.as_uri()}/artifacts",
        "end_time": started + chance.randrange(10_000, 9_000_000),
        "entry_point_name": "",
        "experiment_id": experiment.name,
        "lifecycle_stage": "active" if index % 37 else "deleted",
        "run_id": run_id,
        "run_name": f"run-{index}",
        "source_name": "",
        "source_type": 4,
        "source_version": "",
        "start_time": started,
        "status": 3,
        "tags": [],
        "user_id": user,
    }
    _write_meta(folder, meta)
    for number in range(max(10, each)):
        (folder / "params" / f"param_{number}").write_text(str(chance.random()))
    (folder / "metrics" / "train").mkdir()
    more = [f"metric_{number}" for number in range(5, each)]
    for name in ("train/loss", "train/acc", "val_loss", "val_acc", "lr", *more):
        line = f"{started + 1000} {chance.random()} 0\n"
        (folder / "metrics" / name).write_text(line)
    tags = {
        "mlflow.runName": f"run-{index}",
        "mlflow.user": user,
        "mlflow.source.name": "train.py",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": f"{chance.getrandbits(160):040x}",
        "team": chance.choice("abcdef"),
        "note": chance.choice(NOTES),
    }
    tags |= {f"tag_{number}": chance.choice(NOTES) for number in range(len(tags), each)}
    for name, text in tags.items():
        (folder / "tags" / name).write_text(text, encoding="utf-8")
    if index % 20 == 0:
        (folder / "artifacts" / "config.json").write_text("{}")
    return folder


def _write_meta(folder: Path, meta: dict[str, object]) -> None:
    import yaml

    text = yaml.dump(meta, default_flow_style=False, allow_unicode=True)
    (folder / "meta.yaml").write_text(text, encoding="utf-8")


def _measured(program: str, place: str) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", program + SAY, place],
        stdout=subprocess.PIPE,
        check=True,
        env=os.environ | {"MLFLOW_ALLOW_FILE_STORE": "true", "MLFLOW_DISABLE_TELEMETRY": "true"},
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Read the folder by turns and print the middle of all rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--each", type=int, default=0)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.root) as root:
        folder = build(Path(root), scale=arguments.scale, each=arguments.each)
        both = [
            (_measured(MLFLOW, str(folder)), _measured(OURS, str(folder)))
            for _ in range(arguments.rounds)
        ]
        archive = packed(Path(root) / "a.tar.zst", folder.as_uri())
    assert len({one["found"] for pair in both for one in pair}) == 1, both
    print(f"{round(EXPERIMENTS * RUNS * arguments.scale):,} runs of an mlruns folder")
    for name in ("seconds", "cpu_seconds"):
        theirs, ours = ([pair[i][name] for pair in both] for i in (0, 1))
        ratios = sorted(own / floor for floor, own in zip(theirs, ours, strict=True))
        print(f"  {name.replace('_', ' '):12} of MLflow's store  {median(theirs):8.2f}")
        print(f"  {'':12} of the package     {median(ours):8.2f}")
        print(f"  {'':12} ratio              {median(ratios):8.2f}"
              f"  ({ratios[0]:.2f} to {ratios[-1]:.2f})")  # fmt: skip
    history_ms = median(pair[0]["history_seconds"] for pair in both) * 1000
    print(f"  one history of MLflow's store {history_ms:8.2f} ms")
    print(f"  peak memory               {max(pair[1]['peak_mb'] for pair in both):8.0f} MB")
    print(f"  the whole pack            {archive['seconds']:8.2f} s {archive['peak_mb']:8.0f} MB")


if __name__ == "__main__":
    main()
