"""Servers whose URI is of a plugin's scheme, such as SageMaker's ``arn:``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.store.model_registry.rest_store import RestStore as RegistryStore
from mlflow.store.tracking.rest_store import RestStore as TrackingStore
from mlflow.tracking._model_registry import utils as registries
from mlflow.tracking._tracking_service import utils as trackings
from mlflow.utils.rest_utils import MlflowHostCreds

from mlflow_exim_plugin import pack, unpack
from tests.compare import assert_count_law, differences, snapshot
from tests.proxy import FaultyProxy, Request
from tests.seed import T0, Seeded, log_files, log_metrics, new_run
from tests.servers import start_server

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("impatient")]

TOKEN = "of the plugin"


def _letting_in(request: Request) -> int | None:
    return None if request.authorization == f"Bearer {TOKEN}" else 401


def _uri(monkeypatch: pytest.MonkeyPatch, url: str) -> str:
    """Register stores as a plugin does, which know their server and how to be let in."""
    credentials = partial(MlflowHostCreds, url, token=TOKEN)
    registries._get_store_registry()
    for registry, made in (
        (trackings._tracking_store_registry, lambda *_, **__: TrackingStore(credentials)),
        (registries._model_registry_store_registry, lambda *_, **__: RegistryStore(credentials)),
    ):
        monkeypatch.setitem(registry._registry, "arn", made)
    return f"arn:aws:sagemaker:eu-west-1:000000000000:mlflow-tracking-server/{urlsplit(url).port}"


def test_it_is_read_and_written_as_what_the_plugin_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = str(tmp_path / "a.tar.zst")
    with start_server(tmp_path / "a") as source, start_server(tmp_path / "b") as target:
        client, made = MlflowClient(source.url, source.url), Seeded()
        made.experiments["first"] = client.create_experiment("first")
        run_id = new_run(client, made, "one", made.experiments["first"])
        log_metrics(client, run_id, {"loss": [(1.0, T0, 0), (0.5, T0, 1)]})
        log_files(client, run_id, {"a/weights.bin": b"0123456789" * 500, "empty": b""})
        client.create_registered_model("net")
        client.create_model_version("net", f"runs:/{run_id}/a", run_id)
        with (
            FaultyProxy(source.url, _letting_in) as one,
            FaultyProxy(target.url, _letting_in) as other,
        ):
            report = pack(archive, tracking_uri=_uri(monkeypatch, one.url))
            assert report.ok, report.failures
            assert_count_law(report, snapshot(source.url))
            arrived = unpack(archive, tracking_uri=_uri(monkeypatch, other.url))
            assert arrived.ok, arrived.failures
        assert [*differences(snapshot(source.url), snapshot(target.url))] == []
