"""Every sample gives exactly its code, and none brings a reader down."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from mlflow_exim_plugin import errors, open_archive, unpack, verify
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.container.writer import ArchiveWriter
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.envelope import System
from mlflow_exim_plugin.schema.objects import ENTITY_KINDS, Kind
from mlflow_exim_plugin.schema.report import Report
from mlflow_exim_plugin.schema.rules import RULES
from mlflow_exim_plugin.sinks.archive.sink import ArchiveSink
from mlflow_exim_plugin.sources.archive.source import ArchiveSource
from mlflow_exim_plugin.transfer import transfer
from samples import generate

FOLDER = Path(generate.FOLDER)
GOOD = sorted(FOLDER.glob("good/*.tar.zst"))
BROKEN = sorted([*FOLDER.glob("bad/*/archive.tar.zst"), *FOLDER.glob("warn/*/archive.tar.zst")])
GOLDEN = sorted(FOLDER.glob("written-by/*/archive.tar.zst"))


def name_of(path: Path) -> str:
    return str(path.relative_to(FOLDER)).removesuffix("/archive.tar.zst")


def codes_of(path: Path) -> set[str]:
    try:
        return {finding.code for finding in verify(str(path)).findings}
    except (errors.InvalidArchiveError, errors.UnsupportedFormatError) as error:
        return {finding.code for finding in error.findings}


@pytest.mark.parametrize("path", GOOD, ids=name_of)
def test_good_archive_has_no_findings(path: Path) -> None:
    assert verify(str(path), jobs=2).findings == []


@pytest.mark.parametrize("path", BROKEN, ids=name_of)
def test_broken_archive_has_exactly_its_code(path: Path) -> None:
    code = path.parent.name.partition("_")[0]
    assert codes_of(path) == {code}
    is_refused = path.parent.parent.name == "bad"
    assert is_refused == RULES[code].is_error


def test_every_rule_has_one_sample() -> None:
    names = {f"{rule.code}_{rule.slug}" for rule in RULES.values()}
    assert {path.parent.name for path in BROKEN} == names


@pytest.mark.parametrize("path", [*GOOD, *BROKEN, *GOLDEN], ids=name_of)
def test_reading_everything_raises_nothing_but_our_errors(path: Path) -> None:
    wholes: list[Any] = []
    try:
        with open_archive(str(path)) as archive:
            wholes.append(archive.summary)
            wholes.extend(archive.experiments())
            names = [model.mlflow.registered_model["name"] for model in archive.models()]
            wholes.extend(archive.versions(name) for name in names)
            for run in archive.runs():
                run_id = run.mlflow.run["info"]["run_id"]
                wholes.append(archive.metric_history(run_id).num_rows)
                for entry in run.info.artifacts:
                    with archive.open_artifact(run_id, entry.path) as stream:
                        wholes.append(stream.read())
            wholes.extend(archive.logged_models())
            wholes.extend(archive.traces())
            wholes.extend(archive.models(Kind.PROMPT))
            for kind in ENTITY_KINDS:
                wholes.extend(archive.entities(kind))
    except errors.EximError:
        assert path in BROKEN
    else:
        assert wholes


@pytest.mark.parametrize("path", [*GOOD, *BROKEN, *GOLDEN], ids=name_of)
def test_packing_it_again_loses_nothing_and_doubles_no_fault(path: Path) -> None:
    out = io.BytesIO()
    try:
        with (
            open_archive(str(path)) as archive,
            ArchiveWriter(out, base_directory="again", workers=0) as writer,
        ):
            sink = ArchiveSink(writer, System.now("test", "3", "test"))
            report = transfer(ArchiveSource(archive), sink, Selection(), report=Report())
    except errors.EximError:
        assert path in BROKEN
        return
    assert path in BROKEN or report.ok
    if path in GOOD:
        before, after = digests(path.read_bytes()), digests(out.getvalue())
        assert len(before) == len(after)
        assert set(before) - {""} <= set(after)


def digests(data: bytes) -> list[str]:
    """Return the content digests of all objects, empty for those with parts of a later version."""
    with ArchiveReader.from_source(generate.Bytes(data)) as reader:
        documents = {p: json.loads(reader.read(p)) for p in reader.paths("data/") if is_object(p)}
        # A part of an envelope that only a later version knows is not carried from archive to
        # archive; REST's own objects are, whole.
        return [
            document["info"]["content_digest"] if set(document["mlflow"]) <= KNOWN else ""
            for document in documents.values()
        ]


KNOWN = {
    "run",
    "experiment",
    "runs",
    "logged_models",
    "logged_model",
    "registered_model",
    "versions",
    "model_version",
    "experiment_id",
    "traces",
    *map(str, ENTITY_KINDS),
}


def is_object(path: str) -> bool:
    return path.rpartition("/")[2] in {"experiment.json", "run.json", "model.json", "version.json"}


@pytest.mark.integration
def test_unpacking_broken_archives_raises_nothing_but_our_errors(
    sqlite_uri: str, tmp_path: Path
) -> None:
    outcomes: set[bool | None] = set()
    for path in BROKEN:
        try:
            report = unpack(str(path), tracking_uri=sqlite_uri, artifact_location=str(tmp_path))
            outcomes.add(report.ok)
        except errors.EximError:
            outcomes.add(None)
    assert outcomes == {True, False, None}


def test_generator_gives_the_same_samples() -> None:
    made = generate.generated()
    there = {
        str(path.relative_to(FOLDER)): path.read_bytes()
        for path in FOLDER.rglob("*")
        if path.is_file() and path.relative_to(FOLDER).parts[0] not in {"written-by", "sets"}
    }
    assert set(made) == set(there)
    same_tools = there["generated-with.json"] == made.pop("generated-with.json")
    for path, data in made.items():
        if same_tools or path.endswith(".json"):
            assert data == there[path], f"{path}: run samples/generate.py"
        elif path.startswith(("good/", "warn/")):
            assert comparable(data) == comparable(there[path]), path


def comparable(data: bytes) -> dict[str, Any]:
    """Return contents, without what other versions of zstd, Parquet or JSON writers change."""
    with ArchiveReader.from_source(generate.Bytes(data)) as reader:
        found: dict[str, Any] = {}
        for path in reader.paths():
            content = reader.read(path)
            if path.endswith(".parquet"):
                found[path] = rows(content)
            elif is_object(path) or path in {"exim.json", "data/archive.json"}:
                found[path] = json.loads(content)
            elif path not in {"bag-info.txt", "manifest-sha256.txt", "tagmanifest-sha256.txt"}:
                found[path] = content
        return found


def rows(parquet: bytes) -> list[list[Any]]:
    """Return the rows of any table, each double as the hex of its bits."""
    table: pa.Table = pq.read_table(io.BytesIO(parquet))
    return [
        [struct.pack(">d", v).hex() if isinstance(v, float) else v for v in row.values()]
        for row in table.to_pylist()
    ]


def test_forged_archives_are_good_before_they_are_bent() -> None:
    data = generate.plain().data()
    assert comparable(data)["data/archive.json"]
    with ArchiveReader.from_source(generate.Bytes(data)) as reader:
        assert reader.base_directory == "sample"


@pytest.mark.parametrize("path", GOLDEN, ids=name_of)
def test_archives_of_all_releases_are_read(path: Path) -> None:
    expected = json.loads((path.parent / "expected.json").read_text("utf-8"))
    assert codes_of(path) == set(expected["codes"]) == {"W020", "W021"}
    with open_archive(str(path), expected_root=expected["root"]) as archive:
        reader = archive.reader
        members = {m.path: [m.size_bytes, m.sha256] for m in reader.members()}
        assert members == expected["members"]
        assert archive.content_root == expected.get("content_root", archive.content_root)
        for name, document in expected["documents"].items():
            assert json.loads(reader.read(name)) == document
        for name, history in expected["histories"].items():
            assert rows(reader.read(name)) == history
        if "traces" in expected:
            traces = [{**trace.document, "spans": trace.spans} for trace in archive.traces()]
            assert traces == expected["traces"]
        runs = [d for name, d in expected["documents"].items() if name.endswith("/run.json")]
        assert [run.to_json()["mlflow"] for run in archive.runs()] == [
            run["mlflow"] for run in sorted(runs, key=run_order)
        ]


def run_order(document: dict[str, Any]) -> tuple[int, str]:
    info = document["mlflow"]["run"]["info"]
    return int(info["experiment_id"]), info["run_id"]


def test_there_is_a_golden_archive() -> None:
    assert {path.parent.name for path in GOLDEN} >= {"0.1.0.dev0", "0.2.0.dev0", "0.3.0.dev0"}


def test_pinned_tools_are_named() -> None:
    named = json.loads((FOLDER / "generated-with.json").read_text())
    assert set(named) == {"libzstd", "pyarrow", "orjson"}
    assert zstandard.ZSTD_VERSION >= (1, 5)
