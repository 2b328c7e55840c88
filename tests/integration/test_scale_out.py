"""A set packed in several tasks: by processes, Dask, Ray and Spark, killed and run again."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import Selection, find, index, open_archive, pack, plan, verify
from mlflow_exim_plugin.errors import EngineError, UsageError
from mlflow_exim_plugin.work import division, engines
from tests.leaves import leaves
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.schema.report import Report

pytestmark = pytest.mark.integration

AS_OF_MS = 1_790_000_000_000
RUNS = 40


@pytest.fixture(autouse=True)
def many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide what is small, too, and for two tasks at once whoever runs them."""
    monkeypatch.setattr(division, "_LEAST_S", 0.0)
    monkeypatch.setattr(engines, "_PARALLEL", 2)


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A database with a large experiment, whose runs have parents, and models; and small ones."""
    new_sqlite_database(tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri, uri)
    files = str(tmp_path / "files")
    large = client.create_experiment("large", artifact_location=f"{files}/large")
    parent = client.create_run(large, run_name="parent").info.run_id
    runs = [client.create_run(large, tags={"mlflow.parentRunId": parent}) for _ in range(RUNS)]
    for number, run in enumerate(runs):
        client.log_metric(run.info.run_id, "loss", 1 / (number + 1))
        client.log_text(run.info.run_id, f"hello {number}", "model/a.txt")
    for name in ("b", "c", "d"):
        small = client.create_experiment(name, artifact_location=f"{files}/{name}")
        client.log_text(client.create_run(small).info.run_id, name, "a.txt")
    client.create_registered_model("churn")
    client.create_model_version("churn", f"runs:/{runs[0].info.run_id}/model", runs[0].info.run_id)
    return uri


def packed(store: str, folder: Path, **how: Any) -> Report:
    report = pack(tracking_uri=store, set=str(folder), as_of_ms=AS_OF_MS, **how)
    assert report.failures == []
    return report


def packs_of(report: Report) -> list[dict[str, Any]]:
    assert report.snapshot is not None
    found: list[dict[str, Any]] = report.snapshot["packs"]
    return found


def is_what_one_pack_is(store: str, folder: Path) -> None:
    """Hold a set to an archive of the same state that no task made."""
    whole = str(folder.parent / f"whole-{time.time_ns()}.tar.zst")
    pack(whole, tracking_uri=store, as_of_ms=AS_OF_MS)
    with open_archive(whole) as expected, open_archive(str(folder)) as found:
        assert found.content_root == expected.content_root
        assert sorted(found.run_ids()) == sorted(expected.run_ids())
        for run_id in expected.run_ids():
            assert found.metric_history(run_id) == expected.metric_history(run_id)
        assert leaves(expected).keys() == leaves(found).keys()
    assert all(verify(str(path)).ok for path in folder.rglob("*.tar.zst"))
    assert not list((folder / "tasks").iterdir())


@pytest.fixture
def threads() -> Any:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def test_each_engine_makes_the_same_archives(store: str, tmp_path: Path, threads: Executor) -> None:
    first = packed(store, tmp_path / "a", executor=threads)
    assert len(packs_of(first)) > 4
    is_what_one_pack_is(store, tmp_path / "a")

    again = packed(store, tmp_path / "b", engine="processes:2")
    assert [pack["root"] for pack in packs_of(again)] == [pack["root"] for pack in packs_of(first)]
    assert again.content_root == first.content_root
    is_what_one_pack_is(store, tmp_path / "b")


def test_a_task_may_find_nothing(tmp_path: Path, threads: Executor) -> None:
    """As that of what belongs to no experiment, where there is none."""
    new_sqlite_database(tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(uri, uri)
    client.create_run(client.create_experiment("x", artifact_location=str(tmp_path / "files")))
    for _ in range(2):
        packed(uri, tmp_path / "set", executor=threads)
        is_what_one_pack_is(uri, tmp_path / "set")


def test_a_version_refers_to_the_run_of_another_archive(
    store: str, tmp_path: Path, threads: Executor
) -> None:
    packed(store, tmp_path / "set", executor=threads)
    with open_archive(str(tmp_path / "set")) as archive:
        paths = archive.reader.paths("data/models/")
        assert [path for path in paths if "/artifacts/" in path] == []
        assert any(path.endswith("/version.json") for path in paths)
    is_what_one_pack_is(store, tmp_path / "set")


def test_the_next_pack_takes_what_is_new(store: str, tmp_path: Path, threads: Executor) -> None:
    first = packed(store, tmp_path / "set", executor=threads)
    again = packed(store, tmp_path / "set", executor=threads)
    assert packs_of(again) == []
    assert again.content_root == first.content_root

    client = MlflowClient(store, store)
    new = client.create_run("2").info.run_id
    client.log_metric(new, "loss", 3.0)
    gone = client.search_runs(["1"], max_results=1)[0].info.run_id
    client.delete_run(gone)
    third = packed(store, tmp_path / "set", executor=threads)
    assert third.to_dict()["counts"]["run"]["written"] == 2
    is_what_one_pack_is(store, tmp_path / "set")


def test_a_part_of_a_store_is_divided_too(store: str, tmp_path: Path, threads: Executor) -> None:
    selection = Selection(experiments=("large", "c"), models=("churn",), deleted=False)
    report = packed(store, tmp_path / "set", executor=threads, selection=selection)
    whole = str(tmp_path / "whole.tar.zst")
    pack(whole, tracking_uri=store, selection=selection)
    assert len(packs_of(report)) > 2
    with open_archive(whole) as expected, open_archive(str(tmp_path / "set")) as found:
        assert found.content_root == expected.content_root


def _worker_of(pid: int) -> int | None:
    """Return a child that packs: it has a database open."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            opened = [str(fd.readlink()) for fd in Path(f"/proc/{child}/fd").iterdir()]
        except OSError:
            continue
        if any(".tar.zst.partial" in path for path in opened):
            return int(child)
    return None


