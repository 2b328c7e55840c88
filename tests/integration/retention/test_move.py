"""Runs go to another experiment or deployment, and what was theirs is where they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import diff, move
from mlflow_exim_plugin.errors import NotFoundError, UsageError
from mlflow_exim_plugin.schema.objects import Kind
from tests.compare import assert_count_law
from tests.databases import rows_of_tables
from tests.depth import one_of
from tests.old_runs import STEPS, seed_old_runs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import MakeServer
    from tests.integration.retention.conftest import OldStore

pytestmark = pytest.mark.integration


def told(client: MlflowClient, run_id: str) -> dict[str, Any]:
    """Return what is a run's own, but for ids and places."""
    run = client.get_run(run_id)
    tags = {k: v for k, v in run.data.tags.items() if not k.startswith(("mlflow.", "mlflow_exim"))}
    rows = {
        key: sorted((m.step, m.timestamp, m.value) for m in client.get_metric_history(run_id, key))
        for key in run.data.metrics
    }
    files = sorted((f.path, f.file_size) for f in client.list_artifacts(run_id))
    files += sorted((f.path, f.file_size) for f in client.list_artifacts(run_id, "deep"))
    return {
        "params": run.data.params,
        "tags": tags,
        "rows": rows,
        "files": files,
        "status": run.info.status,
        "end": run.info.end_time,
        "name": run.info.run_name,
        "inputs": [d.dataset.name for d in run.inputs.dataset_inputs],
    }


def test_inside_of_a_database_a_run_keeps_its_id(old_store: OldStore) -> None:
    client = MlflowClient(old_store.uri, old_store.uri)
    run_ids = [old_store.made.runs[role] for role in ("with model", "of version", "trial")]
    before = {run_id: told(client, run_id) for run_id in run_ids}
    how: dict[str, Any] = {
        "tracking_uri": old_store.uri,
        "experiment_name": "kept",
        "artifact_location": f"{old_store.files}/new",
    }
    tables = rows_of_tables(old_store.uri)
    seen = move(runs=run_ids, dry_run=True, **how)
    assert (seen.counts[Kind.RUN].written, seen.dry_run) == (3, True)
    assert rows_of_tables(old_store.uri) == tables

    report = move(runs=run_ids, **how)

    assert report.ok
    assert_count_law(report)
    assert report.counts[Kind.RUN].written == 3
    (loss,) = report.losses
    assert loss.id == old_store.made.runs["trial"]
    assert old_store.made.runs["sweep"] in loss.what
    kept = client.get_experiment_by_name("kept")
    assert kept is not None
    assert kept.artifact_location == f"{old_store.files}/new/kept"
    assert {run.info.run_id for run in client.search_runs([kept.experiment_id])} == {*run_ids}
    assert {run_id: told(client, run_id) for run_id in run_ids} == before
    # ... and the version is still of it.
    assert client.get_model_version("registered", "1").run_id == old_store.made.runs["of version"]
    again = move(runs=run_ids, **how)
    assert (again.ok, again.counts[Kind.RUN].skipped) == (True, 3)


def test_all_runs_of_an_experiment_go(old_sqlite: OldStore) -> None:
    client = MlflowClient(old_sqlite.uri, old_sqlite.uri)

    report = move(experiments="old", tracking_uri=old_sqlite.uri, experiment_name="other")

    assert report.ok
    assert client.search_runs([old_sqlite.made.experiment]) == []
    assert len(client.search_runs(["2"])) == len(old_sqlite.made.runs)


