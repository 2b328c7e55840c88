"""An archive is read by what the spec says alone: nothing of the package is imported here."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import subprocess
import sys
import tarfile
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import bagit
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.far_stores import absent

FOLDER = Path(__file__).resolve().parents[2] / "samples" / "v1"
SOUND = sorted([*FOLDER.glob("good/*.tar.zst"), *FOLDER.glob("written-by/*/archive.tar.zst")])


def files_by_tar(path: Path) -> dict[str, bytes]:
    """Extract as an auditor would: zstd, then tar."""
    with path.open("rb") as file:
        stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        data = stream.read()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {}
        for member in tar:
            content = tar.extractfile(member)
            assert content is not None
            found[member.name] = content.read()
    bases = {name.split("/", 1)[0] for name in found}
    assert len(bases) == 1
    return {name.split("/", 1)[1]: content for name, content in found.items()}


def files_in_place(path: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """Read every member through seek table, footer, index and manifests."""
    file = path.read_bytes()
    count, descriptor, magic = struct.unpack("<IBI", file[-9:])
    assert (descriptor & 0xFC, magic) == (0x80, 0x8F92EAB1)
    table_start = len(file) - 9 - 12 * count - 8
    assert struct.unpack_from("<II", file, table_start) == (0x184D2A5E, 12 * count + 9)
    entries = [struct.unpack_from("<II4s", file, table_start + 8 + 12 * n) for n in range(count)]
    assert sum(entry[0] for entry in entries) == table_start

    pieces, position, tail = [], 0, []
    for number, (packed_bytes, size_bytes, checksum) in enumerate(entries):
        frame = file[position : position + packed_bytes]
        position += packed_bytes
        if number >= count - 2:
            tail.append(frame)
            continue
        assert frame[-4:] == checksum
        data = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
        assert len(data) == size_bytes
        pieces.append(data)
    tar = b"".join(pieces)

    assert struct.unpack_from("<I", tail[1]) == (0x184D2A5C,)
    footer = json.loads(tail[1][8:])
    assert footer["format"] == "mlflow-exim-archive"
    assert footer["version"][0] == 1
    assert footer["tar_bytes"] == len(tar)
    place = footer["index"]["offset"]
    packed = file[place : place + footer["index"]["compressed_bytes"]]
    assert tail[0][8:] == packed
    assert hashlib.sha256(packed).hexdigest() == footer["index"]["sha256"]
    index = zstandard.ZstdDecompressor().decompress(packed)
    tag_count, payload_count = struct.unpack_from("<QQ", index)
    rows = tag_count + payload_count
    assert footer["members"] == rows
    columns = struct.unpack_from(f"<{2 * rows}Q", index, 16)
    places = list(zip(columns[:rows], columns[rows:], strict=True))

    def content(row: int) -> bytes:
        offset, size_bytes = places[row]
        return tar[offset : offset + size_bytes]

    tag_manifest = content(tag_count - 1)
    assert hashlib.sha256(tag_manifest).hexdigest() == footer["root"]
    tags = lines_of(tag_manifest)
    files = {path: content(row) for row, (_, path) in enumerate(tags)}
    for digest, path_in in tags:
        assert hashlib.sha256(files[path_in]).hexdigest() == digest
    payload = lines_of(files["manifest-sha256.txt"])
    for row, (digest, path_in) in enumerate(payload, tag_count):
        files[path_in] = content(row)
        assert hashlib.sha256(files[path_in]).hexdigest() == digest
    files["tagmanifest-sha256.txt"] = tag_manifest
    sizes = [len(files[path_in]) for _, path_in in payload]
    assert f"Payload-Oxum: {sum(sizes)}.{len(sizes)}\n" in files["bag-info.txt"].decode()
    return files, footer


def lines_of(manifest: bytes) -> list[tuple[str, str]]:
    lines = [line.split("  ", 1) for line in manifest.decode("utf-8").split("\n")[:-1]]
    assert lines == sorted(lines, key=lambda line: line[1].encode())
    return [(digest, path) for digest, path in lines]


def canonical(value: Any) -> str:
    """Write canonical JSON by the rules in the text, without a JSON library."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        short = {
            '"': '\\"',
            "\\": "\\\\",
            "\b": "\\b",
            "\t": "\\t",
            "\n": "\\n",
            "\f": "\\f",
            "\r": "\\r",
        }
        return (
            '"'
            + "".join(short.get(c) or (f"\\u{ord(c):04x}" if c < " " else c) for c in value)
            + '"'
        )
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    return "{" + ",".join(f"{canonical(k)}:{canonical(value[k])}" for k in sorted(value)) + "}"


