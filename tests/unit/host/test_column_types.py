"""What a database's columns take, and what MLflow could not read of them again."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy

from mlflow_exim_plugin.host.sql.column_types import ColumnTypes
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> ColumnTypes:
    path: Path = tmp_path_factory.mktemp("database") / "mlflow.db"
    new_sqlite_database(path)
    schema = sqlalchemy.MetaData()
    schema.reflect(sqlalchemy.create_engine(f"sqlite:///{path}"))
    return ColumnTypes(schema, "sqlite")


CONFIG = (
    "online_scoring_configs",
    {
        "online_scoring_config_id": "c",
        "scorer_id": "s",
        "sample_rate": 0.5,
        "experiment_id": 1,
        "filter_string": None,
    },
)
VERSION = (
    "scorer_versions",
    {"scorer_id": "s", "scorer_version": 1, "serialized_scorer": "{}", "creation_time": 1},
)


def changed(row: tuple[str, dict[str, Any]], **values: Any) -> tuple[str, dict[str, Any]]:
    return row[0], {**row[1], **values}


def test_what_mlflow_writes_fits(types: ColumnTypes) -> None:
    assert types.misfit_of([CONFIG, VERSION, changed(VERSION, scorer_version=2)]) == ""


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([changed(CONFIG, sample_rate="x")], "sample_rate cannot be 'x'"),
        ([changed(CONFIG, online_scoring_config_id=None)], "config_id cannot be nothing"),
        ([("online_scoring_configs", {"scorer_id": "s"})], "config_id cannot be nothing"),
        ([changed(VERSION, creation_time=None)], "creation_time cannot be None"),
        ([VERSION, VERSION], r"two rows of scorer_versions with the key \('s', 1\)"),
    ],
)
def test_what_cannot_be_written_or_read_again_is_said(
    types: ColumnTypes, rows: list[Any], problem: str
) -> None:
    assert re.search(problem, types.misfit_of(rows))
