"""Writes the samples of spec/v1: good archives, and one broken archive for each rule.

    python samples/generate.py           rewrite samples/v1/good, bad, warn, vectors, signatures
    python samples/generate.py golden    add samples/v1/written-by/<this version>, once and for all
    python samples/generate.py exports   rewrite samples/oss_mlflow and samples/databricks

Times, ids and names are fixed, so that one version of libzstd, pyarrow and orjson (named in
``v1/generated-with.json``) gives the same bytes on every machine. Only ``exports`` needs MLflow
servers and starts them itself (``exports.py``); all else are typed objects that go through the
package's own sink and writer, and what is broken is broken afterwards.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import math
import os
import random
import shutil
import string
import struct
import sys
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from samples import mlflow3  # noqa: E402
from samples.forging import BASE, Forgery, TarMember, content_root, manifest, tar_header, zstd_frame  # noqa: E402
from samples.signatures import signatures  # noqa: E402

import mlflow_exim_plugin  # noqa: E402
from mlflow_exim_plugin.container.paths import decode_segment, encode_path, encode_segment  # noqa: E402
from mlflow_exim_plugin.container.reader import ArchiveReader  # noqa: E402
from mlflow_exim_plugin.container.writer import ArchiveWriter  # noqa: E402
from mlflow_exim_plugin.errors import StoreError  # noqa: E402
from mlflow_exim_plugin.schema.canonical import canonical_bytes, content_digest  # noqa: E402
from mlflow_exim_plugin.schema.envelope import FORMAT_VERSION, Platform, System  # noqa: E402
from mlflow_exim_plugin.schema.objects import (  # noqa: E402
    Artifact,
    Experiment,
    Failure,
    Kind,
    Loss,
    ModelVersion,
    RegisteredModel,
    Run,
    Unpacked,
)
from mlflow_exim_plugin.schema.report import Report  # noqa: E402
from mlflow_exim_plugin.schema.rules import RULES  # noqa: E402
from mlflow_exim_plugin.schema.metric_rows import MetricsDigest, RunRows  # noqa: E402
from mlflow_exim_plugin.schema.tables import (  # noqa: E402
    HISTORY,
    METRICS,
    metrics_writer,
    sort_history,
)
from mlflow_exim_plugin.sinks.archive import tables as sink_tables  # noqa: E402
from mlflow_exim_plugin.sinks.archive.log import Step  # noqa: E402
from mlflow_exim_plugin.sinks.archive.sink import ArchiveSink  # noqa: E402
from mlflow_exim_plugin.sources.archive.archive import Archive  # noqa: E402
from mlflow_exim_plugin.stages.privacy.redact import Redaction  # noqa: E402
from mlflow_exim_plugin.stages.privacy.rules import load_rules  # noqa: E402
from mlflow_exim_plugin.verification.archive import verify_archive  # noqa: E402
from mlflow_exim_plugin.verification.objects import verify_objects  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlflow_exim_plugin.schema.objects import StreamObject

FOLDER = Path(__file__).resolve().parent / "v1"
NOW_MS = 1_790_000_000_123
SYSTEM = System(
    package_version="1.0.0",
    script="samples/generate.py",
    format_version=FORMAT_VERSION,
    export_time=NOW_MS // 1000,
    export_time_ms=NOW_MS,
    export_time_text="2026-09-21 13:33:20",
    mlflow_version="3.17.0",
    mlflow_tracking_uri="sqlite:///mlflow.db",
    user="alice",
    platform=Platform(python_version="3.11.7", system="Linux", processor="x86_64"),
)
RUN = "5" * 32


# The objects of the samples, as a source would give them.


def experiment(number: str, name: str, **more: Any) -> Experiment:
    """Return an experiment as REST shows it."""
    return Experiment(
        {
            "experiment_id": number,
            "name": name,
            "artifact_location": f"/srv/mlruns/{number}",
            "lifecycle_stage": "active",
            "last_update_time": NOW_MS - 10_000,
            "creation_time": NOW_MS - 90_000,
            "tags": [],
            **more,
        }
    )


def run(
    run_id: str,
    number: str,
    rows: Iterable[tuple[str, int, int, float]] = (),
    files: dict[str, bytes] | None = None,
    *,
    params: dict[str, str] | None = None,
    tags: dict[str, str] | None = None,
    info: dict[str, Any] | None = None,
    more: Iterable[Artifact | Failure] = (),
) -> Run:
    """Return a run with its histories (key, step, timestamp, value) and files."""
    table = history(rows)
    latest = {row["key"]: row for row in table.to_pylist()}
    document = {
        "info": {
            "run_id": run_id,
            "run_uuid": run_id,
            "run_name": f"run-{run_id[:4]}",
            "experiment_id": number,
            "user_id": "alice",
            "status": "FINISHED",
            "start_time": NOW_MS - 80_000,
            "end_time": NOW_MS - 20_000,
            "artifact_uri": f"/srv/mlruns/{number}/{run_id}/artifacts",
            "lifecycle_stage": "active",
            **(info or {}),
        },
        "data": {
            "metrics": [
                {
                    "key": key,
                    "value": json_number(row["value"]),
                    "timestamp": row["timestamp"],
                    "step": row["step"],
                }
                for key, row in latest.items()
            ],
            "params": [{"key": k, "value": v} for k, v in sorted((params or {}).items())],
            "tags": [{"key": k, "value": v} for k, v in sorted((tags or {}).items())],
        },
    }
    histories = [RunRows.of(run_id, table)] if table.num_rows else []
    return Run(document, histories, [*artifacts(files or {}), *more], as_of_ms=NOW_MS)


def history(rows: Iterable[tuple[str, int, int, float]]) -> pa.Table:
    """Return sorted metric rows."""
    columns = list(zip(*rows, strict=True)) or [(), (), (), ()]
    return sort_history(
        pa.Table.from_arrays(
            [pa.array(c, f.type) for c, f in zip(columns, HISTORY, strict=True)], schema=HISTORY
        )
    )


def json_number(value: float) -> float | str:
    """Return a double as REST's JSON has it."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


