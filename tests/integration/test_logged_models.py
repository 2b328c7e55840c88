"""Logged models: packed from servers and databases, put back, all that MLflow says compared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModelInput, LoggedModelStatus, Metric

from mlflow_exim_plugin import pack
from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.objects import Artifact, Kind, LoggedModel, Run
from mlflow_exim_plugin.sources.server.source import ServerSource
from tests.compare import Snapshot, as_default, assert_count_law, assert_same, snapshot
from tests.filled import copy_of_database, copy_of_server
from tests.integration.conftest import rows_of
from tests.integration.test_idempotence import assert_nothing_written, unpack_killed_at
from tests.new_ids import unpack
from tests.seed import T0, new_run
from tests.seed_logged_models import MANY_PARAMS, ModelsMade, log_model_files, seed_logged_models
from tests.servers import start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_exim_plugin.schema.report import Report
    from tests.conftest import MakeServer

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Source:
    """A deployment with logged models, what its API says, and an archive of it."""

    uri: str
    database: str
    made: ModelsMade
    snapshot: Snapshot
    archive: str
    report: Report


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Source]:
    folder = tmp_path_factory.mktemp("served")
    made = copy_of_server(folder, fill_server)
    with start_server(folder) as server:
        yield packed_source(server.url, server.backend_uri, made, folder)


@pytest.fixture(scope="module")
def in_database(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("database")
    made = copy_of_database(folder, fill_database)
    uri = f"sqlite:///{folder}/mlflow.db"
    return packed_source(uri, uri, made, folder)


def fill_server(uri: str) -> ModelsMade:
    return seed_logged_models(MlflowClient(uri))


def fill_database(uri: str) -> ModelsMade:
    names = ("models", "evaluations", "left")
    roots = {name: Path(name).resolve().as_uri() for name in names}
    with as_default(uri):  # a registry in a database asks the default store for logged models
        return seed_logged_models(MlflowClient(uri, uri), roots)


def packed_source(uri: str, database: str, made: ModelsMade, folder: Path) -> Source:
    archive = str(folder / "all.tar.zst")
    found = snapshot(uri)
    report = pack(archive, tracking_uri=uri)
    return Source(uri, database, made, found, archive, report)


def test_the_pack_is_complete(served: Source) -> None:
    models = served.snapshot.logged_models

    assert served.report.ok
    assert served.report.losses == []
    assert_count_law(served.report, served.snapshot)
    # What is compared below would prove nothing if the hard cases were not in it.
    assert set(models) == set(served.made.models.values())
    assert {model["status"] for model in models.values()} == {"READY", "FAILED", "PENDING"}
    assert {i for i, model in models.items() if model["is_deleted"]} == set(served.made.deleted)
    net = models[served.made.models["net"]]
    assert len(net["params"]) == MANY_PARAMS
    assert ("accuracy", served.made.runs.runs["evaluate"], 0, T0) in {m[:4] for m in net["metrics"]}
    assert len(net["metrics"]) == 7


def test_server_to_server(served: Source, make_server: MakeServer) -> None:
    server = make_server()

    report = unpack(served.archive, tracking_uri=server.url)

    assert report.failures == []
    assert_count_law(report, served.snapshot)
    assert_same(served.snapshot, snapshot(server.url), report)
    before = rows_of(server.backend_uri)
    assert_nothing_written(unpack(served.archive, tracking_uri=server.url))
    assert rows_of(server.backend_uri) == before


def test_database_to_server_to_database(
    in_database: Source, make_server: MakeServer, sqlite_uri: str, tmp_path: Path
) -> None:
    server = make_server()
    again = str(tmp_path / "again.tar.zst")

    first = unpack(in_database.archive, tracking_uri=server.url)
    packed = pack(again, tracking_uri=server.url)
    second = unpack(again, tracking_uri=sqlite_uri, artifact_location=(tmp_path / "there").as_uri())

    middle = snapshot(server.url)
    for report in (first, packed, second):
        assert report.failures == []
        assert_count_law(report, in_database.snapshot)
    assert_same(in_database.snapshot, middle, first)
    assert_same(middle, snapshot(sqlite_uri), second)
    before = rows_of(sqlite_uri)
    assert_nothing_written(unpack(again, tracking_uri=sqlite_uri))
    assert rows_of(sqlite_uri) == before


def test_a_database_names_its_deleted_models(
    sqlite_uri: str, make_sqlite: Callable[[], str], tmp_path: Path
) -> None:
    client = MlflowClient(sqlite_uri, sqlite_uri)
    experiment_id = client.create_experiment("e", (tmp_path / "e").as_uri())
    model = client.create_logged_model(experiment_id, "nobody knows it")
    client.delete_logged_model(model.model_id)
    target, archive = make_sqlite(), str(tmp_path / "a.tar.zst")

    packed = pack(archive, tracking_uri=sqlite_uri)
    reports = [unpack(archive, tracking_uri=target) for _ in range(2)]

    assert packed.counts[Kind.LOGGED_MODEL].written == 1
    assert reports[0].counts[Kind.LOGGED_MODEL].written == 1
    assert_nothing_written(reports[1])
    there = MlflowClient(target, target)
    experiment = there.get_experiment_by_name("e")
    assert there.search_logged_models([experiment.experiment_id]) == []
    (new_id,) = there._tracking_client.store._get_deleted_logged_models()
    assert experiment.tags[f"mlflow.exim.logged_model.{model.model_id}"].startswith(new_id)


def test_the_same_documents_from_server_and_database(served: Source) -> None:
    def documents(uri: str) -> list[dict[str, Any]]:
        stream = ServerSource(Host(uri, create=False)).stream(Selection(artifacts=False))
        return [item.document for item in stream if isinstance(item, LoggedModel | Run)]

    assert documents(served.uri) == documents(served.database)


def test_files_are_the_same_bytes_behind_an_alias(
    served: Source, make_server: MakeServer, tmp_path: Path
) -> None:
    server = make_server()

    report = unpack(served.archive, tracking_uri=server.url)

    with as_default(server.url):
        there = Path(
            mlflow.artifacts.download_artifacts("models:/shop@champion", dst_path=tmp_path)
        )
    net, train = served.made.models["net"], served.made.runs.runs["train"]
    assert (there / "MLmodel").read_text() == (
        f"# kept  as it is\nmodel_id: {net}\nrun_id:   {train}\nflavors: {{}}\n"
    )
    assert (there / "data/deep/weights.bin").stat().st_size == 300_000 + len(train)
    said = {loss.id: loss.what for loss in report.losses if loss.kind is Kind.LOGGED_MODEL}
    assert said[net].endswith("untouched: MLmodel, data/deep/weights.bin")
    assert said[served.made.models["gone"]].endswith("untouched: MLmodel")
    assert set(said) == {net, served.made.models["gone"], "*"}
    version = MlflowClient(server.url).get_model_version("shop", "1")
    assert version.source.startswith("models:/m-")
    assert net not in version.source


@pytest.mark.exhaustive
def test_killed_between_two_calls(served: Source, make_server: MakeServer) -> None:
    server = make_server()
    calls = [
        ("POST", "mlflow/logged-models", 2),
        ("POST", "/params", 1),
        ("PUT", "/models/", 2),
        ("PATCH", "mlflow/logged-models/", 3),
        ("POST", "runs/log-batch", 12),
        ("POST", "runs/outputs", 1),
        ("POST", "runs/log-inputs", 3),
        ("POST", "set-experiment-tag", 3),
        ("DELETE", "mlflow/logged-models/", 1),
        ("POST", "experiments/delete", 1),
    ]
    unpack_killed_at(served.archive, server.url, calls)

    report = unpack(served.archive, tracking_uri=server.url)

    assert report.failures == []
    assert_count_law(report)
    assert_same(served.snapshot, snapshot(server.url), report)
    before = rows_of(server.backend_uri)
    assert_nothing_written(unpack(served.archive, tracking_uri=server.url))
    assert rows_of(server.backend_uri) == before


def test_runs_bring_their_models(served: Source, sqlite_uri: str, tmp_path: Path) -> None:
    made = served.made
    archive = str(tmp_path / "run.tar.zst")

    packed = pack(
        archive, tracking_uri=served.uri, selection=Selection(runs=(made.runs.runs["evaluate"],))
    )
    report = unpack(archive, tracking_uri=sqlite_uri)

    assert packed.ok
    assert packed.counts[Kind.LOGGED_MODEL].written >= 2
    assert packed.counts[Kind.RUN].written == 2  # with its parent, which has outputs of its own
    assert report.failures == []
    there = snapshot(sqlite_uri)
    back = {m["tags"]["mlflow.exim.origin"]: i for i, m in there.logged_models.items()}
    (child,) = (r for r in there.runs.values() if r["data"]["tags"]["role"] == "evaluate")
    inputs = {link["model_id"] for link in child["inputs"]["model_inputs"]}
    of_net, of_left = (made.models[role] for role in ("net", "of deleted experiment"))
    assert inputs == {back[of_net], back[of_left]}
    lost = [(loss.id, loss.what) for loss in report.losses]
    ended = made.runs.runs["of deleted experiment"]
    assert (of_left, f"metric loss: its run {ended} is not at the target") in lost
    assert (of_left, f"its source run {ended} is not at the target, it has none there") in lost


def test_versions_bring_their_models(served: Source, sqlite_uri: str, tmp_path: Path) -> None:
    archive = str(tmp_path / "shop.tar.zst")

    packed = pack(archive, tracking_uri=served.uri, selection=Selection(models=("shop",)))
    report = unpack(archive, tracking_uri=sqlite_uri)

    assert packed.ok
    assert report.failures == []
    there = snapshot(sqlite_uri)
    names = {model["name"] for model in there.logged_models.values()}
    assert names >= {"net", "without a run"}
    for id_, version in there.versions.items():
        assert version["files"] == served.snapshot.versions[id_]["files"]


def test_a_link_comes_with_the_later_part(served: Source, sqlite_uri: str) -> None:
    first = unpack(
        served.archive, tracking_uri=sqlite_uri, selection=Selection(experiments=("evaluations",))
    )
    child = served.made.runs.runs["evaluate"]
    assert [loss for loss in first.losses if loss.id == child and "logged models" in loss.what]

    report = unpack(served.archive, tracking_uri=sqlite_uri)

    assert report.failures == []
    assert_same(served.snapshot, snapshot(sqlite_uri), report)


def test_models_join_a_namesakes_experiment(served: Source, sqlite_uri: str) -> None:
    client = MlflowClient(sqlite_uri, sqlite_uri)
    theirs = client.create_experiment("models")
    kept = client.create_logged_model(theirs, "theirs").model_id

    reports = [unpack(served.archive, tracking_uri=sqlite_uri) for _ in range(2)]

    assert [report.failures for report in reports] == [[], []]
    assert_nothing_written(reports[1])
    names = sorted(model.name for model in client.search_logged_models([theirs]))
    assert names == ["net", "of doomed", "pending", "second of a run", "theirs", "without a run"]
    assert client.get_logged_model(kept).tags == {}


def test_what_the_user_deleted_stays_deleted(served: Source, sqlite_uri: str) -> None:
    unpack(served.archive, tracking_uri=sqlite_uri)
    client = MlflowClient(sqlite_uri, sqlite_uri)
    experiment = client.get_experiment_by_name("models")
    there = {m.name: m for m in client.search_logged_models([experiment.experiment_id])}
    for role in ("second of a run", "without a run"):
        client.delete_logged_model(there[role].model_id)
    before = rows_of(sqlite_uri)

    report = unpack(served.archive, tracking_uri=sqlite_uri)

    assert_nothing_written(report)
    assert rows_of(sqlite_uri) == before
    reasons = {skip.id: skip.reason for skip in report.skips}
    for role in ("second of a run", "without a run"):
        assert reasons[served.made.models[role]] == "its copy was deleted at the target"


def test_a_later_archive_completes(
    sqlite_uri: str, make_server: MakeServer, tmp_path: Path
) -> None:
    client = MlflowClient(sqlite_uri, sqlite_uri)
    experiment_id = client.create_experiment("e", (tmp_path / "e").as_uri())
    seed = ModelsMade()
    run_id = new_run(client, seed.runs, "r", experiment_id)
    model_id = client.create_logged_model(experiment_id, "m", run_id).model_id
    client.log_metric(run_id, "a", 1.0, T0, 0, model_id=model_id)
    first, second = str(tmp_path / "1.tar.zst"), str(tmp_path / "2.tar.zst")
    pack(first, tracking_uri=sqlite_uri)
    client.log_metric(run_id, "a", 2.0, T0 + 1, 1, model_id=model_id)
    client.log_model_params(model_id, {"p": "1"})
    client.set_logged_model_tags(model_id, {"t": "1"})
    log_model_files(client, model_id, {"new": "file"})
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    client.delete_run(run_id)
    client.delete_logged_model(model_id)
    pack(second, tracking_uri=sqlite_uri)
    server = make_server()

    reports = [unpack(archive, tracking_uri=server.url) for archive in (first, second)]

    assert [report.failures for report in reports] == [[], []]
    store = MlflowClient(server.url)._tracking_client.store
    experiment = MlflowClient(server.url).get_experiment_by_name("e")
    new_id = experiment.tags[f"mlflow.exim.logged_model.{model_id}"].split(" ")[0]
    model = store.get_logged_model(new_id, allow_deleted=True)
    assert sorted(metric.value for metric in model.metrics) == [1.0, 2.0]
    assert (model.params, model.tags["t"], str(model.status)) == ({"p": "1"}, "1", "READY")
    assert MlflowClient(server.url).search_logged_models([experiment.experiment_id]) == []
    before = rows_of(server.backend_uri)
    for archive in (first, second):
        assert_nothing_written(unpack(archive, tracking_uri=server.url))
    assert rows_of(server.backend_uri) == before


def test_a_model_that_a_run_leads_to_and_that_is_gone(served: Source, tmp_path: Path) -> None:
    client = MlflowClient(served.uri)
    experiment_id = client.create_experiment("leads nowhere")
    run_id = client.create_run(experiment_id).info.run_id
    missing = "m-" + "0" * 32
    client.log_inputs(run_id, models=[LoggedModelInput(missing)])

    report = pack(
        str(tmp_path / "a.tar.zst"),
        tracking_uri=served.uri,
        selection=Selection(experiments=("leads nowhere",)),
    )

    assert report.ok
    (loss,) = report.losses
    assert (loss.kind, loss.id) == (Kind.RUN, run_id)
    assert missing in loss.what
    client.delete_experiment(experiment_id)


@pytest.mark.compat
def test_a_target_without_logged_models(
    served: Source, make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(mlflow_version="2.22.5")
    # Old MLflow sends artifacts to this one, whatever its client was given.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)

    report = unpack(served.archive, tracking_uri=server.url)

    assert report.failures == []
    assert_count_law(report)
    skipped = {s.id: s.reason for s in report.skips if s.kind is Kind.LOGGED_MODEL}
    assert set(skipped) == set(served.made.models.values())
    assert all(reason.startswith("the target has no logged models") for reason in skipped.values())
    child = served.made.runs.runs["evaluate"]
    assert [loss for loss in report.losses if loss.id == child and "logged models" in loss.what]
    there = snapshot(server.url)
    for id_, version in there.versions.items():
        assert version["files"] == served.snapshot.versions[id_]["files"]
    before = rows_of(server.backend_uri)
    assert_nothing_written(unpack(served.archive, tracking_uri=server.url))
    assert rows_of(server.backend_uri) == before


@pytest.mark.exhaustive
@pytest.mark.compat
def test_a_target_that_refuses_nan(
    sqlite_uri: str, make_server: MakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    client = MlflowClient(sqlite_uri, sqlite_uri)
    experiment_id = client.create_experiment("e", (tmp_path / "e").as_uri())
    run_id = client.create_run(experiment_id).info.run_id
    model_id = client.create_logged_model(experiment_id, "m", run_id).model_id
    rows = [Metric(f"m{n:02}", float(n), T0, n, model_id) for n in range(10)]
    rows += [Metric("m00", math.nan, T0 + 1, 10, model_id)]
    rows += [Metric("up", math.inf, T0, 0, model_id), Metric("down", -math.inf, T0, 0, model_id)]
    client.log_batch(run_id, rows)
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    server, archive = make_server(mlflow_version="3.1.4"), str(tmp_path / "a.tar.zst")
    pack(archive, tracking_uri=sqlite_uri)

    report = unpack(archive, tracking_uri=server.url)

    assert report.failures == []
    assert_count_law(report)
    assert report.counts[Kind.LOGGED_MODEL].written == 1
    (lost,) = (loss for loss in report.losses if loss.id == model_id)
    assert lost.what.startswith("metric m00 at step 10: ")
    there = MlflowClient(server.url)
    (model,) = there.search_logged_models([there.get_experiment_by_name("e").experiment_id])
    assert (str(model.status), model.name) == ("READY", "m")
    source = client.get_logged_model(model_id).metrics
    arrived = sorted((m.key, m.value, m.step) for m in model.metrics)
    assert arrived == sorted((m.key, m.value, m.step) for m in source if m.step < 10)
    before = rows_of(server.backend_uri)
    again = unpack(archive, tracking_uri=server.url)
    assert_nothing_written(again)
    assert [loss for loss in again.losses if loss.id == model_id] == [lost]
    assert rows_of(server.backend_uri) == before


def test_a_selection_of_files_holds_for_models(served: Source) -> None:
    stream = ServerSource(Host(served.uri, create=False)).stream(Selection(include=("MLmodel",)))

    paths = {
        artifact.path
        for item in stream
        if isinstance(item, LoggedModel)
        for artifact in item.artifacts
        if isinstance(artifact, Artifact)
    }
    assert paths == {"MLmodel"}