def content_digest(document: Any, metrics: str | None, entries: list[list[Any]]) -> str:
    body = {"mlflow": document}
    if metrics:
        body["metrics"] = metrics
    if entries:
        body["artifacts"] = sorted(entries, key=lambda entry: entry[0])
    return "sha256:" + hashlib.sha256(canonical(body).encode()).hexdigest()


def metrics_digest(rows: list[tuple[str, int, int, bytes]]) -> str:
    """Digest rows of key, step, timestamp and the value's eight bytes."""
    outer = hashlib.sha256()
    for key in sorted({row[0] for row in rows}, key=str.encode):
        of_key = [row for row in rows if row[0] == key]
        name = key.encode()
        outer.update(struct.pack("<I", len(name)) + name + struct.pack("<Q", len(of_key)))
        outer.update(hashlib.sha256(b"".join(struct.pack("<q", r[1]) for r in of_key)).digest())
        outer.update(hashlib.sha256(b"".join(struct.pack("<q", r[2]) for r in of_key)).digest())
        outer.update(hashlib.sha256(b"".join(r[3] for r in of_key)).digest())
    return "sha256:" + outer.hexdigest()


def table_rows(table: pa.Table) -> list[tuple[str, int, int, bytes]]:
    return [
        (row["key"], row["step"], row["timestamp"], struct.pack("<d", row["value"]))
        for row in table.to_pylist()
    ]


@pytest.mark.parametrize("path", SOUND, ids=lambda path: path.parent.name + "/" + path.name)
def test_archive_is_what_its_spec_says(path: Path) -> None:
    files, _ = files_in_place(path)
    assert files == files_by_tar(path)
    envelopes = {
        name: json.loads(data)
        for name, data in files.items()
        if name.endswith(".json") and "/artifacts/" not in name and not name.startswith("log/")
    }
    counted: Counter[str] = Counter()
    for name, envelope in envelopes.items():
        if name in {"exim.json", "data/archive.json"}:
            continue
        info, document = envelope["info"], envelope["mlflow"]
        if "/traces/" in name:
            counted.update(check_traces(files, info, document))
            continue
        if len(document) == 1 and isinstance(records := next(iter(document.values())), dict):
            counted["dataset_record"] += len(records.get("records", ()))
        kind = next(key for key in (*REST, *document) if key in document)
        if "/prompts/" in name:
            kind = {"registered_model": "prompt", "model_version": "prompt_version"}[kind]
        counted[kind] += 1
        entries = info.get("artifacts", [])
        metrics = info.get("metrics", {})
        listed = [[e["path"], e["size_bytes"], e["sha256"]] for e in entries]
        assert content_digest(document, metrics.get("digest"), listed) == info["content_digest"]
        for entry in entries:
            data = files[entry["member"]]
            assert len(data) == entry["size_bytes"]
            assert hashlib.sha256(data).hexdigest() == entry["sha256"]
        if metrics:
            rows = []
            for part in metrics["parts"]:
                table = pq.read_table(io.BytesIO(files[part["member"]]))
                assert table.column_names == ["run_id", "key", "step", "timestamp", "value"]
                mine = table.slice(part["first_row"], part["rows"])
                assert set(mine.column("run_id").to_pylist()) == {document["run"]["info"]["run_id"]}
                rows += table_rows(mine)
            assert len(rows) == metrics["rows"]
            assert len({row[0] for row in rows}) == metrics["keys"]
            order = [(r[0].encode(), r[1], r[2], struct.unpack("<Q", r[3])) for r in rows]
            assert order == sorted(order)
            assert metrics_digest(rows) == metrics["digest"]
    summary = envelopes["data/archive.json"]["info"]
    written = {kind: counts["written"] for kind, counts in summary["counts"].items()}
    of_files = {"artifact", "metric_history", "x_kind"}
    assert {k: n for k, n in counted.items() if n} == {
        k: n for k, n in written.items() if n and k not in of_files
    }