def artifacts(files: dict[str, bytes]) -> list[Artifact]:
    """Return artifacts that give these bytes."""
    return [
        Artifact(path, len(data), lambda data=data: io.BytesIO(data))  # type: ignore[misc]
        for path, data in sorted(files.items())
    ]


def model(name: str, **more: Any) -> RegisteredModel:
    """Return a registered model as REST shows it."""
    return RegisteredModel(
        {
            "name": name,
            "creation_timestamp": NOW_MS - 15_000,
            "last_updated_timestamp": NOW_MS - 14_000,
            "tags": [],
            "aliases": [],
            **more,
        }
    )


def version(
    name: str, number: int, files: dict[str, bytes] | None = None, **more: Any
) -> ModelVersion:
    """Return a model version as REST shows it."""
    document = {
        "name": name,
        "version": str(number),
        "creation_timestamp": NOW_MS - 15_000 + number,
        "last_updated_timestamp": NOW_MS - 15_000 + number,
        "current_stage": "None",
        "source": f"s3://models/{number}",
        "status": "READY",
        "tags": [],
        "aliases": [],
        **more,
    }
    return ModelVersion(document, artifacts(files or {}), as_of_ms=NOW_MS)


def archive(
    stream: Iterable[StreamObject | Failure | Loss | Unpacked],
    base_directory: str,
    selection: dict[str, Any] | None = None,
    redaction: Redaction | None = None,
) -> bytes:
    """Return the archive of a stream, by the package's own sink and writer."""
    file = io.BytesIO()
    report = Report()
    bag_info = {"Bag-Software-Agent": "mlflow-exim-plugin samples"}
    with ArchiveWriter(file, base_directory=base_directory, workers=0, bag_info=bag_info) as writer:
        more = {"redacted": redaction.record} if redaction else {}
        sink = ArchiveSink(writer, SYSTEM, selection, step=Step(SYSTEM), **more)
        for item in redaction(iter(stream)) if redaction else stream:
            if isinstance(item, Failure):
                report.failed(item)
            elif isinstance(item, Loss):
                report.lost(item)
            elif isinstance(item, Unpacked):
                report.not_packed(item)
            else:
                sink.write(item, report)
        for loss in redaction.losses() if redaction else ():
            report.lost(loss)
        sink.finish(report)
    return file.getvalue()


def redacted() -> bytes:
    """What held a customer, an address, a user and a private file."""
    params = {"customer": "Mallory", "lr": "0.1", "mail": "ask bob@example.com first"}
    tags = {"mlflow.user": "bob", "kept": "yes"}
    files = {"note.txt": b"hello\n", "private/list.csv": b"name\nMallory\n"}
    private = run(RUN, "1", [("loss", 0, NOW_MS, 0.5)], files, params=params, tags=tags)
    stream = [experiment("1", "iris"), private]
    rules = load_rules([str(Path(__file__).with_name("redaction.yaml"))])
    return archive(stream, "redacted", redaction=Redaction(rules, b"the salt of the samples"))


def minimal() -> list[StreamObject]:
    """One of each kind."""
    return [
        experiment("1", "iris"),
        run(
            RUN,
            "1",
            [("loss", 0, NOW_MS, 0.5), ("loss", 1, NOW_MS + 5, 0.25)],
            {"note.txt": b"hello\n"},
        ),
        model("iris"),
        version("iris", 1, {"MLmodel": b"flavors: {}\n"}, run_id=RUN),
    ]


AWKWARD = {
    "CON.txt": b"a device name on Windows",
    "100%.txt": b"percent",
    "a:b/c?d.txt": b"colon and question mark",
    "trailing dot./x ": b"edges",
    "日本語/モデル.bin": b"\0\1\2",
    "e\u0301.txt": b"decomposed e acute",
    "\u00e9.txt": b"composed e acute",
    "README": b"upper case",
    "readme": b"lower case",
    "empty": b"",
    "!bang": b"the escape character",
    "n" * 300: b"a name of 300 bytes",
}


