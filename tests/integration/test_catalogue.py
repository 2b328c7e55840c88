"""`index` and `find` over real archives, folders and sets, on this machine and on stores."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from mlflow_exim_plugin import find, index, open_archive, pack
from mlflow_exim_plugin.cli.main import exim as exim_command
from mlflow_exim_plugin.errors import EximError, NotFoundError
from mlflow_exim_plugin.schema.objects import ENTITY_KINDS, Kind
from mlflow_exim_plugin.storage.folders.folder import open_folder
from tests import far_stores
from tests.depth import one_of
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Bucket
    from tests.far_stores import FarStore

pytestmark = pytest.mark.integration


def exim(*arguments: str) -> Any:
    """Run the command and return its exit code and output."""
    return CliRunner().invoke(exim_command, arguments)


class Deployment:
    """A store with runs that a test made, and archives packed from it."""

    def __init__(self, folder: Path) -> None:
        new_sqlite_database(folder / "mlflow.db")
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.client = MlflowClient(self.uri, self.uri)
        location = (folder / "artifacts").as_uri()
        self.experiment_id = self.client.create_experiment("churn", location)
        self.clock_ms = 1_700_000_000_000

    def run(self, name: str, loss: float, *, ends: bool = True, **params: str) -> str:
        self.clock_ms += 1000
        client = self.client
        run = client.create_run(self.experiment_id, self.clock_ms, {"team": "risk"}, name)
        run_id: str = run.info.run_id
        for key, value in params.items():
            client.log_param(run_id, key, value)
        client.log_metric(run_id, "loss", loss)
        client.log_text(run_id, f"weights of {name}", "model/weights.txt")
        if ends:
            client.set_terminated(run_id, end_time=self.clock_ms + 500)
        return run_id

    def pack(self, archive: Path | str | None, **options: Any) -> str:
        self.clock_ms += 1000
        place = () if archive is None else (str(archive),)
        report = pack(*place, tracking_uri=self.uri, as_of_ms=self.clock_ms, **options)
        assert report.ok, report.failures
        return str(archive)


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    (tmp_path / "mlflow").mkdir()
    return Deployment(tmp_path / "mlflow")


@pytest.fixture
def backups(tmp_path: Path) -> Path:
    (tmp_path / "backups").mkdir()
    return tmp_path / "backups"


def where(folder: Path | str, **asked: Any) -> list[tuple[str, str]]:
    """Return archive and id of what is found, which must all be readable."""
    found = find(str(folder), **asked)
    assert found.ok, found.failures
    return [(one.location.rpartition("/")[2], one.id) for one in found.objects]


def test_the_latest_state_is_found_by_catalogue_and_without_one(
    deployment: Deployment, backups: Path
) -> None:
    done = deployment.run("done", 0.5, lr="0.1")
    grows = deployment.run("grows", 0.9, lr="0.1", ends=False)
    deployment.pack(backups / "a.tar.zst")
    deployment.client.log_metric(grows, "loss", 0.1)
    late = deployment.run("late", 0.7, lr="0.2")
    deployment.pack(backups / "b.tar.zst", runs=(grows, late))

    for _ in ("archive by archive", "by catalogue"):
        assert where(backups, params="lr=0.1") == [("b.tar.zst", grows), ("a.tar.zst", done)]
        assert where(backups, metrics="loss<0.2") == [("b.tar.zst", grows)]
        assert where(backups, metrics=("loss>0.8",)) == []
        assert where(backups, metrics="loss>0.8", all_states=True) == [("a.tar.zst", grows)]
        assert where(backups, names="l*", kinds="run") == [("b.tar.zst", late)]
        assert where(backups, kinds="experiment", names="churn") == [
            ("b.tar.zst", deployment.experiment_id)
        ]
        (found,) = find(str(backups), done).objects
        run = deployment.client.get_run(done)
        assert (found.start_time_ms, found.end_time_ms) == (run.info.start_time, run.info.end_time)
        assert (found.experiment, found.status, found.name) == ("churn", "FINISHED", "done")
        assert index(str(backups)).to_dict() | {"read": 0} == {
            "ok": True,
            "location": str(backups),
            "archives": 2,
            "objects": 7,  # with two of each experiment that is there
            "parts": 1,
            "read": 0,
            "gone": 0,
            "failures": [],
        } or pytest.fail(str(index(str(backups))))


def test_a_file_that_somebody_sends_is_found(deployment: Deployment, backups: Path) -> None:
    run_id = deployment.run("one", 1.0)
    archive = deployment.pack(backups / "a.tar.zst")
    with open_archive(archive) as opened:
        (entry,) = opened.artifacts(run_id)
    index(str(backups))

    (found,) = find(str(backups), sha256=entry.sha256).objects
    assert (found.id, found.files) == (run_id, ["model/weights.txt"])
    shown = exim("find", str(backups), "--sha256", entry.sha256)
    assert f"run {run_id} has model/weights.txt" in shown.stdout


def test_what_changed_since_the_catalogue_was_made_is_told(
    deployment: Deployment, backups: Path
) -> None:
    first = deployment.run("first", 0.1)
    for name in ("a", "b", "c"):
        deployment.pack(backups / f"{name}.tar.zst")
    index(str(backups))
    second = deployment.run("second", 0.2)
    (backups / "a.tar.zst").unlink()
    shutil.copy(backups / "b.tar.zst", backups / "copy")
    deployment.pack(backups / "b.tar.zst", overwrite=True)
    deployment.pack(backups / "d.tar.zst")

    found = find(str(backups), kinds="run")
    assert [(one.location[-9:], one.id) for one in found.objects] == [
        ("d.tar.zst", second),
        ("d.tar.zst", first),
    ]
    (note,) = found.notes
    assert "2 archives that it does not know were read, 2 that it knows are gone" in note
    every = {one.location[-9:-8] for one in find(str(backups), first, all_states=True).objects}
    assert every == {"b", "c", "d"}
    shown = exim("find", str(backups), "--kind", "run")
    assert shown.exit_code == 0
    assert "older than the folder" in shown.stderr

    told = index(str(backups))
    assert (told.archives, told.read, told.gone, told.ok) == (3, 2, 2, True)
    again = find(str(backups), kinds="run")
    assert (again.objects, again.notes) == (found.objects, [])
    assert index(str(backups)).read == 0
    # A touched archive has another mark and the same root; one with the old bytes is another.
    os.utime(backups / "c.tar.zst")
    assert index(str(backups)).read == 0
    (backups / "copy").replace(backups / "c.tar.zst")
    assert index(str(backups)).read == 1


def test_what_cannot_be_read_is_named_and_the_rest_is_found(
    deployment: Deployment, backups: Path
) -> None:
    run_id = deployment.run("one", 1.0)
    deployment.pack(backups / "a.tar.zst")
    whole = deployment.pack(backups / "b.tar.zst")
    data = (backups / "b.tar.zst").read_bytes()
    (backups / "b.tar.zst").write_bytes(data[: len(data) // 2])
    del whole

    told = exim("index", str(backups))
    assert told.exit_code == 3
    assert f"Unreadable: {backups}/b.tar.zst: " in told.stdout
    shown = exim("find", str(backups), "--name", "one", "--output", "json")
    assert shown.exit_code == 3
    document = json.loads(shown.stdout)
    assert [one["id"] for one in document["objects"]] == [run_id]
    assert [f["location"] for f in document["failures"]] == [f"{backups}/b.tar.zst"]
    nothing = exim("find", str(backups), "--name", "two")
    assert nothing.exit_code == 3  # what cannot be read may have it

    (backups / "b.tar.zst").unlink()
    assert exim("find", str(backups), "--name", "two").exit_code == 4
    empty = exim("find", str(backups), "--name", "two", "--output", "json")
    assert (empty.exit_code, json.loads(empty.stdout)["total"]) == (4, 0)


def test_a_damaged_catalogue_costs_time_and_no_answer(
    deployment: Deployment, backups: Path
) -> None:
    run_id = deployment.run("one", 1.0)
    deployment.pack(backups / "a.tar.zst")
    index(str(backups))
    (values,) = (backups / "catalogue" / "values").iterdir()
    values.write_bytes(values.read_bytes()[:-30] + bytes(30))

    found = find(str(backups), names="one", kinds="run")
    assert [one.id for one in found.objects] == [run_id]
    ((_, reason),) = found.failures
    assert "index --rebuild" in reason
    assert exim("index", str(backups), "--rebuild").exit_code == 0
    assert where(backups, names="one", kinds="run") == [("a.tar.zst", run_id)]


def test_questions_that_cannot_be_meant_are_refused(deployment: Deployment, backups: Path) -> None:
    archive = deployment.pack(backups / "a.tar.zst")
    for arguments in (
        ("find", archive),
        ("find", archive, "--metric", "a>b"),
        ("find", archive, "--sha256", "abc"),
        ("find", archive, "--kind", "runs"),
        ("find", deployment.uri, "--name", "x"),
    ):
        refused = exim(*arguments)
        assert refused.exit_code == 2, refused.output
    nowhere = exim("index", str(backups.parent / "mlflow"))
    assert nowhere.exit_code == 4


def test_an_id_is_looked_for_at_servers_and_in_folders_alike(
    deployment: Deployment, backups: Path
) -> None:
    run_id = deployment.run("one", 1.0)
    deployment.pack(backups / "a.tar.zst")

    shown = exim("find", run_id, deployment.uri, str(backups), "--output", "csv")
    assert shown.exit_code == 0, shown.output
    rows = list(csv.DictReader(io.StringIO(shown.stdout)))
    assert [(row["location"], row["id"]) for row in rows] == [
        (deployment.uri, run_id),
        (f"{backups}/a.tar.zst", run_id),
    ]


def test_everything_of_an_archive_is_in_its_catalogue(tmp_path: Path) -> None:
    """Each object of an archive with some of every kind, counted as the archive itself counts."""
    golden = str(Path(__file__).parents[1] / "golden" / "everything.tar.zst")
    shutil.copy(golden, tmp_path / "everything.tar.zst")
    assert index(str(tmp_path)).ok
    with open_archive(golden) as archive:
        counts = archive.summary.info.counts
        tags = {(run.id, *tag) for run in archive.runs() for tag in run.tags.items()}
        params = {(run.id, *param) for run in archive.runs() for param in run.params.items()}
        files = {(e.sha256, e.path) for run in archive.runs() for e in archive.artifacts(run)}
        metrics = {(run.id, *metric) for run in archive.runs() for metric in run.metrics.items()}
    kinds = {
        *(Kind.EXPERIMENT, Kind.RUN, Kind.LOGGED_MODEL, Kind.TRACE, Kind.REGISTERED_MODEL),
        *(Kind.MODEL_VERSION, Kind.PROMPT, Kind.PROMPT_VERSION),
        *ENTITY_KINDS,
    }
    expected = {str(k): counts[str(k)].written for k in kinds if str(k) in counts}

    with duckdb.connect(str(tmp_path / "ask.db")) as ask:
        for name in ("objects", "values", "metrics", "files", "ids"):
            place = f"{tmp_path}/catalogue/{name}/*.parquet"
            ask.sql(f"CREATE VIEW \"{name}\" AS FROM '{place}'")
        by_kind = dict(ask.sql("SELECT kind, count(*) FROM objects GROUP BY kind").fetchall())
        join = "FROM \"values\" JOIN objects USING (object) WHERE kind = 'run' AND field = "
        found_tags = ask.sql(f"SELECT id, key, text {join} 'tag'").fetchall()
        found_params = ask.sql(f"SELECT id, key, text {join} 'param'").fetchall()
        found_files = ask.sql("SELECT sha256, path FROM files").fetchall()
        found_metrics = ask.sql(
            "SELECT id, key, value FROM metrics JOIN objects USING (object) WHERE kind = 'run'"
        ).fetchall()

    assert by_kind == {kind: count for kind, count in expected.items() if count}
    short = {(i, k, v) for i, k, v in tags | params if max(len(k), len(v)) <= 300}
    assert short == {row for row in found_tags + found_params if "…sha256:" not in row[1] + row[2]}
    assert len(found_tags) == len(tags)
    assert len(found_params) == len(params)
    assert files <= set(found_files)
    assert {str(row) for row in found_metrics} == {str(row) for row in metrics}  # NaN is NaN


@pytest.fixture(params=one_of("obstore", "fsspec", "ssh"))
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FarStore]:
    (folder := tmp_path / "served").mkdir()
    if request.param == "fsspec":
        module = "mlflow_exim_plugin.storage.folders.folder"
        monkeypatch.setattr(f"{module}.object_folder", lambda *_: None)
    serve: Callable[..., Any] = far_stores.sftp if request.param == "ssh" else far_stores.rclone_s3
    with serve(folder) as served:
        yield served


def test_a_folder_of_a_store_is_asked_there(deployment: Deployment, store: FarStore) -> None:
    url, options = store.new_folder(), store.options
    kept = deployment.run("kept", 0.5)
    for name in ("a", "b"):
        deployment.pack(f"{url}/{name}.tar.zst", storage_options=options)
    assert index(url, storage_options=options).read == 2
    late = deployment.run("late", 0.5)
    deployment.pack(f"{url}/c.tar.zst", storage_options=options, runs=(late,))

    found = find(url, names=("kept", "late"), kinds="run", storage_options=options)
    assert [(one.location[-9:], one.id) for one in found.objects] == [
        ("c.tar.zst", late),
        ("b.tar.zst", kept),
    ]
    assert len(found.notes) == 1
    told = index(url, storage_options=options)
    assert (told.archives, told.read, told.gone) == (3, 1, 0)
    folder = open_folder(url, options)
    assert [file.name for file in folder.files("catalogue/parts")] == [
        "00000001.json",
        "00000002.json",
    ]
    assert folder.files("no/such/folder") == []
    rebuilt = index(url, storage_options=options, rebuild=True)
    assert (rebuilt.archives, rebuilt.read, rebuilt.parts) == (3, 3, 1)
    assert len(folder.files("catalogue/objects")) == 1
    assert find(url, names=("kept", "late"), kinds="run", storage_options=options).notes == []


def test_a_set_tells_the_snapshot_and_what_left_the_source(
    deployment: Deployment, tmp_path: Path
) -> None:
    place = str(tmp_path / "set")
    left = deployment.run("left", 0.5)
    deployment.pack(None, set=place)
    assert index(place).read == 1
    stays = deployment.run("stays", 0.4)
    deployment.pack(None, set=place)

    for notes in (1, 0):
        found = find(place, tags="team=risk", kinds="run")
        assert len(found.notes) == notes
        assert [(one.id, one.snapshot) for one in found.objects] == [(stays, 2), (left, 1)]
        for one in found.objects:
            with open_archive(one.location) as archive:
                assert archive.run(one.id).id == one.id
        index(place)
    first = find(f"{place}/snapshots/00000001.json", tags="team=risk", kinds="run")
    assert [one.id for one in first.objects] == [left]
    shown = exim("find", place, "--name", "stays", "--kind", "run")
    assert shown.stdout.split()[:6] == ["location", "snapshot", "kind", "id", "name", "start"]


def test_ranges_of_a_bucket_come_by_obstore_and_by_fsspec_alike(
    s3_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore")
    content = {"a": b"0123456789" * 10_000, "b": b"x"}
    wanted = [("a", 10, 20), ("a", 99_990, 100_000), ("b", 0, 1), ("a", 15, 30)]
    for path in ("", "/in/a/folder"):
        url = s3_bucket.url + path
        for name, data in content.items():
            with open_folder(url).new_file(name) as output:
                output.write(data)
        folders = {}
        for by in ("obstore", "fsspec"):
            with monkeypatch.context() as patch:
                if by == "fsspec":
                    module = "mlflow_exim_plugin.storage.folders.folder"
                    patch.setattr(f"{module}.object_folder", lambda *_: None)
                folder = folders[by] = open_folder(url)
            assert (folder._objects is not None) is (by == "obstore")  # type: ignore[attr-defined]
            read = [content[name][start:end] for name, start, end in wanted]
            assert folder.ranges(wanted) == read
            assert (folder.requests, folder.bytes_read) == (3, 31)
            with pytest.raises(NotFoundError):
                folder.ranges([("c", 0, 1)])
            with pytest.raises(EximError):
                folder.ranges([("b", 0, 2)])
        listed = [[(f.name, f.size_bytes) for f in of.files()] for of in folders.values()]
        assert listed == [[("a", 100_000), ("b", 1)]] * 2
        marks = {by: [file.mark.strip('"') for file in of.files()] for by, of in folders.items()}
        assert marks["obstore"] == marks["fsspec"]
