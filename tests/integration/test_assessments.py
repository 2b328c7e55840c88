"""Assessments whose run is deleted, or gone: they are kept, and the link that is lost is named."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import AssessmentSource, Feedback

from mlflow_exim_plugin import diff, pack
from mlflow_exim_plugin.schema.objects import Kind
from tests.compare import assert_count_law
from tests.integration.conftest import rows_of
from tests.integration.test_idempotence import assert_nothing_written
from tests.new_ids import unpack
from tests.trace_seed import started_trace

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MakeServer
    from tests.servers import Server

pytestmark = pytest.mark.integration

JUDGE_RUN = "mlflow.assessment.sourceRunId"


def assess(client: MlflowClient, trace_id: str, name: str, run_id: str) -> None:
    feedback = Feedback(
        name,
        value=0.5,
        source=AssessmentSource("LLM_JUDGE", "gpt"),
        rationale="größe",
        metadata={JUDGE_RUN: run_id},
    )
    feedback.trace_id = trace_id
    client._tracking_client.store.create_assessment(feedback)


def purge(server: Server, run_id: str) -> None:
    """Delete a deleted run for good, as administrators do."""
    command = [sys.executable, "-m", "mlflow", "gc", "--run-ids", run_id]
    subprocess.run(
        [*command, "--backend-store-uri", server.backend_uri],
        env=os.environ | {"MLFLOW_TRACKING_URI": server.url},
        check=True,
        capture_output=True,
    )


def judged_by(uri: str, experiment: str) -> dict[str, tuple[Any, str]]:
    """Return value and run of each assessment by name."""
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    (trace,) = client.search_traces([found.experiment_id], include_spans=False)
    return {
        a.name: (a.feedback.value, (a.metadata or {})[JUDGE_RUN]) for a in trace.info.assessments
    }


@pytest.fixture
def source(make_server: MakeServer) -> tuple[Server, dict[str, str]]:
    """A server whose one trace was assessed by a run, by a deleted one and by a purged one."""
    server = make_server()
    client = MlflowClient(server.url)
    experiment_id = client.create_experiment("judged")
    names = ("kept", "deleted", "purged")
    runs = {name: client.create_run(experiment_id).info.run_id for name in names}
    trace_id = started_trace(client._tracking_client.store, experiment_id)
    for name in ("deleted", "purged"):
        client.delete_run(runs[name])
    # The deletion takes along the assessments that are there, so they come afterwards.
    for name, run_id in runs.items():
        assess(client, trace_id, name, run_id)
    purge(server, runs["purged"])
    assert set(judged_by(server.url, "judged")) == set(names)
    return server, runs


def test_a_run_that_is_deleted_and_one_that_is_gone(
    source: tuple[Server, dict[str, str]], make_server: MakeServer, tmp_path: Path
) -> None:
    server, runs = source
    target, archive = make_server(), str(tmp_path / "a.tar.zst")

    packed = pack(archive, tracking_uri=server.url)
    report = unpack(archive, tracking_uri=target.url)

    assert packed.ok
    assert packed.counts[Kind.ASSESSMENT].written == 3
    assert report.failures == []
    assert_count_law(report)
    assert report.counts[Kind.ASSESSMENT].written == 3
    client = MlflowClient(target.url)
    there = judged_by(target.url, "judged")
    assert {name: value for name, (value, _) in there.items()} == dict.fromkeys(runs, 0.5)
    by = {name: run_id for name, (_, run_id) in there.items()}
    assert client.get_run(by["kept"]).info.lifecycle_stage == "active"
    assert client.get_run(by["deleted"]).info.lifecycle_stage == "deleted"
    assert by["purged"] == runs["purged"]
    (lost,) = (loss for loss in report.losses if JUDGE_RUN in loss.what)
    assert lost.what == f"{JUDGE_RUN} keeps the source's id: no such run is there"
    result = diff(server.url, target.url)
    assert result.equal, result.differences
    before = rows_of(target.backend_uri)
    assert_nothing_written(unpack(archive, tracking_uri=target.url))
    assert rows_of(target.backend_uri) == before