def experiments() -> list[Any]:
    """Runs with everything that is hard to keep."""
    hard = [
        ("acc", 0, NOW_MS, math.nan),
        ("acc", 1, NOW_MS + 1, math.inf),
        ("acc", 2, NOW_MS + 2, -math.inf),
        ("acc", 3, NOW_MS + 3, -0.0),
        ("acc", 3, NOW_MS + 3, 0.0),
        ("acc", 3, NOW_MS + 3, 0.0),
        ("acc", -(2**63), 0, 5e-324),
        ("acc", 2**63 - 1, 2**63 - 1, 1.7976931348623157e308),
        ("損失/ü", 0, NOW_MS, 1 / 3),
    ]
    many = [("loss", step, NOW_MS + step * 250, 1 / (step + 1)) for step in range(600)]
    other = {f"log-{number}.txt": b"the same bytes\n" * 40 for number in range(3)}

    nested = run("3" * 32, "2", many, other, tags={"mlflow.parentRunId": "2" * 32})
    nested.issues = (Loss(Kind.RUN, "3" * 32, "its parent run is not in the archive"),)
    return [
        experiment("0", "Default"),
        experiment("2", "Été 日本語 🚀", tags=[{"key": "note", "value": "línea\n2"}]),
        run("1" * 32, "2", hard, AWKWARD, params={"lr": "1e-3", "empty": "", "long": "x" * 700}),
        nested,
        run("4" * 32, "2", many[:3], other, info={"status": "RUNNING"}),
        experiment("10", "gone", lifecycle_stage="deleted"),
        run("7" * 32, "10", info={"lifecycle_stage": "deleted", "status": "FAILED"}),
        Unpacked("trace", 12, at_least=False, reason="not in this version of the format"),
    ]


def partial() -> list[Any]:
    """What is left when a run and an artifact cannot be read."""

    def refuse() -> Any:
        raise StoreError("permission denied")

    refused = Artifact("secret.bin", 10, refuse)
    return [
        experiment("10", "half"),
        run("8" * 32, "10", files={"there.txt": b"there"}, more=[refused]),
        Failure(Kind.RUN, "6" * 32, "the server answered 500"),
    ]


def short() -> Run:
    """A run whose large artifact ended before its time."""
    announced = Artifact("short.bin", 9 << 20, lambda: io.BytesIO(b"only this much"))
    return run("9" * 32, "10", more=[announced])


def models() -> list[StreamObject]:
    """Registered models: numbers with gaps, aliases, names that meet on some file systems."""
    files = {"model/MLmodel": b"flavors: {}\n", "model/weights.bin": bytes(range(256))}
    aliases = [{"alias": "champion", "version": "7"}, {"alias": "latest-good", "version": "3"}]
    return [
        model("iris", aliases=aliases, description="Finds the kind of an iris"),
        version("iris", 1, files),
        version("iris", 3, files, aliases=["latest-good"]),
        version("iris", 7, aliases=["champion"], current_stage="Production"),
        model("Iris"),
        version("Iris", 1),
        model("team: a/b?"),
        model("ohne Versionen"),
    ]


SIGNALLING_NAN = struct.unpack("<d", bytes.fromhex("010000000000f07f"))[0]
"""A NaN that arithmetic, and in some languages mere reading, turns into another one."""


def parts() -> list[Any]:
    """Rows and traces that fill more than one file, when a file ends early."""
    return [
        experiment("1", "iris"),
        run("1" * 32, "1", [("a", step, NOW_MS + step, 1 / (step + 3)) for step in range(5)]),
        run(
            "2" * 32,
            "1",
            [
                *(("a", step, NOW_MS, value) for step, value in enumerate((SIGNALLING_NAN, math.nan))),
                *(("loss", step, NOW_MS + step, step / 7) for step in range(12)),
            ],
        ),
        run("3" * 32, "1", [("zeta", 0, NOW_MS, -0.0)]),
        *(mlflow3.trace(f"tr-{number:032x}", [mlflow3.span(number)]) for number in range(1, 6)),
    ]


def archive_of_parts(base_directory: str) -> bytes:
    """Return the archive of ``parts``, a metrics file full with 8 rows, a part with 2 traces."""
    with mock.patch.multiple(sink_tables, ROWS_PER_PART=8, _TRACES_PER_PART=2):
        return archive(parts(), base_directory)


LARGE_TAIL_MEMBERS = 9000


def large_tail() -> bytes:
    """Return an archive whose manifests alone are over 4 MiB; too large to be stored.

    It is ``minimal`` and 9000 empty members in ``data/large/``, which no envelope names (W020).
    A path has four names of 220 letters and digits, drawn with Python's ``random.Random(19)``.
    """
    draw = random.Random(19)  # noqa: S311 - the same on every machine
    letters = string.ascii_lowercase + string.digits
    file = io.BytesIO()
    with ArchiveWriter(file, base_directory="large", workers=0) as writer:
        sink = ArchiveSink(writer, SYSTEM)
        report = Report()
        for item in minimal():
            sink.write(item, report)
        for _ in range(LARGE_TAIL_MEMBERS):
            names = ("".join(draw.choices(letters, k=220)) for _ in range(4))
            writer.add("data/large/" + "/".join(names), b"")
        sink.finish(report)
    return file.getvalue()


GOOD: dict[str, Callable[[], list[Any]]] = {
    "minimal": minimal,
    "experiments": experiments,
    "models": models,
    "mlflow3": lambda: mlflow3.everything(experiment("1", "iris"), run(RUN, "1")),
}


def good() -> dict[str, bytes]:
    """Return the good samples by name."""
    samples = {name: archive(stream(), name) for name, stream in GOOD.items()}
    samples["redacted"] = redacted()
    samples["parts"] = archive_of_parts("parts")
    samples["unknown_fields"] = unknown_fields().data()
    samples["minor_version"] = minor_version().data()
    return samples


# Members of a good archive, changed and written again.


