"""What is a run's by its rows, and not in the set with it, is freed by nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import sqlalchemy

from mlflow_exim_plugin import retain
from tests.integration.retention.test_removal import files, rows

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.retention.conftest import OldStore

pytestmark = pytest.mark.integration

STRAYS = {
    "trace of another experiment": (
        "trace",
        "UPDATE trace_info SET experiment_id = 2 WHERE request_id = :id",
    ),
    "logged model that is no output": ("model", "DELETE FROM inputs WHERE destination_id = :id"),
}


@pytest.mark.parametrize("stray", STRAYS)
def test_a_purge_takes_nothing_that_the_set_does_not_have(
    old_sqlite: OldStore, tmp_path: Path, stray: str
) -> None:
    made, uri = old_sqlite.made, old_sqlite.uri
    what, statement = STRAYS[stray]
    named = made.traces["own"] if what == "trace" else made.models["free"]
    engine = sqlalchemy.create_engine(uri)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text(statement), {"id": named})
    engine.dispose()
    policy = tmp_path / "policy.yaml"
    policy.write_text("rules: [{older_than: 400d, tags: {role: with model}}]")
    before = rows(uri), files(old_sqlite.files)

    result = retain(str(policy), str(tmp_path / "set"), tracking_uri=uri, apply=True, purge=True)

    (run,) = result.runs
    assert (run.run_id, run.outcome) == (made.runs["with model"], "failed")
    assert f"{named} would go with run" in run.reasons[0]
    assert (rows(uri), files(old_sqlite.files)) == before
