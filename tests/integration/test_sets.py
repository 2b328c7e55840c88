"""Sets: what is new or changed is packed, and a snapshot is as an archive of the whole state."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from mlflow_exim_plugin import (
    diff,
    forget,
    hold,
    keygen,
    open_archive,
    pack,
    prune,
    release,
    sign,
    unpack,
    verify,
)
from mlflow_exim_plugin.errors import InvalidArchiveError, NotFoundError, UsageError
from mlflow_exim_plugin.host.sql.traces import StoredTraces
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.sets.publishing import NewSnapshot
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder
from mlflow_exim_plugin.storage.folders.store_folder import StoreFolder
from tests.compare import as_default
from tests.databases import rows_of_tables
from tests.filled import copy_of_database
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sources.archive.snapshot.set_folder import StoredSnapshot
    from tests.conftest import Bucket


def add_run(client: MlflowClient, experiment_id: str, number: int) -> str:
    """Log a run with rows and a file."""
    run_id: str = client.create_run(experiment_id, run_name=f"r{number}").info.run_id
    now_ms = int(time.time() * 1000)
    rows = [Metric("loss", 1 / (step + 1), now_ms + step, step) for step in range(20)]
    client.log_batch(run_id, rows)
    client.log_param(run_id, "lr", number)
    client.log_text(run_id, f"hello {number}", "notes/a.txt")
    client.set_terminated(run_id)
    return run_id


def fill_at(uri: str, folder: Path) -> tuple[list[str], list[str]]:
    """Make two experiments of five runs each; returns their ids."""
    client = MlflowClient(uri, uri)
    experiments = [
        client.create_experiment(name, artifact_location=str(folder / "files" / name))
        for name in ("a", "b")
    ]
    return experiments, [add_run(client, e, number) for e in experiments for number in range(5)]


def fill(uri: str) -> tuple[list[str], list[str]]:
    """Fill a database of SQLite, the files beside it."""
    return fill_at(uri, Path(uri.removeprefix("sqlite:///")).parent)


class Store:
    """A deployment with two experiments, five runs each, that is packed again and again."""

    def __init__(self, folder: Path, uri: str, made: tuple[list[str], list[str]]) -> None:
        self.folder = folder
        self.uri = uri
        self.client = MlflowClient(uri, uri)
        self.set = str(folder / "set")
        self.experiments, self.runs = made

    def pack(self, **how: Any) -> Report:
        """Pack it into its set."""
        report = pack(tracking_uri=self.uri, set=self.set, **how)
        assert report.failures == []
        return report

    def packs(self) -> list[Path]:
        """Return the archives that lie in the set."""
        return sorted((Path(self.set) / "packs").rglob("*.tar.zst"))

    def is_whole(self) -> None:
        """Hold the newest snapshot to an archive of the same state, which nothing of it made."""
        whole = str(self.folder / f"whole-{time.time_ns()}.tar.zst")
        packed = pack(whole, tracking_uri=self.uri)
        assert packed.failures == []
        with open_archive(self.set) as archive, open_archive(whole) as expected:
            assert archive.content_root == packed.content_root == expected.content_root
            assert sorted(archive.run_ids()) == sorted(expected.run_ids())
            for run_id in expected.run_ids():
                assert archive.metric_history(run_id) == expected.metric_history(run_id)
        assert diff(self.set, whole, rules="exact").equal


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, f"sqlite:///{tmp_path / 'mlflow.db'}", copy_of_database(tmp_path, fill))


def _database(path: Path) -> str:
    new_sqlite_database(path)
    return f"sqlite:///{path}"


def _written(report: Report) -> dict[str, int]:
    return {k: c["written"] for k, c in report.to_dict()["counts"].items() if c["written"]}


def test_the_first_pack_takes_all_and_the_next_one_nothing(store: Store) -> None:
    first = store.pack()
    assert first.snapshot is not None
    assert first.counts[Kind.RUN].written == 10
    assert len(store.packs()) == 1
    store.is_whole()

    again = store.pack()
    assert _written(again) == {}
    assert again.counts[Kind.RUN].skipped == 10
    assert len(store.packs()) == 1
    assert again.content_root == first.content_root
    assert again.root != first.root
    store.is_whole()


def _files_of(store: Store, run_id: str) -> Path:
    """Return where a run's files are: MLflow remembers where those of another copy were."""
    return Path(str(store.client.get_run(run_id).info.artifact_uri))