def contents(data: bytes) -> dict[str, bytes]:
    """Return an archive's payload and exim.json."""
    with ArchiveReader.from_source(Bytes(data)) as reader:
        paths = [path for path in reader.paths() if path.startswith("data/") or path == "exim.json"]
        return {path: reader.read(path) for path in paths}


class Bytes:
    """An archive in memory, as the reader wants it."""

    name = "memory"
    at_once = 1

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size_bytes = len(data)
        self.requests = self.bytes_read = 0

    def read_range(self, start: int, end: int) -> bytes:
        """Return the bytes ``[start, end)``."""
        self.requests += 1
        self.bytes_read += end - start
        return self._data[start:end]

    def close(self) -> None:
        """Do nothing: there is no file."""


EXPERIMENT = "data/experiments/1/experiment.json"
RUN_JSON = f"data/experiments/1/runs/{RUN}/run.json"
NOTE = f"data/experiments/1/runs/{RUN}/artifacts/note.txt"
METRICS_FILE = "data/experiments/1/metrics/part-00000.parquet"
MODEL = "data/models/iris/model.json"
VERSION = "data/models/iris/versions/1/version.json"
ARCHIVE = "data/archive.json"


class Tree:
    """The members of ``minimal``, or of another good sample, to be changed."""

    def __init__(self, name: str = "minimal") -> None:
        self.members = contents(archive(GOOD[name](), BASE))

    def edit(
        self, path: str, change: Callable[[dict[str, Any]], None], *, digest: bool = True
    ) -> Tree:
        """Change one JSON document and, unless told not to, make its content digest right again."""
        document = json.loads(self.members[path])
        change(document)
        if digest and "content_digest" in document.get("info", {}):
            info = document["info"]
            listed = [(a["path"], a["size_bytes"], a["sha256"]) for a in info.get("artifacts", ())]
            metrics = info.get("metrics", {}).get("digest")
            info["content_digest"] = content_digest(document["mlflow"], metrics, listed)
        self.members[path] = json.dumps(document, ensure_ascii=False, indent=2).encode()
        return self

    def put(self, path: str, data: bytes) -> Tree:
        """Add or replace a member."""
        self.members[path] = data
        return self

    def forgery(self, **bent: Any) -> Forgery:
        """Return the archive of these members, with the content root of what they state."""
        with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError, RecursionError):
            found = content_root(self.members)  # of documents that are what they should be
            self.edit(ARCHIVE, lambda document: info_of(document).update(content_root=found))
        return self.forgery_as_it_is(**bent)

    def forgery_as_it_is(self, **bent: Any) -> Forgery:
        """Return the archive of these members."""
        payload = {path: data for path, data in self.members.items() if path.startswith("data/")}
        tags = {path: data for path, data in self.members.items() if not path.startswith("data/")}
        return Forgery(payload, **{**bent, "tags": {**tags, **bent.get("tags", {})}})


def unknown_fields() -> Forgery:
    """Fields that version 1.0 does not know, wherever JSON has objects."""
    tree = Tree()
    for path in list(tree.members):
        if path.endswith(".json"):
            tree.edit(path, lambda document: _add_unknown(document))
    return tree.forgery(
        footer=_add_unknown, tags={"notes/later.txt": b"a tag file of a later version\n"}
    )


def _add_unknown(value: Any) -> None:
    if isinstance(value, dict):
        for child in list(value.values()):
            _add_unknown(child)
        if "model_version" in value and "run" in value:  # the counts, by kind
            value["x_kind"] = {"found": 1, "written": 1, "skipped": 0, "failed": 0, "x_later": None}
        else:
            value["x_later"] = {"from": "a later version", "nothing": None, "number": 1.5}
    elif isinstance(value, list):
        for child in value:
            _add_unknown(child)


def minor_version() -> Forgery:
    """A later minor version with more keys in its footer."""

    def footer(document: dict[str, Any]) -> None:
        document["version"] = [1, 9]
        document["bases"] = [{"root": "0" * 64}]

    tree = Tree().edit("exim.json", lambda header: header.update(format_version="1.9", bases=[]))
    return tree.forgery(footer=footer)


# One fault each.


def with_file(path: str, *more: str) -> Forgery:
    """Return the archive with further payload files, which no reader gets to see."""
    tree = Tree()
    for number, name in enumerate((path, *more)):
        tree.put(name, b"x" * (number + 1))
    return tree.forgery()


def edited(path: str, change: Callable[[dict[str, Any]], None], *, digest: bool = True) -> Forgery:
    """Return the archive with one document changed."""
    return Tree().edit(path, change, digest=digest).forgery()


def metrics(rows: pa.Table, *, first_row: int = 0, digest: str | None = None) -> Forgery:
    """Return the archive with other metric rows, its run envelope fitting but for what is given."""
    sink = io.BytesIO()
    with metrics_writer(sink) as writer:
        writer.write_table(rows)
    right = MetricsDigest()
    right.update(RunRows.of(RUN, rows.slice(first_row)))

    def change(document: dict[str, Any]) -> None:
        entry = document["info"]["metrics"]
        entry["digest"] = digest or right.hexdigest()
        entry["rows"] = entry["parts"][0]["rows"] = rows.num_rows - first_row
        entry["parts"][0]["first_row"] = first_row

    def count(document: dict[str, Any]) -> None:
        document["info"]["metric_rows"] = rows.num_rows - first_row

    tree = Tree().put(METRICS_FILE, sink.getvalue()).edit(RUN_JSON, change).edit(ARCHIVE, count)
    return tree.forgery()


