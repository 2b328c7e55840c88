"""What a database holds that no kind is made of is named; what MLflow 3.18 added is carried."""

from __future__ import annotations

import hashlib
import inspect
from typing import TYPE_CHECKING

import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.store.db.base_sql_model import Base
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from mlflow_exim_plugin import copy, diff, open_archive, pack
from mlflow_exim_plugin.kinds.tables import MAPPED, NOT_CARRIED
from mlflow_exim_plugin.schema.objects import Kind
from tests.depth import first_of
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report

pytestmark = pytest.mark.integration

ADDED = (
    "CREATE TABLE plans (id INTEGER PRIMARY KEY, text VARCHAR(20))",
    "CREATE TABLE nothing_in_it (id INTEGER PRIMARY KEY)",
    "ALTER TABLE runs ADD COLUMN cost_center VARCHAR(20)",
    "ALTER TABLE runs ADD COLUMN never_set VARCHAR(20)",
)
HELD = ("INSERT INTO plans VALUES (1, 'secret')", "UPDATE runs SET cost_center = '4711'")


def _database(folder: Path, name: str) -> str:
    new_sqlite_database(folder / f"{name}.db")
    return f"sqlite:///{folder}/{name}.db"


def _execute(uri: str, *statements: str) -> None:
    engine = sqlalchemy.create_engine(uri)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def _named(report: Report) -> list[str]:
    return [u.reason for u in report.unpacked if u.kind == "table or column that is not carried"]


@pytest.mark.parametrize("fixture", first_of(2, ["sqlite", "mariadb_uri", "postgres_uri"]))
def test_what_nobody_maps_is_named_at_the_source(
    request: pytest.FixtureRequest, tmp_path: Path, fixture: str
) -> None:
    is_file = fixture == "sqlite"
    source = _database(tmp_path, "source") if is_file else request.getfixturevalue(fixture)
    client = MlflowClient(source, source)
    run = client.create_run(client.create_experiment("one", str(tmp_path / "files")))
    archive = str(tmp_path / "a.tar.zst")
    assert _named(pack(archive, tracking_uri=source)) == []

    _execute(source, *ADDED, *HELD)
    report = pack(archive, tracking_uri=source, overwrite=True)

    assert report.counts[Kind.RUN].written == 1, run
    (reason,) = _named(report)
    assert reason.endswith(": plans, runs.cost_center")
    with open_archive(archive) as opened:
        listed = str(opened.summary.info)
    assert "plans, runs.cost_center" in listed
    assert "4711" not in listed


def test_what_nobody_maps_is_named_at_the_target(tmp_path: Path) -> None:
    source, target = _database(tmp_path, "source"), _database(tmp_path, "target")
    MlflowClient(source, source).create_experiment("one", str(tmp_path / "files"))
    _execute(target, *ADDED)

    report = copy(source, target)

    assert report.ok
    (loss,) = [loss.what for loss in report.losses if "nothing is written to" in loss.what]
    assert loss.endswith(": nothing_in_it, plans, runs.cost_center, runs.never_set")


def test_every_table_of_this_mlflow_is_mapped() -> None:
    unknown = {
        f"{table.name}.{column.name}"
        for table in Base.metadata.tables.values()
        if table.name not in NOT_CARRIED
        for column in table.columns
        if column.name not in MAPPED.get(table.name, ())
    }
    assert unknown == set()


@pytest.mark.skipif(
    "metadata"
    not in inspect.signature(getattr(SqlAlchemyStore, "create_issue", SqlAlchemyStore)).parameters,
    reason="no metadata of issues before MLflow 3.18",
)
@pytest.mark.parametrize("preserve_ids", [True, False])
def test_issues_keep_what_mlflow_3_18_added(tmp_path: Path, *, preserve_ids: bool) -> None:
    source, target = _database(tmp_path, "source"), _database(tmp_path, "target")
    client = MlflowClient(source, source)
    experiment_id = client.create_experiment("one", str(tmp_path / "files"))
    store = client._tracking_client.store
    categories = ["Latency", "latency ", "größe"]
    made = store.create_issue(
        experiment_id,
        "slow",
        "p99",
        categories=categories,
        created_by="ada",
        last_seen_timestamp=1_700_000_000_000,
        metadata={"team": "infra", "größe": "1"},
    )
    store.update_issue(made.issue_id, last_updated_by="bob")
    store.create_issue(experiment_id, "bare", "")

    there_now = str(tmp_path / "there")
    report = copy(source, target, artifact_location=there_now, preserve_ids=preserve_ids)

    assert report.failures == []
    assert not [loss for loss in report.losses if loss.kind is Kind.ISSUE and loss.id != "*"]
    there = MlflowClient(target, target)._tracking_client.store
    by_name = {issue.name: issue for issue in there.search_issues()}
    issue = by_name["slow"]
    assert issue.metadata == {"team": "infra", "größe": "1"}
    assert issue.last_seen_timestamp == 1_700_000_000_000
    assert (issue.created_by, issue.last_updated_by) == ("ada", "bob")
    assert issue.categories == categories
    digests = {hashlib.sha256(name.encode()).hexdigest() for name in ("latency", "größe")}
    engine = sqlalchemy.create_engine(target)
    with engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT issue_id, category_hash FROM issue_categories")
        assert {tuple(row) for row in rows} == {(issue.issue_id, digest) for digest in digests}
    engine.dispose()
    assert [i.name for i in there.search_issues(categories=["LATENCY"])] == ["slow"]
    compared = diff(source, target, rules="exact" if preserve_ids else "rest")
    assert [d for d in compared.differences if "issue" in str(d.kind)] == []
