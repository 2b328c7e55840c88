"""Sets: what is new or changed is packed, and a snapshot is as an archive of the whole state."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from mlflow_exim_plugin import diff, open_archive, pack, unpack, verify
from mlflow_exim_plugin.schema.objects import Kind
from tests.databases import rows_of_tables
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.schema.report import Report


class Store:
    """A database with two experiments, five runs each, that is packed again and again."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        self.uri = uri
        self.client = MlflowClient(uri, uri)
        self.set = str(folder / "set")
        self.experiments = [
            self.client.create_experiment(name, artifact_location=str(folder / "files" / name))
            for name in ("a", "b")
        ]
        self.runs = [self.add(e, number) for e in self.experiments for number in range(5)]

    def add(self, experiment_id: str, number: int) -> str:
        """Log a run with rows and a file."""
        run_id: str = self.client.create_run(experiment_id, run_name=f"r{number}").info.run_id
        now_ms = int(time.time() * 1000)
        rows = [Metric("loss", 1 / (step + 1), now_ms + step, step) for step in range(20)]
        self.client.log_batch(run_id, rows)
        self.client.log_param(run_id, "lr", number)
        self.client.log_text(run_id, f"hello {number}", "notes/a.txt")
        self.client.set_terminated(run_id)
        return run_id

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
    return Store(tmp_path, _database(tmp_path / "mlflow.db"))


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


CHANGES: dict[str, Callable[[Store], object]] = {
    "a row behind the last one": lambda s: s.client.log_metric(s.runs[0], "loss", 7.0, step=30),
    "a row before the last one": lambda s: s.client.log_metric(s.runs[0], "loss", 7.0, step=3),
    "a tag": lambda s: s.client.set_tag(s.runs[0], "color", "red"),
    "a tag that is gone": lambda s: s.client.delete_tag(s.runs[0], "mlflow.runName"),
    "another file": lambda s: s.client.log_text(s.runs[0], "more", "notes/b.txt"),
    "a file of the same size": lambda s: s.client.log_text(s.runs[0], "hallo 0", "notes/a.txt"),
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
        lambda: store.add(store.experiments[0], 9),
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