def long_key() -> pa.Table:
    """Return rows of one key, which few bytes of a file say many times."""
    values = ("k" * 400, 0, NOW_MS, 0.5)
    arrays = [pa.repeat(pa.scalar(v, f.type), 200_000) for v, f in zip(values, HISTORY, strict=True)]
    return RunRows.of(RUN, pa.Table.from_arrays(arrays, schema=HISTORY)).batch.table


def rows_of_run(*rows: tuple[str, int, int, float]) -> pa.Table:
    """Return rows of the metrics table in the order given."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    return pa.Table.from_arrays(
        [pa.array([RUN] * len(rows)), *map(pa.array, columns)], schema=METRICS
    )


LOSS = (("loss", 0, NOW_MS, 0.5), ("loss", 1, NOW_MS + 5, 0.25))


def traces(change: Callable[[dict[str, list[dict[str, Any]]]], None]) -> Forgery:
    """Return the archive with other rows of traces, their envelope fitting."""
    tree = Tree("mlflow3")
    envelope = mlflow3.with_tables(tree.members, change)
    return tree.edit(mlflow3.PART, envelope, digest=False).forgery()


def other_trace_columns() -> Forgery:
    """A table of spans without their names."""
    tree = Tree("mlflow3")
    path = "data/experiments/1/traces/spans-00000.parquet"
    sink = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(tree.members[path])).drop_columns(["name"]), sink)
    return tree.put(path, sink.getvalue()).forgery()


def other_columns() -> Forgery:
    """A metrics file with 32-bit steps."""
    table = rows_of_run(*LOSS)
    narrow = table.set_column(2, "step", table.column("step").cast(pa.int32()))
    sink = io.BytesIO()
    pq.write_table(narrow, sink)
    return Tree().put(METRICS_FILE, sink.getvalue()).forgery()


def in_member(path: str, **fields: Any) -> Callable[[list[TarMember]], list[TarMember]]:
    """Change one member of the tar stream."""

    def change(members: list[TarMember]) -> list[TarMember]:
        for member in members:
            if member.path == path:
                for name, value in fields.items():
                    setattr(member, name, value)
        return members

    return change


def add_member(
    path: str, data: bytes = b"", header: bytes = b""
) -> Callable[[list[TarMember]], list[TarMember]]:
    """Add a member to the tar stream that no manifest names."""
    return lambda members: [*members, TarMember(path, data, header)]


def end_frame_damaged(frames: list[bytes], _sizes: list[int]) -> None:
    """Break the checksum of the frame that ends the tar stream, which holds no member."""
    frames[-1] = frames[-1][:-4] + bytes(byte ^ 0xFF for byte in frames[-1][-4:])


def end_checksum_wrong(table: bytearray) -> None:
    """Break the checksum of that frame in the seek table only."""
    table[-3 * 12 + 8] ^= 1


def first_entry_larger(table: bytearray) -> None:
    """Let the seek table claim one more compressed byte."""
    struct.pack_into("<I", table, 0, struct.unpack_from("<I", table)[0] + 1)


def huge_frame_claimed(table: bytearray) -> None:
    """Let the seek table claim a frame of over 64 MiB."""
    struct.pack_into("<I", table, 4, (64 << 20) + 1)


TWIN = f"data/experiments/1/runs/{RUN}/artifacts/twin.txt"


def with_twin(**bent: Any) -> Forgery:
    """A run with two artifacts of equal content, so that one can be a link."""
    note = Tree().members[NOTE]

    def add(document: dict[str, Any]) -> None:
        first = document["info"]["artifacts"][0]
        document["info"]["artifacts"].append({**first, "path": "twin.txt", "member": TWIN})

    def count(document: dict[str, Any]) -> None:
        counts = document["info"]["counts"]["artifact"]
        counts["found"] += 1
        counts["written"] += 1
        document["info"]["artifact_bytes"] += len(note)

    return Tree().put(TWIN, note).edit(RUN_JSON, add).edit(ARCHIVE, count).forgery(**bent)


def link(path: str, target: str) -> TarMember:
    """Return a hard link."""
    name, target = f"{BASE}/{path}", f"{BASE}/{target}"
    return TarMember(path, header=tar_header(name, type=tarfile.LNKTYPE, linkname=target))


def moved(path: str, target: str) -> Callable[[dict[str, tuple[int, int]]], None]:
    """Give one member the index row of another."""
    return lambda places: places.update({path: places[target]})


def link_before_target(members: list[TarMember]) -> list[TarMember]:
    """Put a link before what it points to."""
    rest = [member for member in members if member.path != TWIN]
    place = next(n for n, member in enumerate(rest) if member.path == NOTE)
    return [*rest[:place], link(TWIN, NOTE), *rest[place:]]


def twice(members: list[TarMember]) -> list[TarMember]:
    """Put one link into the stream two times."""
    rest = [member for member in members if member.path != TWIN]
    return [*rest, link(TWIN, NOTE), link(TWIN, NOTE)]


def without_twin(members: list[TarMember]) -> list[TarMember]:
    """Leave one member out; the index points to the bytes of its equal."""
    return [member for member in members if member.path != TWIN]


def moved_row(places: dict[str, tuple[int, int]]) -> None:
    """Let the index point to another place of one file."""
    offset, size = places[NOTE]
    places[NOTE] = (offset + BLOCK, size)


BLOCK = 512


def info_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return the part ``info`` of an envelope."""
    part: dict[str, Any] = document["info"]
    return part


