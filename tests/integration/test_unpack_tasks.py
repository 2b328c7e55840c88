"""An archive unpacked in several tasks into a database: what one unpack makes, and no less."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag

from mlflow_exim_plugin import Selection, diff, pack, unpack
from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.work import division, engines
from tests.crafted import Crafted, members_of
from tests.databases import new_mariadb_database, new_postgres_database, rows_of_tables
from tests.pinned import ARCHIVE
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report

pytestmark = pytest.mark.integration

MADE_ANEW = {"association_id", "input_uuid", "dataset_uuid", "online_scoring_config_id"}
"""Columns of ids that no archive has."""
RUNS = 30


@pytest.fixture(autouse=True)
def many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Divide what is small, too."""
    monkeypatch.setattr(division, "_LEAST_S", 0.0)
    monkeypatch.setattr(engines, "_PARALLEL", 2)
    monkeypatch.setenv("MLFLOW_ENABLE_WORKSPACES", "true")


@pytest.fixture(params=["PostgreSQL", "MariaDB"])
def targets(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """Two empty databases."""
    if request.param == "PostgreSQL":
        template = request.getfixturevalue("_postgres_template")
        with new_postgres_database(template) as one, new_postgres_database(template) as other:
            yield one, other
    else:
        template = request.getfixturevalue("_mariadb_template")
        with new_mariadb_database(template) as one, new_mariadb_database(template) as other:
            yield one, other


@pytest.fixture(scope="module")
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(3) as executor:
        yield executor


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An archive of one experiment whose runs share datasets, and have parents and files."""
    folder = tmp_path_factory.mktemp("large")
    new_sqlite_database(folder / "mlflow.db")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(uri, uri)
    experiment = client.create_experiment("large", artifact_location=str(folder / "files"))
    parent = client.create_run(experiment, run_name="parent").info.run_id
    for number in range(RUNS):
        run = client.create_run(experiment, tags={"mlflow.parentRunId": parent}).info.run_id
        client.log_metric(run, "loss", 1 / (number + 1), step=number)
        client.log_text(run, f"hello {number}", "notes/a.txt")
        dataset = Dataset(f"data {number % 3}", str(number % 3), "local", "{}", None, None)
        client.log_inputs(run, [DatasetInput(dataset, [InputTag("context", str(number))])])
    client.create_registered_model("churn")
    client.create_model_version("churn", f"runs:/{parent}/model", parent)
    archive = str(folder / "large.tar.zst")
    assert pack(archive, tracking_uri=uri).ok
    return archive


def told(report: Report) -> dict[str, Any]:
    """Return what a report says that is not of when it was."""
    document = report.to_dict()
    lists = ("failures", "lossy", "skips")
    return {
        "counts": document["counts"],
        "rows": (document["metric_rows"], document["artifact_bytes"]),
        **{name: Counter(map(repr, document[name])) for name in lists},
    }


def rows(uri: str, files: Path) -> Counter[str]:
    """Return the rows of all tables, without what is made anew by each unpack and by MLflow."""
    tables, found = rows_of_tables(uri), Counter[str]()
    names = {row["dataset_uuid"]: (row["name"], row["digest"]) for row in tables["datasets"]}
    for name, some in tables.items():
        for row in some:
            kept = {column: value for column, value in row.items() if column not in MADE_ANEW}
            if row.get("source_type") == "DATASET":
                kept["source_id"] = names[row["source_id"]]
            if name == "experiments" and row["name"] == "Default":
                kept = {"experiment_id": row["experiment_id"]}
            found[f"{name} {kept}".replace(str(files), "FILES")] += 1
    return found


def files_in(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def both(
    archive: str, targets: tuple[str, str], folder: Path, executor: Executor, **how: Any
) -> None:
    """Unpack in one go and in tasks, and hold one to the other."""
    where = [str(folder / name) for name in ("one", "tasks")]
    one = unpack(archive, tracking_uri=targets[0], artifact_location=where[0], **how)
    how["executor"] = executor
    other = unpack(archive, tracking_uri=targets[1], artifact_location=where[1], **how)
    expected, found = told(one), told(other)
    for what, said in expected.items():
        if isinstance(said, Counter):
            assert sorted((said - found[what]).elements()) == []
            assert sorted((found[what] - said).elements()) == []
    assert found == expected
    expected, made = rows(targets[0], folder / "one"), rows(targets[1], folder / "tasks")
    assert expected - made == Counter()
    assert made - expected == Counter()
    assert files_in(folder / "tasks") == files_in(folder / "one")


def test_every_kind_arrives_as_by_one_unpack(
    targets: tuple[str, str], tmp_path: Path, threads: Executor
) -> None:
    both(str(ARCHIVE), targets, tmp_path, threads)


def test_runs_of_one_experiment_share_their_datasets(
    large: str, targets: tuple[str, str], tmp_path: Path, threads: Executor
) -> None:
    both(large, targets, tmp_path, threads)
    assert len(rows_of_tables(targets[1])["datasets"]) == 3
    again = unpack(
        large, tracking_uri=targets[1], artifact_location=str(tmp_path / "tasks"), executor=threads
    )
    assert again.ok
    assert {kind: c.written for kind, c in again.counts.items() if c.written} == {}
    assert again.counts[Kind.RUN].skipped == RUNS + 1
    assert diff(large, targets[1], rules="moved").equal


def test_a_part_of_it_is_taken(
    large: str, targets: tuple[str, str], tmp_path: Path, threads: Executor
) -> None:
    both(large, targets, tmp_path, threads, selection=Selection(experiments=("large",)))


def test_what_is_damaged_is_named_once(
    targets: tuple[str, str], tmp_path: Path, threads: Executor
) -> None:
    members = members_of(ARCHIVE)
    (bent, *_) = sorted(
        path for path in members if path.endswith("/experiment.json") and "workspaces" not in path
    )
    archive = tmp_path / "bent.tar.zst"
    archive.write_bytes(Crafted({**members, bent: b"{"}, 0, tmp_path).data())
    both(str(archive), targets, tmp_path, threads, selection=Selection(experiments=("*",)))


KILLS = """
import os, signal, sys
from pathlib import Path
from mlflow_exim_plugin.sinks.database.runs import RunTables
write = RunTables.write_run
def dies_once(self, run, into, report):
    write(self, run, into, report)
    mark = Path(os.environ["EXIM_TEST_MARK"])
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
RunTables.write_run = dies_once
"""


def test_a_worker_that_dies_loses_and_doubles_nothing(
    large: str, targets: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(KILLS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("EXIM_TEST_MARK", str(tmp_path / "died"))
    where = str(tmp_path / "files")

    report = unpack(large, tracking_uri=targets[0], artifact_location=where, engine="processes:2")

    assert (tmp_path / "died").exists()
    assert report.ok
    assert diff(large, targets[0], rules="moved").equal
    assert len(rows_of_tables(targets[0])["datasets"]) == 3


def test_what_several_cannot_write_to_is_refused(large: str, tmp_path: Path) -> None:
    new_sqlite_database(tmp_path / "mlflow.db")
    for uri, how in (
        (f"sqlite:///{tmp_path}/mlflow.db", {}),
        ("http://127.0.0.1:1", {}),
        ("postgresql://127.0.0.1/x", {"preserve_ids": False}),
        ("postgresql://127.0.0.1/x", {"strict": True}),
        ("postgresql://127.0.0.1/x", {"on_conflict": "fail"}),
    ):
        with pytest.raises(UsageError):
            unpack(large, tracking_uri=uri, engine="processes:2", **how)