REST = ("run", "experiment", "registered_model", "model_version", "logged_model")


def check_traces(files: dict[str, bytes], info: Any, document: Any) -> dict[str, int]:
    """Check a part of traces against its digests and return how many objects it holds."""
    rows: dict[str, list[dict[str, Any]]] = {"traces": [], "spans": [], "assessments": []}
    for name, entry in info["tables"].items():
        rows[name] = pq.read_table(io.BytesIO(files[entry["member"]])).to_pylist()
        assert len(rows[name]) == entry["rows"]
        assert rows[name] == sorted(rows[name], key=lambda row: row["trace_id"])
    digests = []
    for row in rows["traces"]:
        trace_id, count, digest = row["trace_id"], row.pop("spans"), row.pop("content_digest")
        spans = [as_object(r, SPAN_JSON) for r in rows["spans"] if r["trace_id"] == trace_id]
        assessments = [
            as_object(r, ASSESSMENT_JSON) for r in rows["assessments"] if r["trace_id"] == trace_id
        ]
        for span in spans:
            span.setdefault("otel_trace_id", span["trace_id"][3:])
            del span["trace_id"]
        for assessment in assessments:
            del assessment["trace_id"]
        assert row.pop("assessments") == len(assessments)
        assert count == (len(spans) or None)
        body: dict[str, Any] = {
            "info": as_object(row, ()),
            "assessments": assessments,
            "spans": spans if count is not None else None,
        }
        attached = [
            [e["path"], e["size_bytes"], e["sha256"]]
            for e in info.get("attachments", ())
            if e["trace_id"] == trace_id
        ]
        if attached:
            body["attachments"] = attached
        assert digest == "sha256:" + hashlib.sha256(canonical(body).encode()).hexdigest()
        digests.append([trace_id, digest])
    whole = {"mlflow": document, "traces": digests}
    found = "sha256:" + hashlib.sha256(canonical(whole).encode()).hexdigest()
    assert found == info["content_digest"]
    names = {"traces": "trace", "spans": "span", "assessments": "assessment"}
    return {names[table]: len(listed) for table, listed in rows.items()}


SPAN_JSON = ("attributes", "events", "links")
ASSESSMENT_JSON = ("source", "feedback", "expectation", "issue")


def as_object(row: dict[str, Any], json_columns: tuple[str, ...]) -> dict[str, Any]:
    """Put a row together as the text says: null is no field, ``extra`` holds further fields."""
    made: dict[str, Any] = {}
    for column, value in row.items():
        if value is None:
            continue
        if column == "extra":
            made |= json.loads(value)
        elif column in json_columns:
            made[column] = json.loads(value)
        else:
            made[column] = dict(value) if isinstance(value, list) else value
    return made


def test_hard_values_are_there_bit_for_bit() -> None:
    files = files_by_tar(FOLDER / "good" / "experiments.tar.zst")
    table = pq.read_table(io.BytesIO(files["data/experiments/2/metrics/part-00000.parquet"]))
    values = [row[3] for row in table_rows(table.slice(0, 9)) if row[0] == "acc"]
    numbers = [struct.unpack("<d", value)[0] for value in values]
    assert [repr(number) for number in numbers] == [
        "5e-324", "nan", "inf", "-inf", "0.0", "0.0", "-0.0", "1.7976931348623157e+308",
    ]  # fmt: skip
    steps = table.slice(0, 8).column("step").to_pylist()
    assert (steps[0], steps[-1]) == (-(2**63), 2**63 - 1)