def artifact_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return a run's first artifact entry."""
    entry: dict[str, Any] = document["info"]["artifacts"][0]
    return entry


def version_of(document: dict[str, Any]) -> dict[str, Any]:
    """Return REST's object of a model version."""
    rest: dict[str, Any] = document["mlflow"]["model_version"]
    return rest


def ghost_run(document: dict[str, Any]) -> None:
    """List a run that is not there."""
    document["mlflow"]["runs"].append("f" * 32)
    document["info"]["num_ok_runs"] += 1
    document["info"]["num_total_runs"] += 1


def unnamed_failure(document: dict[str, Any]) -> None:
    """Count an artifact that failed, and name none."""
    counts = document["info"]["counts"]["artifact"]
    counts["found"] += 1
    counts["failed"] += 1


def log_of(*changes: Callable[[dict[str, Any]], None]) -> dict[str, bytes]:
    """Return the events of a log of ``minimal``, of which the second one is changed."""
    system = SYSTEM.to_json()
    first = json.dumps({"system": system, "info": {"content_root": "1" * 64}}).encode()
    earlier = {"root": "2" * 64, "event": hashlib.sha256(first).hexdigest()}
    info = {"content_root": content_root(Tree().members), "earlier": earlier}
    second = {"system": system, "info": info}
    for change in changes:
        change(second)
    return {"log/00001.json": first, "log/00002.json": json.dumps(second).encode()}


def other_event(event: dict[str, Any]) -> None:
    """Let an event follow another one than it does."""
    event["info"]["earlier"]["event"] = "0" * 64


def coarse() -> Forgery:
    """An artifact of 5 MiB in one frame."""
    data = bytes(5 << 20)

    def note(document: dict[str, Any]) -> None:
        sha256 = hashlib.sha256(data).hexdigest()
        document["info"]["artifacts"][0].update(size_bytes=len(data), sha256=sha256)

    def count(document: dict[str, Any]) -> None:
        document["info"]["artifact_bytes"] += len(data) - len(b"hello\n")

    return Tree().put(NOTE, data).edit(RUN_JSON, note).edit(ARCHIVE, count).forgery()


def without(path: str) -> Forgery:
    """Return the archive without one member."""
    tree = Tree()
    del tree.members[path]
    return tree.forgery()


