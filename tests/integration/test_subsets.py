"""An archive is a source like any other: what is taken of it is what the server itself gives."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from mlflow_exim_plugin import copy, diff, open_archive, pack, verify
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import NotFoundError
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.objects import Kind
from tests.compare import assert_count_law
from tests.unit.container.crafting import contents

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mlflow_exim_plugin import Report
    from tests.sources import Source

pytestmark = pytest.mark.integration


def told_of(archive: str) -> dict[str, Any]:
    """Return what each envelope says of its object, whoever wrote it and when."""
    found = {}
    with ArchiveReader.open(archive) as reader:
        for path in reader.paths("data/"):
            if path.endswith(".json") and "/artifacts/" not in path and "/attachments/" not in path:
                envelope = reader.read_document(path)
                envelope.pop("system")
                found[path] = envelope
    found["data/archive.json"]["info"].pop("taken_from", None)
    return found


def taken(archive: str, path: Path, selection: Selection = Selection(), **how: Any) -> Report:
    report = pack(str(path), tracking_uri=archive, selection=selection, **how)
    assert_count_law(report)
    assert [str(f) for f in verify(str(path)).findings if f.code.startswith("E")] == []
    return report


def selections(source: Source) -> dict[str, Selection]:
    runs = source.made.runs
    return {
        "everything": Selection(),
        "one experiment": Selection(experiments=("plain",)),
        "a run with its ancestors": Selection(runs=(runs["grandchild"],)),
        "some runs": Selection(filter="attributes.run_name LIKE '%child%'"),
        "without files": Selection(artifacts=False),
        "some files": Selection(exclude=("*.txt",)),
        "without what is deleted": Selection(deleted=False),
    }


@pytest.mark.parametrize(
    "name",
    [
        "everything",
        "one experiment",
        "a run with its ancestors",
        "some runs",
        "without files",
        "some files",
        "without what is deleted",
    ],
)
def test_a_subset_is_what_the_source_itself_gives(
    name: str, sqlite_source: Source, tmp_path: Path
) -> None:
    selection = selections(sqlite_source)[name]
    direct, subset = tmp_path / "direct.tar.zst", tmp_path / "subset.tar.zst"
    by_source = pack(str(direct), tracking_uri=sqlite_source.uri, selection=selection)

    by_archive = taken(sqlite_source.archive, subset, selection)

    wanted, found = told_of(str(direct)), told_of(str(subset))
    assert found.keys() == wanted.keys()
    for path in wanted:
        if path != "data/archive.json":
            assert found[path] == wanted[path], path
    assert by_archive.content_root == by_source.content_root
    assert by_archive.to_dict()["counts"] == by_source.to_dict()["counts"]
    assert found["data/archive.json"]["mlflow"] == wanted["data/archive.json"]["mlflow"]
    assert diff(str(direct), str(subset), rules="exact").equal


def test_every_kind_is_taken(everything: tuple[str, str], tmp_path: Path) -> None:
    _, archive = everything
    report = taken(archive, tmp_path / "all.tar.zst")
    with open_archive(archive) as all_of_it:
        packed = all_of_it.summary.info.counts
    assert {kind: c.written for kind, c in report.counts.items()} == {
        Kind(kind): c.written for kind, c in packed.items()
    }
    with ArchiveReader.open(archive) as a, ArchiveReader.open(str(tmp_path / "all.tar.zst")) as b:
        before, after = contents(a), contents(b)
    # Only these tell anything else: what was taken from where, and who wrote the list of objects.
    changed = {path for path in before if before[path] != after[path] and path.startswith("data/")}
    assert changed == {"data/archive.json"}
    with open_archive(archive) as all_of_it:
        assert report.content_root == all_of_it.content_root
    assert {*before, "log/00002.json"} == after.keys()


def test_a_subset_of_a_subset_says_where_all_came_from(
    sqlite_source: Source, tmp_path: Path
) -> None:
    middle, last = tmp_path / "middle.tar.zst", tmp_path / "last.tar.zst"
    taken(sqlite_source.archive, middle, Selection(experiments=("plain",)))
    taken(str(middle), last, Selection(runs=(sqlite_source.made.runs["child 0"],)))
    with open_archive(sqlite_source.archive) as first, open_archive(str(middle)) as second:
        roots = [second.reader.root, first.reader.root]
        system = first.summary.system
    with open_archive(str(last)) as archive:
        from_ = archive.summary.info.taken_from
        assert [entry["root"] for entry in from_] == roots
        assert [entry["archive"] for entry in from_] == [str(middle), sqlite_source.archive]
        assert [entry["selection"] for entry in from_] == [{"experiments": ["plain"]}, {}]
        # When the source was read orders what is known of an object; taking it changes nothing.
        assert archive.summary.system == system
        assert all(run.system == system for run in archive.runs())
        steps = archive.log
        assert len(steps) == 3
        assert [step.info.earlier and step.info.earlier.root for step in steps] == [
            None,
            *reversed(roots),
        ]
        assert steps[0].system == system
        assert steps[-1].info.content_root == archive.content_root
        assert steps[-1].system.mlflow_tracking_uri == str(middle)
        first_events = [archive.reader.read(f"log/0000{number}.json") for number in (1, 2)]
    with ArchiveReader.open(str(middle)) as reader:
        assert [reader.read(f"log/0000{number}.json") for number in (1, 2)] == first_events
    direct = tmp_path / "direct.tar.zst"
    selection = Selection(runs=(sqlite_source.made.runs["child 0"],))
    pack(str(direct), tracking_uri=sqlite_source.uri, selection=selection)
    assert diff(str(direct), str(last), rules="exact").equal


def test_frames_are_copied(make_sqlite: Callable[[], str], tmp_path: Path) -> None:
    """Files and metric rows of what is taken whole are the same bytes of both archives."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    uri = make_sqlite()
    client = MlflowClient(uri, uri)
    for name in ("taken", "left"):
        root = (tmp_path / name).as_uri()
        run_id = client.create_run(client.create_experiment(name, root)).info.run_id
        for key in range(20):
            rows = [Metric(f"m{key}", step / 7 + key, step, step) for step in range(1000)]
            client.log_batch(run_id, rows)
        (tmp_path / "large.bin").write_bytes(os.urandom(3 << 20))
        (tmp_path / "small.txt").write_bytes(b"small")
        client.log_artifact(run_id, str(tmp_path / "large.bin"))
        client.log_artifact(run_id, str(tmp_path / "small.txt"))
    archive, subset = tmp_path / "all.tar.zst", tmp_path / "one.tar.zst"
    pack(str(archive), tracking_uri=uri)
    taken(str(archive), subset, Selection(experiments=("taken",)), level=19)

    with ArchiveReader.open(str(archive)) as a, ArchiveReader.open(str(subset)) as b:
        large = [path for path in b.paths("data/") if b.own_frames(path)]
        assert any(path.endswith("large.bin") for path in large)
        for path in large:
            (first, last), (again, end) = a.own_frames(path) or (0, 0), b.own_frames(path) or (0, 0)
            frames = [
                [f for _, f in r.frames.compressed(*n)]
                for r, n in ((a, (first, last)), (b, (again, end)))
            ]
            assert frames[0] == frames[1]


