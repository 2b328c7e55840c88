"""Two that write first into one empty database: one makes MLflow's tables, the other waits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy

from mlflow_exim_plugin.host.open.read_only import require_current_schema
from mlflow_exim_plugin.host.open.schema_revisions import latest_revision, revision_of
from tests.databases import new_mariadb_database, new_postgres_database

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("new_database", [new_postgres_database, new_mariadb_database])
def test_tables_are_made_once(new_database: object) -> None:
    assert callable(new_database)
    with new_database() as uri:
        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(require_current_schema, [uri, uri])) == [[], []]
        engine = sqlalchemy.create_engine(uri)
        with engine.connect() as connection:
            assert revision_of(connection) == latest_revision()
        engine.dispose()