CHANGES: dict[str, Callable[[Store], object]] = {
    "a row behind the last one": lambda s: s.client.log_metric(s.runs[0], "loss", 7.0, step=30),
    "a row before the last one": lambda s: s.client.log_metric(s.runs[0], "loss", 7.0, step=3),
    "a tag": lambda s: s.client.set_tag(s.runs[0], "color", "red"),
    "a tag that is gone": lambda s: s.client.delete_tag(s.runs[0], "mlflow.runName"),
    "another file": lambda s: (_files_of(s, s.runs[0]) / "notes/b.txt").write_text("more"),
    "a file of the same size": lambda s: (_files_of(s, s.runs[0]) / "notes/a.txt").write_text(
        "hallo 0"
    ),
    "a deleted run": lambda s: s.client.delete_run(s.runs[0]),
    "a new name": lambda s: s.client.update_run(s.runs[0], name="other"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_run_that_changed_is_packed_alone(
    store: Store, change: Callable[[Store], object]
) -> None:
    store.pack()
    change(store)
    report = store.pack()
    assert report.counts[Kind.RUN].written == 1
    assert report.counts[Kind.RUN].skipped == 9
    assert len(store.packs()) == 2
    assert verify(str(store.packs()[-1])).ok
    assert verify(str(store.packs()[0])).ok
    store.is_whole()


def test_each_snapshot_is_as_it_was(store: Store, tmp_path: Path) -> None:
    truths: dict[int, dict[str, Any]] = {}

    def packed() -> None:
        number = store.pack().snapshot or {}
        target = _database(tmp_path / f"truth-{number['number']}.db")
        whole = str(tmp_path / f"truth-{number['number']}.tar.zst")
        pack(whole, tracking_uri=store.uri)
        unpack(whole, tracking_uri=target, artifact_location=str(tmp_path / "out"))
        truths[number["number"]] = rows_of_tables(target)

    packed()
    for change in (
        lambda: store.client.log_metric(store.runs[3], "loss", 2.0, step=1),
        lambda: add_run(store.client, store.experiments[0], 9),
        lambda: store.client.rename_experiment(store.experiments[1], "c"),
        lambda: store.client.delete_experiment(store.experiments[1]),
        lambda: _purge(store, store.runs[1]),
        lambda: store.client.create_registered_model("churn"),
        lambda: store.client.create_model_version("churn", f"runs:/{store.runs[0]}/notes"),
        lambda: store.client.set_registered_model_alias("churn", "champion", "1"),
        lambda: store.client.delete_registered_model("churn"),
    ):
        change()
        packed()
        store.is_whole()
    for number, truth in truths.items():
        target = _database(tmp_path / f"at-{number}.db")
        location = str(tmp_path / "out")
        report = unpack(
            store.set, tracking_uri=target, snapshot=str(number), artifact_location=location
        )
        assert report.failures == []
        assert _plain(rows_of_tables(target)) == _plain(truth)


def test_traces_grow_go_and_come(store: Store) -> None:
    with as_default(store.uri):
        mlflow.set_experiment(experiment_id=store.experiments[0])
        ids = [_traced(f"question {number}") for number in range(4)]
        assert store.pack().counts[Kind.TRACE].written == 4
        store.is_whole()

        mlflow.log_feedback(trace_id=ids[1], name="good", value=True)
        store.client.delete_traces(store.experiments[0], trace_ids=[ids[2]])
        ids.append(_traced("question 5"))
        report = store.pack()
        assert report.counts[Kind.TRACE].written == 2
        assert report.counts[Kind.TRACE].skipped == 2
        assert (report.snapshot or {})["gone"] == 1
        store.is_whole()

        store.client.delete_traces(store.experiments[0], trace_ids=[ids[1]])
        assert store.pack().counts[Kind.TRACE].written == 0
        store.is_whole()
    prune(store.set, compact=True, apply=True)
    store.is_whole()
    assert verify(store.set).ok
    with open_archive(store.set, snapshot="1") as first:
        assert len(first.trace_ids()) == 4


def test_traces_that_are_as_they_were_are_not_read_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with as_default(store.uri):
        mlflow.set_experiment(experiment_id=store.experiments[0])
        ids = [_traced(f"question {number}") for number in range(4)]
        mlflow.log_feedback(trace_id=ids[1], name="good", value=True)
    store.pack()
    spans, read = StoredTraces.spans, list[str]()

    def noted(self: StoredTraces, trace_ids: list[str]) -> dict[str, list[str]]:
        read.extend(trace_ids)
        return spans(self, trace_ids)

    monkeypatch.setattr(StoredTraces, "spans", noted)
    report = store.pack()
    assert (read, report.counts[Kind.TRACE].skipped) == ([], 4)

    store.client.set_trace_tag(ids[3], "late", "1")
    change = "UPDATE spans SET content = replace(content, 'question', 'another') WHERE trace_id = ?"
    with closing(sqlite3.connect(store.folder / "mlflow.db")) as database, database:
        database.execute(change, (ids[2],))
    report = store.pack()
    assert ({*read}, report.counts[Kind.TRACE].written) == ({ids[2], ids[3]}, 2)
    monkeypatch.undo()
    store.is_whole()
    assert _written(store.pack(recheck=True)) == {}


def _traced(question: str) -> str:
    with mlflow.start_span(name="chat") as span:
        span.set_inputs({"question": question})
    mlflow.flush_trace_async_logging()
    return str(span.trace_id)


def test_names_that_differ_in_case_alone_keep_their_places(store: Store) -> None:
    for name in ("churn", "Churn", "CHURN"):
        store.client.create_registered_model(name)
        store.client.create_model_version(name, f"runs:/{store.runs[0]}/notes", store.runs[0])
    store.pack()
    store.is_whole()
    store.client.set_registered_model_alias("Churn", "best", "1")
    assert store.pack().counts[Kind.REGISTERED_MODEL].written == 1
    store.is_whole()
    store.client.create_registered_model("chUrn")
    store.client.update_registered_model("churn", "described")
    store.client.delete_registered_model("CHURN")
    store.pack()
    store.is_whole()
    with open_archive(store.set) as archive:
        names = sorted(m.mlflow.registered_model["name"] for m in archive.models())
        assert names == ["Churn", "chUrn", "churn"]
        assert len(archive.versions("Churn")) == 1
    prune(store.set, compact=True, apply=True)
    store.is_whole()


def test_what_was_not_asked_for_is_as_it_was(store: Store) -> None:
    store.pack()
    store.client.set_tag(store.runs[0], "a", "1")
    store.client.set_tag(store.runs[9], "b", "2")
    report = store.pack(experiments=["a"])
    assert report.counts[Kind.RUN].written == 1
    assert (report.snapshot or {})["objects"] == 13
    with open_archive(store.set) as archive:
        assert len(archive.run_ids()) == 10
        tags = {run.id: run.tags for run in archive.runs()}
        assert tags[store.runs[0]]["a"] == "1"
        assert "b" not in tags[store.runs[9]]
    assert store.pack().counts[Kind.RUN].written == 1
    store.is_whole()


def test_recheck_finds_what_nothing_tells(store: Store) -> None:
    store.pack()
    file = next((store.folder / "files").rglob("a.txt"))
    before = file.stat()
    file.write_text(file.read_text().upper())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert _written(store.pack()) == {}
    assert store.pack(recheck=True).counts[Kind.RUN].written == 1
    store.is_whole()
    assert _written(store.pack(recheck=True)) == {}


def test_a_set_without_what_to_compare_with_goes_on(store: Store) -> None:
    store.pack()
    for table in (Path(store.set) / "states").iterdir():
        table.unlink()
    store.client.set_tag(store.runs[4], "a", "b")
    assert store.pack().counts[Kind.RUN].written == 1
    store.is_whole()


def test_what_cannot_be_read_stays_as_it_was(store: Store) -> None:
    store.pack()
    hidden = store.folder / "files" / "hidden"
    folder = next((store.folder / "files" / "a").iterdir()) / "artifacts"
    folder.rename(hidden)
    folder.write_text("no folder any more")
    report = pack(tracking_uri=store.uri, set=store.set)
    assert [failure.kind for failure in report.failures] == [Kind.ARTIFACT]
    assert _written(report) == {}
    folder.unlink()
    hidden.rename(folder)
    store.is_whole()


def test_another_source_or_other_files_are_refused(store: Store, tmp_path: Path) -> None:
    store.pack()
    other = _database(tmp_path / "other.db")
    with pytest.raises(UsageError, match="is a set of"):
        pack(tracking_uri=other, set=store.set)
    with pytest.raises(UsageError, match="artifacts"):
        pack(tracking_uri=store.uri, set=store.set, artifacts=False)
    with pytest.raises(UsageError, match="overwrite"):
        pack(tracking_uri=store.uri, set=store.set, overwrite=True)
    moved = tmp_path / "moved.db"
    shutil.copy(store.folder / "mlflow.db", moved)
    with pytest.raises(UsageError, match="is a set of"):
        pack(tracking_uri=f"sqlite:///{moved}", set=store.set)
    report = pack(tracking_uri=f"sqlite:///{moved}", set=store.set, source_moved=True)
    assert _written(report) == {}


def test_of_two_writers_one_goes_again_on_top(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.pack()
    store.client.set_tag(store.runs[0], "first", "1")
    publish = NewSnapshot.publish
    raced: list[int] = []

    def race(self: NewSnapshot, *arguments: Any) -> StoredSnapshot | None:
        if not raced:
            raced.append(self.number)
            store.client.set_tag(store.runs[1], "second", "2")
            assert store.pack().counts[Kind.RUN].written == 2
        return publish(self, *arguments)

    monkeypatch.setattr(NewSnapshot, "publish", race)
    report = store.pack()
    assert raced == [2]
    assert _written(report) == {}
    assert (report.snapshot or {})["number"] == 3
    assert len(store.packs()) == 2  # what was packed for nothing is gone
    store.is_whole()


def test_a_snapshot_whose_answer_was_lost_is_ours(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = StoreFolder.put

    def answer_lost(self: StoreFolder, path: str, data: bytes) -> None:
        put(self, path, data)
        if path.startswith("snapshots/"):  # a store's client sends again, and finds its own
            put(self, path, data)

    monkeypatch.setattr(StoreFolder, "put", answer_lost)
    report = store.pack()
    assert (report.snapshot or {})["number"] == 1
    assert len(store.packs()) == 1
    store.is_whole()


def test_forgetting_keeps_what_is_asked_held_or_newest(store: Store) -> None:
    day_ms = 86_400_000
    start_ms = 1_790_000_000_000
    days = [0, 1, 2, 10, 40, 400]
    for day in days:
        store.client.set_tag(store.runs[0], "day", str(day))
        store.pack(as_of_ms=start_ms + day * day_ms)
    hold(store.set, "a case", snapshot="2")

    told = forget(store.set, keep_last=1, keep_yearly=2)
    assert {one.number: one.reasons for one in told.snapshots} == {
        1: [],
        2: ["held: a case"],
        3: [],
        4: [],
        5: ["yearly"],
        6: ["newest", "last", "yearly"],
    }
    assert not any(one.removed for one in told.snapshots)
    assert len(list((Path(store.set) / "snapshots").iterdir())) == 6

    forget(store.set, keep_last=1, apply=True)
    there = [1 if one.removed else 0 for one in told.snapshots]
    assert sum(there) == 0
    names = sorted(file.name for file in (Path(store.set) / "snapshots").iterdir())
    assert names == ["00000002.json", "00000006.json"]
    store.is_whole()
    assert verify(store.set, snapshot="2").ok

    needless = prune(store.set, apply=True)
    assert all(file.stays for file in needless.files if file.path.startswith("packs/"))
    release(store.set, snapshot="2")
    with pytest.raises(UsageError, match="what to keep"):
        forget(store.set, apply=True)
    forget(store.set, keep_last=1, apply=True)
    pruned = prune(store.set, compact=True, grace_s=0, apply=True)
    assert pruned.compacted == 7
    store.is_whole()
    assert verify(store.set).ok
    forget(store.set, keep_last=1, apply=True)
    prune(store.set, grace_s=0, apply=True)
    assert len(store.packs()) == 1
    store.client.set_tag(store.runs[3], "after", "1")
    assert store.pack().counts[Kind.RUN].written == 1
    store.is_whole()
    assert verify(store.set).ok


def test_what_a_task_has_noted_stays(store: Store) -> None:
    store.pack()
    for number in range(2):
        store.client.set_tag(store.runs[0], "a", str(number))
        store.pack()
    before = store.packs()
    named = json.loads((Path(store.set) / "snapshots" / "00000003.json").read_text())
    paths = [pack["path"] for pack in named["info"]["packs"]]
    prune(store.set, compact=True, apply=True)
    forget(store.set, keep_last=1, apply=True)
    tasks = Path(store.set) / "tasks"
    tasks.mkdir()
    (tasks / "a.json").write_text(json.dumps({"pack": {"path": paths[0]}, "rows": {"path": ""}}))
    prune(store.set, grace_s=0, apply=True)
    left = {str(path.relative_to(store.set)) for path in store.packs()}
    assert paths[0] in left
    assert not left & {*paths[1:]}
    assert len(before) > len(left)
    store.is_whole()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "N001": lambda s: _edit(s / "snapshots/00000002.json", '"packs"', '"bags", "packs": 7, "x"'),
    "N002": lambda s: _edit(s / "snapshots/00000002.json", '"number": 2', '"number": 3'),
    "N004": lambda s: _edit(s / "snapshots/00000001.json", "0.3.0", "0.3.1"),
    "N005": lambda s: next((s / "states").iterdir()).write_bytes(b"PAR1"),
    "N006": lambda s: next((s / "packs").rglob("*.tar.zst")).unlink(),
    "N007": lambda s: _edit(
        s / "snapshots/00000002.json", '"content_root": "', '"content_root": "0'
    ),
}


def _edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    if old == '"content_root": "':  # as long as it was
        at = text.index(old) + len(old)
        text = f"{text[:at]}{'0' if text[at] != '0' else '1'}{text[at + 1 :]}"
    else:
        text = text.replace(old, new, 1)
    file.write_text(text)


@pytest.mark.parametrize("code", DAMAGES)
def test_damage_of_a_set_has_its_code(store: Store, code: str) -> None:
    store.pack()
    store.client.set_tag(store.runs[0], "a", "b")
    store.pack()
    assert verify(store.set).ok
    for table in (Path(store.set) / "states").iterdir():
        if (
            code == "N005"
            and table.name not in (Path(store.set) / "snapshots/00000002.json").read_text()
        ):
            table.unlink()
    DAMAGES[code](Path(store.set))
    try:
        found = verify(store.set).findings
    except InvalidArchiveError as error:
        found = list(error.findings)
    assert {finding.code for finding in found} == {code}


_KILLED = """
import os, signal, sys
import mlflow.store.tracking.sqlalchemy_store
from mlflow_exim_plugin import pack
from mlflow_exim_plugin.storage import output
from mlflow_exim_plugin.storage.folders.store_folder import StoreFolder
uri, folder, dies_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
done = 0
def step():
    global done
    done += 1
    if done == dies_at:
        os.kill(os.getpid(), signal.SIGKILL)
def around(function):
    def called(*arguments, **named):
        step()
        result = function(*arguments, **named)
        step()
        return result
    return called
output.OutputFile.write = around(output.OutputFile.write)
output.publish_new = around(output.publish_new)
StoreFolder.put = around(StoreFolder.put)
pack(tracking_uri=uri, set=folder)
print(done)
"""


def _pack_and_die(store: Store, folder: str, dies_at: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _KILLED, store.uri, folder, str(dies_at)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_killed_anywhere_the_next_pack_makes_a_whole_snapshot(store: Store) -> None:
    store.pack()
    store.client.log_metric(store.runs[0], "loss", 3.0, step=50)
    copied = str(store.folder / "copied")
    shutil.copytree(store.set, copied)
    points = int(_pack_and_die(store, copied, 0).stdout)
    assert points > 10
    for dies_at in (1, 2, points // 4, points // 3, points // 2):
        assert _pack_and_die(store, store.set, dies_at).returncode == -signal.SIGKILL
        assert verify(store.set).ok
        assert [file.name for file in (Path(store.set) / "snapshots").iterdir()] == [
            "00000001.json"
        ]
    assert store.pack().counts[Kind.RUN].written == 1
    store.is_whole()
    prune(store.set, grace_s=0, apply=True)
    assert verify(store.set).ok
    store.is_whole()


def test_a_snapshot_is_signed_and_looked_at_by_mlflow(store: Store, tmp_path: Path) -> None:
    key = keygen(str(tmp_path / "key"))
    store.pack(sign=key.private)
    store.client.log_metric(store.runs[0], "loss", 3.0, step=50)
    store.pack()
    assert verify(store.set, snapshot="1", keys=[key.public]).authentic
    assert verify(store.set, keys=[key.public]).signed is False
    sign(store.set, key.private)
    result = verify(store.set, keys=[key.public], quick=True)
    assert result.authentic
    assert result.ok

    with as_default(f"exim:{store.set}"):
        client = MlflowClient()
        assert {e.name for e in client.search_experiments()} >= {"a", "b"}
        rows = client.get_metric_history(store.runs[0], "loss")
        assert [row.value for row in rows][-1] == 3.0
        run = client.get_run(store.runs[1])
        assert mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/notes/a.txt") == "hello 1"


@pytest.mark.parametrize("database", ["postgres_uri", "mariadb_uri"])
def test_other_databases_tell_what_changed(
    tmp_path: Path, request: pytest.FixtureRequest, database: str
) -> None:
    uri = request.getfixturevalue(database)
    store = Store(tmp_path, uri, fill_at(uri, tmp_path))
    store.pack()
    assert _written(store.pack()) == {}
    store.client.log_metric(store.runs[0], "loss", 7.0, step=3)
    assert store.pack().counts[Kind.RUN].written == 1
    store.is_whole()


def test_a_folder_tells_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = str(tmp_path / "mlruns")
    store = Store(tmp_path, uri, fill_at(uri, tmp_path))
    store.pack()
    assert _written(store.pack()) == {}
    store.client.log_metric(store.runs[0], "loss", 7.0, step=3)
    assert store.pack().counts[Kind.RUN].written == 1
    store.is_whole()


def test_a_set_lies_on_a_store(store: Store, s3_bucket: Bucket) -> None:
    store.set = f"{s3_bucket.url}/audit/mlflow"
    assert store.pack().counts[Kind.RUN].written == 10
    store.client.set_tag(store.runs[0], "a", "b")
    assert store.pack().counts[Kind.RUN].written == 1
    store.is_whole()
    assert verify(store.set).ok
    for place in (store.set, copied(store.set, store.folder / "copied")):
        folder = SetFolder(place)
        newest = folder.newest()
        assert newest is not None
        listed = {pack.path: pack.size_bytes for pack in newest.document.info.packs}
        assert folder.sizes("packs") == listed
        assert folder.sizes("none") == {}
    assert [one.number for one in forget(store.set, keep_last=1, apply=True).snapshots] == [1, 2]
    with pytest.raises(NotFoundError, match="no snapshot 1"):
        verify(store.set, snapshot="1")
    prune(store.set, grace_s=0, apply=True, compact=True)
    store.is_whole()


def copied(url: str, folder: Path) -> str:
    """Return a copy of a bucket's folder on this machine."""
    import fsspec

    store, far = fsspec.url_to_fs(url)
    store.get(far, str(folder), recursive=True)
    return str(folder)


def _plain(tables: dict[str, list[dict[str, Any]]]) -> dict[str, list[str]]:
    """Return rows as text, without what tells when and from which archive they came."""
    volatile = {"mlflow.exim.source", "mlflow.exim.content"}
    return {
        table: sorted(
            str({name: value for name, value in row.items() if name != "deleted_time"})
            for row in rows
            if row.get("key") not in volatile
        )
        for table, rows in tables.items()
    }


def _purge(store: Store, run_id: str) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    tracking = SqlAlchemyStore(store.uri, str(store.folder / "files"))
    tracking.delete_run(run_id)
    tracking._hard_delete_run(run_id)


@pytest.mark.parametrize("kind", ["server", "database"])
def test_every_kind_is_known_again(
    everything: tuple[str, str], everything_folder: Path, tmp_path: Path, kind: str
) -> None:
    url, archive = everything
    how: dict[str, Any] = {}
    source = url
    if kind == "database":
        source = f"sqlite:///{everything_folder / 'mlflow.db'}"
        how = {"artifacts_destination": str(everything_folder / "artifacts")}
    folder = str(tmp_path / "set")
    first = pack(tracking_uri=source, set=folder, **how)
    assert first.failures == []
    again = pack(tracking_uri=source, set=folder, **how)
    assert _written(again) == {}
    assert again.content_root == first.content_root
    with open_archive(folder) as snapshot:
        info = snapshot.summary.info
        assert {k: c.written for k, c in info.counts.items() if c.written} == _written(first)
        assert info.metric_rows == first.metric_rows
        assert info.artifact_bytes == first.artifact_bytes
    if source == url:
        with open_archive(archive) as expected:
            assert first.content_root == expected.content_root
        assert diff(folder, archive, rules="exact").equal


def test_a_lost_archive_costs_what_it_alone_had(store: Store, tmp_path: Path) -> None:
    store.pack()
    before = {run_id: store.client.get_run(run_id).to_dictionary() for run_id in store.runs}
    changed, new = store.runs[1], add_run(store.client, store.experiments[0], 7)
    store.client.set_tag(changed, "late", "1")
    store.client.set_experiment_tag(store.experiments[0], "late", "1")
    first = store.packs()
    store.pack()
    (second,) = {*store.packs()} - {*first}
    kept = second.read_bytes()

    def cut() -> None:
        second.write_bytes(kept[: len(kept) // 2])

    def unpacked(name: str, **how: Any) -> tuple[Report, MlflowClient]:
        uri = _database(tmp_path / f"{name}.db")
        where = str(tmp_path / name)
        report = unpack(store.set, tracking_uri=uri, artifact_location=where, **how)
        return report, MlflowClient(uri, uri)

    damages: list[Callable[[], None]] = [second.unlink, cut]
    for number, damage in enumerate(damages):
        damage()
        report, target = unpacked(f"target-{number}")
        segments = {failure.id.split("/")[-2] for failure in report.failures}
        assert segments == {changed, new}
        assert all(second.name in failure.reason for failure in report.failures)
        assert [loss.kind for loss in report.losses if second.name in loss.what] == [
            Kind.EXPERIMENT
        ]
        there = {run.info.run_id for run in target.search_runs(store.experiments)}
        assert there == {*store.runs} - {changed}
        for run_id in there:
            found = target.get_run(run_id).to_dictionary()
            assert found["data"] == before[run_id]["data"]
            assert target.get_metric_history(run_id, "loss")

    alone, target = unpacked("one", runs=(store.runs[0],))
    assert alone.failures == []
    lost, target = unpacked("lost", runs=(changed, store.runs[2]))
    assert [failure.id.split("/")[-2] for failure in lost.failures] == [changed]
    assert target.get_run(store.runs[2])
    assert not verify(store.set).ok
    second.write_bytes(kept)
    store.is_whole()


def test_a_lost_archive_of_traces_costs_those_alone(store: Store, tmp_path: Path) -> None:
    with as_default(store.uri):
        mlflow.set_experiment(experiment_id=store.experiments[0])
        spans = [mlflow.start_span_no_context(f"t{number}") for number in range(4)]
        for span in spans:
            span.end()
    store.pack()
    first = store.packs()
    store.client.set_trace_tag(spans[0].trace_id, "late", "1")
    with as_default(store.uri):
        late = mlflow.start_span_no_context("late")
        late.end()
    store.pack()
    (second,) = {*store.packs()} - {*first}
    second.unlink()
    uri = _database(tmp_path / "target.db")

    report = unpack(store.set, tracking_uri=uri, artifact_location=str(tmp_path / "target"))

    lost = {failure.id.rpartition("/")[2] for failure in report.failures}
    assert lost == {spans[0].trace_id, late.trace_id}
    there = {row["request_id"] for row in rows_of_tables(uri)["trace_info"]}
    assert there == {span.trace_id for span in spans[1:]}


def test_a_store_without_anything_is_a_state(tmp_path: Path) -> None:
    uri, place = _database(tmp_path / "mlflow.db"), str(tmp_path / "set")
    for number in (1, 2):
        report = pack(tracking_uri=uri, set=place)
        assert (report.failures, (report.snapshot or {})["number"]) == ([], number)
        assert verify(place).ok
    with open_archive(place) as state:
        assert state.run_ids() == []


def test_what_lay_in_a_lost_archive_is_packed_again(store: Store) -> None:
    store.pack()
    (first,) = store.packs()
    store.client.set_tag(store.runs[1], "late", "1")
    store.pack()
    (second,) = {*store.packs()} - {first}

    for lost, runs in ((second, 1), (first, len(store.runs) - 1)):
        lost.unlink()
        assert store.pack().counts[Kind.RUN].written == runs
        store.is_whole()
        assert _written(store.pack()) == {}
    for archive in store.packs():
        archive.unlink()
    assert store.pack().counts[Kind.RUN].written == len(store.runs)
    store.is_whole()