def content_root(files: dict[str, bytes]) -> str:
    """Follow the three steps of the text."""
    lines: list[tuple[str, str]] = []
    traces: dict[str, list[str]] = {}
    for path, content in files.items():
        folder, _, name = path.rpartition("/")
        if "/artifacts/" in path or "/attachments/" in path or not path.startswith("data/"):
            continue
        if name.startswith("traces-"):
            digests = pq.read_table(io.BytesIO(content)).column("content_digest").to_pylist()
            traces.setdefault(folder, []).extend(digests)
        elif name.endswith(".json") and not name.startswith("part-") and path != ARCHIVE:
            document = json.loads(content)
            line = path_of_object(path, document["mlflow"])
            lines.append((line, document["info"]["content_digest"].removeprefix("sha256:")))
    for folder, digests in traces.items():
        listed = "".join(f"{digest.removeprefix('sha256:')}\n" for digest in sorted(digests))
        lines.append((folder, hashlib.sha256(listed.encode()).hexdigest()))
    text = "".join(f"{digest}  {path}\n" for path, digest in sorted(lines))
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("path", SOUND, ids=[str(path.relative_to(FOLDER)) for path in SOUND])
def test_log_follows_the_text(path: Path) -> None:
    files = files_by_tar(path)
    events = [files[name] for name in sorted(files) if name.startswith("log/")]
    for number, (before, event) in enumerate(pairwise([b"", *events]), 1):
        assert files[f"log/{number:05d}.json"] == event
        named = json.loads(event)["info"].get("earlier", {}).get("event")
        assert named == (hashlib.sha256(before).hexdigest() if before else named)
    if events:
        stated = json.loads(files[ARCHIVE])["info"]["content_root"]
        assert json.loads(events[-1])["info"]["content_root"] == stated


def path_of_object(path: str, mlflow: dict[str, Any]) -> str:
    """Leave out the number that keeps the names of models apart; no sample has such entities."""
    model = mlflow.get("registered_model") or mlflow.get("model_version")
    if model is None:
        return path
    tree, registry, rest = path.partition("/models/" if "/models/" in path else "/prompts/")
    return f"{tree}{registry}{segment_of(model['name'])}/{rest.partition('/')[2]}"


ARCHIVE = "data/archive.json"


@pytest.mark.parametrize("path", SOUND, ids=[str(path.relative_to(FOLDER)) for path in SOUND])
def test_content_root_follows_the_text(path: Path) -> None:
    files = files_by_tar(path)
    stated = json.loads(files[ARCHIVE])["info"].get("content_root")
    version = json.loads(files["exim.json"])["format_version"]
    assert (stated is None) == (version in {"1.0", "1.1", "1.2"})
    if stated is not None:
        assert content_root(files) == stated


FORBIDDEN = set('"%*/:<>?\\|!\u2028\u2029') | {chr(c) for c in [*range(32), *range(127, 160)]}
DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    name + digit for name in ("com", "lpt") for digit in "0123456789\u00b9\u00b2\u00b3"
}


def escape(name: str) -> str:
    """Make a segment of a name by the numbered steps of the text, up to the sixth."""

    def bytes_of(char: str) -> str:
        return "".join(f"!{byte:02X}" for byte in char.encode("utf-8", "surrogatepass"))

    if not name:
        return "!"
    made = "".join(
        bytes_of(c) if c in FORBIDDEN or unicodedata.category(c) == "Cs" else c for c in name
    )
    if made[-1].isspace() or made[-1] == ".":
        made = made[:-1] + bytes_of(made[-1])
    if made[0].isspace() or made.split(".")[0].rstrip(" ").lower() in DEVICES:
        made = bytes_of(made[0]) + made[1:]
    if unicodedata.normalize("NFC", made) != made:
        made = "".join(c if c < "\x80" else bytes_of(c) for c in made)
    stem, tilde, digest = made.rpartition("~")
    if tilde and len(digest) == 64 and set(digest) <= set("0123456789abcdef"):
        made = f"{stem}!7E{digest}"
    return made


