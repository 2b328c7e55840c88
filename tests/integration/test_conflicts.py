"""Namesakes at the target: each policy does what it says, nothing is harmed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import copy, pack
from mlflow_exim_plugin.errors import ConflictError, PartialTransferError
from mlflow_exim_plugin.options import OnConflict, Rename
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.schema.provenance import ORIGIN
from tests.compare import Snapshot, assert_count_law, snapshot
from tests.filled import copy_of_database
from tests.integration.conftest import rows_of
from tests.new_ids import unpack
from tests.seed import T0, Seeded, log_files, log_metrics, new_run
from tests.servers import new_sqlite_database

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One experiment with two runs, one without a namesake, and a model with a gap and an alias."""
    folder = tmp_path_factory.mktemp("source")
    copy_of_database(folder, fill)
    path = str(folder / "a.tar.zst")
    assert pack(path, tracking_uri=f"sqlite:///{folder}/mlflow.db").ok
    return path


def fill(uri: str) -> None:
    client = MlflowClient(uri, uri)
    made = Seeded()
    for name in ("shared", "only here"):
        made.experiments[name] = client.create_experiment(name, tags={"team": "source", name: "x"})
    for role, name in (("one", "shared"), ("two", "shared"), ("three", "only here")):
        run_id = new_run(client, made, role, made.experiments[name])
        log_metrics(client, run_id, {"loss": [(0.5, T0, 0)]})
        log_files(client, run_id, {"model/MLmodel": role.encode()})
    client.create_registered_model("net", {"team": "source"}, "of the source")
    for _ in range(3):
        client.create_model_version("net", f"runs:/{made.runs['one']}/model", made.runs["one"])
    client.delete_model_version("net", "2")
    client.set_registered_model_alias("net", "champion", "3")
    client.set_registered_model_alias("net", "theirs-alone", "1")


@pytest.fixture
def target(tmp_path: Path) -> str:
    """A deployment of namesakes under the same names."""
    copy_of_database(tmp_path / "target", fill_target)
    return f"sqlite:///{tmp_path}/target/mlflow.db"


def fill_target(uri: str) -> None:
    client = MlflowClient(uri, uri)
    made = Seeded(
        experiments={"shared": client.create_experiment("shared", tags={"team": "target"})}
    )
    run_id = new_run(client, made, "namesake", made.experiments["shared"])
    log_metrics(client, run_id, {"loss": [(9.0, T0, 0)]})
    log_files(client, run_id, {"model/MLmodel": b"namesake"})
    client.create_registered_model("net", {"team": "target"}, "of the target")
    client.create_model_version("net", f"runs:/{run_id}/model", run_id, description="theirs")
    client.set_registered_model_alias("net", "champion", "1")


def assert_unharmed(before: Snapshot, after: Snapshot, *, may_grow: bool = False) -> None:
    """Assert that all that was there is there as it was.

    Args:
        before: The target without the archive.
        after: The target with it.
        may_grow: Whether models may get aliases that they did not have.
    """
    for part in ("experiments", "runs", "models", "versions"):
        were, are = getattr(before, part), getattr(after, part)
        for name in set(were) - {"Default"}:  # nobody's: it takes the source's
            was, now = dict(were[name]), dict(are[name])
            if part == "models":
                # They follow from the versions and aliases that came.
                for moving in ("latest_versions", "last_updated_timestamp"):
                    was.pop(moving)
                    now.pop(moving)
                if may_grow:
                    now["aliases"] = {
                        a: v for a, v in now["aliases"].items() if a in was["aliases"]
                    }
            if part == "versions" and may_grow:
                now["aliases"] = [a for a in now["aliases"] if a in was["aliases"]]
            assert now == was, (part, name)


def roles(found: Snapshot, experiment: str) -> list[str]:
    id_ = found.experiments[experiment]["experiment_id"]
    return sorted(
        run["data"]["tags"]["role"]
        for run in found.runs.values()
        if run["info"]["experiment_id"] == id_
    )


def test_merge(archive: str, target: str) -> None:
    before = snapshot(target)

    report = unpack(archive, tracking_uri=target)

    assert report.ok
    assert_count_law(report)
    after = snapshot(target)
    assert_unharmed(before, after, may_grow=True)
    assert roles(after, "shared") == ["namesake", "one", "two"]
    assert sorted(after.versions) == ["net/1", "net/2", "net/3"]
    assert after.models["net"]["aliases"] == {"champion": "1", "theirs-alone": "2"}
    assert after.versions["net/2"]["files"] == after.versions["net/3"]["files"]
    said = {(str(loss.kind), loss.id): loss.what for loss in report.losses}
    assert said["model_version", "net/1"] == "it has number 2 at the target"
    assert ("model_version", "net/3") not in said  # this number was free
    assert "team" in said["experiment", "shared"]
    of_model = [loss.what for loss in report.losses if loss.id == "net"]
    assert any("champion" in what for what in of_model)
    assert any("keeps its own" in what for what in of_model)


