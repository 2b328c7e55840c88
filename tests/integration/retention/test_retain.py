"""Old runs leave a deployment once a set is proven to have them, and come back from it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from mlflow_exim_plugin import diff, open_archive, pack, restore, retain
from mlflow_exim_plugin.cli.main import exim
from mlflow_exim_plugin.errors import NotFoundError, UsageError
from tests.integration.retention.test_removal import files, rows
from tests.old_runs import STEPS, OldRuns, seed_old_runs

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.report import Report
    from tests.conftest import Bucket, MakeServer
    from tests.integration.retention.conftest import OldStore

pytestmark = pytest.mark.integration

POLICY = """
name: old runs
rules:
- name: long ago
  older_than: 400d
"""


@pytest.fixture
def policy(tmp_path: Path) -> str:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return str(path)


@pytest.fixture
def whole(old_store: OldStore, tmp_path: Path) -> str:
    """An archive of the database as it was."""
    archive = str(tmp_path / "whole.tar.zst")
    assert pack(archive, tracking_uri=old_store.uri).ok
    return archive


def run_ids(made: OldRuns) -> list[str]:
    """Return the runs that go."""
    return sorted(made.runs[role] for role in made.free)


def assert_planned(result: Any, made: OldRuns, outcome: str) -> None:
    by_id = {run.run_id: run for run in result.runs}
    assert sorted(run for run, of in by_id.items() if of.outcome == outcome) == run_ids(made)
    stays = {made.runs[role]: made.runs.get(word, word) for role, word in made.used.items()}
    stays[made.runs["held"]] = "case 7"
    assert {run for run, of in by_id.items() if of.outcome == "stays"} == {*stays}
    for run_id, word in stays.items():
        assert word in " ".join(by_id[run_id].reasons)
    assert {of.rule for of in by_id.values()} == {"long ago"}


def test_a_dry_run_tells_each_run_and_writes_nothing(
    old_store: OldStore, policy: str, tmp_path: Path
) -> None:
    before, files_before = rows(old_store.uri), files(old_store.files)

    result = retain(policy, str(tmp_path / "set"), tracking_uri=old_store.uri)

    assert (result.ok, result.dry_run, result.snapshot) == (True, True, None)
    assert_planned(result, old_store.made, "goes")
    assert rows(old_store.uri) == before
    assert files(old_store.files) == files_before
    assert not (tmp_path / "set").exists()


def test_runs_are_packed_proven_and_deleted_and_come_back(
    old_store: OldStore, policy: str, whole: str, tmp_path: Path
) -> None:
    made, uri, kept = old_store.made, old_store.uri, str(tmp_path / "set")
    before, files_before = rows(uri), files(old_store.files)

    result = retain(policy, kept, tracking_uri=uri, apply=True)

    assert_planned(result, made, "archived")
    assert result.snapshot == 1
    changed = before ^ rows(uri)
    assert {table for table, _ in changed} == {"runs", "tags"}
    assert files(old_store.files) == files_before
    client = MlflowClient(uri, uri)
    for run_id in run_ids(made):
        run = client.get_run(run_id)
        assert run.info.lifecycle_stage == "deleted"
        assert run.data.tags["mlflow.exim.archived"] == f"{kept}/snapshots/00000001.json"
    with open_archive(kept) as archive:
        assert sorted(archive.run_ids()) == run_ids(made)
    assert diff(whole, kept, runs=run_ids(made), rules="exact").equal
    # ... and there is nothing more to do.
    again = retain(policy, kept, tracking_uri=uri, apply=True)
    assert (again.ok, again.of("archived"), again.snapshot) == (True, [], None)

    for run_id in run_ids(made):
        assert restore(run_id, kept, tracking_uri=uri).ok
    assert diff(whole, uri, rules="moved").equal
    assert {table for table, _ in before ^ rows(uri)} <= {"runs"}  # deleted_time


def test_hollow_runs_stay_listed_and_get_their_histories_back(
    old_store: OldStore, policy: str, whole: str, tmp_path: Path
) -> None:
    made, uri, kept = old_store.made, old_store.uri, str(tmp_path / "set")
    client = MlflowClient(uri, uri)
    before = {run_id: client.get_run(run_id).to_dictionary() for run_id in run_ids(made)}
    before_rows, files_before = rows(uri), files(old_store.files)

    result = retain(policy, kept, tracking_uri=uri, apply=True, hollow=True)

    assert_planned(result, made, "hollowed")
    gone = before_rows - rows(uri)
    assert {table for table, _ in gone} == {"metrics"}
    assert len(gone) == 2 * STEPS * len(made.free)
    place = f"{kept}/snapshots/00000001.json"
    for run_id, told in before.items():
        told["data"]["tags"]["mlflow.exim.hollow"] = place
        assert client.get_run(run_id).to_dictionary() == told
    left = files(old_store.files)
    assert {*files_before} - {*left} == {
        path for path in files_before if {*run_ids(made)} & {*path.split("/")}
    }
    # A pack of all says what is hollow, and the set keeps what it has of it.
    packed = pack(tracking_uri=uri, set=kept)
    assert packed.ok
    assert diff(whole, kept, runs=run_ids(made), rules="exact").equal
    again = retain(policy, kept, tracking_uri=uri, apply=True, hollow=True)
    assert again.of("hollowed") == []
    assert {place in " ".join(r.reasons) for r in again.runs if r.run_id in before} == {True}
    # What is noted at a run while it is hollow stays.
    noted = made.runs["plain"]
    client.set_tag(noted, "note", "seen again")

    for run_id in run_ids(made):
        if run_id != noted:
            assert restore(run_id, kept, tracking_uri=uri).ok
    assert diff(whole, uri, rules="moved", ignore=["run.data.tags.note"]).total == 4
    client.set_tag(noted, "note", "of plain")
    assert restore(noted, kept, tracking_uri=uri).ok
    assert rows(uri) == before_rows
    assert files(old_store.files) == files_before


def test_a_purge_frees_rows_and_files_and_restore_writes_them_anew(
    old_store: OldStore, policy: str, whole: str, tmp_path: Path
) -> None:
    made, uri, kept = old_store.made, old_store.uri, str(tmp_path / "set")
    before, files_before = rows(uri), files(old_store.files)
    own = {*run_ids(made), made.models["free"], made.traces["own"]}

    result = retain(policy, kept, tracking_uri=uri, apply=True, purge=True)

    assert_planned(result, made, "purged")
    after = rows(uri)
    assert after <= before
    assert not any(name in row for _, row in after for name in own)
    left = files(old_store.files)
    assert {*files_before} - {*left} == {p for p in files_before if own & {*p.split("/")}}
    assert left.items() <= files_before.items()
    stays = [run for run in made.runs.values() if run not in run_ids(made)]
    assert diff(whole, uri, runs=stays, rules="exact", ignore=["trace"]).equal
    events = [json.loads(p.read_text()) for p in sorted(Path(kept, "log").iterdir())]
    assert [event["event"] for event in events] == ["retain", "retained"]
    assert sorted(run["run_id"] for run in events[0]["runs"]) == run_ids(made)
    assert {run["outcome"] for run in events[1]["runs"]} == {"purged"}
    # A later snapshot does not have them any more, and the log says which one has.
    assert pack(tracking_uri=uri, set=kept).ok

    for run_id in run_ids(made):
        assert restore(run_id, kept, tracking_uri=uri).ok
    assert diff(whole, uri, rules="moved").equal


def test_a_server_hides_the_runs_and_its_database_frees_them(
    make_server: MakeServer, policy: str, tmp_path: Path
) -> None:
    server = make_server()
    made = seed_old_runs(server.url)
    whole, kept = str(tmp_path / "whole.tar.zst"), str(tmp_path / "set")
    assert pack(whole, tracking_uri=server.url).ok
    with pytest.raises(UsageError, match="only hides runs"):
        retain(policy, kept, tracking_uri=server.url, apply=True, purge=True)

    result = retain(policy, kept, tracking_uri=server.url, apply=True)

    assert_planned(result, made, "archived")
    client = MlflowClient(server.url)
    for run_id in run_ids(made):
        assert client.get_run(run_id).info.lifecycle_stage == "deleted"
    assert diff(whole, kept, runs=run_ids(made), rules="exact").equal
    run_id = made.runs["plain"]
    assert restore(run_id, kept, tracking_uri=server.url).ok
    assert client.get_run(run_id).info.lifecycle_stage == "active"
    assert diff(whole, server.url, runs=[run_id], rules="exact").equal


def test_what_the_set_does_not_have_stays(
    old_sqlite: OldStore, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the pack and the proof a file of one run changes, and an archive is damaged."""
    from mlflow_exim_plugin.operations.retention import retain as module

    made, uri = old_sqlite.made, old_sqlite.uri
    run_id = made.runs["plain"]
    (changed,) = old_sqlite.files.rglob(f"{run_id}/artifacts/top.txt")

    def then_changes(**how: Any) -> Report:
        report = pack(**how)
        changed.write_text("other")
        return report

    monkeypatch.setattr(module, "pack", then_changes)
    result = retain(policy, str(tmp_path / "set"), tracking_uri=uri, apply=True, purge=True)

    assert not result.ok
    assert [run.run_id for run in result.of("failed")] == [run_id]
    assert "top.txt" in result.of("failed")[0].reasons[0]
    assert len(result.of("purged")) == len(made.free) - 1
    assert MlflowClient(uri).get_run(run_id).info.lifecycle_stage == "active"

    def then_damages(**how: Any) -> Report:
        report = pack(**how)
        assert report.snapshot
        (path,) = [one["path"] for one in report.snapshot["packs"]]
        archive = tmp_path / "set" / path
        data = bytearray(archive.read_bytes())
        data[len(data) // 3] ^= 1
        archive.write_bytes(data)
        return report

    monkeypatch.setattr(module, "pack", then_damages)
    result = retain(policy, str(tmp_path / "set"), tracking_uri=uri, apply=True, purge=True)
    assert [run.run_id for run in result.of("failed")] == [run_id]
    assert "damage" in result.of("failed")[0].reasons[0]
    assert MlflowClient(uri).get_run(run_id).info.lifecycle_stage == "active"


def test_the_command_tells_people_programs_and_browsers(
    old_sqlite: OldStore, policy: str, tmp_path: Path
) -> None:
    kept, uri = str(tmp_path / "set"), old_sqlite.uri
    arguments = ["retain", policy, "--set", kept, "--tracking-uri", uri]

    text = CliRunner().invoke(exim, arguments)
    as_json = CliRunner().invoke(exim, [*arguments, "--output", "json"])
    page = CliRunner().invoke(exim, [*arguments, "--output", "html", "--hollow", "--apply"])

    assert (text.exit_code, as_json.exit_code, page.exit_code) == (0, 0, 0)
    plain = old_sqlite.made.runs["plain"]
    assert f"goes {plain} 'plain' of 'old' by long ago" in text.stdout
    assert "Nothing was written" in text.stdout
    told = json.loads(as_json.stdout)
    assert told["counts"]["goes"] == len(old_sqlite.made.free)
    assert told["dry_run"]
    assert "<h1" in page.stdout
    assert "hollowed" in page.stdout
    back = ["restore", plain, "--set", kept, "--tracking-uri", uri]
    restored = CliRunner().invoke(exim, back)
    assert restored.exit_code == 0, restored.output
    assert len(MlflowClient(uri).get_metric_history(plain, "loss")) == STEPS


def test_a_run_that_cannot_be_read_stays_and_keeps_nobody_back(
    old_sqlite: OldStore, policy: str, tmp_path: Path
) -> None:
    made, uri, kept = old_sqlite.made, old_sqlite.uri, str(tmp_path / "set")
    torn = made.runs["plain"]
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        database.execute("UPDATE runs SET start_time = 'long ago' WHERE run_uuid = ?", [torn])
        database.commit()
    before = files(old_sqlite.files)

    result = retain(policy, kept, tracking_uri=uri, apply=True, purge=True)

    assert not result.ok
    assert [run.run_id for run in result.of("failed")] == [torn]
    assert f"run {torn} cannot be read" in result.of("failed")[0].reasons[0]
    gone = sorted(run.run_id for run in result.of("purged"))
    assert gone == [run_id for run_id in run_ids(made) if run_id != torn]
    left = {path: data for path, data in before.items() if torn in path}
    assert left
    assert left.items() <= files(old_sqlite.files).items()
    assert any(torn in row for table, row in rows(uri) if table == "metrics")
    told = CliRunner().invoke(exim, ["retain", policy, "--set", kept, "--tracking-uri", uri])
    assert told.exit_code == 3
    assert f"failed {torn}: run {torn} cannot be read" in told.output


def test_what_cannot_be_restored_is_said_in_one_line(
    old_sqlite: OldStore, policy: str, tmp_path: Path
) -> None:
    uri, kept = old_sqlite.uri, str(tmp_path / "set")
    with pytest.raises(NotFoundError):
        restore("0" * 32, kept, tracking_uri=uri)
    assert retain(policy, kept, tracking_uri=uri, apply=True).ok
    with pytest.raises(NotFoundError, match="no run matches"):
        restore("0" * 32, kept, tracking_uri=uri)


def test_what_was_deleted_before_is_freed_later(old_sqlite: OldStore, tmp_path: Path) -> None:
    made, uri, kept = old_sqlite.made, old_sqlite.uri, str(tmp_path / "set")
    path = tmp_path / "any.yaml"
    path.write_text("rules: [{older_than: 400d, lifecycle_stage: any}]")
    assert len(retain(str(path), kept, tracking_uri=uri, apply=True).of("archived")) == 5

    again = retain(str(path), kept, tracking_uri=uri, apply=True)
    freed = retain(str(path), kept, tracking_uri=uri, apply=True, purge=True)

    assert (again.snapshot, again.of("archived")) == (None, [])
    assert sorted(run.run_id for run in freed.of("purged")) == run_ids(made)
    assert not any(run_id in row for _, row in rows(uri) for run_id in run_ids(made))
    run_id = made.runs["plain"]
    assert restore(run_id, kept, tracking_uri=uri).ok
    assert MlflowClient(uri).get_run(run_id).info.lifecycle_stage == "active"


def test_a_store_locks_what_holds_the_runs(
    old_sqlite: OldStore, policy: str, tmp_path: Path, s3_bucket: Bucket
) -> None:
    import boto3
    from botocore.exceptions import ClientError

    client = boto3.client("s3")
    client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    uri = old_sqlite.uri
    for kept in (str(tmp_path / "set"), f"{s3_bucket.url}/set"):
        with pytest.raises(UsageError, match=r"cannot lock files|without Object Lock"):
            retain(policy, kept, tracking_uri=uri, apply=True, lock_until_ms=4_000_000_000_000)
    assert MlflowClient(uri).get_run(old_sqlite.made.runs["plain"]).info.lifecycle_stage == "active"

    command = ["retain", policy, "--set", "s3://locked/set", "--tracking-uri", uri, "--apply"]
    done = CliRunner().invoke(exim, [*command, "--lock-until", "2096-01-31"])

    assert done.exit_code == 0, done.output
    listed = [entry["Key"] for entry in client.list_objects_v2(Bucket="locked")["Contents"]]
    locked = [key for key in listed if key.startswith(("set/packs/", "set/snapshots/"))]
    assert len(locked) == 2
    for key in locked:
        head = client.head_object(Bucket="locked", Key=key)
        assert head["ObjectLockMode"] == "COMPLIANCE"
        assert head["ObjectLockRetainUntilDate"].year == 2096
        (version,) = client.list_object_versions(Bucket="locked", Prefix=key)["Versions"]
        with pytest.raises(ClientError):
            client.delete_object(Bucket="locked", Key=key, VersionId=version["VersionId"])
    assert restore(old_sqlite.made.runs["plain"], "s3://locked/set", tracking_uri=uri).ok


@pytest.mark.parametrize("how", [{}, {"hollow": True}], ids=["archived", "hollowed"])
def test_what_went_before_keeps_nobody_back(
    old_sqlite: OldStore, policy: str, tmp_path: Path, how: dict[str, Any]
) -> None:
    """As after an attempt that was killed: the child went, its parent did not yet."""
    made, uri, kept = old_sqlite.made, old_sqlite.uri, str(tmp_path / "set")
    child = tmp_path / "child.yaml"
    child.write_text("rules: [{older_than: 400d, tags: {role: trial}}]")
    outcome = "hollowed" if how else "archived"
    first = retain(str(child), kept, tracking_uri=uri, apply=True, **how)
    assert [run.run_id for run in first.of(outcome)] == [made.runs["trial"]]

    second = retain(policy, kept, tracking_uri=uri, apply=True, **how)

    left = {*run_ids(made)} - {made.runs["trial"]}
    assert {run.run_id for run in second.of(outcome)} == left
    # ... but a purge would take the parent of a run that people still see, or can get back.
    if how:
        third = retain(policy, kept, tracking_uri=uri, purge=True)
        assert made.runs["sweep"] in {run.run_id for run in third.of("stays")}
