"""What one module takes away at a source is what was named, in rows and files, and no more."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from mlflow import MlflowClient

from mlflow_exim_plugin.errors import ConflictError, NotFoundError, ServerError, UsageError
from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin.host.removal.runs import KeptElsewhere, Removal
from mlflow_exim_plugin.host.removal.seen import SeenUses
from mlflow_exim_plugin.host.removal.uses import in_use
from mlflow_exim_plugin.operations.ends import open_source
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.objects import Failure, Loss, Unpacked
from tests.databases import rows_of_tables
from tests.depth import one_of
from tests.old_runs import STEPS, seed_old_runs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import MakeServer
    from tests.integration.retention.conftest import OldStore

pytestmark = pytest.mark.integration

PLACE = "s3://audit/mlflow/snapshots/00000001.json"


@contextlib.contextmanager
def removal_at(uri: str) -> Iterator[Removal]:
    with Host(uri, create=True) as host:
        yield Removal(host)


def rows(uri: str) -> set[tuple[str, str]]:
    return {(table, repr(row)) for table, found in rows_of_tables(uri).items() for row in found}


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def change(uri: str, statement: str, **values: str) -> None:
    engine = sqlalchemy.create_engine(uri)
    with engine.begin() as connection:
        assert connection.execute(sqlalchemy.text(statement), values).rowcount
    engine.dispose()


def seen_uses(uri: str, leaving: list[str]) -> dict[str, list[str]]:
    seen = SeenUses()
    with open_source(uri, contents=False) as opened:
        for item in opened.names.stream(Selection(artifacts=False)):
            assert not isinstance(item, Failure | Loss)
            if not isinstance(item, Unpacked):
                seen.see(item)
    return in_use(seen.uses(), leaving)


def test_who_uses_a_run_is_told_by_its_rows_and_by_its_server_alike(
    old_store: OldStore, make_server: MakeServer
) -> None:
    old, database_uri = old_store.made, old_store.uri
    leaving = [run for role, run in old.runs.items() if role != "young"]
    with removal_at(database_uri) as removal:
        by_rows = in_use(removal.uses(leaving), leaving)
    server = make_server(backend_store_uri=database_uri)

    by_server = seen_uses(server.url, leaving)

    assert {*by_rows} == {old.runs[role] for role in old.used}
    assert by_rows.keys() == by_server.keys()
    for role, word in old.used.items():
        assert old.runs.get(word, word) in by_rows[old.runs[role]][0]
        assert old.runs.get(word, word) in by_server[old.runs[role]][0]
    # ... and what uses it may go with it.
    assert not {old.runs["sweep"], old.runs["trial"]} & {*by_rows}


def test_whoever_is_used_by_what_has_to_stay_stays(old_store: OldStore) -> None:
    old, database_uri = old_store.made, old_store.uri
    client = MlflowClient(database_uri, database_uri)
    client.create_model_version("registered", f"runs:/{old.runs['trial']}/m", old.runs["trial"])
    leaving = list(old.runs.values())

    with removal_at(database_uri) as removal:
        stays = in_use(removal.uses(leaving), leaving)

    assert "version 3" in stays[old.runs["trial"]][0]
    assert old.runs["trial"] in stays[old.runs["sweep"]][0]
    assert old.runs["parent of young"] not in stays


@pytest.mark.parametrize("role", one_of("with model", "plain", "trial"))
def test_a_purge_frees_the_rows_and_files_of_one_run_and_no_others(
    each_store: OldStore, role: str
) -> None:
    old, database_uri = each_store.made, each_store.uri
    run_id = old.runs[role]
    own = {run_id}
    if role == "with model":
        own |= {old.models["free"], old.traces["own"]}
    before, files_before = rows(database_uri), files(each_store.files)
    inputs = {
        row["input_uuid"]
        for row in rows_of_tables(database_uri)["inputs"]
        if run_id in (row["source_id"], row["destination_id"])
    }

    with removal_at(database_uri) as removal:
        state = removal.state_of(run_id)
        removal.purge(run_id, PLACE, [], state)

    after = rows(database_uri)
    assert after - before == set()
    gone = before - after
    assert all(any(name in row for name in own | inputs) for _, row in gone)
    assert not any(name in row for _, row in after for name in own | inputs)
    left = files(each_store.files)
    assert left.items() <= files_before.items()
    assert {*files_before} - {*left} == {
        path for path in files_before if any(name in path.split("/") for name in own)
    }
    assert len({*files_before} - {*left}) >= 2
    client = MlflowClient(database_uri, database_uri)
    assert client.get_run(old.runs["young"]).inputs.model_inputs


def test_what_is_in_use_is_purged_by_nobody(old_store: OldStore) -> None:
    old, database_uri = old_store.made, old_store.uri
    before, files_before = rows(database_uri), files(old_store.files)

    with removal_at(database_uri) as removal:
        for role, word in old.used.items():
            with pytest.raises(ConflictError, match=old.runs.get(word, word)):
                removal.purge(old.runs[role], PLACE, [])
        with pytest.raises(NotFoundError, match="no run"):
            removal.purge("0" * 32, PLACE, [])

    assert rows(database_uri) == before
    assert files(old_store.files) == files_before


def test_a_run_that_changed_stays(old_store: OldStore) -> None:
    old, database_uri = old_store.made, old_store.uri
    client = MlflowClient(database_uri, database_uri)
    run_id = old.runs["running"]

    changes: list[Callable[[], object]] = [
        lambda: client.log_metric(run_id, "late", 1.0),
        lambda: client.set_tag(run_id, "late", "1"),
        lambda: client.log_param(run_id, "late", "1"),
        lambda: client.set_terminated(run_id),
    ]
    for change in changes:
        with removal_at(database_uri) as removal:
            state = removal.state_of(run_id)
            change()
            before, files_before = rows(database_uri), files(old_store.files)
            with pytest.raises(ConflictError, match="changed"):
                removal.purge(run_id, PLACE, [], state)
            with pytest.raises(ConflictError, match="changed"):
                removal.hollow(run_id, PLACE, [], state)
            with pytest.raises(ConflictError, match="changed"):
                removal.hide(run_id, {"mlflow.exim.archived": PLACE}, state)
        assert rows(database_uri) == before
        assert files(old_store.files) == files_before


def test_a_hidden_run_says_where_it_is_and_keeps_what_its_assessments_say(
    old_store: OldStore,
) -> None:
    old, database_uri = old_store.made, old_store.uri
    run_id = old.runs["with model"]
    before = rows(database_uri)

    with removal_at(database_uri) as removal:
        removal.hide(run_id, {"mlflow.exim.archived": PLACE}, removal.state_of(run_id))
        # ... and whoever goes on after a crash does it again.
        removal.hide(run_id, {"mlflow.exim.archived": PLACE})

    changed = before ^ rows(database_uri)
    assert {table for table, _ in changed} == {"runs", "tags"}
    run = MlflowClient(database_uri, database_uri).get_run(run_id)
    assert run.info.lifecycle_stage == "deleted"
    assert run.data.tags["mlflow.exim.archived"] == PLACE
    with removal_at(database_uri) as removal:
        removal.show(run_id)
        removal.unmark(run_id)
    assert {table for table, _ in before ^ rows(database_uri)} <= {"runs"}  # deleted_time
    assert MlflowClient(database_uri).get_run(run_id).info.lifecycle_stage == "active"


def test_a_hollow_run_is_listed_with_all_but_its_histories_and_files(
    each_store: OldStore,
) -> None:
    old, database_uri = each_store.made, each_store.uri
    run_id = old.runs["with model"]
    client = MlflowClient(database_uri, database_uri)
    told = client.get_run(run_id).to_dictionary()
    before, files_before = rows(database_uri), files(each_store.files)

    with removal_at(database_uri) as removal:
        count = removal.hollow(run_id, PLACE, [], removal.state_of(run_id))

    assert count == 2 * STEPS
    gone = before - rows(database_uri)
    assert {table for table, _ in gone} == {"metrics"}
    assert len(gone) == count
    told["data"]["tags"]["mlflow.exim.hollow"] = PLACE
    assert client.get_run(run_id).to_dictionary() == told
    left = files(each_store.files)
    assert {*files_before} - {*left} == {path for path in files_before if run_id in path.split("/")}
    assert any(old.models["free"] in path for path in left)


def experiment_rows(uri: str) -> dict[str, list[dict[str, Any]]]:
    return {
        table: [{k: v for k, v in row.items() if k != "experiment_id"} for row in found]
        for table, found in rows_of_tables(uri).items()
        if table not in {"inputs", "datasets", "experiments"}
    }


def test_a_run_is_given_to_another_experiment_with_all_that_is_its(
    each_store: OldStore,
) -> None:
    old, database_uri = each_store.made, each_store.uri
    run_id = old.runs["with model"]
    client = MlflowClient(database_uri, database_uri)
    into = client.create_experiment("into", f"{each_store.files}/into")
    before, files_before = experiment_rows(database_uri), files(each_store.files)
    told = client.get_run(run_id).to_dictionary()

    with removal_at(database_uri) as removal:
        removal.put_into(run_id, into)

    told["info"]["experiment_id"] = into
    assert client.get_run(run_id).to_dictionary() == told
    assert experiment_rows(database_uri) == before
    assert files(each_store.files) == files_before
    (model,) = client.search_logged_models([into])
    assert model.model_id == old.models["free"]
    assert model.params == {"depth": "3"}
    (trace,) = client.search_traces(locations=[into])
    assert trace.info.trace_id == old.traces["own"]
    assert [s.name for s in trace.data.spans] == ["own"]
    assert [run.info.run_id for run in client.search_runs([into])] == [run_id]
    left = {run.info.run_id for run in client.search_runs([old.experiment])}
    assert run_id not in left
    assert len(left) == len(old.runs) - 2
    assert old.models["free"] not in {
        m.model_id for m in client.search_logged_models([old.experiment])
    }
    engine = sqlalchemy.create_engine(database_uri)
    with engine.connect() as connection:
        found = connection.execute(sqlalchemy.text("SELECT experiment_id FROM datasets"))
        assert sorted(str(row[0]) for row in found) == sorted({old.experiment, "2", into})
    engine.dispose()
    with removal_at(database_uri) as removal:
        removal.put_into(run_id, old.experiment)
        client.delete_experiment(into)
        with pytest.raises(ConflictError, match="deleted"):
            removal.put_into(run_id, into)
        with pytest.raises(NotFoundError, match="no experiment"):
            removal.put_into(run_id, "77")


def test_a_folder_that_is_not_the_runs_own_is_left_alone(old_sqlite: OldStore) -> None:
    old, sqlite_uri = old_sqlite.made, old_sqlite.uri
    for role, place in (("plain", "shared"), ("elsewhere", old.runs["trial"] + "/artifacts/x")):
        to, run_id = f"{old_sqlite.files}/old/{place}", old.runs[role]
        moved = "UPDATE runs SET artifact_uri = :to WHERE run_uuid = :id"
        change(sqlite_uri, moved, to=to, id=run_id)
    before = rows(sqlite_uri)

    with removal_at(sqlite_uri) as removal:
        with pytest.raises(ConflictError, match="no folder of its own"):
            removal.purge(old.runs["plain"], PLACE, [])
        with pytest.raises(ConflictError, match="lie in its folder"):
            removal.purge(old.runs["trial"], PLACE, [])
        with pytest.raises(ConflictError, match="no folder of its own"):
            removal.hollow(old.runs["plain"], PLACE, [])

    assert rows(sqlite_uri) == before


@pytest.mark.parametrize("what", ["run", "logged model", "experiment", "trace", "version"])
@pytest.mark.parametrize("spelt", ["{}", "file://{}", "{}/../artifacts"])
def test_whose_files_lie_in_the_folder_of_a_run_keeps_it(
    old_sqlite: OldStore, what: str, spelt: str
) -> None:
    old, uri = old_sqlite.made, old_sqlite.uri
    client = MlflowClient(uri, uri)
    run_id = old.runs["plain"]
    root = client.get_run(run_id).info.artifact_uri
    where = f"{spelt.format(root)}/{{}}/artifacts"
    table, column, key, other = {
        "run": ("runs", "artifact_uri", "run_uuid", old.runs["young"]),
        "logged model": ("logged_models", "artifact_location", "model_id", old.models["tested"]),
        "experiment": ("experiments", "artifact_location", "experiment_id", "0"),
        "trace": ("trace_tags", "value", "request_id", next(iter(old.traces.values()))),
        "version": ("model_versions", "source", "name", "registered"),
    }[what]
    change(
        uri,
        f"UPDATE {table} SET {column} = :place WHERE {key} = :id"
        + (" AND key = 'mlflow.artifactLocation'" if what == "trace" else ""),
        place=where.format(other),
        id=other,
    )
    before = rows(uri), files(old_sqlite.files)

    with removal_at(uri) as removal:
        assert in_use(removal.uses([run_id]), [run_id]).keys() == {run_id}
        for take in (removal.purge, removal.hollow):
            with pytest.raises(ConflictError, match="is in use"):
                take(run_id, PLACE, [])

    assert (rows(uri), files(old_sqlite.files)) == before


def test_a_folder_is_freed_only_where_it_really_is_the_runs_own(old_sqlite: OldStore) -> None:
    old, uri = old_sqlite.made, old_sqlite.uri
    client = MlflowClient(uri, uri)
    with_model, plain, trial = (old.runs[role] for role in ("with model", "plain", "trial"))
    shared = old_sqlite.files / "shared"
    shared.mkdir()
    (shared / "of all.txt").write_text("of all")
    own = Path(client.get_run(plain).info.artifact_uri)
    shutil.rmtree(own)
    own.symlink_to(shared, target_is_directory=True)
    outside = f"{client.get_run(trial).info.artifact_uri}/../../../shared"
    change(uri, "UPDATE runs SET artifact_uri = :to WHERE run_uuid = :id", to=outside, id=trial)
    inside = f"{client.get_run(with_model).info.artifact_uri}/{old.models['free']}"
    moved = "UPDATE logged_models SET artifact_location = :to WHERE model_id = :id"
    change(uri, moved, to=inside, id=old.models["free"])
    before = files(old_sqlite.files)

    with removal_at(uri) as removal:
        with pytest.raises(ServerError, match="no folder of its own"):
            removal.purge(plain, PLACE, [])
        with pytest.raises(ConflictError, match="no folder of its own"):
            removal.purge(trial, PLACE, [])
        with pytest.raises(ConflictError, match="which stays, lie in its folder"):
            removal.hollow(with_model, PLACE, [])

    assert files(old_sqlite.files) == before


def test_a_file_that_nothing_keeps_lets_nothing_go(old_sqlite: OldStore) -> None:
    old, uri = old_sqlite.made, old_sqlite.uri
    before = rows(uri), files(old_sqlite.files)
    run_id = old.runs["plain"]
    deep = (run_id, "deep/file.txt", len("of plain" * 50))

    with removal_at(uri) as removal:
        for take in (removal.purge, removal.hollow):
            with pytest.raises(ServerError, match=r"has a new file top\.txt"):
                take(run_id, PLACE, [], None, KeptElsewhere({run_id}, {deep}))

    assert (rows(uri), files(old_sqlite.files)) == before


def test_a_server_hides_runs_and_frees_nothing(make_server: MakeServer) -> None:
    server = make_server()
    old = seed_old_runs(server.url)
    run_id = old.runs["plain"]

    with removal_at(server.url) as removal:
        state = removal.state_of(run_id)
        MlflowClient(server.url).set_tag(run_id, "late", "1")
        with pytest.raises(ConflictError, match="changed"):
            removal.hide(run_id, {"mlflow.exim.archived": PLACE}, state)
        removal.hide(run_id, {"mlflow.exim.archived": PLACE}, removal.state_of(run_id))
        assert removal.marks_of(run_id) == {"mlflow.exim.archived": PLACE}
        assert removal.marks_of("0" * 32) is None
        with pytest.raises(UsageError, match="only hides"):
            removal.purge(run_id, PLACE, [])
        with pytest.raises(UsageError, match="only hides"):
            removal.hollow(run_id, PLACE, [])

    run = MlflowClient(server.url).get_run(run_id)
    assert run.info.lifecycle_stage == "deleted"
    assert run.data.tags["mlflow.exim.archived"] == PLACE
