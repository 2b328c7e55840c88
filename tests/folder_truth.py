"""What stands in an ``mlruns`` folder and what an archive holds, both in the same words.

Both are read with nothing of the package under test: YAML, JSON, Parquet and tar alone. What a
folder says is one entry a value, at an address such as ``("run", id, "param", key)``.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import stat
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import yaml
import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Standing", "archive_says", "folder_says"]

Address = tuple[str, ...]

RUN_STATUS = {1: "RUNNING", 2: "SCHEDULED", 3: "FINISHED", 4: "FAILED", 5: "KILLED"}
MODEL_STATUS = {
    0: "LOGGED_MODEL_STATUS_UNSPECIFIED",
    1: "LOGGED_MODEL_PENDING",
    2: "LOGGED_MODEL_READY",
    3: "LOGGED_MODEL_UPLOAD_FAILED",
}
FIELDS = {
    "experiment": (
        "name",
        "artifact_location",
        "creation_time",
        "last_update_time",
        "lifecycle_stage",
    ),
    "run": (
        "run_name",
        "start_time",
        "end_time",
        "user_id",
        "artifact_uri",
        "lifecycle_stage",
        "status",
    ),
    "logged model": ("name", "artifact_uri", "model_type", "source_run_id", "status"),
    "model": ("description", "creation_timestamp", "last_updated_timestamp"),
    "version": (
        "description",
        "source",
        "run_id",
        "current_stage",
        "creation_timestamp",
        "status",
        "model_id",
    ),
    "trace": ("request_preview", "response_preview", "state", "execution_duration_ms"),
}
PARTS_OF_RUN = {"params", "tags", "metrics", "inputs", "outputs", "artifacts"}
FOLDERS_OF = {"tags", "datasets", "traces", "models"}


@dataclass
class Standing:
    """What a folder says.

    Attributes:
        values: By address, what stands there.
        files: By address, the files it takes to know it, from the folder on; its own is the first.
        unreadable: Addresses of what is there and cannot be read, or holds what belongs elsewhere.
        strays: Folders in that of an object in which MLflow would not look.
    """

    values: dict[Address, Any] = field(default_factory=dict)
    files: dict[Address, tuple[str, ...]] = field(default_factory=dict)
    unreadable: set[Address] = field(default_factory=set)
    strays: set[str] = field(default_factory=set)


class _Folder:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.said = Standing()

    def read(self) -> Standing:
        taken: set[str] = set()
        for parent in ("", ".trash/"):
            for name in self.folders(parent):
                of_others = not parent and name[0] in ".@"
                if (name != "models" and not of_others) or parent:
                    self.experiment(parent + name, name, taken)
        for name in self.folders("models/"):
            self.model(name)
        return self.said

    def folders(self, path: str) -> list[str]:
        try:
            names = os.listdir(self.root / path)  # noqa: PTH208 - some are no UTF-8
        except OSError:
            return []
        return sorted(n for n in names if os.path.isdir(self.root / path / n))  # noqa: PTH112

    def put(self, address: Address, value: Any, *files: str) -> None:
        self.said.values[address] = value
        self.said.files[address] = files

    def broken(self, address: Address, *files: str) -> None:
        self.said.unreadable.add(address)
        self.said.files[address] = files

    def meta(self, path: str) -> dict[str, Any] | None:
        """Return what a file says, None where that cannot be known."""
        try:
            place = self.root / path
            if not stat.S_ISREG(place.stat().st_mode):
                return None
            text = place.read_bytes().decode()
            found = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
        except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def looks_like_a_run(self, path: str) -> bool:
        there = os.path.lexists(self.root / path / "meta.yaml")
        return there or bool(re.fullmatch("[0-9a-f]{32}", Path(path).name))

    def experiment(self, path: str, name: str, taken: set[str]) -> None:
        meta_path = f"{path}/meta.yaml"
        run_names = [n for n in self.folders(path) if n not in FOLDERS_OF]
        runs = [n for n in run_names if self.looks_like_a_run(f"{path}/{n}")]
        there = os.path.lexists(self.root / meta_path)
        if not (there or runs):
            return
        meta = self.meta(meta_path)
        address = ("experiment", name)
        if (
            meta is None
            or str(meta.get("experiment_id")) != name
            or name in taken
            or not isinstance(meta.get("name"), str)
            or not isinstance(meta.get("artifact_location"), str)
        ):
            self.broken((*address, path), meta_path)
            for run in runs:
                self.broken(("run", run, path), f"{path}/{run}/meta.yaml", meta_path)
            return
        taken.add(name)
        if path.startswith(".trash"):
            meta["lifecycle_stage"] = "deleted"
        self.fields(address, meta, meta_path)
        self.texts(address, "tag", f"{path}/tags", meta_path)
        for run in runs:
            self.run(path, name, run, meta_path)
        for model in self.folders(f"{path}/models"):
            self.logged_model(path, name, model, meta_path)
        for trace in self.folders(f"{path}/traces"):
            self.trace(path, trace, meta_path)

    def fields(self, address: Address, meta: dict[str, Any], *files: str) -> None:
        for name in FIELDS[address[0]]:
            if (value := meta.get(name)) is None or value == "":
                continue
            if value == 0:  # REST may have nothing for it
                self.put((*address, name), None, *files)
                continue
            wanted = int if name.endswith(("time", "timestamp", "_ms")) else str
            if type(value) is int and wanted is str:  # as ids were once
                value = str(value)
            if type(value) is not wanted:
                self.broken((*address, name), *files)
            else:
                self.put((*address, name), value, *files)

    def strays(self, path: str, known: set[str]) -> None:
        self.said.strays |= {f"{path}/{n}" for n in self.folders(path) if n not in known}

    def texts(self, address: Address, what: str, path: str, *metas: str) -> None:
        for key, file in self.below(path):
            content = self.content(file)
            try:
                text = (content or b"").decode()
                key.encode()
            except UnicodeError:
                text = None
            if content is None or text is None:
                self.broken((*address, what, key), file, *metas)
            else:
                self.put((*address, what, key), text, file, *metas)

    def below(self, path: str) -> Iterator[tuple[str, str]]:
        """Yield key and path of all that lies below a folder and is no folder of its own."""
        for folder, inner, files in os.walk(self.root / path):
            links = [name for name in inner if os.path.islink(f"{folder}/{name}")]  # noqa: PTH114
            for name in sorted(files + links):
                place = Path(folder) / name
                yield (
                    str(place.relative_to(self.root / path)),
                    str(place.relative_to(self.root)),
                )

    def content(self, path: str) -> bytes | None:
        place = self.root / path
        try:
            return place.read_bytes() if stat.S_ISREG(place.stat().st_mode) else None
        except OSError:
            return None

    def run(self, folder: str, experiment_id: str, run_id: str, meta_of: str) -> None:
        path, address = f"{folder}/{run_id}", ("run", run_id)
        meta_path = f"{path}/meta.yaml"
        meta = self.meta(meta_path)
        status = _word(meta, RUN_STATUS, 1)
        if (
            meta is None
            or str(meta.get("run_id", meta.get("run_uuid"))) != run_id
            or str(meta.get("experiment_id")) != experiment_id
            or status is None
        ):
            self.broken((*address, path), meta_path, meta_of)
            return
        self.strays(path, PARTS_OF_RUN)
        meta["status"] = status
        self.fields(address, meta, meta_path, meta_of)
        metas = (meta_path, meta_of)
        self.texts(address, "param", f"{path}/params", *metas)
        self.texts(address, "tag", f"{path}/tags", *metas)
        for key, file in self.below(f"{path}/metrics"):
            self.history((*address, "metric", key), file, metas)
        self.files_of(address, f"{path}/artifacts", *metas)
        for name in self.folders(f"{path}/inputs"):
            self.link(address, folder, f"{path}/inputs/{name}/meta.yaml", metas)
        for name in self.folders(f"{path}/outputs"):
            self.link(address, folder, f"{path}/outputs/{name}/meta.yaml", metas)

    def link(self, address: Address, folder: str, file: str, metas: tuple[str, ...]) -> None:
        meta = self.meta(file)
        is_output = "/outputs/" in file
        needed = "destination_id" if is_output else "source_id"
        if meta is None or not isinstance(meta.get(needed), str):
            self.broken((*address, "link", file), file, *metas)
        elif is_output and meta.get("destination_type") == "MODEL_OUTPUT":
            output = str(meta.get("destination_id"))
            self.put((*address, "output", output), meta.get("step") or 0, file, *metas)
        elif meta.get("source_type") == "MODEL":
            self.put((*address, "input", meta["source_id"]), "MODEL", file, *metas)
        elif meta.get("source_type") == "DATASET":
            of_dataset = f"{folder}/datasets/{meta['source_id']}/meta.yaml"
            dataset = self.meta(of_dataset)
            names = ("name", "digest", "source_type", "source")
            if dataset is None or not all(isinstance(dataset.get(n), str) for n in names):
                self.broken((*address, "dataset", meta["source_id"]), of_dataset, file, *metas)
            else:
                key = (*address, "dataset", dataset["name"], dataset["digest"])
                self.put(key, dataset["source"], of_dataset, file, *metas)

    def history(self, address: Address, file: str, metas: tuple[str, ...]) -> None:
        rows: Counter[tuple[int, int, str]] = Counter()
        content = self.content(file)
        try:
            address[-1].encode()
        except UnicodeError:
            content = None
        if not content:
            self.broken(address, file, *metas)
            return
        for line in content.splitlines():
            parts = line.split()
            try:
                row = _int64(parts[2] if len(parts) == 3 else b"0"), _int64(parts[0])
                value = repr(float(parts[1]))
            except (ValueError, IndexError):
                row = None
            if row is None or len(parts) not in {2, 3, 5}:
                self.broken((*address, "bad line"), file, *metas)
            else:
                rows.update([(*row, value)])
        if not content.endswith(b"\n"):
            self.broken((*address, "bad line"), file, *metas)
            # Its last line may be a cut one, which says nothing for sure.
            self.put((*address, "rows"), len(rows) and None, file, *metas)
        else:
            self.put((*address, "rows"), rows, file, *metas)

    def files_of(self, address: Address, path: str, *metas: str) -> None:
        for key, file in self.below(path):
            content = self.content(file)
            real = os.path.realpath(self.root / file)
            is_inside = real.startswith(os.path.realpath(self.root / path) + "/")
            if content is None or not is_inside:
                self.broken((*address, "file", key), file, *metas)
            else:
                digest = hashlib.sha256(content).hexdigest()
                self.put((*address, "file", _escaped(key)), digest, file, *metas)

    def logged_model(self, folder: str, experiment_id: str, model_id: str, meta_of: str) -> None:
        path, address = f"{folder}/models/{model_id}", ("logged model", model_id)
        meta_path = f"{path}/meta.yaml"
        if not any(files for _, _, files in os.walk(self.root / path)):
            return
        meta = self.meta(meta_path)
        status = _word(meta, MODEL_STATUS, 0)
        if (
            meta is None
            or meta.get("model_id") != model_id
            or str(meta.get("experiment_id")) != experiment_id
            or not isinstance(meta.get("artifact_location"), str)
            or status is None
        ):
            self.broken((*address, path), meta_path, meta_of)
            return
        self.strays(path, {"params", "tags", "metrics", "artifacts"})
        meta |= {
            "artifact_uri": meta["artifact_location"],
            "status": status,
        }
        self.fields(address, meta, meta_path, meta_of)
        metas = (meta_path, meta_of)
        self.texts(address, "param", f"{path}/params", *metas)
        self.texts(address, "tag", f"{path}/tags", *metas)
        self.files_of(address, f"{path}/artifacts", *metas)
        for key, file in self.below(f"{path}/metrics"):
            self.latest_of_model((*address, "metric", key), file, metas)

    def latest_of_model(self, address: Address, file: str, metas: tuple[str, ...]) -> None:
        best = None
        content = self.content(file) or b""
        for line in content.splitlines():
            try:
                timestamp, value, step, _, *_ = line.split()
                row = _int64(step), _int64(timestamp), float(value)
            except ValueError:
                self.broken((*address, "bad line"), file, *metas)
                continue
            best = row if best is None else max(best, row)
        if best is None:
            self.broken(address, file, *metas)
        else:
            self.put(address, repr(best) if content.endswith(b"\n") else None, file, *metas)

    def trace(self, folder: str, trace_id: str, meta_of: str) -> None:
        path, address = f"{folder}/traces/{trace_id}", ("trace", trace_id)
        info_path = f"{path}/trace_info.yaml"
        if not any(files for _, _, files in os.walk(self.root / path)):
            return
        info = self.meta(info_path)
        try:
            assert info is not None
            began = datetime.fromisoformat(info["request_time"])
            assert info["trace_id"] == trace_id
            lasted = info.get("execution_duration_ms")
            assert lasted is None or (isinstance(lasted, int) and not isinstance(lasted, bool))
        except (AssertionError, KeyError, TypeError, ValueError):
            self.broken((*address, path), info_path, meta_of)
            return
        assert info is not None
        self.strays(path, {"tags", "request_metadata", "assessments", "artifacts"})
        metas = (info_path, meta_of)
        self.put((*address, "began"), round(began.timestamp() * 1000), *metas)
        self.fields(address, info, *metas)
        self.texts(address, "tag", f"{path}/tags", *metas)
        self.texts(address, "metadata", f"{path}/request_metadata", *metas)
        for key, file in self.below(f"{path}/assessments"):
            found = self.meta(file)
            if (
                found is None
                or not isinstance(found.get("assessment_id"), str)
                or not isinstance(found.get("assessment_name"), str)
            ):
                self.broken((*address, "assessment", key), file, *metas)
            else:
                of_it = (*address, "assessment", found["assessment_id"])
                self.put(of_it, found["assessment_name"], file, *metas)
        spans_path = f"{path}/artifacts/traces.json"
        where = (spans_path, f"{path}/tags/mlflow.artifactLocation", *metas)
        try:
            spans = json.loads(self.content(spans_path) or b"")["spans"]
            names = sorted(span["name"] for span in spans)
        except (ValueError, KeyError, TypeError):
            self.broken((*address, "spans"), *where)
        else:
            self.put((*address, "spans"), names, *where)

    def model(self, name: str) -> None:
        path, address = f"models/{name}", ("model", name)
        versions = [n for n in self.folders(path) if re.fullmatch(r"version-[1-9][0-9]*", n)]
        meta_path = f"{path}/meta.yaml"
        if not (versions or os.path.lexists(self.root / meta_path)):
            return
        meta = self.meta(meta_path)
        if meta is None or meta.get("name") != name:
            self.broken((*address, path), meta_path)
            for version in versions:
                file = f"{path}/{version}/meta.yaml"
                self.broken(("version", f"{name}/{version[8:]}", path), file, meta_path)
            return
        self.strays(path, {"tags", "aliases", *versions})
        self.fields(address, meta, meta_path)
        self.texts(address, "tag", f"{path}/tags", meta_path)
        for alias, file in self.below(f"{path}/aliases"):
            content = (self.content(file) or b"").decode(errors="replace")
            if content.isascii() and content.isdecimal():
                self.put((*address, "alias", alias), content, file, meta_path)
            else:
                self.broken((*address, "alias", alias), file, meta_path)
        for version in versions:
            self.version(name, version[8:], f"{path}/{version}", meta_path)

    def version(self, name: str, number: str, path: str, meta_of: str) -> None:
        address, meta_path = ("version", f"{name}/{number}"), f"{path}/meta.yaml"
        meta = self.meta(meta_path)
        if meta is not None and meta.get("current_stage") == "Deleted_Internal":
            return
        if meta is None or meta.get("name") != name or str(meta.get("version")) != number:
            self.broken((*address, path), meta_path, meta_of)
            return
        self.strays(path, {"tags"})
        self.fields(address, meta, meta_path, meta_of)
        self.texts(address, "tag", f"{path}/tags", meta_path, meta_of)


def _word(meta: dict[str, Any] | None, words: dict[int, str], default: int) -> str | None:
    """Return what a status says, None where it is none that MLflow knows."""
    said = (meta or {}).get("status", default)
    known = [word for number, word in words.items() if said in (number, word)]
    return known[0] if known else None


def _int64(text: bytes) -> int:
    number = int(text)
    if not -(2**63) <= number < 2**63:
        raise ValueError(number)
    return number


def _escaped(path: str) -> str:
    """Return a path as the spec has it: names that are no UTF-8 are escaped."""
    return "/".join(map(_escaped_name, path.split("/")))


def _escaped_name(name: str) -> str:
    try:
        name.encode()
    except UnicodeError:
        name = name.replace("!", "!21")
        return re.sub("[\udc80-\udcff]", lambda c: f"!{ord(c.group()) - 0xDC00:02X}", name)
    return name


def folder_says(root: Path) -> Standing:
    """Read an ``mlruns`` folder as it lies there."""
    return _Folder(root).read()


def archive_says(path: Path) -> dict[Address, Any]:
    """Read an archive into the same addresses."""
    members: dict[str, bytes] = {}
    with (
        path.open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as stream,
        tarfile.open(fileobj=io.BufferedReader(stream), mode="r|") as archive,
    ):
        for member in archive:
            inside = member.name.partition("/")[2]
            if member.islnk():  # the same content stands there once
                members[inside] = members[member.linkname.partition("/")[2]]
            elif member.isfile():
                inner = archive.extractfile(member)
                assert inner is not None
                members[inside] = inner.read()
    said: dict[Address, Any] = {}
    for name, content in members.items():
        if name.endswith(".parquet"):
            _table(said, name, pq.read_table(io.BytesIO(content)).to_pylist())
        elif name.endswith(".json") and "/artifacts/" not in name and name.startswith("data/"):
            _document(said, json.loads(content), members)
    return said


def _document(said: dict[Address, Any], whole: dict[str, Any], members: dict[str, bytes]) -> None:
    document, address = whole["mlflow"], ("", "")
    if "experiment" in document and "runs" in document:
        found = document["experiment"]
        address = ("experiment", found["experiment_id"])
        _entries(said, address, "tag", found.get("tags", ()))
    elif "run" in document:
        found, data = document["run"]["info"], document["run"]["data"]
        address = ("run", found["run_id"])
        _entries(said, address, "tag", data["tags"])
        _entries(said, address, "param", data["params"])
        inputs = document["run"].get("inputs", {})
        for entry in inputs.get("dataset_inputs", ()):
            dataset = entry["dataset"]
            _put(said, dataset["source"], *address, "dataset", dataset["name"], dataset["digest"])
        for model in inputs.get("model_inputs", ()):
            _put(said, "MODEL", *address, "input", model["model_id"])
        for model in document["run"].get("outputs", {}).get("model_outputs", ()):
            _put(said, model["step"], *address, "output", model["model_id"])
    elif "logged_model" in document:
        found, data = document["logged_model"]["info"], document["logged_model"]["data"]
        address = ("logged model", found["model_id"])
        _entries(said, address, "tag", found["tags"])
        _entries(said, address, "param", data["params"])
        for metric in data["metrics"]:
            row = metric["step"], metric["timestamp"], float(metric["value"])
            before = said.get((*address, "metric", metric["key"]))
            told = repr(row)
            _put(said, max(before or told, told), *address, "metric", metric["key"])
    elif "registered_model" in document:
        found = document["registered_model"]
        address = ("model", found["name"])
        _entries(said, address, "tag", found["tags"])
        for alias in found["aliases"]:
            _put(said, alias["version"], *address, "alias", alias["alias"])
    elif "model_version" in document:
        found = document["model_version"]
        address = ("version", f"{found['name']}/{found['version']}")
        _entries(said, address, "tag", found["tags"])
    else:
        return
    for name in FIELDS[address[0]]:
        if name in found:
            _put(said, found[name], *address, name)
    for artifact in whole["info"].get("artifacts", ()):
        content = members[artifact["member"]]
        _put(said, hashlib.sha256(content).hexdigest(), *address, "file", artifact["path"])


def _put(said: dict[Address, Any], value: object, *address: str) -> None:
    said[address] = value


def _entries(
    said: dict[Address, Any], address: Address, what: str, listed: list[dict[str, Any]]
) -> None:
    for entry in listed:
        _put(said, entry["value"], *address, what, entry["key"])


def _table(said: dict[Address, Any], name: str, rows: list[dict[str, Any]]) -> None:
    address: Address
    if "/metrics/" in name:
        for row in rows:
            value = math.nan if row["value"] is None else row["value"]
            address = ("run", row["run_id"], "metric", row["key"], "rows")
            told = said.setdefault(address, Counter())
            told[row["step"], row["timestamp"], repr(value)] += 1
    elif "/traces/traces" in name:
        for row in rows:
            address = ("trace", row["trace_id"])
            _put(said, row["request_time_ms"], *address, "began")
            for field_name in FIELDS["trace"]:
                _put(said, row[field_name], *address, field_name)
            for what, column in (("tag", "tags"), ("metadata", "trace_metadata")):
                for key, value in row[column] or ():
                    _put(said, value, *address, what, key)
    elif "/traces/spans" in name:
        for row in rows:
            spans = said.setdefault(("trace", row["trace_id"], "spans"), [])
            spans.append(row["name"])
            spans.sort()
    elif "/traces/assessments" in name:
        for row in rows:
            address = ("trace", row["trace_id"], "assessment", row["assessment_id"])
            said[address] = row["assessment_name"]
