"""A second pack into a set against the first one, and against a look at the source alone.

python -m tests.benchmarks.bench_sets {runs,metrics} [--scale F]
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_exim_plugin import pack
from tests.benchmarks.workload import build

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.schema.report import Report


def _cost(what: str, work: Callable[[], Report], folder: Path) -> tuple[float, int]:
    """Return seconds of the processors, and bytes that are new in the set."""
    before = _size_bytes(folder)
    begun_s, times = time.perf_counter(), os.times()
    report = work()
    spent_s = sum(os.times()[:4]) - sum(times[:4])
    new_bytes = _size_bytes(folder) - before
    written = sum(counts.written for counts in report.counts.values())
    wall_s = time.perf_counter() - begun_s
    print(f"{what}: {wall_s:.2f} s, {spent_s:.2f} s of CPU, {new_bytes} bytes, {written} objects")
    return spent_s, new_bytes


def _size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _change(database: Path, share: int) -> None:
    """Give one of so many runs another tag."""
    with sqlite3.connect(database) as connection:
        listed = connection.execute("SELECT run_uuid FROM runs ORDER BY run_uuid").fetchall()
        rows = [(str(time.time_ns()), run_id) for (run_id,) in listed[::share]]
        insert = "INSERT OR REPLACE INTO tags (key, value, run_uuid) VALUES ('bench', ?, ?)"
        connection.executemany(insert, rows)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["runs", "metrics"])
    parser.add_argument("--scale", type=float, default=1.0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        build(asked.kind, root / "store", scale=asked.scale)
        database, folder = root / "store" / "mlflow.db", root / "set"
        folder.mkdir()
        source = f"sqlite:///{database}"
        pack(str(root / "warm.tar.zst"), tracking_uri=source, dry_run=True)  # MLflow's imports
        look, _ = _cost(
            "look", lambda: pack(str(root / "x.tar.zst"), tracking_uri=source, dry_run=True), folder
        )
        again = lambda: pack(tracking_uri=source, set=str(folder))  # noqa: E731
        first, all_bytes = _cost("first", again, folder)
        second, second_bytes = _cost("second", again, folder)
        _change(database, 100)
        third, third_bytes = _cost("after 1 % of the runs changed", again, folder)
    for name, spent_s, new_bytes in (
        ("second", second, second_bytes),
        ("1 % changed", third, third_bytes),
    ):
        beside = (spent_s - look) / first
        share = new_bytes / all_bytes
        print(f"{name}: {beside:.3f} of the first one's CPU beside the look, {share:.4f} of bytes")


if __name__ == "__main__":
    main()
