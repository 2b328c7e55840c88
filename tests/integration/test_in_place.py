"""What lies in an archive is read where the archive lies, by the tools that people have."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import duckdb
import fsspec
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pytest

from mlflow_exim_plugin import open_archive, pack
from mlflow_exim_plugin.plugins.file_system import EximFileSystem
from tests.range_server import RangeServer, serving
from tests.unit.container.crafting import build

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Bucket

pytestmark = [
    pytest.mark.integration,
    # aiohttp's sockets of a session that fsspec keeps for later.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
METRICS = "data/experiments/1/metrics"
PART = f"{METRICS}/part-00000.parquet"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from docs import example_store
    from tests.servers import new_sqlite_database

    folder = tmp_path_factory.mktemp("example")
    new_sqlite_database(folder / "mlflow.db")
    example_store.fill(f"sqlite:///{folder}/mlflow.db", (folder / "artifacts").as_uri())
    pack(str(folder / "a.tar.zst"), tracking_uri=f"sqlite:///{folder}/mlflow.db")
    return folder / "a.tar.zst"


@pytest.fixture
def url(packed: Path, s3_bucket: Bucket) -> Iterator[str]:
    pytest.importorskip("s3fs")
    store, path = fsspec.core.url_to_fs(f"{s3_bucket.url}/a.tar.zst")
    store.put_file(str(packed), path)
    yield f"{s3_bucket.url}/a.tar.zst"
    EximFileSystem.clear_instance_cache()


def test_tables_in_an_archive_on_s3(packed: Path, url: str) -> None:
    with open_archive(str(packed)) as archive, archive.reader.open_member(PART) as stream:
        rows = pd.read_parquet(stream).to_dict("records")
    assert rows
    where = f"exim://{PART}::{url}"
    fs, path = fsspec.core.url_to_fs(where)

    assert pd.read_parquet(where).to_dict("records") == rows
    with fsspec.open(where) as file:
        assert pl.read_parquet(file).to_dicts() == rows
    dataset = ds.dataset(METRICS, filesystem=fs, format="parquet")
    assert dataset.to_table().to_pylist() == rows
    some = dataset.to_table(["key", "value"], filter=ds.field("step") > 0).to_pylist()
    assert some == [{"key": r["key"], "value": r["value"]} for r in rows if r["step"] > 0]
    with duckdb.connect() as database:
        database.register_filesystem(fs)
        asked = f"SELECT * FROM 'exim://{METRICS}/*.parquet' ORDER BY run_id, key, step, timestamp"
        columns = [*rows[0]]
        assert [dict(zip(columns, row, strict=True)) for row in database.sql(asked).fetchall()] == (
            rows
        )
    assert path == PART


def test_documents_in_an_archive_on_s3(url: str) -> None:
    fs, _ = fsspec.core.url_to_fs(f"exim://::{url}")
    assert pd.read_json(f"exim://exim.json::{url}", typ="series")["format"] == "mlflow-exim-archive"
    found = fs.cat("data/experiments/1/runs/*/run.json")
    assert len(found) == 3
    assert all(b'"run"' in document for document in found.values())


def test_one_column_of_a_large_table_costs_its_own_bytes() -> None:
    """Requests and bytes are counted at the server."""
    pytest.importorskip("aiohttp")
    import io

    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    random = np.random.default_rng(1)
    table = pa.table({name: random.random(500_000) for name in "abcdefgh"})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="none", use_dictionary=False)
    members = {"data/t.parquet": buffer.getvalue(), "data/large.bin": os.urandom(20 << 20)}
    with serving() as (where, server):
        server.data = build(members, level=1)
        fs = EximFileSystem(where)
        opened = len(server.asked)
        assert opened <= 3
        found = ds.dataset("data/t.parquet", filesystem=fs, format="parquet").to_table(["c"])
        assert found.column("c").to_pylist() == table.column("c").to_pylist()
        assert_cost(server, opened, requests=4, size_bytes=6 << 20)
        EximFileSystem.clear_instance_cache()


def assert_cost(server: type[RangeServer], opened: int, *, requests: int, size_bytes: int) -> None:
    asked = server.asked[opened:]
    assert len(asked) <= requests, asked
    assert sum(size for _, size in asked) <= size_bytes, asked
