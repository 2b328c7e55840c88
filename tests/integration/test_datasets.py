"""Evaluation datasets with records that a server, or the format, does not take."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import diff, pack, verify
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.schema.rules import LIMITS
from tests.compare import assert_count_law
from tests.depth import one_of
from tests.integration.conftest import rows_of
from tests.integration.test_idempotence import assert_nothing_written
from tests.new_ids import unpack
from tests.proxy import FaultyProxy, Request

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report
    from tests.conftest import MakeServer

pytestmark = pytest.mark.integration

RECORDS = 600
"""More than one call takes."""
MIB = 1 << 20
LONG_USER = {"inputs": {"q": "long user"}, "tags": {"mlflow.user": "u" * 256}}
"""Over the column of 255 characters, which SQLite does not mind."""
LARGE = {"inputs": {"q": "large"}, "outputs": {"text": "x" * (20 * MIB)}}
"""Over the packet of 16 MiB that MariaDB takes."""


@pytest.fixture(autouse=True)
def _few_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")


def make_dataset(uri: str, name: str, records: list[dict[str, Any]]) -> str:
    store = MlflowClient(uri, uri)._tracking_client.store
    dataset = store.create_dataset(name, {"team": "a"}, [])
    store.upsert_dataset_records(dataset.dataset_id, records)
    return str(dataset.dataset_id)


def records_of(uri: str, name: str) -> list[Any]:
    """Return the questions of a dataset's records."""
    store = MlflowClient(uri, uri)._tracking_client.store
    (dataset,) = (d for d in store.search_datasets() if d.name == name)
    records, token = store._load_dataset_records(dataset.dataset_id, max_results=1000)
    assert not token
    return sorted(record.inputs["q"] for record in records)


def assert_one_is_missing(report: Report, uri: str, dataset_id: str) -> None:
    assert_count_law(report)
    (failure,) = report.failures
    assert (failure.kind, failure.count) == (Kind.DATASET_RECORD, 1)
    assert failure.id.startswith(f"{dataset_id}/dr-")
    assert report.counts[Kind.DATASET_RECORD].written == RECORDS
    assert report.counts[Kind.EVALUATION_DATASET].written == 1
    assert records_of(uri, "asked") == sorted(f"{number}?" for number in range(RECORDS))


@pytest.mark.parametrize(
    ("database", "bad"),
    one_of(("postgres_uri", LONG_USER), ("mariadb_uri", LARGE), ("mariadb_uri", LONG_USER)),
    ids=["column of PostgreSQL", "packet of MariaDB", "column of MariaDB"],
)
def test_a_record_over_the_limits_of_the_server(
    sqlite_uri: str,
    make_server: MakeServer,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    database: str,
    bad: dict[str, Any],
) -> None:
    records: list[dict[str, Any]] = [{"inputs": {"q": f"{n}?"}} for n in range(RECORDS)]
    dataset_id = make_dataset(sqlite_uri, "asked", [*records[:300], bad, *records[300:]])
    target = make_server(backend_store_uri=request.getfixturevalue(database))
    archive = str(tmp_path / "a.tar.zst")
    assert pack(archive, tracking_uri=sqlite_uri).ok

    report = unpack(archive, tracking_uri=target.url)

    assert_one_is_missing(report, target.url, dataset_id)
    again = unpack(archive, tracking_uri=target.url)
    assert not any(counts.written for counts in again.counts.values())
    assert [failure.id for failure in again.failures] == [report.failures[0].id]


def test_a_database_that_mlflow_fills_here_cuts_nothing_off(
    sqlite_uri: str, mariadb_uri: str, tmp_path: Path
) -> None:
    """MLflow leaves the strict mode off in the connection that made the default experiment."""
    records: list[dict[str, Any]] = [{"inputs": {"q": f"{n}?"}} for n in range(RECORDS)]
    dataset_id = make_dataset(sqlite_uri, "asked", [*records, LONG_USER])
    archive = str(tmp_path / "a.tar.zst")
    assert pack(archive, tracking_uri=sqlite_uri).ok

    report = unpack(archive, tracking_uri=mariadb_uri, artifact_location=str(tmp_path))

    assert_one_is_missing(report, mariadb_uri, dataset_id)


