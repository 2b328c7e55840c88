"""Further ways to break the rules of documents and tables, and what must not count as breaking."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import EximError
from mlflow_exim_plugin.schema.envelope import FORMAT_VERSION
from mlflow_exim_plugin.schema.metric_rows import MetricsDigest, RunRows
from mlflow_exim_plugin.schema.tables import METRICS
from mlflow_exim_plugin.sources.archive.archive import Archive
from mlflow_exim_plugin.verification.objects import verify_objects
from samples.generate import (
    ARCHIVE,
    EXPERIMENT,
    LOSS,
    METRICS_FILE,
    MODEL,
    NOTE,
    RUN,
    RUN_JSON,
    VERSION,
    Bytes,
    Tree,
    artifact_of,
    info_of,
    log_of,
    rows_of_run,
    version_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from samples.forging import Forgery

Change = dict[str, Any]
HUGE = "9" * 30


def codes(tree: Tree) -> set[str]:
    with ArchiveReader.from_source(Bytes(tree.forgery().data())) as reader:
        return {finding.code for finding in verify_objects(reader)}


def edited(path: str, change: Callable[[Change], Any]) -> Tree:
    def ignore_result(document: Change) -> None:
        change(document)

    return Tree().edit(path, ignore_result)


def raw(path: str, old: bytes, new: bytes) -> Tree:
    tree = Tree()
    assert old in tree.members[path]
    return tree.put(path, tree.members[path].replace(old, new))


def moved(path: str, to: str) -> Tree:
    tree = Tree()
    tree.put(to, tree.members[path])
    del tree.members[path]
    return tree


def copied(path: str, to: str) -> Tree:
    tree = Tree()
    return tree.put(to, tree.members[path])


def parquet(table: pa.Table, **options: Any) -> Tree:
    """Replace the metrics file; digest, rows and totals of the run are made to fit."""
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    digest = MetricsDigest()
    for row in range(table.num_rows):
        digest.update(RunRows.of(RUN, table.slice(row, 1)))

    def fit(document: Change) -> None:
        entry = document["info"]["metrics"]
        entry.update(digest=digest.hexdigest(), rows=table.num_rows)
        entry["parts"][0]["rows"] = table.num_rows

    def count(document: Change) -> None:
        document["info"]["metric_rows"] = table.num_rows

    return Tree().put(METRICS_FILE, sink.getvalue()).edit(RUN_JSON, fit).edit(ARCHIVE, count)


def many_rows(count: int = (1 << 20) + 1, key: str = "loss", **how: Any) -> Tree:
    columns = [
        pa.repeat(pa.scalar(value, f.type), count)
        for value, f in zip((RUN, key, 0, 0, 0.5), METRICS, strict=True)
    ]
    sink = io.BytesIO()
    table = pa.Table.from_arrays(columns, schema=METRICS)
    pq.write_table(table, sink, row_group_size=count, compression="zstd", **how)

    def fit(document: Change) -> None:
        document["info"]["metrics"]["rows"] = count
        document["info"]["metrics"]["parts"][0]["rows"] = count

    return (
        Tree()
        .put(METRICS_FILE, sink.getvalue())
        .edit(RUN_JSON, fit)
        .edit(ARCHIVE, lambda document: document["info"].update(metric_rows=count))
    )


def other_run(document: Change) -> None:
    document["mlflow"]["run"]["info"]["run_id"] = "f" * 32


def same_run_twice(document: Change) -> None:
    document["mlflow"]["runs"].append(RUN)
    document["info"].update(num_total_runs=2, num_ok_runs=2)


def failures(named: int, counted: int, **entry: Any) -> Tree:
    """Return an archive that names so many failed artifacts and counts so many."""

    def change(document: Change) -> None:
        info, counts = document["info"], document["info"]["counts"]["artifact"]
        counts["found"] += counted
        counts["failed"] += counted
        info["failures"] = [{"kind": "artifact", "id": "x", "count": named, **entry}]

    return edited(ARCHIVE, change)


def logged(*changes: Callable[[Change], Any], without: str = "", more: int = 0) -> Tree:
    tree = Tree()
    for path, data in log_of(*changes).items():
        if path != without:
            tree.put(path, data + b" " * more)
    return tree


FAULTS: list[tuple[str, str, Tree]] = [
    ("E050", "an event is no JSON", Tree().put("log/00001.json", b"{")),
    ("E051", "an event of nobody", Tree().put("log/00001.json", b"{}")),
    ("E051", "an event of no root", logged(lambda d: d["info"].pop("content_root"))),
    ("E068", "a log without its first event", logged(without="log/00001.json")),
    ("E068", "an event that names none before", logged(lambda d: d["info"].pop("earlier"))),
    ("E068", "an event that was changed", logged(more=1)),
    ("E068", "a large event", Tree().put("log/00001.json", b" " * (65 << 10))),
    (
        "E068",
        "the log of another archive",
        logged(lambda d: d["info"].update(content_root="1" * 64)),
    ),
    ("E050", "number beyond a double", raw(RUN_JSON, b"0.25", b"1e999")),
    ("E050", "half a surrogate pair", raw(RUN_JSON, b'"alice"', b'"\\ud800"')),
    ("E050", "a key twice", raw(RUN_JSON, b'"user"', b'"script": "x", "user"')),
    ("E050", "many values", raw(RUN_JSON, b'"alice"', b"[" + b"[]," * (1 << 21) + b"0]")),
    ("E065", "a long text", raw(RUN_JSON, b'"alice"', b'"' + b"a" * (25 << 20) + b'"')),
    ("E050", "deep", raw(RUN_JSON, b'"alice"', b"[" * 101 + b"]" * 101)),
    ("E050", "very deep", raw(RUN_JSON, b'"alice"', b"[" * 100_000)),
    ("E050", "no text", Tree().put(MODEL, b"\xff")),
    ("E051", "a list", Tree().put(MODEL, b"[]")),
    ("E051", "no name", edited(MODEL, lambda d: d["mlflow"]["registered_model"].pop("name"))),
    (
        "E051",
        "superscript version",
        edited(VERSION, lambda d: version_of(d).update(version="\u00b2")),
    ),
    ("E051", "huge version", edited(VERSION, lambda d: version_of(d).update(version=HUGE))),
    (
        "E051",
        "run_id is a number",
        edited(RUN_JSON, lambda d: d["mlflow"]["run"]["info"].update(run_id=5)),
    ),
    (
        "E051",
        "tags without key",
        edited(EXPERIMENT, lambda d: d["mlflow"]["experiment"].update(tags=[{}])),
    ),
    (
        "E052",
        "experiment of another id",
        edited(RUN_JSON, lambda d: d["mlflow"]["run"]["info"].update(experiment_id="2")),
    ),
    (
        "E052",
        "version of another model",
        edited(VERSION, lambda d: version_of(d).update(name="other")),
    ),
    (
        "E053",
        "range behind the end",
        edited(RUN_JSON, lambda d: d["info"]["metrics"]["parts"][0].update(first_row=1)),
    ),
    (
        "E053",
        "rows do not add up",
        edited(RUN_JSON, lambda d: d["info"]["metrics"]["parts"][0].update(rows=1)),
    ),
    (
        "E053",
        "file that no run names",
        copied(METRICS_FILE, METRICS_FILE.replace("00000", "00001")),
    ),
    (
        "E053",
        "file that is not there",
        edited(RUN_JSON, lambda d: d["info"]["metrics"]["parts"][0].update(member="data/x")),
    ),
    (
        "E054",
        "member not there",
        edited(RUN_JSON, lambda d: artifact_of(d).update(member="data/x")),
    ),
    ("E056", "run without experiment", moved(EXPERIMENT, "data/stray")),
    ("E056", "version without model", moved(MODEL, "data/stray")),
    ("E056", "version not listed", edited(MODEL, lambda d: d["mlflow"].update(versions=[]))),
    (
        "E056",
        "archive lists another name",
        edited(ARCHIVE, lambda d: d["mlflow"]["experiments"][0].update(name="x")),
    ),
    ("E056", "archive lists no model", edited(ARCHIVE, lambda d: d["mlflow"].update(models=[]))),
    ("E057", "header without a version", edited("exim.json", lambda d: d.pop("format_version"))),
    (
        "E057",
        "header with a feature",
        edited("exim.json", lambda d: d.update(required_features=["x"])),
    ),
    ("E057", "no header", moved("exim.json", "exim.txt")),
    ("E058", "no summary", moved(ARCHIVE, "data/stray")),
    ("E058", "total of rows", edited(ARCHIVE, lambda d: info_of(d).update(metric_rows=3))),
    ("E058", "total of bytes", edited(ARCHIVE, lambda d: info_of(d).update(artifact_bytes=0))),
    (
        "E058",
        "artifacts uncounted",
        edited(ARCHIVE, lambda d: info_of(d)["counts"].pop("artifact")),
    ),
    (
        "E058",
        "keys of a run",
        edited(RUN_JSON, lambda d: d["info"]["metrics"].update(keys=2)).edit(
            ARCHIVE, lambda d: info_of(d)["counts"]["metric_history"].update(found=2, written=2)
        ),
    ),
    (
        "E058",
        "a run listed twice and counted twice",
        edited(EXPERIMENT, same_run_twice),
    ),
    ("E066", "failures of another kind", failures(1, 1, kind="run")),
    ("E066", "fewer named than failed", failures(1, 2)),
    ("E051", "a failure without a number", failures(1, 1, count="1")),
    ("E050", "a long integer", raw(RUN_JSON, b'"step": 1', b'"step": ' + b"9" * 4301)),
    (
        "E058",
        "failed runs unnamed",
        edited(EXPERIMENT, lambda d: info_of(d).update(num_total_runs=2, num_failed_runs=1)),
    ),
    ("E059", "no Parquet", Tree().put(METRICS_FILE, b"PAR1 nonsense PAR1")),
    ("E059", "large row group", many_rows()),
    ("E059", "a long key many times", many_rows(300_000, "k" * 2000)),
    (
        "E059",
        "keys by their difference",
        many_rows(1000, "k" * 9, use_dictionary=False, column_encoding={"key": "DELTA_BYTE_ARRAY"}),
    ),
    ("E060", "order across row groups", parquet(rows_of_run(*reversed(LOSS)), row_group_size=1)),
]


@pytest.mark.parametrize(
    ("code", "tree"), [pytest.param(code, tree, id=f"{code} {name}") for code, name, tree in FAULTS]
)
def test_fault_is_found_and_stops_no_reader(code: str, tree: Tree) -> None:
    assert code in codes(tree)
    with Archive(ArchiveReader.from_source(Bytes(tree.forgery().data()))) as archive:
        for read in (
            lambda: archive.summary,
            lambda: list(archive.experiments()),
            lambda: list(archive.runs()),
            lambda: [archive.versions("iris")],
            lambda: archive.metric_history(RUN),
            lambda: archive.open_artifact(RUN, "note.txt").read(),
        ):
            with suppress(EximError):
                assert read() is not None


def test_a_damaged_envelope_is_no_reason_to_blame_others() -> None:
    for path in (EXPERIMENT, RUN_JSON, MODEL, VERSION, ARCHIVE, "exim.json"):
        assert codes(Tree().put(path, b"{}x")) == {"E050"}, path


def test_the_same_run_cannot_be_in_two_experiments() -> None:
    other = EXPERIMENT.replace("/1/", "/2/")
    tree = copied(RUN_JSON, RUN_JSON.replace("/1/", "/2/"))
    tree.put(other, tree.members[EXPERIMENT])
    tree.edit(other, lambda d: d["mlflow"]["experiment"].update(experiment_id="2"))
    tree.edit(
        RUN_JSON.replace("/1/", "/2/"),
        lambda d: d["mlflow"]["run"]["info"].update(experiment_id="2"),
    )
    assert "E052" in codes(tree)


@pytest.mark.parametrize(
    ("code", "tree"),
    [
        pytest.param(code, tree, id=f"{code} {name}")
        for code, name, tree in FAULTS
        if name
        in {
            "keys of a run",
            "failures of another kind",
            "fewer named than failed",
            "an event of nobody",
            "the log of another archive",
        }
    ],
)
def test_what_older_versions_did_not_ask_for_is_no_error_there(code: str, tree: Tree) -> None:
    old = tree.edit("exim.json", lambda d: d.update(format_version="1.1"))
    data = old.forgery(footer=lambda footer: footer.update(version=[1, 1])).data()
    with ArchiveReader.from_source(Bytes(data)) as reader:
        found = {finding.code for finding in verify_objects(reader)}
    assert found == ({"W021"} if code == "E066" else set())


def test_failures_that_are_named_and_counted_are_a_warning() -> None:
    assert codes(failures(2, 2)) == {"W021"}


def test_null_and_unknown_parts_are_in_the_content_digest() -> None:
    tree = edited(MODEL, lambda d: d["mlflow"].update(x_later=None))
    assert codes(tree) == set()
    without = json.loads(tree.members[MODEL])
    del without["mlflow"]["x_later"]
    assert codes(tree.put(MODEL, json.dumps(without).encode())) == {"E055"}


def test_unsorted_keys_of_json_mean_nothing() -> None:
    tree = Tree()
    document = json.loads(tree.members[RUN_JSON])
    upside_down = dict(reversed(document.items()))
    upside_down["mlflow"] = {"run": dict(reversed(document["mlflow"]["run"].items()))}
    assert codes(tree.put(RUN_JSON, json.dumps(upside_down).encode())) == set()


def test_artifacts_are_not_documents() -> None:
    note = NOTE.replace("note.txt", "run.json")
    tree = moved(NOTE, note)
    tree.edit(RUN_JSON, lambda d: artifact_of(d).update(member=note, path="run.json"))
    assert codes(tree) == set()


def test_objects_of_a_later_version_are_in_a_content_root_that_nobody_here_can_tell() -> None:
    def later(version: str) -> Forgery:
        tree = edited(ARCHIVE, lambda d: info_of(d).update(content_root="1" * 64))
        tree.edit("exim.json", lambda d: d.update(format_version=version))
        numbers = [*map(int, version.split("."))]
        return tree.forgery_as_it_is(footer=lambda footer: footer.update(version=numbers))

    for version, wanted in ((FORMAT_VERSION, {"E067"}), ("1.99", set()), ("1.2", set())):
        with ArchiveReader.from_source(Bytes(later(version).data())) as reader:
            assert {finding.code for finding in verify_objects(reader)} == wanted, version
