"""Whole unpacks into a database against the bare insert of the same rows in the same run.

    python -m tests.benchmarks.bench_unpack [histories|runs] [--scale F] [--root FOLDER]

``histories``  200 runs of 20 metrics with 500 steps into an empty SQLite file and an empty
               PostgreSQL database, beside ``executemany`` of Python's ``sqlite3`` and ``COPY``.
``runs``       10k runs of 10 params, 5 metrics and 7 tags into the same two.

The bare insert has all rows in memory, as tuples or as text, and the same tables with the same
indexes; its clock starts behind that. Each unpack is the real command in a process of its own;
memory is that process's peak.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import uuid
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import psycopg2

from tests.benchmarks.bench_pack import RUN_TABLES, SQL_STORE, import_seconds, measured, packed
from tests.benchmarks.workload import build
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.benchmarks.workload import Kind

POSTGRES = "postgresql+psycopg2://postgres@127.0.0.1:5432"
REPEATS = 3
INTO_SQLITE = """
import sqlite3, sys, time
source, target, *tables = sys.argv[1:]
read = sqlite3.connect(source)
held = {}
for table in tables:
    cursor = read.execute(f"SELECT * FROM {table}")
    held[table] = [c[0] for c in cursor.description], cursor.fetchall()
experiments = read.execute("SELECT * FROM experiments").fetchall()
write = sqlite3.connect(target)
write.execute("PRAGMA foreign_keys = ON")
start = time.perf_counter()
marks = ",".join("?" * len(experiments[0]))
write.executemany(f"INSERT OR IGNORE INTO experiments VALUES ({marks})", experiments)
for table, (names, rows) in held.items():
    into = ",".join(f'"{name}"' for name in names)
    marks = ",".join("?" * len(names))
    write.executemany(f"INSERT INTO {table} ({into}) VALUES ({marks})", rows)
write.commit()
print(time.perf_counter() - start)
"""
INTO_POSTGRES = r"""
import io, sqlite3, sys, time
import psycopg2
source, target, *tables = sys.argv[1:]
read = sqlite3.connect(source)
escapes = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
def text(value):
    return "\\N" if value is None else str(value).translate(escapes)
held = {}
for table in ("experiments", *tables):
    where = " WHERE experiment_id > 0" if table == "experiments" else ""
    cursor = read.execute(f"SELECT * FROM {table}{where}")
    names = [c[0] for c in cursor.description]
    rows = "".join("\t".join(map(text, row)) + "\n" for row in cursor)
    held[table] = ",".join(f'"{name}"' for name in names), rows.encode()
write = psycopg2.connect(target)
start = time.perf_counter()
with write, write.cursor() as cursor:
    for table, (names, rows) in held.items():
        cursor.copy_expert(f"COPY {table} ({names}) FROM STDIN", io.BytesIO(rows))
print(time.perf_counter() - start)
"""


def unpacked(archive: Path, uri: str, root: Path) -> dict[str, Any]:
    """Unpack with the real command."""
    command = [sys.executable, "-m", "mlflow_exim_plugin", "unpack", str(archive)]
    command += ["--tracking-uri", uri, "--artifact-location", str(root / "files")]
    result = measured([*command, "--output", "json"])
    if result["exit_code"]:
        raise SystemExit(f"unpack failed: {result['output']}")
    return result


@contextmanager
def new_sqlite(root: Path) -> Iterator[str]:
    """Yield an empty SQLite file of MLflow's."""
    path = root / f"{uuid.uuid4().hex}.db"
    new_sqlite_database(path)
    yield f"sqlite:///{path}"
    path.unlink()


@contextmanager
def new_postgres(_root: Path) -> Iterator[str]:
    """Yield an empty PostgreSQL database of MLflow's."""
    name = f"exim_bench_{uuid.uuid4().hex[:12]}"
    with closing(psycopg2.connect("postgresql://postgres@127.0.0.1:5432/postgres")) as admin:
        admin.autocommit = True
        with admin.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name}")
            try:
                uri = f"{POSTGRES}/{name}"
                mlflow.MlflowClient(uri, uri)
                yield uri
            finally:
                cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")


def bare(source: str, uri: str) -> float:
    """Insert the rows and nothing else; return seconds."""
    path = source.removeprefix("sqlite:///")
    if uri.startswith("sqlite"):
        script, target = INTO_SQLITE, uri.removeprefix("sqlite:///")
    else:
        script, target = INTO_POSTGRES, uri.replace("+psycopg2", "")
    done = measured([sys.executable, "-c", script, path, target, *RUN_TABLES])
    if done["exit_code"]:
        raise SystemExit("the bare insert failed")
    return float(done["output"])


def compare(kind: Kind, root: Path, scale: float) -> None:
    """Unpack a load into both databases."""
    source = build(kind, root / "load", scale=scale)
    archive = root / "load.tar.zst"
    report = packed(archive, source, "--no-artifacts")["report"]
    start_s = import_seconds(SQL_STORE)
    counts = report["counts"]
    print(f"{counts['run']['written']:,} runs, {report['metric_rows']:,} rows, without artifacts")
    for name, new in (("SQLite", new_sqlite), ("PostgreSQL", new_postgres)):
        floors, ours = [], []
        for _ in range(REPEATS):
            with new(root) as uri:
                floors.append(bare(source, uri))
            with new(root) as uri:
                ours.append(unpacked(archive, uri, root))
        best = min(ours, key=lambda run: run["seconds"])
        beside_s = best["seconds"] - start_s
        print(f"  into {name}")
        print(f"    bare insert                 {min(floors):8.1f} s")
        print(f"    unpack                      {best['seconds']:8.1f} s")
        print(f"    ... beside MLflow's import  {beside_s:8.1f} s")
        print(f"    ratio                       {beside_s / min(floors):8.2f}")
        print(f"    peak memory                 {best['peak_mb']:8.0f} MB", flush=True)


def main() -> None:
    """Run the benchmarks that are named, or all."""
    kinds: dict[str, Kind] = {"histories": "metrics", "runs": "runs"}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmarks", nargs="*", choices=[[], *kinds], default=[])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--root", type=Path)
    arguments = parser.parse_args()
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for name in arguments.benchmarks or kinds:
        with tempfile.TemporaryDirectory(dir=arguments.root) as root:
            compare(kinds[name], Path(root), arguments.scale)


if __name__ == "__main__":
    main()