def swapped_text(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Replace bytes that must be there."""

    def change(data: bytes) -> bytes:
        assert old in data
        return data.replace(old, new, 1)

    return change


def plain(**bent: Any) -> Forgery:
    """Return ``minimal`` with one part bent."""
    return Tree().forgery(**bent)


def broken() -> dict[str, Forgery]:
    """Return one archive for each rule, by code."""
    tree = Tree()
    run_json = tree.members[RUN_JSON]
    payload = {path: data for path, data in tree.members.items() if path.startswith("data/")}
    right = manifest(payload)
    note = tar_header(f"{BASE}/{NOTE}", size=6)
    return {
        "E001": with_file("data/../../etc/passwd"),
        "E002": with_file("data/c:evil\\x"),
        "E003": with_file("data/ends with a dot."),
        "E004": with_file("data/aux.txt"),
        "E005": with_file("data/e\u0301"),
        "E006": with_file("data/" + "a" * 241),
        "E007": with_file("data/Straße", "data/STRASSE"),
        "E008": with_file("data/a", "data/A/b"),
        "E009": plain(tags={"bag-info.txt": b"Contact-Name: \xff\n"}),
        "E010": plain(file=lambda data: data[:-9]),
        "E011": plain(file=lambda data: data[:-5] + b"\xc0" + data[-4:]),
        "E012": plain(table=first_entry_larger),
        "E013": plain(table=huge_frame_claimed),
        "E014": plain(compress=lambda data: zstd_frame(data, write_checksum=False)),
        "E015": plain(frames=end_frame_damaged),
        "E016": plain(table=end_checksum_wrong),
        "E017": plain(footer=lambda footer: footer.pop("members") and None),
        "E018": plain(footer=lambda footer: footer.update(format="another-archive")),
        "E019": plain(footer=lambda footer: footer.update(version=[2, 0])),
        "E020": plain(footer=lambda footer: footer.update(required_features=["holes"])),
        "E021": plain(footer=lambda footer: footer.update(algorithm="md5")),
        "E022": plain(footer=lambda footer: footer.update(base_directory="..")),
        "E023": plain(footer=lambda footer: footer.update(tar_bytes=footer["tar_bytes"] + BLOCK)),
        "E024": plain(footer=lambda footer: footer.update(members=footer["members"] + 1)),
        "E025": plain(footer=lambda footer: footer["index"].update(sha256="0" * 64)),
        "E026": plain(rows=moved_row),
        "E027": plain(footer=lambda footer: footer.update(root="0" * 64)),
        "E028": plain(manifest=right.replace(b"  ", b" *")),
        "E029": plain(members=in_member(NOTE, data=b"HELLO\n")),
        "E030": plain(members=add_member("data/unlisted", b"hidden")),
        "E031": with_twin(members=without_twin, rows=moved(TWIN, NOTE)),
        "E032": plain(
            tags={"bagit.txt": b"BagIt-Version: 0.97\nTag-File-Character-Encoding: UTF-8\n"}
        ),
        "E033": plain(tags={"bag-info.txt": b"Payload-Oxum: 1.1\n"}),
        "E034": plain(tags={"fetch.txt": b"https://example.org/x 1 data/x\n"}),
        "E035": plain(members=in_member(NOTE, header=note[:148] + b"0000000\0" + note[156:])),
        "E036": plain(
            members=add_member(
                "data/link",
                header=tar_header(
                    f"{BASE}/data/link", type=tarfile.SYMTYPE, linkname="/etc/passwd"
                ),
            )
        ),
        "E037": with_twin(members=link_before_target, rows=moved(TWIN, NOTE)),
        "E038": with_twin(members=twice, rows=moved(TWIN, NOTE)),
        "E039": plain(members=in_member(NOTE, padding=b"!" * (BLOCK - 6))),
        "E050": Tree().put(RUN_JSON, run_json.replace(b'"step": 1', b'"step": NaN')).forgery(),
        "E051": edited(RUN_JSON, lambda document: document["system"].pop("user") and None),
        "E052": edited(VERSION, lambda document: version_of(document).update(version="2")),
        "E053": metrics(rows_of_run(("acc", 0, 1, 1.0), *LOSS), first_row=1),
        "E054": edited(RUN_JSON, lambda document: artifact_of(document).update(sha256="0" * 64)),
        "E055": edited(
            EXPERIMENT,
            lambda document: document["mlflow"]["experiment"].update(lifecycle_stage="deleted"),
            digest=False,
        ),
        "E056": edited(EXPERIMENT, ghost_run),
        "E057": edited("exim.json", lambda header: header.update(format_version="1.2")),
        "E058": edited(
            ARCHIVE, lambda document: info_of(document)["counts"]["run"].update(found=2)
        ),
        "E059": other_columns(),
        "E060": metrics(rows_of_run(*reversed(LOSS))),
        "E061": metrics(rows_of_run(*LOSS), digest="sha256:" + "0" * 64),
        "E062": other_trace_columns(),
        "E063": traces(lambda rows: rows["spans"][0].update(trace_id="somebody else's")),
        "E064": traces(lambda rows: rows["traces"][0].update(content_digest="sha256:" + "0" * 64)),
        "E065": metrics(long_key()),
        "E066": edited(ARCHIVE, unnamed_failure),
        "E067": Tree()
        .edit(ARCHIVE, lambda document: info_of(document).update(content_root="0" * 64))
        .forgery_as_it_is(),
        "E068": plain(tags=log_of(other_event)),
        "W001": plain(
            members=in_member(NOTE, header=tar_header(f"{BASE}/{NOTE}", size=6, mtime=1))
        ),
        "W002": coarse(),
        "W020": with_file("data/stray.txt"),
    }


def bad_and_warn() -> dict[str, bytes]:
    """Return the broken archives by their path below ``v1``."""
    samples = {}
    for code, forgery in broken().items():
        rule = RULES[code]
        folder = "bad" if rule.is_error else "warn"
        samples[f"{folder}/{code}_{rule.slug}/archive.tar.zst"] = forgery.data()
    samples["warn/W021_failures/archive.tar.zst"] = archive(partial(), "partial")
    return samples


# Vectors for other implementations.


def path_vectors() -> dict[str, Any]:
    """Names and their member paths."""
    names = [
        "plain.txt", "", "!", "a!b", "%41", "a:b", "tab\there", "con", "CON.txt", "com1 .log", "LPT\u00b2",
        " lead", "trail ", "dot.", "...", "..", ".", "a.b.", "\u3000wide", "e\u0301", "\u00e9", "日本語",
        "🚀", "\u2028", "a\\b", "\ud800", "x" * 240, "x" * 241, "é" * 121, "x~" + "0" * 64, "~2",
    ]  # fmt: skip
    paths = [
        "a/b.txt",
        "a//b",
        "/abs",
        "../up",
        "a/",
        "/".join(["d" * 100] * 7),
        "日本/" * 90 + "x",
    ]
    return {
        "segments": [
            {
                "name": name if not _is_half(name) else None,
                "utf8_base64": base64.b64encode(name.encode("utf-8", "surrogatepass")).decode(),
                "segment": encode_segment(name),
                "decodable": decode_segment(encode_segment(name)) is not None,
            }
            for name in names
        ],
        "paths": [{"path": path, "member": encode_path(path)} for path in paths],
    }


def _is_half(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)


def canonical_vectors() -> list[dict[str, Any]]:
    """JSON texts, the bytes that are hashed for them and their content digests."""
    texts = [
        '{"b": 1, "a": [true, false, null]}',
        '{"é": "\\u00e9", "z": "\\ud83d\\ude80", "Z": "\\u2028/"}',
        '{"quote": "\\"\\\\", "control": "\\b\\f\\n\\r\\t\\u0000\\u001f\\u007f"}',
        '{"int": 9223372036854775807, "one": 1.0, "zero": -0.0, "big": 1e16, "less": 1e15}',
        '{"small": 0.0001, "smaller": 0.00001, "third": 0.3333333333333333, "max": 1.7976931348623157e308}',
        '{"denormal": 5e-324, "hundred": 1E2, "exact": 123456789012345680.0}',
        '{"\\ud83d\\ude80": 1, "\\uffff": 2, "a": {"c": [], "b": {}}}',
    ]
    vectors = []
    for text in texts:
        value = json.loads(text)
        vectors.append(
            {
                "text": text,
                "canonical": canonical_bytes(value).decode(),
                "content_digest": content_digest(value),
            }
        )
    return vectors


def content_vectors() -> list[dict[str, Any]]:
    """A document with metrics and artifacts."""
    document = {"run": {"info": {"run_id": RUN}}}
    digest = "sha256:" + "a" * 64
    listed = [["b.txt", 2, "b" * 64], ["a.txt", 1, "c" * 64], ["a/b", 0, "d" * 64]]
    cases: list[tuple[str | None, list[list[Any]]]] = [
        (None, []),
        (digest, []),
        (None, listed),
        (digest, listed),
    ]
    return [
        {
            "mlflow": document,
            "metrics": metrics_digest,
            "artifacts": entries,
            "content_digest": content_digest(document, metrics_digest, map(tuple, entries)),
        }
        for metrics_digest, entries in cases
    ]


def metrics_vectors() -> list[dict[str, Any]]:
    """Rows, with the bits of their values as hex, and their digest."""
    nan_bits = struct.unpack("<d", bytes.fromhex("010000000000f87f"))[0]
    cases = [
        [*LOSS],
        [
            ("a", 0, 0, -0.0),
            ("a", 0, 0, 0.0),
            ("a", 0, 0, 0.0),
            ("a", 1, 5, math.nan),
            ("a", 1, 5, nan_bits),
        ],
        [("b", 2**63 - 1, -1, math.inf), ("é", -5, 7, -math.inf), ("a", 0, 0, 1.0)],
        [("a", 0, 0, SIGNALLING_NAN), ("a", 1, 0, math.nan)],
    ]
    vectors = []
    for rows in cases:
        table = history(rows)
        digest = MetricsDigest()
        digest.update(RunRows.of(RUN, table))
        listed = [
            [row["key"], row["step"], row["timestamp"], struct.pack(">d", row["value"]).hex()]
            for row in table.to_pylist()
        ]
        vectors.append({"rows": listed, "digest": digest.hexdigest()})
    return vectors


def vectors() -> dict[str, Any]:
    """Return the vectors by file name."""
    return {
        "paths.json": path_vectors(),
        "canonical.json": canonical_vectors(),
        "content_digests.json": content_vectors(),
        "metrics_digests.json": metrics_vectors(),
        "trace_digests.json": mlflow3.trace_vectors(contents(archive(GOOD["mlflow3"](), BASE))),
    }


def generated_with() -> dict[str, str]:
    """Return the libraries whose versions change an archive's bytes."""
    return {
        "libzstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
        "pyarrow": pa.__version__,
        "orjson": orjson.__version__,
    }


def json_bytes(value: Any) -> bytes:
    """Return a JSON file for people."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def generated() -> dict[str, bytes]:
    """Return every generated file by its path below ``v1``."""
    files = {f"good/{name}.tar.zst": data for name, data in good().items()}
    files.update(bad_and_warn())
    files.update({f"vectors/{name}": json_bytes(value) for name, value in vectors().items()})
    with ArchiveReader.from_source(Bytes(files["good/minimal.tar.zst"])) as reader:
        files.update(signatures(reader.root))
    files["generated-with.json"] = json_bytes(generated_with())
    return files


def expected_content(data: bytes) -> dict[str, Any]:
    """Return what every later release must find in an archive."""
    with ArchiveReader.from_source(Bytes(data)) as reader:
        documents = {
            path: json.loads(reader.read(path)) for path in reader.paths() if path.endswith(".json")
        }
        found = [*verify_archive(reader), *verify_objects(reader)]
        return {
            "codes": sorted({finding.code for finding in found}),
            "root": reader.root,
            "content_root": Archive(reader).content_root,
            "members": {
                member.path: [member.size_bytes, member.sha256] for member in reader.members()
            },
            "documents": documents,
            "histories": {
                path: [
                    [
                        row["run_id"],
                        row["key"],
                        row["step"],
                        row["timestamp"],
                        struct.pack(">d", row["value"]).hex(),
                    ]
                    for row in pq.read_table(io.BytesIO(reader.read(path))).to_pylist()
                ]
                for path in reader.paths()
                if "/metrics/" in path
            },
            "traces": [
                {**trace.document, "spans": trace.spans} for trace in Archive(reader).traces()
            ],
        }


def write_golden() -> None:
    """Write the archive of this version, which nobody regenerates afterwards."""
    folder = FOLDER / "written-by" / mlflow_exim_plugin.__version__
    folder.mkdir(parents=True)  # fails when it is there
    stream = [*experiments()[:-1], short(), *models(), *GOOD["mlflow3"]()]
    data = archive(stream, "golden", {"experiments": ["*"]})
    (folder / "archive.tar.zst").write_bytes(data)
    (folder / "expected.json").write_bytes(json_bytes(expected_content(data)))


def main() -> None:
    """Write the samples."""
    if sys.argv[1:] == ["golden"]:
        write_golden()
        return
    if sys.argv[1:] == ["exports"]:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        from samples import exports

        exports.write(exports.archives(SYSTEM), generated_with() | exports.generated_with())
        return
    for name in ("good", "bad", "warn", "vectors", "signatures"):
        shutil.rmtree(FOLDER / name, ignore_errors=True)
    for path, data in generated().items():
        (FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / path).write_bytes(data)


if __name__ == "__main__":
    main()