def test_skip(archive: str, target: str) -> None:
    before = snapshot(target)

    report = unpack(archive, tracking_uri=target, on_conflict="skip")

    assert report.ok
    assert_count_law(report)
    after = snapshot(target)
    assert_unharmed(before, after)
    assert roles(after, "shared") == ["namesake"]
    assert roles(after, "only here") == ["three"]
    assert list(after.versions) == ["net/1"]
    skipped = {kind: counts.skipped for kind, counts in report.counts.items() if counts.skipped}
    assert skipped == {
        Kind.EXPERIMENT: 1,
        Kind.RUN: 2,
        Kind.REGISTERED_MODEL: 1,
        Kind.MODEL_VERSION: 2,
    }


def test_rename(archive: str, target: str) -> None:
    before = snapshot(target)

    report = unpack(archive, tracking_uri=target, on_conflict="rename")

    assert report.ok
    assert_count_law(report)
    after = snapshot(target)
    assert_unharmed(before, after)
    assert roles(after, "shared") == ["namesake"]
    assert roles(after, "shared (2)") == ["one", "two"]
    assert sorted(after.versions) == ["net (2)/1", "net (2)/3", "net/1"]
    assert after.models["net (2)"]["aliases"] == {"champion": "3", "theirs-alone": "1"}
    renamed = [loss.what for loss in report.losses if "named" in loss.what]
    assert renamed == [
        "it is named 'shared (2)' at the target",
        "it is named 'net (2)' at the target",
    ]


def test_fail(archive: str, target: str) -> None:
    before = rows_of(target)

    with pytest.raises(ConflictError, match="shared"):
        unpack(archive, tracking_uri=target, on_conflict="fail")

    assert rows_of(target) == before


def test_fail_for_a_model_alone(archive: str, sqlite_uri: str) -> None:
    """The model comes last in the archive, yet nothing before it is written."""
    MlflowClient(sqlite_uri, sqlite_uri).create_registered_model("net")
    before = rows_of(sqlite_uri)

    with pytest.raises(ConflictError, match="net"):
        unpack(archive, tracking_uri=sqlite_uri, on_conflict="fail")

    assert rows_of(sqlite_uri) == before


@pytest.mark.parametrize("first", ["merge", "skip", "rename"])
@pytest.mark.parametrize("second", ["merge", "skip", "rename", "fail"])
def test_again_changes_nothing(archive: str, target: str, first: str, second: str) -> None:
    unpack(archive, tracking_uri=target, on_conflict=first)
    before = rows_of(target)
    if first == "skip" and second != "skip":
        pytest.skip("what was left out comes with another policy")

    report = unpack(archive, tracking_uri=target, on_conflict=second)

    assert_count_law(report)
    assert {c.written for c in report.counts.values()} == {0}
    assert rows_of(target) == before


@pytest.mark.parametrize("policy", ["merge", "skip", "rename", "fail"])
def test_a_deleted_experiment_of_the_same_name(archive: str, target: str, policy: str) -> None:
    client = MlflowClient(target, target)
    client.delete_experiment(client.get_experiment_by_name("shared").experiment_id)
    before, rows = snapshot(target), rows_of(target)
    if policy == "fail":
        with pytest.raises(ConflictError, match="shared"):
            unpack(archive, tracking_uri=target, on_conflict=policy)
        assert rows_of(target) == rows
        return

    report = unpack(archive, tracking_uri=target, on_conflict=policy)

    assert_count_law(report)
    after = snapshot(target)
    assert_unharmed(before, after, may_grow=True)
    assert roles(after, "shared") == ["namesake"]
    assert roles(after, "only here") == ["three"]
    assert report.ok == (policy != "merge")
    if policy == "merge":
        # What belongs to it did not come either, each by its own id.
        assert [f.id for f in report.failures if f.kind is Kind.EXPERIMENT] == ["shared"]
        assert {f.kind for f in report.failures} == {
            Kind.EXPERIMENT,
            Kind.RUN,
            Kind.MODEL_VERSION,
        }
        assert report.counts[Kind.RUN].failed == 2
        # The versions wait for their runs, so that they come with their files.
        assert report.counts[Kind.MODEL_VERSION].failed == 2
    assert ("shared (2)" in after.experiments) == (policy == "rename")


def test_all_into_one_experiment(archive: str, target: str) -> None:
    before = snapshot(target)

    report = unpack(archive, tracking_uri=target, experiment_name="together")

    assert report.ok
    assert_count_law(report)
    after = snapshot(target)
    assert_unharmed(before, after, may_grow=True)
    assert roles(after, "together") == ["one", "three", "two"]
    rows = rows_of(target)
    assert unpack(archive, tracking_uri=target, experiment_name="together").ok
    assert rows_of(target) == rows


