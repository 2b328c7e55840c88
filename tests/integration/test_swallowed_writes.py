"""What a server says to have taken and does not keep is named, and comes with the next unpack."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import pack, unpack
from tests.compare import assert_count_law
from tests.proxy import FaultyProxy, Request

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import MakeServer

pytestmark = pytest.mark.integration

_SWALLOWED = {
    "registered-models/alias": "alias 'champion': it did not arrive",
    "model-versions/transition-stage": "stage Production of version 1: it did not arrive",
    "runs/delete": "its deletion did not arrive",
    "experiments/delete": "its deletion did not arrive",
}


def test_what_a_server_swallows_is_named(
    sqlite_uri: str, make_server: MakeServer, tmp_path: Path
) -> None:
    client = MlflowClient(sqlite_uri, sqlite_uri)
    experiment_id = client.create_experiment("e", str(tmp_path / "files"))
    kept, deleted = (client.create_run(experiment_id).info.run_id for _ in range(2))
    client.log_text(kept, "flavors: {}", "model/MLmodel")
    client.delete_run(deleted)
    client.create_registered_model("m")
    client.create_model_version("m", f"runs:/{kept}/model", kept)
    client.set_registered_model_alias("m", "champion", "1")
    registry = client._get_registry_client().store
    registry.transition_model_version_stage("m", "1", "Production", archive_existing_versions=False)
    gone = client.create_experiment("gone", str(tmp_path / "gone"))
    client.delete_experiment(gone)
    archive = str(tmp_path / "a.tar.zst")
    assert pack(archive, tracking_uri=sqlite_uri).ok
    server = make_server()

    def swallow(request: Request) -> bytes | None:
        is_write = request.method in {"POST", "PATCH"}
        return b"{}" if is_write and any(path in request.path for path in _SWALLOWED) else None

    with FaultyProxy(server.url, swallow) as proxy:
        report = unpack(archive, tracking_uri=proxy.url)

    assert_count_law(report)
    said = [loss.what for loss in report.losses]
    for what in _SWALLOWED.values():
        assert any(what in loss for loss in said), (what, said)
    assert said.count("its deletion did not arrive") == 2

    assert unpack(archive, tracking_uri=server.url).ok
    target = MlflowClient(server.url)
    assert target.get_registered_model("m").aliases == {"champion": "1"}
    assert target.get_model_version("m", "1").current_stage == "Production"
    assert target.get_experiment_by_name("gone").lifecycle_stage == "deleted"