def test_a_server_copies_a_run_compares_and_deletes_the_old_one(make_server: MakeServer) -> None:
    server = make_server()
    made, client = seed_old_runs(server.url, traces=False), MlflowClient(server.url, server.url)
    roles = ("plain", "with model", "of version", "parent of young", "trial")
    run_ids = [made.runs[role] for role in roles]
    before = {run_id: told(client, run_id) for run_id in run_ids}

    report = move(runs=run_ids, tracking_uri=server.url, experiment_name="kept")

    assert not report.ok
    assert_count_law(report)
    assert report.counts[Kind.RUN].written == 3
    reasons = {failure.id: failure.reason for failure in report.failures}
    assert reasons.keys() == {made.runs["of version"], made.runs["parent of young"]}
    assert "'registered' version 1" in reasons[made.runs["of version"]]
    assert made.runs["young"] in reasons[made.runs["parent of young"]]
    kept = client.get_experiment_by_name("kept")
    assert kept is not None
    new = {r.data.tags["mlflow.exim.origin"]: r for r in client.search_runs([kept.experiment_id])}
    for role in ("plain", "with model", "trial"):
        run = new[made.runs[role]]
        assert told(client, run.info.run_id) == before[made.runs[role]]
        old = client.get_run(made.runs[role])
        assert old.info.lifecycle_stage == "deleted"
        assert old.data.tags["mlflow.exim.moved"].endswith(run.info.run_id)
        assert run.data.tags["mlflow_exim.run_info.run_id"] == made.runs[role]
    (model,) = client.search_logged_models([kept.experiment_id])
    assert model.source_run_id == new[made.runs["with model"]].info.run_id
    for role in ("of version", "parent of young", "plain"):
        stage = "deleted" if role == "plain" else "active"
        assert client.get_run(made.runs[role]).info.lifecycle_stage == stage

    again = move(runs=[made.runs["plain"]], tracking_uri=server.url, experiment_name="kept")
    assert (again.ok, again.counts[Kind.RUN].skipped) == (True, 1)
    assert len(client.search_runs([kept.experiment_id])) == 3


@pytest.mark.exhaustive
def test_a_run_with_a_trace_stays_at_a_server_that_can_have_it_once_alone(
    make_server: MakeServer,
) -> None:
    server = make_server()
    made, client = seed_old_runs(server.url), MlflowClient(server.url, server.url)
    run_id = made.runs["with model"]

    report = move(runs=[run_id], tracking_uri=server.url, experiment_name="kept")

    assert [failure.id for failure in report.failures if failure.kind is Kind.RUN] == [run_id]
    assert client.get_run(run_id).info.lifecycle_stage == "active"
    assert client.get_trace(made.traces["own"]).info.assessments


@pytest.mark.parametrize("way", one_of("to a database", "to a server"))
def test_between_two_places(
    way: str, old_sqlite: OldStore, make_server: MakeServer, make_sqlite: Callable[[], str]
) -> None:
    target = make_server().url if way == "to a server" else make_sqlite()
    client, there = MlflowClient(old_sqlite.uri), MlflowClient(target)
    roles = ("with model", "sweep", "trial")
    run_ids = [old_sqlite.made.runs[role] for role in roles]
    before = {run_id: told(client, run_id) for run_id in run_ids}

    report = move(target, runs=run_ids, tracking_uri=old_sqlite.uri)

    assert report.ok, report.failures
    assert_count_law(report)
    experiment = there.get_experiment_by_name("old")
    assert experiment is not None
    runs = there.search_runs([experiment.experiment_id])
    by_origin = {r.data.tags.get("mlflow.exim.origin", r.info.run_id): r.info.run_id for r in runs}
    assert {run_id: told(there, by_origin[run_id]) for run_id in run_ids} == before
    child = there.get_run(by_origin[old_sqlite.made.runs["trial"]])
    assert child.data.tags["mlflow.parentRunId"] == by_origin[old_sqlite.made.runs["sweep"]]
    for run_id in run_ids:
        run = client.get_run(run_id)
        assert run.info.lifecycle_stage == "deleted"
        assert by_origin[run_id] in run.data.tags["mlflow.exim.moved"]
        assert len(client.get_metric_history(run_id, "loss")) == STEPS
    assert diff(old_sqlite.uri, target, runs=run_ids, ignore=["experiment", "run"]).equal


def test_what_is_no_move_is_said_in_one_line(old_sqlite: OldStore, tmp_path: Path) -> None:
    uri, run_id = old_sqlite.uri, old_sqlite.made.runs["plain"]
    with pytest.raises(UsageError, match="no run is named"):
        move(tracking_uri=uri, experiment_name="kept")
    with pytest.raises(UsageError, match="goes to another experiment"):
        move(runs=[run_id], tracking_uri=uri)
    with pytest.raises(NotFoundError, match="no run matches"):
        move(runs=["0" * 32], tracking_uri=uri, experiment_name="kept")
    with pytest.raises(NotFoundError, match="no MLflow store"):
        move(runs=[run_id], tracking_uri=f"sqlite:///{tmp_path}/absent.db", experiment_name="kept")
    client = MlflowClient(uri)
    client.delete_experiment("2")
    report = move(runs=[run_id], tracking_uri=uri, experiment_name="other")
    assert "is deleted" in report.failures[0].reason
    assert client.get_run(run_id).info.experiment_id == old_sqlite.made.experiment
