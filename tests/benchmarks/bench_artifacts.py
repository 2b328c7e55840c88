"""Small files of a run from and to S3, against MLflow's own client in the same run.

    python -m tests.benchmarks.bench_artifacts [--files N] [--far] [--root FOLDER]

A run has 5,000 files of some 2 kB in 50 folders of a bucket. The package packs it into a local
archive and unpacks that into another database whose files lie in the bucket too, through the whole
pipe, with what it reads back. MLflow downloads and logs three of the folders, as
``download_artifacts`` and ``log_artifacts`` do; for all of them its time is multiplied. The server
is rclone on loopback; ``--far`` puts 30 ms and 20 MB/s a connection before it. Each is a process of
its own, in turn; what it does first, such as to import, is done once before the clock starts. The
least of some rounds counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from mlflow import MlflowClient

from tests.far_stores import rclone_s3
from tests.servers import new_sqlite_database

ROUNDS = 3
FOLDERS = 50
SAMPLED_FOLDERS = 3
DOWNLOAD = """
from mlflow import MlflowClient
client = MlflowClient(uri, uri)
def work(run_id, folders, number):
    for folder in folders:
        client.download_artifacts(run_id, folder, f"{there}/down{number}")
"""
LOG = """
from mlflow import MlflowClient
client = MlflowClient(uri, uri)
def work(run_id, folders, number):
    for folder in folders:
        client.log_artifacts(run_id, f"{there}/local/{folder}", f"again{number}/{folder}")
"""
PACK = """
from mlflow_exim_plugin import pack
def work(run_id, folders, number):
    report = pack(f"{there}/{run_id}.tar.zst", tracking_uri=uri, runs=(run_id,), overwrite=True)
    assert not report.failures, report.failures[:3]
"""
UNPACK = """
from mlflow_exim_plugin import unpack
from tests.servers import new_sqlite_database
from pathlib import Path
def work(run_id, folders, number):
    new_sqlite_database(target := Path(there) / f"target-{run_id}-{number}.db")
    clock()
    report = unpack(f"{there}/{run_id}.tar.zst", tracking_uri=f"sqlite:///{target}",
                    artifact_location=f"s3://bucket/{run_id}-{number}")
    assert not report.failures, report.failures[:3]
"""
MEASURE = """
import json, resource, sys, time
begun = 0, 0
def clock():
    global begun
    begun = time.perf_counter(), time.process_time()
uri, there, first, run_id, folders = sys.argv[1:6]
{work}
work(first, ["d0"], -1)
clock()
work(run_id, folders.split(), {number})
print(json.dumps([time.perf_counter() - begun[0], time.process_time() - begun[1],
                  resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000]))
"""


def seeded(root: Path, files: int) -> tuple[str, str, str]:
    """Make a database with a run of one folder and one of all; returns its URI and their ids."""
    new_sqlite_database(root / "mlflow.db")
    uri = f"sqlite:///{root / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    experiment_id = client.create_experiment("e", "s3://bucket/1")
    runs = []
    for folders in (1, FOLDERS):
        run = client.create_run(experiment_id)
        runs.append(run.info.run_id)
        there = root / "s3" / run.info.artifact_uri.removeprefix("s3://")
        for number in range(files * folders // FOLDERS):
            path = Path(f"d{number % folders}", f"{number}.txt")
            text = "".join(f"{run.info.run_id} {number} {line}\n" for line in range(40))
            for folder in (there, root / "local"):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_text(text)
    return uri, runs[0], runs[1]


def measured(work: str, number: int, *arguments: str) -> list[float]:
    """Return seconds, seconds of CPU and MB of the process."""
    script = MEASURE.replace("{work}", work).replace("{number}", str(number))
    command = [sys.executable, "-c", script, *arguments]
    shown = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: list[float] = json.loads(shown.splitlines()[-1])
    return found


def main() -> None:
    """Measure, and print seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--far", action="store_true")
    parser.add_argument("--root", type=Path)
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        root = asked.root or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        uri, first, run_id = seeded(root, asked.files)
        store = stack.enter_context(rclone_s3(root / "s3"))
        if asked.far:
            store = stack.enter_context(store.far_away())
        endpoint = store.options["endpoint_url"]
        os.environ |= {
            "AWS_ACCESS_KEY_ID": store.options["key"],
            "AWS_SECRET_ACCESS_KEY": store.options["secret"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
            "MLFLOW_S3_ENDPOINT_URL": endpoint,
            "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        }
        sample = " ".join(f"d{number}" for number in range(SAMPLED_FOLDERS))
        sampled = asked.files * SAMPLED_FOLDERS // FOLDERS
        works = {
            "MLflow's download_artifacts": (DOWNLOAD, sample, sampled),
            "pack": (PACK, "", asked.files),
            "MLflow's log_artifacts": (LOG, sample, sampled),
            "unpack": (UNPACK, "", asked.files),
        }
        best: dict[str, list[float]] = {}
        for number in range(ROUNDS):
            for name, (work, folders, files) in works.items():
                seconds, cpu, megabytes = measured(
                    work, number, uri, str(root), first, run_id, folders
                )
                a_file = [seconds / files * 1000, cpu / files * 1000, megabytes]
                best[name] = [
                    min(pair) for pair in zip(best.get(name, a_file), a_file, strict=True)
                ]
    for name, (milliseconds, cpu, megabytes) in best.items():
        print(
            f"{name}: {milliseconds:.2f} ms a file, {1000 / milliseconds:.0f} files/s,"
            f" {cpu:.2f} ms of CPU a file, {megabytes:.0f} MB"
        )
    for ours, floor in (
        ("pack", "MLflow's download_artifacts"),
        ("unpack", "MLflow's log_artifacts"),
    ):
        ratios = [f / o for o, f in zip(best[ours], best[floor], strict=True)]
        print(f"{ours}: {ratios[0]:.1f}x as fast as {floor}, 1/{ratios[1]:.1f} of its CPU")


if __name__ == "__main__":
    main()