def test_other_names_from_a_file(archive: str, target: str, tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"experiments": {"shared": "mine"}, "models": {"net": "my net"}}))
    before = snapshot(target)
    options: dict[str, Any] = {"rename": Rename.from_file(str(names)), "on_conflict": "fail"}

    report = unpack(archive, tracking_uri=target, **options)

    assert report.ok
    after = snapshot(target)
    assert_unharmed(before, after)
    assert roles(after, "mine") == ["one", "two"]
    assert sorted(after.versions) == ["my net/1", "my net/3", "net/1"]
    rows = rows_of(target)
    assert unpack(archive, tracking_uri=target, **options).ok
    assert rows_of(target) == rows


def test_two_sources_with_the_same_names(
    archive: str, sqlite_uri: str, make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    """Run 1 of experiment 1 exists on every server: only its own copy is taken for it."""
    other = make_sqlite()
    client = MlflowClient(other, other)
    made = Seeded(experiments={"shared": client.create_experiment("shared")})
    new_run(client, made, "of the other", made.experiments["shared"])
    client.create_registered_model("net")
    second = str(tmp_path / "other.tar.zst")
    pack(second, tracking_uri=other)
    unpack(archive, tracking_uri=sqlite_uri)
    before = snapshot(sqlite_uri)

    report = unpack(second, tracking_uri=sqlite_uri)

    assert report.ok
    after = snapshot(sqlite_uri)
    assert_unharmed(before, after)
    assert roles(after, "shared") == ["of the other", "one", "two"]


def test_the_default_experiment_of_both(
    sqlite_uri: str, make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    """Every deployment has one: an unused one takes the source's runs, a used one is a namesake."""
    source = make_sqlite()
    client = MlflowClient(source, source)
    made = Seeded()
    new_run(client, made, "in default", "0")
    client.set_experiment_tag("0", "team", "source")
    archive = str(tmp_path / "a.tar.zst")
    pack(archive, tracking_uri=source)

    report = unpack(archive, tracking_uri=sqlite_uri, on_conflict="fail")

    assert report.ok
    after = snapshot(sqlite_uri)
    assert roles(after, "Default") == ["in default"]
    assert after.experiments["Default"]["tags"]["team"] == "source"
    assert ORIGIN in after.experiments["Default"]["tags"]
    used = make_sqlite()
    new_run(MlflowClient(used, used), Seeded(), "namesake", "0")
    with pytest.raises(ConflictError, match="Default"):
        unpack(archive, tracking_uri=used, on_conflict="fail")
    assert unpack(archive, tracking_uri=used).ok
    assert roles(snapshot(used), "Default") == ["in default", "namesake"]


def test_strict_stops(archive: str, target: str) -> None:
    client = MlflowClient(target, target)
    client.delete_experiment(client.get_experiment_by_name("shared").experiment_id)

    with pytest.raises(PartialTransferError) as caught:
        unpack(archive, tracking_uri=target, strict=True)

    assert [failure.id for failure in caught.value.report.failures] == ["shared"]


def test_a_dry_run_says_the_same_and_writes_nothing(archive: str, target: str) -> None:
    rows = rows_of(target)

    dry = unpack(archive, tracking_uri=target, dry_run=True)

    assert rows_of(target) == rows
    assert dry.dry_run
    assert_count_law(dry)
    wet = unpack(archive, tracking_uri=target)
    assert {k: (c.found, c.written) for k, c in dry.counts.items()} == {
        k: (c.found, c.written) for k, c in wet.counts.items()
    }


@pytest.mark.parametrize("preserve_ids", [True, False])
@pytest.mark.parametrize("policy", list(OnConflict))
def test_a_default_experiment_that_nobody_used_is_nobodys_namesake(
    tmp_path: Path, policy: OnConflict, *, preserve_ids: bool
) -> None:
    uris = []
    for name in ("source", "target"):
        (tmp_path / name).mkdir()
        new_sqlite_database(tmp_path / name / "mlflow.db")
        uris.append(f"sqlite:///{tmp_path}/{name}/mlflow.db")
    MlflowClient(uris[0]).create_experiment("used", str(tmp_path / "source"))
    client = MlflowClient(uris[1])
    run_id = client.create_run("0").info.run_id
    before = client.get_experiment("0")

    for _ in range(2):
        report = copy(*uris, on_conflict=policy, preserve_ids=preserve_ids)
        assert (report.failures, report.counts[Kind.EXPERIMENT].found) == ([], 2)
        assert not any(loss.id == "Default" for loss in report.losses)

    experiments = client.search_experiments()
    assert {e.name for e in experiments} == {"Default", "used"}
    assert dict(client.get_experiment("0")) == dict(before)
    assert [r.info.run_id for r in client.search_runs(["0"])] == [run_id]

    MlflowClient(uris[0]).create_run("0")
    if policy is OnConflict.FAIL:
        with pytest.raises(ConflictError, match="Default"):
            copy(*uris, on_conflict=policy, preserve_ids=preserve_ids)
