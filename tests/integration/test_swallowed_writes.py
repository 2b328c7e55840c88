"""What a server says to have taken and does not keep is named, and comes with the next unpack."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
import requests
from mlflow import MlflowClient

from mlflow_exim_plugin import pack, unpack
from mlflow_exim_plugin.schema.objects import Kind
from tests.compare import assert_count_law
from tests.integration.test_workspaces import ENABLED
from tests.proxy import FaultyProxy, Request
from tests.trace_seed import started_trace

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MakeServer

pytestmark = pytest.mark.integration

_SWALLOWED = {
    "registered-models/alias": "alias 'champion': it did not arrive",
    "model-versions/transition-stage": "stage Production of version 1: it did not arrive",
    "runs/delete": "its deletion did not arrive",
    "experiments/delete": "its deletion did not arrive",
    "logged-models/m-": "its deletion did not arrive",
    "traces/link-to-run": "did not arrive",
    "traces/link-prompts": "its link to version p/1 of a prompt did not arrive",
}


def test_what_a_server_swallows_is_named(
    sqlite_uri: str, make_server: MakeServer, tmp_path: Path
) -> None:
    client = MlflowClient(sqlite_uri, sqlite_uri)
    experiment_id = client.create_experiment("e", str(tmp_path / "files"))
    kept, deleted = (client.create_run(experiment_id).info.run_id for _ in range(2))
    client.log_text(kept, "flavors: {}", "model/MLmodel")
    client.delete_run(deleted)
    prompt = client.register_prompt("p", "hello")
    store = client._tracking_client.store
    trace_id = started_trace(store, experiment_id)
    store.link_traces_to_run([trace_id], kept)
    store.link_prompts_to_trace(trace_id, [prompt])
    client.create_registered_model("m")
    client.create_model_version("m", f"runs:/{kept}/model", kept)
    client.set_registered_model_alias("m", "champion", "1")
    registry = client._get_registry_client().store
    registry.transition_model_version_stage("m", "1", "Production", archive_existing_versions=False)
    gone = client.create_experiment("gone", str(tmp_path / "gone"))
    client.delete_experiment(gone)
    store.delete_logged_model(client.create_logged_model(experiment_id, "gone").model_id)
    archive = str(tmp_path / "a.tar.zst")
    assert pack(archive, tracking_uri=sqlite_uri).ok
    server = make_server()

    def swallow(request: Request) -> bytes | None:
        is_write = request.method in {"POST", "PATCH", "DELETE"}
        if "logged-models/m-" in request.path and request.method != "DELETE":
            return None
        return b"{}" if is_write and any(path in request.path for path in _SWALLOWED) else None

    with FaultyProxy(server.url, swallow) as proxy:
        report = unpack(archive, tracking_uri=proxy.url)

    assert_count_law(report)
    said = [loss.what for loss in report.losses]
    for what in _SWALLOWED.values():
        assert any(what in loss for loss in said), (what, said)
    assert said.count("its deletion did not arrive") == 3
    assert f"its link to run {kept} did not arrive" in said

    assert unpack(archive, tracking_uri=server.url).ok
    target = MlflowClient(server.url)
    assert target.get_registered_model("m").aliases == {"champion": "1"}
    assert target.get_model_version("m", "1").current_stage == "Production"
    assert target.get_experiment_by_name("gone").lifecycle_stage == "deleted"
    experiment = target.get_experiment_by_name("e").experiment_id
    assert target.search_logged_models([experiment]) == []
    (run,) = target.search_runs([experiment])  # the other one is deleted
    for query in (f"metadata.`mlflow.sourceRun` = '{run.info.run_id}'", "prompt = 'p/1'"):
        (trace,) = target.search_traces([experiment], query, include_spans=False)
        assert trace.info.trace_id == trace_id


def test_a_part_of_the_target_that_is_not_found_is_doubted(
    sqlite_uri: str, make_server: MakeServer, tmp_path: Path
) -> None:
    """Its version has it: what is refused now fails, and comes with the next unpack."""
    client = MlflowClient(sqlite_uri, sqlite_uri)
    store = client._tracking_client.store
    experiment_id = client.create_experiment("e", str(tmp_path / "files"))
    started_trace(store, experiment_id)
    client.create_logged_model(experiment_id, "m")
    store.create_dataset("d", {}, [experiment_id])
    archive = str(tmp_path / "a.tar.zst")
    pack(archive, tracking_uri=sqlite_uri)
    server = make_server()
    hidden = ("/mlflow/logged-models", "/traces/search", "/datasets/create")

    with FaultyProxy(server.url, lambda r: 404 if r.path.endswith(hidden) else None) as proxy:
        report = unpack(archive, tracking_uri=proxy.url)

    assert_count_law(report)
    kinds = {Kind.LOGGED_MODEL, Kind.TRACE, Kind.EVALUATION_DATASET}
    assert {failure.kind for failure in report.failures} == kinds
    assert not [loss for loss in report.losses if "not have" in loss.what]
    again = unpack(archive, tracking_uri=server.url)
    assert {kind for kind in kinds if again.counts[kind].written} == kinds


def test_a_workspace_that_a_server_swallows_is_named(
    make_server: MakeServer, tmp_path: Path
) -> None:
    source, server = make_server(env=ENABLED), make_server(env=ENABLED)
    workspaces = "/api/3.0/mlflow/workspaces"
    told = {"name": "team", "description": "who we are"}
    archive = str(tmp_path / "a.tar.zst")
    requests.post(source.url + workspaces, json=told, timeout=9).raise_for_status()
    assert pack(archive, tracking_uri=source.url).ok

    def arrives(part: dict[str, str], request: Request) -> bytes | None:
        if (request.method, request.path) != ("POST", workspaces):
            return None
        if part:
            requests.post(server.url + workspaces, json=part, timeout=9).raise_for_status()
        return b"{}"

    with FaultyProxy(server.url) as proxy:
        parts: list[dict[str, str]] = [{}, {"name": "team"}]
        for part in parts:
            proxy.rule = partial(arrives, part)
            report = unpack(archive, tracking_uri=proxy.url)
            told_of = [(f.id, f.reason) for f in report.failures]
            told_of += [(loss.id, loss.what) for loss in report.losses]
            what = "its description did not arrive" if part else "it did not arrive"
            assert ("team", what) in told_of
