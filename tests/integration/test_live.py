"""An archive as a deployment that reads: what it answers is what its source answers."""

from __future__ import annotations

import logging
import os
import shutil
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import RunTag, ViewType
from mlflow.exceptions import MlflowException

from mlflow_exim_plugin import pack
from mlflow_exim_plugin.errors import DigestMismatchError
from mlflow_exim_plugin.operations.live import archive as live
from mlflow_exim_plugin.operations.live.cache import CACHE_VARIABLE
from tests.answers import answers, without_secrets
from tests.compare import as_default, snapshot
from tests.live import served, with_owners

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Bucket
    from tests.sources import Source

pytestmark = pytest.mark.integration
SAMPLES = Path(__file__).parents[2] / "samples" / "v1"
SAMPLE = str(SAMPLES / "good" / "minimal.tar.zst")
DAMAGED = SAMPLES / "bad" / "E061_metrics_digest" / "archive.tar.zst"
IS_MLFLOW_3 = hasattr(mlflow, "create_external_model")
NAME_OF_MODEL = "name" if IS_MLFLOW_3 else "artifact_path"


@pytest.fixture(scope="module")
def live_url(
    everything: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The archive with every kind, served."""
    _, archive = everything
    folder = tmp_path_factory.mktemp("live")
    with served(folder, archive) as url:
        yield url
    assert not list((folder / "home").iterdir())


@pytest.fixture(scope="module")
def source_url(sqlite_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The archive that every MLflow can write, served together with another one."""
    folder = tmp_path_factory.mktemp("live-source")
    with served(folder, sqlite_source.archive, SAMPLE) as url:
        yield url


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own; what was opened before is opened again."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    monkeypatch.setattr(live, "_OPEN", {})
    return folder


@pytest.mark.timeout(900)
def test_every_read_is_answered_as_by_the_source(
    everything_answers: dict[str, Any], live_url: str
) -> None:
    asked, told = with_owners(everything_answers, answers(live_url))

    assert sorted(asked) == sorted(told)
    assert sum(status == 200 for status, _ in asked.values()) > 400
    differing = {
        question: (asked[question], told[question])
        for question in asked
        if without_secrets(asked[question]) != without_secrets(told[question])
    }
    assert not differing, [*differing, *list(differing.values())[:3]]


def asked_of(uri: str) -> dict[str, Any]:
    """Return what a client gets to see: filters, orders, pages and samples of histories."""
    client = MlflowClient(uri, uri)
    store = client._tracking_client.store
    found: dict[str, Any] = {}

    def pages(name: str, ask: Any) -> list[Any]:
        listed, tokens, token = [], 0, None
        while token or not tokens:
            page = ask(token)
            listed += [plain(entity) for entity in page]
            token, tokens = page.token, tokens + 1
        is_sorted = IS_MLFLOW_3 or not name.startswith("history")
        found[name] = (tokens, listed if is_sorted else sorted(listed, key=repr))
        return listed

    for order in (["name DESC"], ["last_update_time ASC", "experiment_id"], None):
        pages(
            f"experiments by {order}",
            lambda token, order=order: client.search_experiments(
                ViewType.ALL, max_results=2, order_by=order, page_token=token
            ),
        )
    found["named"] = [plain(e) for e in client.search_experiments(filter_string="name ILIKE '%A%'")]
    ids = [e["experiment_id"] for e in found["experiments by None"][1]]
    for condition, order in (
        ("", None),
        ("attributes.status = 'FINISHED'", ["attributes.start_time DESC"]),
        ("attributes.run_name LIKE '%a%' AND metrics.loss < 100", ["metrics.loss DESC"]),
        ("tags.`mlflow.user` != 'nobody'", ["params.lr ASC", "attributes.run_id"]),
    ):
        pages(
            f"runs with {condition} by {order}",
            lambda token, condition=condition, order=order: client.search_runs(
                ids, condition, ViewType.ALL, 3, order, token
            ),
        )
    runs = [client.get_run(run["info"]["run_id"]) for run in found["runs with  by None"][1]]
    keys: dict[str, list[str]] = {}
    for run in runs:
        for key in run.data.metrics:
            keys.setdefault(key, []).append(run.info.run_id)
            pages(
                f"history {run.info.run_id} {key}",
                lambda token, run=run, key=key: store.get_metric_history(
                    run.info.run_id, key, max_results=3, page_token=token
                ),
            )
    for key, of in keys.items():
        found[f"bulk {key}"] = list(map(plain, store.get_metric_history_bulk(of, key, 50)))
        found |= samples(store, of, key)
    found["no history"] = store.get_metric_history(runs[0].info.run_id, "no such metric")
    missing: dict[str, Callable[[], Any]] = {
        "no run": lambda: client.get_run("f" * 32),
        "no run's history": lambda: client.get_metric_history("f" * 32, "loss"),
        "a bad filter": lambda: client.search_runs(ids, "colour = 1 and"),
        "no experiment": lambda: client.get_experiment("987654"),
        "no model": lambda: client.get_registered_model("no such model"),
    }
    for name, ask in missing.items():
        try:
            found[name] = plain(ask())
        except MlflowException as refusal:
            found[name] = f"{refusal.error_code} {refusal}"
    pages(
        "models",
        lambda token: client.search_registered_models(max_results=1, page_token=token),
    )
    return found


def samples(store: Any, run_ids: list[str], key: str) -> dict[str, Any]:
    """Return what charts ask for; MLflow's server chose the steps itself until 3.2."""
    asked = ((3, None, None), (1, None, None), (5, 0, 2))
    if hasattr(store, "get_metric_history_bulk_interval"):
        given = {of: store.get_metric_history_bulk_interval(run_ids, key, *of) for of in asked}
    else:
        run_id, interval = run_ids[0], store.get_metric_history_bulk_interval_from_steps
        last = store.get_max_step_for_metric(run_id, key)
        given = {of: interval(run_id, key, [0, 1, 2, last], of[0]) for of in asked}
    return {f"sample {key} {of}": list(map(plain, sample)) for of, sample in given.items()}


def plain(entity: Any) -> Any:
    """Return an entity of MLflow's as plain data without places of files."""
    if isinstance(entity, list | tuple):
        return sorted(map(plain, entity), key=repr)  # within an entity lists have no order
    if isinstance(entity, dict):
        return {name: plain(value) for name, value in sorted(entity.items())}
    if isinstance(entity, float):
        return repr(entity)  # a NaN is no other NaN
    if type(entity).__module__.startswith("mlflow."):
        fields = {name: value for name, value in entity if name != "artifact_uri"}
        return plain(fields)
    return entity


@pytest.mark.parametrize("rows_kept", [live._ROWS_KEPT, 0], ids=["database", "archive"])
def test_a_client_sees_what_it_sees_at_the_source(
    sqlite_source: Source, cache: Path, monkeypatch: pytest.MonkeyPatch, rows_kept: int
) -> None:
    monkeypatch.setattr(live, "_ROWS_KEPT", rows_kept)
    uri = f"exim://{sqlite_source.archive}"

    asked, told = asked_of(sqlite_source.uri), asked_of(uri)

    assert sorted(asked) == sorted(told)
    assert {name: told[name] for name in asked if asked[name] != told[name]} == {}
    seen = snapshot(uri)
    for part, there in vars(sqlite_source.snapshot).items():
        places = {name: _without_places(of) for name, of in there.items()}
        assert {name: _without_places(of) for name, of in vars(seen)[part].items()} == places
    opened = live.open_live(sqlite_source.archive)
    assert opened.has_histories is bool(rows_kept)
    kept = {path.name[:5] for path in cache.iterdir() if not path.name.startswith(".")}
    assert kept == {"empty", opened.archives[0].reader.root[:5]}


@pytest.mark.usefixtures("cache")
def test_damaged_rows_are_said_to_who_asks_for_them() -> None:
    opened = live.open_live(str(DAMAGED))

    assert not opened.has_histories
    (run_id,) = (run.id for run in opened.archives[0].runs())
    with pytest.raises(DigestMismatchError, match=run_id):
        list(opened.metric_rows([run_id], "loss"))
    with closing(sqlite3.connect(opened.database)) as database:
        assert database.execute(f"SELECT * FROM {live.LEFT_OUT}").fetchall() == []
        assert database.execute("SELECT key FROM latest_metrics").fetchall() == [("loss",)]


def _without_places(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_places(v) for k, v in value.items() if k != "artifact_uri"}
    return value


def writes(client: MlflowClient, file: Path) -> dict[str, Callable[[], Any]]:
    """Return calls that write, of each kind."""
    experiment, *others = client.search_experiments(ViewType.ALL)
    ids = [each.experiment_id for each in (experiment, *others)]
    run_id = client.search_runs(ids, run_view_type=ViewType.ALL)[0].info.run_id
    model = client.search_registered_models()[0]
    return {
        "create_experiment": lambda: client.create_experiment("new"),
        "create_run": lambda: client.create_run("0"),
        "log_metric": lambda: client.log_metric(run_id, "loss", 1.0),
        "log_batch": lambda: client.log_batch(run_id, tags=[RunTag("key", "value")]),
        "set_tag": lambda: client.set_tag(run_id, "key", "value"),
        "delete_run": lambda: client.delete_run(run_id),
        "rename": lambda: client.rename_experiment(experiment.experiment_id, "other"),
        "register": lambda: client.create_registered_model("new"),
        "alias": lambda: client.set_registered_model_alias(model.name, "champion", "1"),
        "log_artifact": lambda: client.log_artifact(run_id, str(file)),
    }


@pytest.mark.usefixtures("cache")
def test_whoever_writes_is_told_that_it_is_an_archive(
    sqlite_source: Source, source_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "file.txt"
    file.write_text("x")
    for address in (f"exim://{sqlite_source.archive}", source_url):
        started = time.process_time()
        for name, write in writes(MlflowClient(address, address), file).items():
            # Of what a server says about files MLflow makes no error of its own.
            kinds = (MlflowException, requests.HTTPError)
            said = pytest.raises(kinds, match="archive, which is read only")
            with as_default(address), said as refusal:
                write()
            assert "PERMISSION_DENIED" in f"{vars(refusal.value)} {refusal.value}", name
        assert time.process_time() - started < 30  # no client tries again
    session = requests.Session()
    for method, path in (
        ("PUT", "/api/2.0/mlflow-artifacts/artifacts/x.txt"),
        ("DELETE", "/api/2.0/mlflow-artifacts/artifacts/x.txt"),
        ("POST", "/ajax-api/2.0/mlflow/upload-artifact"),
        ("POST", "/ajax-api/3.0/jobs"),
        ("POST", "/v1/traces"),
        ("PATCH", "/api/2.0/mlflow/registered-models/update"),
    ):
        answer = session.request(method, source_url + path, data=b"x")
        assert answer.status_code == 403, (method, path)
        assert "archive, which is read only" in answer.json()["message"]


class Doubles(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    def predict(self, context: Any, model_input: list[float]) -> list[float]:
        del context
        return [2 * number for number in model_input]


@pytest.mark.usefixtures("cache")
def test_a_model_is_loaded_by_its_ranges_alone(
    sqlite_uri: str, s3_bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    client = MlflowClient(sqlite_uri, sqlite_uri)
    experiment_id = client.create_experiment("churn", (tmp_path / "files").as_uri())
    large = os.urandom(24 << 20)
    with as_default(sqlite_uri), mlflow.start_run(experiment_id=experiment_id) as run:
        (tmp_path / "large.bin").write_bytes(large)
        mlflow.log_artifact(str(tmp_path / "large.bin"))
        mlflow.log_text("hello", "notes/a b%20.txt")
        logged = mlflow.pyfunc.log_model(
            **{NAME_OF_MODEL: "model"},
            python_model=Doubles(),
            pip_requirements=["mlflow"],
            registered_model_name="churn",
        )
    client.set_registered_model_alias("churn", "champion", "1")
    url = f"{s3_bucket.url}/a b.tar.zst"
    assert pack(url, tracking_uri=sqlite_uri).ok
    shutil.rmtree(tmp_path / "files")  # nothing but the archive has them

    address = f"exim:{url}"
    with as_default(address):
        for name in ("models:/churn@champion", "models:/churn/1", logged.model_uri):
            assert mlflow.pyfunc.load_model(name).predict([1.5]) == [3.0]
        reader = live.open_live(url).archives[0].reader
        source = reader.holder("")._source
        assert source.bytes_read < 4 << 20
        folder = Path(mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/"))
        assert (folder / "notes" / "a b%20.txt").read_text() == "hello"
        assert (folder / "large.bin").read_bytes() == large
        assert len(mlflow.search_runs([experiment_id])) == 1
        uri = client.get_run(run.info.run_id).info.artifact_uri
        assert address in str(mlflow.get_run(run.info.run_id).info.artifact_uri) != uri


@pytest.mark.usefixtures("cache")
def test_several_archives_are_one(
    make_sqlite: Callable[[], str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Migrations of MLflow 2 take the handlers of the root away.
    monkeypatch.setattr(logging.getLogger(live.__name__), "handlers", [caplog.handler])
    own, strange = make_sqlite(), make_sqlite()
    client = MlflowClient(own, own)
    experiment = client.create_experiment("churn", (tmp_path / "own").as_uri())
    ids = {name: client.create_run(experiment, run_name=name).info.run_id for name in "ab"}
    for run_id in ids.values():
        client.log_metric(run_id, "loss", 0.5, 1, 0)
        client.log_text(run_id, "early", "note.txt")
    client.set_terminated(ids["a"])
    client.create_registered_model("shop")
    client.create_model_version("shop", f"runs:/{ids['a']}/model", ids["a"])
    early = packed(own, tmp_path / "early.tar.zst")
    client.log_metric(ids["b"], "loss", 0.25, 2, 1)
    client.log_text(ids["b"], "late", "note.txt")
    client.set_terminated(ids["b"])
    ids["c"] = client.create_run(experiment, run_name="c").info.run_id
    client.create_model_version("shop", f"runs:/{ids['c']}/model", ids["c"])
    late = packed(own, tmp_path / "late, 100%.tar.zst")
    client = MlflowClient(strange, strange)
    other = client.create_experiment("fraud", (tmp_path / "strange").as_uri())
    assert other == experiment
    ids["d"] = client.create_run(other, run_name="d").info.run_id
    client.log_metric(ids["d"], "loss", 9.0, 1, 0)
    client.log_text(ids["d"], "strange", "note.txt")
    taken = client.create_run(other, run_name="of the same id").info.run_id
    client.set_terminated(taken)
    with closing(sqlite3.connect(strange.removeprefix("sqlite:///"))) as database, database:
        for table in ("runs", "tags"):
            change = f"UPDATE {table} SET run_uuid = ? WHERE run_uuid = ?"
            database.execute(change, (ids["a"], taken))
    foreign = packed(strange, tmp_path / "foreign.tar.zst")

    for order in ([early, late, foreign, early], [foreign, late, early]):
        address = f"exim://{','.join(a.replace('%', '%25').replace(',', '%2C') for a in order)}"
        seen = MlflowClient(address, address)
        numbers = {e.name: e.experiment_id for e in seen.search_experiments()}
        assert numbers.keys() == {"Default", "churn", "fraud"}
        found = {run.info.run_id: run for run in seen.search_runs(list(numbers.values()))}
        assert found.keys() == set(ids.values())
        # Of two states of a run the later one, of two runs of one id one, and the other is named.
        assert found[ids["b"]].info.status == "FINISHED"
        assert found[ids["a"]].info.run_name == "of the same id"
        assert f"run {ids['a']} of {late}: the target has another state" in caplog.text
        assert f"experiment churn of {late}: its experiment_id is 2" in caplog.text
        assert ids["b"] not in caplog.text
        for run_id, values in ((ids["b"], [0.5, 0.25]), (ids["d"], [9.0])):
            assert [m.value for m in seen.get_metric_history(run_id, "loss")] == values
        for run_id, text in ((ids["b"], "late"), (ids["d"], "strange")):
            file = mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path="note.txt", tracking_uri=address
            )
            assert Path(file).read_text() == text
        versions = {v.version: v.run_id for v in seen.search_model_versions("name = 'shop'")}
        assert {int(n): run_id for n, run_id in versions.items()} == {1: ids["a"], 2: ids["c"]}


def test_several_archives_are_served_as_one(sqlite_source: Source, source_url: str) -> None:
    client = MlflowClient(source_url, source_url)
    of_sample = client.get_experiment_by_name("iris")
    assert of_sample is not None
    (run,) = client.search_runs([of_sample.experiment_id])
    own = sqlite_source.made.runs["parent"]

    with as_default(source_url):
        assert mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/note.txt") == "hello\n"
        assert Path(mlflow.artifacts.download_artifacts("models:/iris/1")).is_dir()
    assert client.get_run(own).info.run_id == own
    page = requests.get(source_url, timeout=60).text
    assert page.count(", root ") == 2


def packed(uri: str, archive: Path) -> str:
    """Pack a store, and return where its archive lies."""
    assert pack(str(archive), tracking_uri=uri).failures == []
    return str(archive)
