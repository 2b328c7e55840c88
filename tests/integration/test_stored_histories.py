"""Histories read straight from a database: the rows that MLflow's own calls give."""

from __future__ import annotations

import math
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from mlflow_exim_plugin import open_archive, pack
from mlflow_exim_plugin.host import tables as host_tables
from mlflow_exim_plugin.host.api.histories import read_history
from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin.host.sql.histories import StoredHistories
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.objects import Failure
from mlflow_exim_plugin.schema.tables import sort_history
from tests.seed import T0

if TYPE_CHECKING:
    from pathlib import Path

    from mlflow_exim_plugin.schema.metric_rows import RunRows
    from tests.conftest import MakeServer

pytestmark = pytest.mark.integration

KEYS = ("loss", "Ünï", "val/loss", "a b:c")
VALUES = [0.5, math.nan, -0.25, 1e308, 5e-324, math.inf, -math.inf, 0.0]


def fill(uri: str) -> dict[str, dict[str, int]]:
    """Log runs whose keys are alike, whose times go back, and whose numbers are hard."""
    client = MlflowClient(uri, uri)
    experiment_id = client.create_experiment("histories")
    logged: dict[str, dict[str, int]] = {}
    for number in range(3):
        run_id = client.create_run(experiment_id).info.run_id
        metrics = [
            Metric(key, value, T0 - place if place % 3 else T0 + place, place % 5)
            for key in KEYS
            for place, value in enumerate(VALUES * (number + 1))
        ]
        for start in range(0, len(metrics), 500):
            client.log_batch(run_id, metrics[start : start + 500])
        logged[run_id] = dict.fromkeys(KEYS, 4)
    logged[client.create_run(experiment_id).info.run_id] = {}
    return logged


def tables(taken: list[RunRows | Failure]) -> pa.Table:
    assert not [item for item in taken if isinstance(item, Failure)]
    return pa.concat_tables([item.table for item in taken if not isinstance(item, Failure)])


@pytest.mark.parametrize(
    "database",
    ["sqlite_uri", "sqlite_uri without adbc", "postgres_uri", "psycopg_uri", "mariadb_uri"],
)
@pytest.mark.parametrize("rows_at_once", [1_000_000, 200, 1])
def test_rows_are_those_of_mlflow(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    database: str,
    rows_at_once: int,
) -> None:
    monkeypatch.setattr(host_tables, "_ARROW_FROM_BYTES", 0)
    database, _, without = database.partition(" without ")
    if without:
        monkeypatch.setitem(sys.modules, "adbc_driver_sqlite", None)
    else:
        import adbc_driver_sqlite  # noqa: F401 - what is compared must be there
    uri = request.getfixturevalue(database)
    logged = fill(uri)
    # Closed before its database goes: MariaDB lets nobody drop what a reader still sees.
    with Host(uri, create=False) as host:
        assert host.engine is not None
        with closing(StoredHistories(host.engine, rows_at_once=rows_at_once)) as reader:
            found = {run_id: list(rows) for run_id, rows in reader.start(logged).finish().items()}

        for run_id, keys in logged.items():
            taken = found[run_id]
            if not keys:
                assert taken == []
                continue
            expected = pa.concat_tables(
                sort_history(read_history(host, run_id, key))
                for key in sorted(keys, key=lambda key: key.encode())
            )
            rows = tables(taken)
            assert rows.drop_columns("value").equals(expected.drop_columns("value"))
            assert bits(rows) == bits(expected)
            assert pc.any(pc.is_nan(rows.column("value"))).as_py()


def bits(rows: pa.Table) -> list[int]:
    value = pa.concat_arrays(rows.column("value").chunks)
    # A NaN is a NaN, whichever bits it has.
    return pc.if_else(pc.is_nan(value), 1, value.view(pa.int64())).to_pylist()  # type: ignore[no-any-return]


def test_what_a_run_does_not_list_comes_too_and_what_it_lacks_is_named(sqlite_uri: str) -> None:
    run_id, keys = next(iter(fill(sqlite_uri).items()))
    host = Host(sqlite_uri, create=False)
    assert host.engine is not None

    with closing(StoredHistories(host.engine)) as reader:
        *rows, missing = reader.start({run_id: {"loss": 0, "not there": 0}}).finish()[run_id]

    assert set(pc.unique(tables(rows).column("key")).to_pylist()) == set(keys)
    assert isinstance(missing, Failure)
    assert missing.id == f"{run_id}/not there"
    assert set(keys) > {"loss"}


def test_an_archive_of_a_database_is_that_of_its_server(
    make_server: MakeServer, tmp_path: Path
) -> None:
    server = make_server()
    fill(server.url)
    digests: list[dict[str, str]] = []
    for uri in (server.url, server.backend_uri):
        archive = str(tmp_path / f"{len(digests)}.tar.zst")
        assert pack(archive, tracking_uri=uri, selection=Selection(artifacts=False)).ok
        with open_archive(archive) as opened:
            digests.append(
                {e.mlflow.run["info"]["run_id"]: e.info.content_digest for e in opened.runs()}
            )
    assert digests[0] == digests[1]
    assert len(digests[0]) == 4


def test_a_table_that_is_gone_is_one_failure_a_key(sqlite_uri: str) -> None:
    from sqlalchemy import create_engine, text

    run_id, keys = next(iter(fill(sqlite_uri).items()))
    engine = create_engine(sqlite_uri)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE metrics"))

    with closing(StoredHistories(engine)) as reader:
        failures = list(reader.start({run_id: keys}).finish()[run_id])
        one_by_one = list(reader.take(run_id, sorted(keys)))
    assert [f.id for f in one_by_one if isinstance(f, Failure)] == [
        f.id for f in failures if isinstance(f, Failure)
    ]

    assert [f.id for f in failures if isinstance(f, Failure)] == [
        f"{run_id}/{key}" for key in sorted(keys)
    ]
