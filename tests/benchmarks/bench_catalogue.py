"""Runs found in a catalogue on S3, of a million in a thousand packs.

    python -m tests.benchmarks.bench_catalogue FOLDER [--packs N] [--runs N]

FOLDER is served as S3 by rclone behind ``tests/slow_network.py``. Where it has no catalogue one is
made there, pack by pack as sets make it, of synthetic documents through the row functions: no
archive is written. Each question is asked twice in this process, with a client that is there, and
the time of the second one is told, with its requests and bytes.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.options import Seeking
from mlflow_exim_plugin.sets.catalogue.listing import newest, publish, write_rows
from mlflow_exim_plugin.sets.catalogue.search import Shelf, search
from mlflow_exim_plugin.storage.folders.folder import open_folder
from tests import far_stores
from tests.catalogue_seed import packs, rows_of_pack

if TYPE_CHECKING:
    from mlflow_exim_plugin.storage.folders.folder import Folder

_BUCKET = "set"


def build(folder: Path, count: int, runs: int) -> None:
    """Make the catalogue, one pack after the other; of each day's runs one in a hundred grows."""
    target = open_folder(str(folder))
    begun, publishing = time.monotonic(), 0.0
    for number, pack in enumerate(packs(count, runs, grown=runs // 100), 1):
        rows = rows_of_pack(pack)
        before = time.monotonic()
        publish(target, [write_rows(target, rows)])
        publishing += time.monotonic() - before
        if number % 100 == 0:
            print(f"{number} packs, {time.monotonic() - begun:.0f} s, of these {publishing:.0f} s")


def questions(count: int, runs: int) -> dict[str, dict[str, Any]]:
    """Return what is asked, about a run of one of the packs."""
    chance = random.Random(1)
    number = chance.randrange(min(count, 200))
    for at, pack in enumerate(packs(count, runs, grown=runs // 100)):
        if at == number:
            document, files = pack.runs[-1 - chance.randrange(runs // 2)]
            break
    info = document["info"]
    tags = {tag["key"]: tag["value"] for tag in document["data"]["tags"]}
    return {
        "run id": {"runs": (info["run_id"],)},
        "SHA-256 of a file": {"sha256": (files[0][0],)},
        "name": {"names": (info["run_name"],)},
        "tag of ten runs": {"tags": (f"ticket={tags['ticket']}",)},
        "tag of a hundred runs": {"tags": ("team=rare",)},
        "two params and a metric, 20 newest": {
            "params": ("lr=0.1", "optimizer=adam"),
            "metrics": ("acc>0.9",),
            "limit": 20,
        },
        "user, 100 newest": {"users": (info["user_id"],), "limit": 100},
        "a minute": {"since_ms": info["start_time"], "until_ms": info["start_time"] + 60_000},
    }


def ask(folder: Folder, asked: dict[str, Any]) -> tuple[int, int, float, float]:
    """Return how many were found and shown, and the seconds and CPU seconds that it took."""
    wall, cpu = time.monotonic(), time.process_time()
    answer = search([Shelf(folder, newest(folder).parts)], Seeking(**asked))
    seconds = time.monotonic() - wall, time.process_time() - cpu
    return answer.total, len(answer.objects), *seconds


def main() -> None:
    """Build what is not there, ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--packs", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=1000)
    given = parser.parse_args()
    place = given.folder / _BUCKET
    place.mkdir(parents=True, exist_ok=True)
    if not newest(open_folder(str(place))).number:
        build(place, given.packs, given.runs)
    parts = newest(open_folder(str(place))).parts
    size = sum(file.size_bytes for part in parts for file in part.tables.values())
    print(
        f"{len(parts)} parts, {sum(part.objects for part in parts):,} objects, {size / 1e6:.0f} MB"
    )
    asked = questions(given.packs, given.runs)
    with far_stores.rclone_s3(given.folder, etag_hash="") as near, near.far_away() as store:
        for name, question in asked.items():
            folder = open_folder(f"s3://{_BUCKET}", store.options)
            ask(folder, question)
            folder.requests = folder.bytes_read = 0
            total, shown, seconds, cpu_seconds = ask(folder, question)
            print(
                f"{name}: {shown} of {total}, {seconds:.2f} s, {cpu_seconds:.2f} s of CPU, "
                f"{folder.requests} requests, {folder.bytes_read / 1e6:.1f} MB"
            )


if __name__ == "__main__":
    main()