def test_what_was_not_packed_stays_said(
    sqlite_source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What failed when the source was packed is missing in each subset, and is named there."""
    from mlflow_exim_plugin.container.writer import ArchiveWriter

    whole, subset = tmp_path / "whole.tar.zst", tmp_path / "subset.tar.zst"
    add_stream = ArchiveWriter.add_stream

    def failing(self: ArchiveWriter, path: str, size_bytes: int, stream: Any) -> Any:
        if path.endswith(("MLmodel", "weights.bin")):

            class Broken:
                def read(self, _: int) -> bytes:
                    raise OSError("gone")

            stream = Broken()
        return add_stream(self, path, size_bytes, stream)

    with monkeypatch.context() as patch:
        patch.setattr(ArchiveWriter, "add_stream", failing)
        packed = pack(str(whole), tracking_uri=sqlite_source.uri)
    failed = {(f.kind, f.id, f.reason) for f in packed.failures}
    assert failed

    report = taken(str(whole), subset)

    assert {(f.kind, f.id, f.reason) for f in report.failures} == failed
    assert report.to_dict()["counts"] == packed.to_dict()["counts"]
    assert report.to_dict()["lossy"] == packed.to_dict()["lossy"]
    found, wanted = told_of(str(subset)), told_of(str(whole))
    assert found == wanted


def test_a_parent_that_stays_behind_is_named(sqlite_source: Source, tmp_path: Path) -> None:
    """It was there when all was packed; the subset without it says what it lacks, and so on."""
    runs = sqlite_source.made.runs
    selection = Selection(runs=(runs["child of deleted"],), deleted=False)
    first, second = tmp_path / "first.tar.zst", tmp_path / "second.tar.zst"
    report = taken(sqlite_source.archive, first, selection)
    assert [loss.id for loss in report.losses] == [runs["child of deleted"]]
    again = taken(str(first), second)
    assert [loss.id for loss in again.losses] == [runs["child of deleted"]]
    assert told_of(str(first)).keys() == told_of(str(second)).keys()


def test_a_damaged_archive_gives_what_is_whole(sqlite_source: Source, tmp_path: Path) -> None:
    hurt = sqlite_source.damaged(tmp_path / "hurt.tar.zst")
    subset = tmp_path / "subset.tar.zst"
    report = pack(str(subset), tracking_uri=str(hurt))
    assert not report.ok
    assert_count_law(report)
    assert [f.code for f in verify(str(subset)).findings if f.code.startswith("E")] == []


def test_a_name_that_is_not_there(sqlite_source: Source, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        pack(str(tmp_path / "a.tar.zst"), tracking_uri=sqlite_source.archive, experiments="nothing")
    assert list(tmp_path.glob("*.tar.zst")) == []


def test_a_dry_run_says_what_would_be(sqlite_source: Source, tmp_path: Path) -> None:
    selection = Selection(experiments=("plain",))
    would = pack(
        str(tmp_path / "a.tar.zst"),
        tracking_uri=sqlite_source.archive,
        selection=selection,
        dry_run=True,
    )
    assert not (tmp_path / "a.tar.zst").exists()
    report = taken(sqlite_source.archive, tmp_path / "a.tar.zst", selection)
    assert would.to_dict()["counts"] == report.to_dict()["counts"]
    assert would.metric_rows == report.metric_rows


def test_source_tags_are_given_to_what_is_taken(sqlite_source: Source, tmp_path: Path) -> None:
    path = tmp_path / "a.tar.zst"
    taken(sqlite_source.archive, path, export_source_tags=True)
    with open_archive(str(path)) as archive:
        for run in archive.runs():
            tags = {tag["key"] for tag in run.mlflow.run["data"]["tags"]}
            assert "mlflow_export_import.run_info.run_id" in tags


def test_copy_reads_an_archive(sqlite_source: Source, make_sqlite: Callable[[], str]) -> None:
    target = make_sqlite()
    report = copy(sqlite_source.archive, target, experiments="plain")
    assert report.ok
    assert diff(sqlite_source.archive, target, experiments="plain").equal
    assert json.dumps(report.to_dict())
