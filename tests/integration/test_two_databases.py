"""A tracking store and a registry in two databases keep ids, as one does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import copy, pack, unpack
from mlflow_exim_plugin.schema.objects import Kind
from tests.compare import assert_count_law, assert_foreseen
from tests.integration.test_same_ids import rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.integration

OF_TRACKING = ("SELECT run_uuid, name, start_time FROM runs", "SELECT key, value FROM tags")
OF_REGISTRY = (
    "SELECT name, creation_time, last_updated_time, description FROM registered_models",
    "SELECT name, version, run_id FROM model_versions WHERE current_stage != 'Deleted_Internal'",
    "SELECT name, alias, version FROM registered_model_aliases",
    "SELECT name, key, value FROM registered_model_tags",
    "SELECT name, url, status FROM webhooks",
)


def fill(client: MlflowClient, files: Path) -> None:
    experiment_id = client.create_experiment("e", str(files))
    run = client.create_run(experiment_id, run_name="r", tags={"own": "tag"})
    client.log_text(run.info.run_id, "x", "m/note.txt")
    client.set_terminated(run.info.run_id)
    client.create_registered_model("net", {"team": "a"}, "a net")
    for _ in range(2):
        client.create_model_version("net", f"{run.info.artifact_uri}/m", run.info.run_id)
    client.delete_model_version("net", "1")
    client.set_registered_model_alias("net", "champion", "2")


@pytest.mark.parametrize("registry", ["make_sqlite", "postgres_uri"])
def test_each_has_its_own(
    make_sqlite: Callable[[], str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    registry: str,
) -> None:
    source, source_registry, target = (make_sqlite() for _ in range(3))
    wanted = request.getfixturevalue(registry)
    target_registry = wanted if isinstance(wanted, str) else wanted()
    client = MlflowClient(source, source_registry)
    fill(client, tmp_path / "source")
    to: dict[str, Any] = {
        "source_registry_uri": source_registry,
        "target_registry_uri": target_registry,
        "artifact_location": str(tmp_path / "files"),
    }

    planned, report = (copy(source, target, **to, dry_run=dry_run) for dry_run in (True, False))

    assert report.ok, report.failures
    assert_count_law(report)
    assert_foreseen(planned, report)
    for one, other, queries in (
        (source, target, OF_TRACKING),
        (source_registry, target_registry, OF_REGISTRY),
    ):
        for query in queries:
            assert sorted(rows(one, query), key=str) == sorted(rows(other, query), key=str), query
            assert query not in OF_TRACKING or rows(other, query)
    assert rows(target, "SELECT name FROM registered_models") == []
    assert rows(target_registry, "SELECT run_uuid FROM runs") == []
    there = MlflowClient(target, target_registry)
    version = there.get_model_version("net", "2")
    assert version.source == f"{there.get_run(version.run_id).info.artifact_uri}/m"
    again = copy(source, target, **to)
    assert {kind: c.written for kind, c in again.counts.items() if c.written} == {}

    archive = str(tmp_path / "a.tar.zst")
    assert pack(archive, tracking_uri=target, registry_uri=target_registry).ok
    files: dict[str, Any] = {"artifact_location": str(tmp_path / "one")}
    restored = unpack(archive, tracking_uri=(one := make_sqlite()), **files)
    assert restored.counts[Kind.MODEL_VERSION].written == 1
    assert rows(one, OF_REGISTRY[1]) == rows(target_registry, OF_REGISTRY[1])