def cut(segment: str, whole: str) -> str:
    """Do the seventh step."""
    start = segment.encode()[:175].decode("utf-8", "ignore")
    for length in (1, 2):
        if start[-length:].startswith("!") and len(start[-length:]) == length:
            start = start[:-length]
            break
    return f"{start}~{hashlib.sha256(whole.encode('utf-8', 'surrogatepass')).hexdigest()}"


def segment_of(name: str) -> str:
    made = escape(name)
    return made if len(made.encode()) <= 240 else cut(made, name)


def test_path_vectors_follow_the_text() -> None:
    import base64

    vectors = json.loads((FOLDER / "vectors" / "paths.json").read_text("utf-8"))
    for vector in vectors["segments"]:
        name = base64.b64decode(vector["utf8_base64"]).decode("utf-8", "surrogatepass")
        assert segment_of(name) == vector["segment"], name
    for vector in vectors["paths"]:
        path = vector["path"]
        segments = [segment_of(name) for name in path.split("/")]
        made = "/".join(segments)
        if len(made.encode()) > 640:
            kept, room = [], 399
            for segment in segments[:-1]:
                room -= len(segment.encode()) + 1
                if room < 0:
                    break
                kept.append(segment)
            made = "/".join([*kept, cut(segments[-1], path)])
        assert made == vector["member"], path


def test_canonical_vectors_follow_the_text() -> None:
    for vector in json.loads((FOLDER / "vectors" / "canonical.json").read_text("utf-8")):
        value = json.loads(vector["text"])
        assert canonical(value) == vector["canonical"]
        assert content_digest(value, None, []) == vector["content_digest"]


def test_content_digest_vectors_follow_the_text() -> None:
    for vector in json.loads((FOLDER / "vectors" / "content_digests.json").read_text("utf-8")):
        found = content_digest(vector["mlflow"], vector["metrics"], vector["artifacts"])
        assert found == vector["content_digest"]


def test_metrics_digest_vectors_follow_the_text() -> None:
    for vector in json.loads((FOLDER / "vectors" / "metrics_digests.json").read_text("utf-8")):
        rows = [
            (k, step, time, bytes.fromhex(value)[::-1]) for k, step, time, value in vector["rows"]
        ]
        assert metrics_digest(rows) == vector["digest"]


def commands_of_the_text() -> list[str]:
    text = (FOLDER.parents[1] / "spec" / "v1" / "archive.md").read_text("utf-8")
    block = text.split("## Read without us", 1)[1].split("```")[1]
    return [line[2:] for line in block.splitlines() if line.startswith("$ ")]


@pytest.mark.integration
def test_commands_of_the_text_work(tmp_path: Path) -> None:
    for tool in ("tar", "zstd", "sha256sum", "jq"):
        if not shutil.which(tool):
            absent(tool)
    script = "\n".join(commands_of_the_text()).replace("nightly.tar.zst", "archive.tar.zst")
    sample = FOLDER / "good" / "minimal.tar.zst"
    shutil.copy(sample, tmp_path / "archive.tar.zst")
    script = script.replace("nightly", "minimal").replace("python3", sys.executable)
    done = subprocess.run(
        ["sh", "-eu", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("This is an archive of an MLflow server")
    assert '"failed": 0' in done.stdout
    assert "loss" in done.stdout
    note = tmp_path / "minimal" / "data/experiments/1/runs" / ("5" * 32) / "artifacts/note.txt"
    assert note.read_text() == "hello\n"
    bagit.Bag(str(tmp_path / "minimal")).validate()


def test_readers_that_stop_early_are_those_of_the_text() -> None:
    data = (FOLDER / "good" / "minimal.tar.zst").read_bytes()
    whole = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    first = zstandard.ZstdDecompressor().decompress(data)
    assert whole.startswith(first)
    assert len(first) < len(whole)
    assert b"".join(zstandard.ZstdDecompressor().read_to_iter(data)) == first
    with zstandard.open(io.BytesIO(data)) as file:
        assert file.read() == whole
    copied = io.BytesIO()
    zstandard.ZstdDecompressor().copy_stream(io.BytesIO(data), copied)
    assert copied.getvalue() == whole
