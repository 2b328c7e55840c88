"""Documents of runs made of rows: what says that it has a run's form has it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
import sqlalchemy

from mlflow_exim_plugin.host.sql.runs import StoredRuns
from mlflow_exim_plugin.kinds import Kind
from mlflow_exim_plugin.schema.objects import Failure, Run
from mlflow_exim_plugin.stages.sound import sound

if TYPE_CHECKING:
    from pathlib import Path

_TABLES = """
CREATE TABLE alembic_version (version_num TEXT);
INSERT INTO alembic_version VALUES ('newer');
CREATE TABLE runs (run_uuid TEXT, name TEXT, experiment_id INT, user_id TEXT, status TEXT,
    start_time INT, end_time INT, artifact_uri TEXT, lifecycle_stage TEXT);
CREATE TABLE params (run_uuid TEXT, key TEXT, value TEXT);
CREATE TABLE tags (run_uuid TEXT, key TEXT, value TEXT);
CREATE TABLE latest_metrics (run_uuid TEXT, key TEXT, value REAL, timestamp INT, step INT,
    is_nan BOOLEAN);
CREATE TABLE inputs (input_uuid TEXT, source_type TEXT, source_id TEXT, destination_type TEXT,
    destination_id TEXT, step INT);
INSERT INTO runs VALUES ('r1', 'one', 1, 'ana', 'FINISHED', 1, 2, 'file:///a', 'active');
INSERT INTO params VALUES ('r1', 'depth', '3');
INSERT INTO tags VALUES ('r1', 'team', 'x');
INSERT INTO latest_metrics VALUES ('r1', 'loss', 0.5, 1, 0, 0);
INSERT INTO inputs VALUES ('i1', 'RUN_INPUT', 'r1', 'MODEL_INPUT', 'm-1', 0);
"""


def _read(folder: Path, *more: str) -> Run:
    path = folder / "mlflow.db"
    with closing(sqlite3.connect(path)) as database:
        database.executescript(_TABLES)
        for statement in more:
            database.execute(statement)
        database.commit()
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    with closing(StoredRuns(engine)) as stored:
        run = stored.read(["r1"]).runs()["r1"]
    engine.dispose()
    return run


def test_doubles_are_known_of_what_is_made_of_columns(tmp_path: Path) -> None:
    run = _read(tmp_path)
    assert run.doubles == [0.5]
    assert run.document["inputs"] == {"model_inputs": [{"model_id": "m-1"}]}


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO params VALUES ('r1', NULL, '4')",
        "INSERT INTO tags VALUES ('r1', NULL, 'y')",
        "INSERT INTO latest_metrics VALUES ('r1', NULL, 0.25, 1, 0, 0)",
        "INSERT INTO inputs VALUES ('i2', 'RUN_INPUT', 'r1', 'MODEL_INPUT', NULL, 0)",
        "INSERT INTO inputs VALUES ('i2', 'RUN_OUTPUT', 'r1', 'MODEL_OUTPUT', NULL, 0)",
    ],
)
def test_what_lacks_its_name_is_looked_at_and_refused(tmp_path: Path, statement: str) -> None:
    other = "UPDATE inputs SET source_id = 'r0' WHERE destination_id = 'm-1'"
    run = _read(tmp_path, other, statement)
    assert run.doubles is None
    (failure,) = sound(iter([run]))
    assert isinstance(failure, Failure)
    assert failure.kind is Kind.RUN
    assert "malformed" in failure.reason
