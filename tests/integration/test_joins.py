"""Objects that are given one name meet under it, whatever becomes of strangers of that name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from mlflow_exim_plugin import Rename, pack, unpack
from mlflow_exim_plugin.options import OnConflict
from mlflow_exim_plugin.schema.objects import Kind
from tests.compare import assert_count_law
from tests.filled import copy_of_database

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.integration

ONE = Rename(
    {"gone": "one", "a": "one", "b": "one", "empty": "one"}, {"net-a": "net", "net-b": "net"}
)


def fill(uri: str) -> None:
    client = MlflowClient(uri, uri)
    gone = client.create_experiment("gone", tags={"of": "gone"})
    for name in ("a", "b"):
        experiment_id = client.create_experiment(name, tags={"of": name})
        run = client.create_run(experiment_id, run_name=name)
        client.log_text(run.info.run_id, name, "model/note.txt")
        client.set_terminated(run.info.run_id)
        client.create_registered_model(f"net-{name}")
        client.create_model_version(
            f"net-{name}", f"{run.info.artifact_uri}/model", run.info.run_id
        )
    client.create_experiment("empty")
    client.delete_experiment(gone)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("joins")
    copy_of_database(folder, fill)
    assert pack(str(folder / "a.tar.zst"), tracking_uri=f"sqlite:///{folder}/mlflow.db").ok
    return str(folder / "a.tar.zst")


def names(uri: str) -> dict[str, list[str]]:
    """Return the runs of every experiment and the files of every version, by name."""
    client = MlflowClient(uri, uri)
    found = {}
    for experiment in client.search_experiments(ViewType.ALL):
        runs = client.search_runs([experiment.experiment_id])
        found[f"{experiment.name}, {experiment.lifecycle_stage}"] = sorted(
            str(run.info.run_name) for run in runs
        )
    for model in client.search_registered_models():
        found[model.name] = []
        for number in range(1, 1 + len(client.search_model_versions(f"name='{model.name}'"))):
            version = client.get_model_version(model.name, str(number))
            run = client.get_run(str(version.run_id))
            assert version.source == f"{run.info.artifact_uri}/model"
            found[model.name].append(str(run.info.run_name))
    return found


@pytest.mark.parametrize("preserve_ids", [True, False])
@pytest.mark.parametrize(
    ("policy", "has_stranger"),
    [
        (OnConflict.RENAME, False),
        (OnConflict.RENAME, True),
        (OnConflict.SKIP, True),
        (OnConflict.FAIL, False),
    ],
)
def test_what_is_given_one_name_meets(
    archive: str,
    sqlite_uri: str,
    tmp_path: Path,
    policy: OnConflict,
    *,
    has_stranger: bool,
    preserve_ids: bool,
) -> None:
    if has_stranger:
        client = MlflowClient(sqlite_uri, sqlite_uri)
        client.create_experiment("one", str(tmp_path / "stranger"))
        client.create_registered_model("net")
    is_left = has_stranger and policy is OnConflict.SKIP
    more: dict[str, Any] = {"rename": ONE, "on_conflict": policy, "preserve_ids": preserve_ids}
    more |= {"tracking_uri": sqlite_uri, "artifact_location": str(tmp_path / "files")}

    for is_again in (False, True):
        planned = unpack(archive, **more, dry_run=True) if not is_again else None
        report = unpack(archive, **more)
        assert report.ok
        assert_count_law(report)
        for kind, count in report.counts.items():
            if planned and kind is not Kind.ARTIFACT:
                assert planned.counts[kind] == count, kind
            assert not (is_again and count.written)
        if planned and preserve_ids:
            assert planned.losses == report.losses
        if not (is_again or is_left):
            said = [loss.what for loss in report.losses if loss.id[:3] == "one"]
            assert any("tags (not set: of)" in what for what in said)
            assert "lifecycle_stage" in str(said), "what was deleted is not"

    wanted: dict[str, list[str]] = {"Default, active": []}
    if has_stranger:
        wanted |= {"one, active": [], "net": []}
    if not is_left:
        end = " (2)" if has_stranger else ""
        wanted |= {f"one{end}, active": ["a", "b"], f"net{end}": ["a", "b"]}
    assert names(sqlite_uri) == wanted


@pytest.mark.parametrize("preserve_ids", [True, False])
def test_what_is_deleted_alone_stays_so(
    archive: str,
    sqlite_uri: str,
    tmp_path: Path,
    *,
    preserve_ids: bool,
) -> None:
    more: dict[str, Any] = {"artifact_location": str(tmp_path), "preserve_ids": preserve_ids}
    for _ in range(2):
        rename = Rename({"gone": "other"})
        assert unpack(archive, tracking_uri=sqlite_uri, rename=rename, **more).ok
        assert "other, deleted" in names(sqlite_uri)