def test_a_worker_that_is_killed_changes_nothing(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, threads: Executor
) -> None:
    whole = packed(store, tmp_path / "whole", executor=threads)
    killed: list[int] = []

    def kill() -> None:
        until = time.monotonic() + 60
        while not killed and time.monotonic() < until:
            if (child := _worker_of(os.getpid())) is not None:
                os.kill(child, signal.SIGKILL)
                killed.append(child)

    killer = threading.Thread(target=kill)
    killer.start()
    with caplog.at_level(logging.CRITICAL):
        report = packed(store, tmp_path / "set", engine="processes:2")
    killer.join()
    assert killed
    assert "A worker process ended" in caplog.text
    roots = [pack["root"] for pack in packs_of(whole)]
    assert [pack["root"] for pack in packs_of(report)] == roots
    is_what_one_pack_is(store, tmp_path / "set")
    assert not list((tmp_path / "set").rglob("*.partial-*"))


class _Stopping(ThreadPoolExecutor):
    """Ends after some tasks, as a machine does that is switched off."""

    def __init__(self, after: int) -> None:
        super().__init__(1)
        self.left = after

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return super().submit(self._run, fn, *args, **kwargs)

    def _run(self, fn: Callable[..., Any], *args: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the machine is off")
        return fn(*args)


def test_what_is_done_stays_and_resume_goes_on(
    store: str, tmp_path: Path, threads: Executor
) -> None:
    folder = tmp_path / "set"
    whole = packed(store, tmp_path / "whole", executor=threads)
    with _Stopping(3) as stopping, pytest.raises(EngineError, match="the machine is off"):
        packed(store, folder, executor=stopping)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar.zst")}
    assert len(before) == 3

    report = pack(tracking_uri=store, set=str(folder), executor=threads, resume=True)
    assert [p["root"] for p in packs_of(report)] == [p["root"] for p in packs_of(whole)]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    is_what_one_pack_is(store, folder)


def test_what_a_broken_off_attempt_left_damaged_is_not_taken(
    store: str, tmp_path: Path, threads: Executor
) -> None:
    folder = tmp_path / "set"
    with _Stopping(2) as stopping, pytest.raises(EngineError):
        packed(store, folder, executor=stopping)
    (left, *_) = sorted(folder.rglob("*.tar.zst"))
    left.unlink()
    packed(store, folder, executor=threads, resume=True)
    is_what_one_pack_is(store, folder)


@pytest.mark.timeout(900)  # Ray and Spark take their time to begin
@pytest.mark.parametrize("engine", ["dask", "ray", "spark"])
def test_an_engine_that_others_made_does_it_too(engine: str, store: str, tmp_path: Path) -> None:
    pytest.importorskip({"dask": "distributed", "spark": "pyspark"}.get(engine, engine))
    if engine == "spark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java, which is not here")
    report = packed(store, tmp_path / "set", engine=f"{engine}:2")
    assert len(packs_of(report)) > 4
    is_what_one_pack_is(store, tmp_path / "set")


@pytest.mark.exhaustive
def test_an_engine_that_is_not_there_is_named(store: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no engine 'slurm:2'"):
        packed(store, tmp_path / "set", engine="slurm:2")
    with pytest.raises(UsageError, match="into a set"):
        pack(str(tmp_path / "a.tar.zst"), tracking_uri=store, engine="processes:2")
    with pytest.raises(EngineError, match="cannot be used"):
        packed(store, tmp_path / "set", engine="dask://127.0.0.1:9")


def test_a_plan_counts_what_there_is(store: str) -> None:
    found = plan(store, as_of_ms=AS_OF_MS, parallel=2)
    assert found.size.runs == RUNS + 1 + 3
    assert found.size.artifact_bytes > 0
    text = found.to_json()
    assert type(found).of_json(text).to_json() == text
    parts = [entry.selection.part for entry in found.entries]
    assert sum(part is not None and part.runs is not None for part in parts) > 3


def test_archives_of_a_set_are_verified_and_read_in_tasks(
    store: str, tmp_path: Path, threads: Executor
) -> None:
    folder = tmp_path / "set"
    report = packed(store, folder, executor=threads)
    alone = verify(str(folder))
    assert verify(str(folder), executor=threads).to_dict() == alone.to_dict()
    assert verify(str(folder), engine="processes:2").to_dict() == alone.to_dict()
    sampled = verify(str(folder), executor=threads, sample=50, seed="x").to_dict()
    assert sampled == verify(str(folder), sample=50, seed="x").to_dict()
    with pytest.raises(UsageError, match="in one task"):
        verify(str(next(folder.rglob("*.tar.zst"))), engine="processes:2")

    one = index(str(folder), rebuild=True)
    found = search_of(folder)
    several = index(str(folder), rebuild=True, executor=threads)
    assert (several.archives, several.objects) == (one.archives, one.objects)
    assert one.archives == len(packs_of(report))
    assert search_of(folder) == found
    assert len(found) == RUNS + 4

    broken = folder / packs_of(report)[0]["path"]
    data = bytearray(broken.read_bytes())
    data[len(data) // 3] ^= 1
    broken.write_bytes(data)
    alone = verify(str(folder))
    assert not alone.valid
    assert verify(str(folder), executor=threads).to_dict() == alone.to_dict()


def search_of(folder: Path) -> list[tuple[str, str]]:
    found = find(str(folder), kinds=("run",), limit=None).objects
    return sorted((one.id, one.location) for one in found)