def test_a_record_over_the_limit_of_what_stands_before_the_server(
    sqlite_uri: str, make_server: MakeServer, tmp_path: Path
) -> None:
    records: list[dict[str, Any]] = [{"inputs": {"q": f"{n}?"}} for n in range(RECORDS)]
    large = {"inputs": {"q": "large"}, "expectations": {"text": "x" * (2 * MIB)}}
    dataset_id = make_dataset(sqlite_uri, "asked", [*records[:300], large, *records[300:]])
    target, archive = make_server(), str(tmp_path / "a.tar.zst")
    assert pack(archive, tracking_uri=sqlite_uri).ok

    def refuses(request: Request) -> int | None:
        return 413 if len(request.body) > MIB else None

    with FaultyProxy(target.url, refuses) as proxy:
        report = unpack(archive, tracking_uri=proxy.url)

    assert_one_is_missing(report, target.url, dataset_id)
    completed = unpack(archive, tracking_uri=target.url)
    assert completed.failures == []
    assert completed.counts[Kind.DATASET_RECORD].written == 1
    assert diff(archive, target.url).equal
    before = rows_of(target.backend_uri)
    assert_nothing_written(unpack(archive, tracking_uri=target.url))
    assert rows_of(target.backend_uri) == before


def nested(levels: int) -> Any:
    value: Any = "deep"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ([{"inputs": {"q": nested(LIMITS.depth)}}], "levels"),
        ([{"inputs": {"q": nested(300)}}], "nested deeper"),
        ([{"inputs": {"q": "half a pair \ud800"}}], "surrogates"),
    ],
    ids=["deep", "deeper", "no text"],
)
def test_a_dataset_that_no_document_can_hold(
    sqlite_uri: str, tmp_path: Path, records: list[dict[str, Any]], reason: str
) -> None:
    bad = make_dataset(sqlite_uri, "bad", records)
    make_dataset(sqlite_uri, "good", [{"inputs": {"q": nested(LIMITS.depth // 2)}}])
    archive = str(tmp_path / "a.tar.zst")

    report = pack(archive, tracking_uri=sqlite_uri)

    assert_count_law(report)
    (failure,) = report.failures
    assert (failure.kind, failure.id) == (Kind.EVALUATION_DATASET, bad)
    assert reason in failure.reason
    assert report.counts[Kind.EVALUATION_DATASET].written == 1
    assert verify(archive).ok


def test_a_broken_record_of_a_database_costs_itself(sqlite_uri: str, tmp_path: Path) -> None:
    asked = make_dataset(sqlite_uri, "asked", [{"inputs": {"q": f"{n}?"}} for n in range(102)])
    with closing(sqlite3.connect(sqlite_uri.removeprefix("sqlite:///"))) as database:
        (bad,) = database.execute(
            "SELECT dataset_record_id FROM evaluation_dataset_records LIMIT 1 OFFSET 40"
        ).fetchone()
        database.execute(
            "UPDATE evaluation_dataset_records SET inputs = '{' WHERE dataset_record_id = ?", [bad]
        )
        database.commit()

    report = pack(str(tmp_path / "a.tar.zst"), tracking_uri=sqlite_uri)

    assert_count_law(report)
    (failure,) = report.failures
    assert (failure.kind, failure.id) == (Kind.DATASET_RECORD, f"{asked}/{bad}")
    assert report.counts[Kind.DATASET_RECORD].written == 101
    assert report.counts[Kind.EVALUATION_DATASET].written == 1
    assert verify(str(tmp_path / "a.tar.zst")).ok


def copy_record(uri: str, count: int) -> None:
    """Give the one record of a database copies; through MLflow each takes as long as all."""
    table, own = "evaluation_dataset_records", ("dataset_record_id", "input_hash")
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database, database:
        names = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
        values = ", ".join(f"{n} || number" if n in own else n for n in names)
        database.execute(
            f"WITH RECURSIVE numbers(number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers"
            f" WHERE number < ?) INSERT INTO {table} ({', '.join(names)})"
            f" SELECT {values} FROM {table}, numbers",
            (count,),
        )


def test_a_dataset_that_is_larger_than_a_document(sqlite_uri: str, tmp_path: Path) -> None:
    record = {"inputs": {"q": 0}, "outputs": {"text": "x" * MIB}}
    large = make_dataset(sqlite_uri, "large", [record])
    copy_record(sqlite_uri, LIMITS.document_bytes // MIB)
    make_dataset(sqlite_uri, "small", [{"inputs": {"q": "?"}}])
    archive = str(tmp_path / "a.tar.zst")

    report = pack(archive, tracking_uri=sqlite_uri)

    assert_count_law(report)
    (failure,) = report.failures
    assert (failure.kind, failure.id) == (Kind.EVALUATION_DATASET, large)
    assert f"{LIMITS.document_bytes} bytes" in failure.reason
    assert report.counts[Kind.EVALUATION_DATASET].written == 1
    assert verify(archive).ok
