"""Runs and metric rows of an archive in pandas, pyarrow, DuckDB and Polars, without MLflow."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import duckdb
import mlflow
import pandas as pd
import polars as pl
import pyarrow.dataset as ds
import pytest

from mlflow_exim_plugin import open_archive
from mlflow_exim_plugin.errors import MissingDependencyError, NotFoundError, UsageError

if TYPE_CHECKING:
    from tests.sources import Source

pytestmark = pytest.mark.integration


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a frame with its columns in groups, in each of which MLflow's order is by chance."""
    groups = [c.partition(".")[0] for c in frame.columns]
    ranks = {group: rank for rank, group in enumerate(dict.fromkeys(groups))}
    return frame[sorted(frame.columns, key=lambda c: (ranks[c.partition(".")[0]], c))]


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"run_view_type": 3},
        {"run_view_type": 2},
        {"max_results": 3},
        {"filter_string": "params.emoji LIKE '%naïve%'"},
        {"filter_string": "attributes.status = 'FAILED'", "run_view_type": 3},
    ],
    ids=str,
)
def test_search_runs_is_that_of_mlflow(sqlite_source: Source, asked: dict[str, Any]) -> None:
    mlflow.set_tracking_uri(sqlite_source.uri)
    try:
        experiments = mlflow.search_experiments(view_type=3)
        everywhere = mlflow.search_runs(search_all_experiments=True, **asked)
        by_id = {
            e.experiment_id: mlflow.search_runs([e.experiment_id], **asked) for e in experiments
        }
        names = [e.name for e in experiments][:2]
        by_name = mlflow.search_runs(experiment_names=names, **asked)
    finally:
        mlflow.set_tracking_uri(None)

    with open_archive(sqlite_source.archive) as archive:
        assert_equal(archive.search_runs(**asked), everywhere)
        assert_equal(archive.search_runs(experiment_names=names, **asked), by_name)
        for experiment_id, expected in by_id.items():
            assert_equal(archive.search_runs([experiment_id], **asked), expected)


def assert_equal(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert list(found.columns[:6]) == list(expected.columns[:6])
    pd.testing.assert_frame_equal(in_order(found), in_order(expected), check_exact=True)


def test_what_search_runs_refuses(sqlite_source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_archive(sqlite_source.archive) as archive:
        name = archive.summary.mlflow.experiments[-1].name
        with pytest.raises(NotFoundError) as misspelt:
            archive.search_runs(experiment_names=[f"{name}x"])
        assert misspelt.value.hint == f"did you mean {name!r}?"
        with pytest.raises(UsageError):
            archive.search_runs(["0"], experiment_names=[name])
        with pytest.raises(UsageError):
            archive.search_runs(filter_string="metrics..x !")
        with pytest.raises(UsageError):
            archive.search_runs(run_view_type=4)
        with pytest.raises(NotFoundError):
            archive.metrics("no such")
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(MissingDependencyError, match="pandas"):
            archive.search_runs()


def test_metrics_as_a_dataset(sqlite_source: Source) -> None:
    with open_archive(sqlite_source.archive) as archive:
        for experiment in archive.experiments():
            runs = list(archive.runs(experiment.mlflow.experiment["experiment_id"]))
            rows = archive.metrics(experiment.mlflow.experiment["name"])
            histories = {
                run.mlflow.run["info"]["run_id"]: archive.metric_history(
                    run.mlflow.run["info"]["run_id"]
                )
                for run in runs
            }
            assert rows.count_rows() == sum(table.num_rows for table in histories.values())
            for run_id, expected in histories.items():
                found = rows.to_table(expected.column_names, filter=ds.field("run_id") == run_id)
                assert found.schema.equals(expected.schema)
                pd.testing.assert_frame_equal(found.to_pandas(), expected.to_pandas())
        rows = archive.metrics(sqlite_source.made.experiments["plain"])
        assert rows.count_rows() > 0
        by_key = dict(rows.to_table().group_by("key").aggregate([("step", "max")]).to_pydict())
        expected_rows = dict(zip(by_key["key"], by_key["step_max"], strict=True))
        found = duckdb.sql("SELECT key, max(step) FROM rows GROUP BY key").fetchall()
        assert dict(found) == expected_rows
        lazily = pl.scan_pyarrow_dataset(rows).group_by("key").agg(pl.col("step").max())
        assert dict(lazily.collect().iter_rows()) == expected_rows


LOOK = """
import sys
from mlflow_exim_plugin import open_archive
with open_archive(sys.argv[1]) as archive:
    frame = archive.search_runs()
    rows = archive.metrics(frame.experiment_id.iloc[0])
    assert len(frame)
    assert rows.head(1).num_rows == 1
assert "mlflow" not in sys.modules
"""


def test_mlflow_is_not_imported(sqlite_source: Source) -> None:
    command = [sys.executable, "-c", LOOK, sqlite_source.archive]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
