"""Small archives that would become large: what a reader would take for them is measured.

Each is as an enemy would make it: all digests are right, and what is large is cheap to store.

    python -m tests.bombs [NAME ...] [--commands COMMAND ...]

writes each into a temporary folder and tells what each command takes of it.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_exim_plugin.container import writer as writer_module
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.container.writer import ArchiveWriter
from mlflow_exim_plugin.schema.tables import METRICS
from tests.crafted import GENERATED
from tests.unit.container.crafting import MemorySource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["BOMBS", "COMMANDS", "Taken", "made", "taken_by"]

ROOT = Path(__file__).parents[1]
GOOD = ROOT / "samples" / "v1" / "good" / "minimal.tar.zst"
RUN_ID = "5" * 32
EXPERIMENT = "data/experiments/1/"
RUN = f"{EXPERIMENT}runs/{RUN_ID}/run.json"
MODEL = "data/models/iris/model.json"
ARCHIVE = "data/archive.json"
METRICS_FILE = f"{EXPERIMENT}metrics/part-00000.parquet"
MANY = 1_000_000


@cache
def _good(name: str) -> dict[str, bytes]:
    data = (ROOT / "samples" / "v1" / "good" / f"{name}.tar.zst").read_bytes()
    with ArchiveReader.from_source(MemorySource(data)) as reader:
        return {p: reader.read(p) for p in reader.paths() if p not in GENERATED}


class _Bomb(dict[str, bytes]):
    """Members of a good archive, to be changed."""

    def __init__(self, name: str = "minimal") -> None:
        super().__init__(_good(name))

    def value(self, path: str) -> Any:
        return orjson.loads(self[path])

    def put(self, path: str, value: Any) -> _Bomb:
        self[path] = orjson.dumps(value)
        return self

    def within(self, path: str, *keys: str | int, value: str) -> _Bomb:
        """Put a text of JSON at a place of a document, without having its value in memory."""
        document = self.value(path)
        holder = document
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]] = "@here@"
        self[path] = orjson.dumps(document).replace(b'"@here@"', value.encode())
        return self


def _listed(count: int, entry: str) -> str:
    return "[" + ",".join(entry.replace("#", f"{number:07d}") for number in range(count)) + "]"


def _members() -> Iterator[tuple[str, bytes]]:
    yield from _Bomb().items()
    yield from ((f"data/{number:07x}", b"") for number in range(MANY))


def _long_members() -> Iterator[tuple[str, bytes]]:
    yield from _Bomb().items()
    folder = "/".join(["x" * 240] * 3)
    yield from ((f"data/{folder}/{number:07x}", b"") for number in range(MANY // 2))


def _runs() -> Iterator[tuple[str, bytes]]:
    bomb = _Bomb()
    yield from bomb.items()
    yield from ((f"{EXPERIMENT}runs/{n:032x}/run.json", bomb[RUN]) for n in range(MANY))


def _runs_of_own() -> Iterator[tuple[str, bytes]]:
    bomb = _Bomb()
    yield from bomb.items()
    for number in range(MANY // 2):
        run_id = f"{number:032x}".encode()
        yield (
            f"{EXPERIMENT}runs/{run_id.decode()}/run.json",
            bomb[RUN].replace(RUN_ID.encode(), run_id),
        )


def _versions() -> Iterator[tuple[str, bytes]]:
    bomb = _Bomb()
    yield from bomb.items()
    version = bomb["data/models/iris/versions/1/version.json"]
    for number in range(2, MANY // 2):
        yield f"data/models/iris/versions/{number}/version.json", version


def _artifacts() -> Iterator[tuple[str, bytes]]:
    """A run of as many files as a document may name."""
    entry = (
        '{"path":"#","member":"data/experiments/1/runs/%s/artifacts/#","size_bytes":0,"sha256":'
        '"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}'
    )
    count = 800_000
    yield from (
        _Bomb().within(RUN, "info", "artifacts", value=_listed(count, entry % RUN_ID)).items()
    )
    folder = RUN.replace("run.json", "artifacts")
    yield from ((f"{folder}/{number:07d}", b"") for number in range(count))


def _same_artifact() -> Iterator[tuple[str, bytes]]:
    member = f"{EXPERIMENT}runs/{RUN_ID}/artifacts/note.txt"
    entry = f'{{"path":"#","member":"{member}","size_bytes":6,"sha256":"{"a" * 64}"}}'
    return iter(_Bomb().within(RUN, "info", "artifacts", value=_listed(100_000, entry)).items())


def _log() -> Iterator[tuple[str, bytes]]:
    bomb = _Bomb()
    event = bomb["log/00001.json"]
    yield from bomb.items()
    yield from ((f"log/{number:05d}.json", event) for number in range(2, MANY // 2))


def _within(path: str, *keys: str | int, value: Callable[[], str]) -> Any:
    return lambda: iter(_Bomb().within(path, *keys, value=value()).items())


NAMED = '{"kind":"run","id":"#","reason":"x"}'
KEYED = '{"key":"#","value":"x"}'
FREE = 47 << 20


def _filled(entry: str, brackets: str = "[]") -> Callable[[], str]:
    """Return as many entries as a document may have where they cost nothing, as JSON."""
    value = entry.replace("#", "0000000")
    values = max(value.count(":") + value.count("{"), 1)
    count = min(FREE // (len(value) + 1), 4_190_000 // values)
    return lambda: brackets[0] + _listed(count, entry)[1:-1] + brackets[1]


def _metrics(rows: int, key: Callable[[int], str], group: int = 1 << 20) -> Any:
    def members() -> Iterator[tuple[str, bytes]]:
        bomb = _Bomb()
        table = pa.Table.from_arrays(
            [
                pa.repeat(RUN_ID, rows),
                pa.array([key(n) for n in range(rows)]),
                *(pa.repeat(pa.scalar(0, pa.int64()), rows) for _ in range(2)),
                pa.repeat(0.5, rows),
            ],
            schema=METRICS,
        )
        sink = io.BytesIO()
        pq.write_table(table, sink, row_group_size=group, compression="zstd")
        bomb[METRICS_FILE] = sink.getvalue()
        document = bomb.value(RUN)
        document["info"]["metrics"]["rows"] = rows
        document["info"]["metrics"]["parts"][0]["rows"] = rows
        return iter(bomb.put(RUN, document).items())

    return members


def _traces(column: str, text: str, rows: int, table: str = "spans") -> Any:
    """A part of traces with a text in each row of one table."""

    def members() -> Iterator[tuple[str, bytes]]:
        bomb = _Bomb("mlflow3")
        path = next(p for p in bomb if f"/{table}-0" in p)
        part = path.replace(f"/{table}-", "/part-").replace(".parquet", ".json")
        stored = pq.read_table(io.BytesIO(bomb[path]))
        row = stored.slice(0, 1)
        many = pa.Table.from_arrays(
            [pa.repeat(one[0], rows) for one in row.columns], schema=stored.schema
        )
        place = stored.column_names.index(column)
        many = many.set_column(place, stored.schema.field(column), pa.repeat(text, rows))
        if table == "traces":
            ids = pa.array([f"tr-{number:032x}" for number in range(rows)])
            many = many.set_column(0, stored.schema.field(0), ids)
        sink = io.BytesIO()
        pq.write_table(many, sink, compression="zstd", row_group_size=1 << 20)
        bomb[path] = sink.getvalue()
        document = bomb.value(part)
        document["info"]["tables"][table]["rows"] = rows
        if table == "traces":
            document["mlflow"]["traces"] = rows
        return iter(bomb.put(part, document).items())

    return members


BOMBS: dict[str, Callable[[], Iterator[tuple[str, bytes]]]] = {
    "members": _members,
    "long_members": _long_members,
    "runs": _runs,
    "runs_of_own": _runs_of_own,
    "versions": _versions,
    "artifacts": _artifacts,
    "same_artifact": _same_artifact,
    "log": _log,
    "failures": _within(ARCHIVE, "info", "failures", value=_filled(NAMED)),
    "lossy": _within(ARCHIVE, "info", "lossy", value=_filled(NAMED)),
    "failures_of_run": _within(RUN, "info", "failures", value=_filled(NAMED)),
    "failed_runs": _within(ARCHIVE, "info", "failed_runs", value=_filled('"#"')),
    "experiment_failed": _within(
        f"{EXPERIMENT}experiment.json", "info", "failed_runs", value=_filled('"#"')
    ),
    "not_packed": _within(
        ARCHIVE,
        "info",
        "not_packed",
        value=_filled('{"kind":"#","seen":1,"reason":"x"}'),
    ),
    "counts": _within(
        ARCHIVE,
        "info",
        "counts",
        value=_filled('"#":{"found":0,"written":0,"skipped":0,"failed":0}', "{}"),
    ),
    "selection": _within(ARCHIVE, "mlflow", "selection", value=_filled('"#":[]', "{}")),
    "workspaces": _within(ARCHIVE, "mlflow", "workspaces", value=_filled('{"name":"#"}')),
    "taken_from": _within(ARCHIVE, "info", "taken_from", value=_filled('{"archive":"#"}')),
    "tags": _within(RUN, "mlflow", "run", "data", "tags", value=_filled(KEYED)),
    "params": _within(RUN, "mlflow", "run", "data", "params", value=_filled(KEYED)),
    "last_metrics": _within(
        RUN,
        "mlflow",
        "run",
        "data",
        "metrics",
        value=_filled('{"key":"#","value":0.5,"step":0,"timestamp":0}'),
    ),
    "aliases": _within(
        MODEL,
        "mlflow",
        "registered_model",
        "aliases",
        value=_filled('{"alias":"#","version":"1"}'),
    ),
    "lists": _within(RUN, "mlflow", "run", "x", value=lambda: f"[{'[],' * 4_000_000}1]"),
    "objects": _within(
        RUN, "mlflow", "run", "x", value=lambda: "[" + '{"a":1},' * 2_000_000 + "1]"
    ),
    "deep": _within(
        RUN, "mlflow", "run", "x", value=lambda: f"[{(('[' * 90) + (']' * 90) + ',') * 44_000}1]"
    ),
    "text": _within(RUN, "mlflow", "run", "x", value=lambda: f'"{"x" * FREE}"'),
    "wide_text": _within(RUN, "mlflow", "run", "x", value=lambda: f'"\U0001f680{"x" * FREE}"'),
    "run_name": _within(RUN, "mlflow", "run", "info", "run_name", value=lambda: f'"{"x" * FREE}"'),
    "keys": _within(RUN, "mlflow", "run", "x", value=_filled('"#":1', "{}")),
    "wide_keys": _within(RUN, "mlflow", "run", "x", value=_filled('"\U0001f680#":1.5', "{}")),
    "paid_text": _within(RUN, "mlflow", "run", "x", value=lambda: f'"{"x" * (200 << 20)}"'),
    "metric_keys": _metrics(1 << 20, lambda n: f"{n:07x}"),
    "long_metric_keys": _metrics(60_000, lambda n: f"{n:07x}" * 140),
    "same_long_key": _metrics(60_000, lambda _: "x" * 1000),
    "spans_of_lists": _traces("attributes", '{"a":[' + "[]," * 300 + "1]}", 60_000),
    "span_of_lists": _traces("attributes", '{"a":[' + "[]," * 4_000_000 + "1]}", 1),
    "spans": _traces("name", "x", 1 << 20),
    "span_events": _traces(
        "events", "[" + '{"name":"a","time_ns":1,"attributes":{}},' * 50_000 + "{}]", 20
    ),
    "traces": _traces("state", "OK", 1 << 20, "traces"),
    "traces_of_previews": _traces("request_preview", "x" * 1000, 60_000, "traces"),
    "assessments": _traces("rationale", "x", 1 << 20, "assessments"),
}


def write(name: str, path: Path) -> None:
    """Write one; to be called in a process that then ends."""
    vars(writer_module)["has_to_pay"] = lambda *_: False
    with path.open("wb") as file, ArchiveWriter(file, base_directory="bomb", workers=0) as writer:
        for member, data in BOMBS[name]():
            if name.startswith("paid"):
                data += os.urandom(len(data) // 900)  # noqa: PLW2901
            writer.add(member, data)


COMMANDS = {
    "verify": ["verify", "{bomb}"],
    "ls": ["ls", "{bomb}"],
    "ls_json": ["ls", "--output", "json", "{bomb}"],
    "show": ["show", "{bomb}", "-r", RUN_ID],
    "diff": ["diff", "{bomb}", "{good}"],
    "unpack": ["unpack", "{bomb}", "--tracking-uri", "sqlite:///{folder}/target.db"],
}


@dataclass(frozen=True)
class Taken:
    """What a command took.

    Attributes:
        code: Its exit code, of a signal the negative number.
        peak_mb: Most memory that it had.
        seconds: Its processor time.
        told: The end of what it wrote.
    """

    code: int
    peak_mb: float
    seconds: float
    told: str


def taken_by(command: str, bomb: Path, good: Path = GOOD) -> Taken:
    """Run a command on an archive and return what it took."""
    with tempfile.TemporaryDirectory() as folder:
        places = {"bomb": str(bomb), "good": str(good), "folder": folder}
        words = [word.format(**places) for word in COMMANDS[command]]
        output = Path(folder) / "told"
        with output.open("wb") as file:
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-m", "mlflow_exim_plugin", *words],
                {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, file.fileno(), 1),
                    (os.POSIX_SPAWN_DUP2, file.fileno(), 2),
                ],
            )
            _, status, usage = os.wait4(pid, 0)
        size = output.stat().st_size
        with output.open("rb") as file:
            file.seek(max(size - 600, 0))
            told = file.read().decode(errors="replace")
        seconds = usage.ru_utime + usage.ru_stime
        return Taken(os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024, seconds, told)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(BOMBS))
    parser.add_argument("--commands", nargs="*", default=list(COMMANDS))
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    if asked.write:
        write(asked.names[0], asked.write)
        return
    for name in asked.names:
        with tempfile.TemporaryDirectory() as folder:
            bomb = made(name, Path(folder))
            _tell(f"{name}: {bomb.stat().st_size >> 10} kB")
            for command in asked.commands:
                taken = taken_by(command, bomb)
                last = " ".join(taken.told.split()[-12:])[-100:]
                flag = "  !!" if taken.peak_mb > 300 or taken.code not in range(8) else ""
                _tell(
                    f"  {command:8} {taken.code:3} {taken.peak_mb:6.0f} MB {taken.seconds:5.1f} s"
                    f"{flag} {last}"
                )


def made(name: str, folder: Path) -> Path:
    """Write one in a process of its own: what this one once took would be its children's too."""
    bomb = folder / f"{name}.tar.zst"
    command = [sys.executable, "-m", "tests.bombs", "--write", str(bomb), name]
    path = os.pathsep.join([str(ROOT), *sys.path])
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": path})
    return bomb


def _tell(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
