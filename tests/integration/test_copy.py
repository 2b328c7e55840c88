"""Copy: from one deployment to another, without an archive between them."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from mlflow_exim_plugin import diff, lineage, pack
from mlflow_exim_plugin.cli.main import exim
from mlflow_exim_plugin.errors import ConflictError, NotFoundError, UsageError
from mlflow_exim_plugin.options import Rename, Selection
from mlflow_exim_plugin.schema.objects import Kind
from mlflow_exim_plugin.schema.provenance import ORIGIN
from tests.compare import assert_count_law, assert_same, snapshot
from tests.databases import rows_of_tables
from tests.filled import copy_of_server
from tests.integration.conftest import rows_of
from tests.integration.test_trace_order import read
from tests.integration.test_workspaces import ENABLED, contents
from tests.integration.test_workspaces import fill as fill_workspaces
from tests.new_ids import copy, unpack
from tests.servers import new_sqlite_database, start_server
from tests.trace_seed import seed_traces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_exim_plugin.schema.report import Report
    from tests.conftest import MakeServer
    from tests.servers import Server
    from tests.sources import Source

pytestmark = pytest.mark.integration
WRITTEN_AGAIN = {Kind.METRIC_HISTORY, Kind.ARTIFACT}
"""What is read and compared once more to tell whether its owner changed."""


def assert_all_was_there(report: Report) -> None:
    assert report.ok, report.failures
    assert_count_law(report)
    written = {kind for kind, counts in report.counts.items() if counts.written}
    assert written <= WRITTEN_AGAIN


@pytest.mark.exhaustive
def test_server_to_database_and_again(server_source: Source, sqlite_uri: str) -> None:
    report = copy(server_source.uri, sqlite_uri)

    assert report.failures == []
    assert_count_law(report, server_source.snapshot)
    assert_same(server_source.snapshot, snapshot(sqlite_uri), report)
    result = diff(server_source.uri, sqlite_uri)
    assert result.equal, result.differences[:5]
    assert_all_was_there(copy(server_source.uri, sqlite_uri))
    assert diff(server_source.uri, sqlite_uri).equal


def test_a_copy_knows_what_was_unpacked_and_an_unpack_what_was_copied(
    sqlite_source: Source, sqlite_uri: str
) -> None:
    (run_id, *_) = sqlite_source.made.runs.values()
    one = Selection(runs=(run_id,))
    assert unpack(sqlite_source.archive, tracking_uri=sqlite_uri, selection=one).ok

    before = rows_of(sqlite_source.database)
    report = copy(sqlite_source.uri, sqlite_uri)

    assert rows_of(sqlite_source.database) == before
    assert report.failures == []
    assert_count_law(report)
    assert report.counts[Kind.RUN].skipped >= 1
    assert diff(sqlite_source.uri, sqlite_uri).equal
    # What a copy is marked with is what an archive of the same source says.
    again = unpack(sqlite_source.archive, tracking_uri=sqlite_uri)
    assert again.counts[Kind.RUN].written == 0


def test_a_run_that_went_on_is_completed(
    make_sqlite: Callable[[], str], make_server: MakeServer
) -> None:
    source, server = make_sqlite(), make_server()
    client = MlflowClient(source, source)
    root = Path(source.removeprefix("sqlite:///")).parent / "files"
    experiment = client.create_experiment("goes on", root.as_uri())
    run_id = client.create_run(experiment).info.run_id
    client.log_metric(run_id, "loss", 1.5, timestamp=1, step=0)
    client.log_text(run_id, "", "empty.txt")
    client.log_text(run_id, "first", "note.txt")
    first = copy(source, server.url)
    assert first.ok
    assert first.to_dict()["completed"] == {}
    client.log_metric(run_id, "loss", 0.5, timestamp=2, step=1)
    client.log_text(run_id, "other", "note.txt")
    client.set_terminated(run_id)

    report = copy(source, server.url)

    assert report.ok
    assert report.counts[Kind.RUN].written == 1
    assert report.to_dict()["completed"] == {"run": 1}
    assert diff(source, server.url).equal
    assert_all_was_there(copy(source, server.url))


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("workspaces")
    copy_of_server(folder, fill_workspaces, env=ENABLED)
    with start_server(folder, env=ENABLED) as server:
        yield server


@pytest.mark.exhaustive
def test_each_workspace_goes_into_the_one_of_its_name(
    workspaces: Server, make_server: MakeServer
) -> None:
    target = make_server(env=ENABLED)
    report = copy(workspaces.url, target.url, jobs=8)
    assert report.ok, report.failures
    assert_count_law(report)
    assert contents(target.url) == contents(workspaces.url)
    result = diff(workspaces.url, target.url)
    assert result.equal, result.differences
    assert_all_was_there(copy(workspaces.url, target.url))
    assert "MLFLOW_WORKSPACE" not in os.environ


def test_without_workspaces_the_target_takes_the_default_one(
    workspaces: Server, make_server: MakeServer
) -> None:
    target = make_server()
    report = copy(workspaces.url, target.url)
    assert_count_law(report)
    assert sorted(f.id for f in report.failures) == ["team-a", "team-b"]
    client = MlflowClient(target.url, target.url)
    assert client.get_experiment_by_name("shared name").tags["of"] == "default"


def test_two_hops_are_told_by_the_source_tags(
    make_sqlite: Callable[[], str], make_server: MakeServer, tmp_path: Path
) -> None:
    laptop, staging, production = make_sqlite(), make_server().url, make_sqlite()
    client = MlflowClient(laptop, laptop)
    experiment = client.create_experiment("churn", (tmp_path / "files").as_uri())
    run_id = client.create_run(experiment, run_name="the one").info.run_id
    client.set_tag(run_id, "mlflow.user", "ada")
    client.set_terminated(run_id)

    assert copy(laptop, staging, import_source_tags=True).ok
    assert copy(staging, production, import_source_tags=True, importer="ops").ok

    found = MlflowClient(production, production)
    (run,) = found.search_runs([found.get_experiment_by_name("churn").experiment_id])
    assert run.data.tags["mlflow_exim.run_info.run_id"] == run_id
    assert run.data.tags["mlflow.user"] == "ops"
    (occurrence,) = lineage(production, run_id=run.info.run_id)
    assert [hop.fields["experiment_id"] for hop in occurrence.sources] == [
        experiment,
        MlflowClient(staging).get_experiment_by_name("churn").experiment_id,
    ]


@pytest.mark.parametrize(
    ("database", "preserve_ids"),
    [("postgres_uri", True), ("mariadb_uri", True), ("postgres_uri", False)],
)
def test_a_folder_of_files_goes_into_a_database(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    database: str,
    preserve_ids: bool,
) -> None:
    folder = str(tmp_path / "mlruns")
    with monkeypatch.context() as allowed:
        allowed.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        client = MlflowClient(folder, folder)
        experiment = client.create_experiment("from files")
        assert int(experiment) > 2**31  # more than the databases' own ids can be
        parent = client.create_run(experiment, run_name="parent").info.run_id
        tags = {"mlflow.parentRunId": parent, "of": "✓"}
        child = client.create_run(experiment, tags=tags).info.run_id
        for step, value in enumerate([0.1, float("nan"), float("inf"), -0.0]):
            client.log_metric(child, "loss", value, timestamp=step, step=step)
        client.log_param(child, "depth", 3)
        client.log_text(child, "text", "a folder/note.txt")
        client.set_terminated(child)
        client.create_registered_model("model")
        client.create_model_version("model", f"runs:/{child}/a folder", child)
    target = request.getfixturevalue(database)

    to: dict[str, Any] = {
        "artifact_location": (tmp_path / "there").as_uri(),
        "preserve_ids": preserve_ids,
    }
    report = copy(folder, target, **to)

    assert report.ok, report.failures
    assert_count_law(report)
    if preserve_ids:
        there_now = MlflowClient(target)
        new = there_now.get_experiment_by_name("from files").experiment_id
        runs = there_now.search_runs([new])
        assert {run.info.run_id for run in runs} == {parent, child}
    result = diff(folder, target)
    assert result.equal, result.differences
    (there,) = (tmp_path / "there").rglob("note.txt")
    assert there.read_text() == "text"
    assert_all_was_there(copy(folder, target, **to))


@pytest.mark.parametrize("database", ["postgres_uri", "mariadb_uri"])
def test_a_database_of_others_is_told_of_no_folder_of_this_machine(
    sqlite_source: Source, request: pytest.FixtureRequest, database: str
) -> None:
    target = request.getfixturevalue(database)
    before = rows_of_tables(target)

    ways: list[dict[str, Any]] = [
        {"preserve_ids": True},
        {"preserve_ids": False},
        {"dry_run": True},
    ]
    for to in ways:
        with pytest.raises(
            UsageError, match="does not say where its server keeps files"
        ) as refused:
            copy(sqlite_source.uri, target, **to)
        assert "--artifact-location" in (refused.value.hint or "")

    assert rows_of_tables(target) == before


def test_it_is_said_where_the_files_went(
    sqlite_source: Source, make_sqlite: Callable[[], str], make_server: MakeServer, tmp_path: Path
) -> None:
    location = str(tmp_path / "there")
    report = copy(sqlite_source.uri, make_sqlite(), artifact_location=location)
    assert report.files_at == location
    files = [f for f in (tmp_path / "there").rglob("*") if f.is_file()]
    assert len(files) == report.counts[Kind.ARTIFACT].written
    stay: dict[str, Any] = {"artifact_location": "source", "preserve_ids": True, "dry_run": True}
    there = copy(sqlite_source.uri, make_sqlite(), **stay)
    assert there.files_at == "where the source has them"
    server = make_server()
    assert copy(sqlite_source.uri, server.url, dry_run=True).files_at == (
        f"where {server.url} keeps them"
    )


def test_a_name_that_is_taken_stops_before_the_first_write(
    sqlite_source: Source, make_sqlite: Callable[[], str]
) -> None:
    target = make_sqlite()
    client = MlflowClient(target, target)
    client.create_experiment(next(n for n in sqlite_source.snapshot.experiments if n != "Default"))
    before = rows_of(target)
    with pytest.raises(ConflictError):
        copy(sqlite_source.uri, target, on_conflict="fail")
    assert rows_of(target) == before


def test_ends_that_are_none(
    sqlite_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="both"):
        copy(sqlite_uri, sqlite_uri)
    monkeypatch.chdir(Path(sqlite_uri.removeprefix("sqlite:///")).parent)
    with pytest.raises(UsageError, match="both"):
        copy(sqlite_uri, f"sqlite:///{Path(sqlite_uri).name}")
    with pytest.raises(UsageError, match="is an archive"):
        copy(sqlite_uri, str(tmp_path / "a.tar.zst"))
    with pytest.raises(NotFoundError):
        copy(str(tmp_path / "a.tar.zst"), sqlite_uri)
    with pytest.raises(NotFoundError):
        copy(f"sqlite:///{tmp_path}/none.db", sqlite_uri)
    assert not (tmp_path / "none.db").exists()


def test_the_command(sqlite_source: Source, make_sqlite: Callable[[], str]) -> None:
    target = make_sqlite()
    arguments = ["copy", sqlite_source.uri, target, "--no-artifacts", "--output", "json"]
    result = CliRunner().invoke(exim, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["counts"]["run"]["written"] == sqlite_source.report.counts[Kind.RUN].written
    result = CliRunner().invoke(exim, [*arguments[:3], "--user", "importer", "--use-src-user-id"])
    assert result.exit_code == 2
    assert "exclude each other" in result.stderr


def test_a_copy_inside_one_place_goes_to_other_names_and_is_known_again(sqlite_uri: str) -> None:
    client = MlflowClient(sqlite_uri, sqlite_uri)
    run_id = client.create_run(client.create_experiment("churn"), run_name="r").info.run_id
    client.log_metric(run_id, "loss", 0.5)
    client.set_terminated(run_id)
    client.create_registered_model("net")
    for _ in range(2):
        client.create_model_version("net", f"runs:/{run_id}/model", run_id)
    client.set_registered_model_alias("net", "champion", "1")

    with pytest.raises(UsageError, match="are both"):
        copy(sqlite_uri, sqlite_uri)
    for _ in range(2):
        promoted = copy(
            sqlite_uri, sqlite_uri, experiments=("churn",), experiment_name="churn/production"
        )
        released = copy(
            sqlite_uri,
            sqlite_uri,
            models=("net",),
            versions=("alias:champion",),
            rename=Rename(names={"net": "net-production"}),
        )
        assert promoted.ok
        assert released.ok

    (there,) = client.search_runs([client.get_experiment_by_name("churn/production").experiment_id])
    assert (there.info.run_id != run_id, there.data.metrics) == (True, {"loss": 0.5})
    assert client.get_run(run_id).data.metrics == {"loss": 0.5}
    (version,) = client.search_model_versions("name = 'net-production'")
    assert (version.version, version.run_id) in {("1", run_id), (1, run_id)}
    assert len(client.search_model_versions("name = 'net'")) == 2


def test_traces_come_along_inside_one_place(tmp_path: Path) -> None:
    copy_of_server(tmp_path, seed_traces)
    with start_server(tmp_path) as server:
        before = read(server.url)
        how: dict[str, Any] = {"experiments": ("traces",), "experiment_name": "promoted"}
        report = copy(server.url, server.url, **how)
        again = copy(server.url, server.url, **how)
        there = read(server.url)

    assert (report.failures, again.failures) == ([], [])
    assert again.counts[Kind.TRACE].skipped == report.counts[Kind.TRACE].written == len(before)
    copies = {trace_id: trace for trace_id, trace in there.items() if trace_id not in before}
    assert {trace.info["tags"][ORIGIN] for trace in copies.values()} == before.keys()
    for trace_id, trace in copies.items():
        original = before[trace.info["tags"][ORIGIN]]
        assert there[original.id].document == original.document
        assert trace.experiment_id != original.experiment_id
        assert len(trace_id) <= 50
        assert trace.info["request_time_ms"] == original.info["request_time_ms"]
        for spans in (trace.spans or [], original.spans or []):
            spans.sort(key=lambda span: str(span["span_id"]))
        names = [[s["name"] for s in t.spans or ()] for t in (trace, original)]
        assert names[0] == names[1]
        assert len(trace.assessments) == len(original.assessments)
        assert len(list(trace.attachments)) == len(list(original.attachments))


@pytest.mark.parametrize("way", ["copy", "unpack"])
def test_a_server_lists_the_newest_first_as_the_source_does(
    way: str, make_sqlite: Callable[[], str], make_server: MakeServer, tmp_path: Path
) -> None:
    source, target = make_sqlite(), make_server()
    client = MlflowClient(source, source)
    (tmp_path / "files/of").mkdir(parents=True)
    (tmp_path / "files/of/model").write_text("7")
    root = (tmp_path / "files").as_uri()
    ids = [client.create_experiment(name, f"{root}/{name}") for name in ("late", "early", "middle")]
    for number in range(12):
        client.create_logged_model(ids[0], name=f"model-{number}")
    for name in ("a", "b", "c"):
        client.create_registered_model(name)
        client.create_model_version(name, f"{root}/of")
        client.register_prompt(f"p{name}", "Hello")
    with closing(sqlite3.connect(source.removeprefix("sqlite:///"))) as database:
        for name, made_ms in (("late", 30), ("early", 10), ("middle", 20)):
            update = "UPDATE experiments SET creation_time = ? WHERE name = ?"
            database.execute(update, (made_ms, name))
        database.execute("UPDATE registered_models SET creation_time = 200 - unicode(name)")
        database.execute(
            "UPDATE registered_models SET creation_time = 200 - unicode(substr(name, 2)) "
            "WHERE length(name) = 2"
        )
        database.execute("UPDATE logged_models SET creation_timestamp_ms = 9 + substr(name, 7)")
        database.commit()

    if way == "copy":
        report = copy(source, target.url, jobs=4)
    else:
        archive = str(tmp_path / "a.tar.zst")
        assert pack(archive, tracking_uri=source).failures == []
        report = unpack(archive, tracking_uri=target.url, jobs=4)
    assert report.failures == []

    def newest_first(uri: str) -> list[list[str]]:
        there = MlflowClient(uri, uri)
        experiments = there.search_experiments(order_by=["creation_time DESC"])
        (late,) = (e.experiment_id for e in experiments if e.name == "late")
        order = [{"field_name": "creation_timestamp", "ascending": False}]
        models = there.search_logged_models([late], order_by=order)
        registered = sorted(there.search_registered_models(), key=lambda m: -m.creation_timestamp)
        prompts = sorted(there.search_prompts(), key=lambda p: -p.creation_timestamp)
        return [
            [e.name for e in experiments if e.name in {"late", "early", "middle"}],
            [model.name for model in models],
            [model.name for model in registered],
            [prompt.name for prompt in prompts],
        ]

    assert newest_first(target.url) == newest_first(source)
    assert newest_first(source)[0] == ["late", "middle", "early"]
    assert newest_first(source)[2:] == [["a", "b", "c"], ["pa", "pb", "pc"]]


@pytest.mark.parametrize("way", ["server", "database"])
def test_a_mirror_gets_what_is_new_or_grown(
    way: str,
    sqlite_uri: str,
    make_server: MakeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    client = MlflowClient(sqlite_uri, sqlite_uri)
    experiment = client.create_experiment("a", artifact_location=str(tmp_path / "files"))
    runs = [client.create_run(experiment, run_name=f"r{n}").info.run_id for n in range(4)]
    for run_id in runs:
        client.log_metric(run_id, "loss", 1.0)
    how: dict[str, Any] = {"since_last": True}
    target = make_server().url
    if way == "database":
        new_sqlite_database(tmp_path / "target.db")
        target = f"sqlite:///{tmp_path / 'target.db'}"
        how["artifact_location"] = str(tmp_path / "out")
    assert copy(sqlite_uri, target, **how).counts[Kind.RUN].written == 4

    child = client.create_run(experiment, tags={"mlflow.parentRunId": runs[1]}).info.run_id
    client.log_metric(runs[0], "loss", 0.5, step=1)
    client.create_registered_model("m")
    client.create_model_version("m", f"runs:/{runs[2]}/x", runs[2])
    report = copy(sqlite_uri, target, **how)
    assert report.counts[Kind.RUN].found == 5
    assert [skip.count for skip in report.skips if skip.kind is Kind.RUN] == [3]

    there = MlflowClient(target, target)
    (copied,) = (e for e in there.search_experiments() if e.name == "a")
    by_name = {run.info.run_name: run for run in there.search_runs([copied.experiment_id])}
    name = client.get_run(child).info.run_name
    parent = by_name[name].data.tags["mlflow.parentRunId"]
    assert parent == by_name["r1"].info.run_id
    assert by_name["r0"].data.metrics == {"loss": 0.5}
    assert there.get_model_version("m", "1").run_id == by_name["r2"].info.run_id

    again = copy(sqlite_uri, target, **how)
    assert again.counts[Kind.RUN].skipped == 5
    assert diff(sqlite_uri, target).equal
