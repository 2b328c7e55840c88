"""Whatever goes wrong on the way to a server, nothing is missing unsaid.

A server that holds some of each kind is packed through a proxy that spoils one call a time, each
kind of fault at calls chosen by a seed. What an archive lacks of the whole one must be named. So
must what a server lacks into which it is unpacked through such a proxy, and the next unpack
brings it.
``TEST_FAULTS`` in the environment asks for another number of them, ``TEST_FAULTS_SEED`` for others.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import pack, verify
from mlflow_exim_plugin.container.reader import ArchiveReader
from mlflow_exim_plugin.errors import EximError
from tests.compare import assert_count_law, differences, snapshot
from tests.emptied import opened
from tests.filled import copy_of_server
from tests.proxy import CUT, CUT_BODY, FaultyProxy, Request
from tests.seed import T0, Seeded, log_files, log_metrics, new_run
from tests.servers import start_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report
    from tests.compare import Snapshot

pytestmark = pytest.mark.integration

FAULTS: dict[str, int | bytes] = {
    "no answer": CUT,
    "half an answer": CUT_BODY,
    "an error": 500,
    "a refusal": 403,
    "an expired token": 401,
    "not found": 404,
    "nothing": b"",
    "an empty object": b"{}",
    "a list": b"[]",
    "a login page": b"<!DOCTYPE html><html><body>Log in</body></html>",
    "half a document": b'{"runs": [{"info": {"run_id": "1',
}
LOST = {
    *("/api/2.0/mlflow/experiments/create", "/api/2.0/mlflow/runs/create"),
    *("/api/2.0/mlflow/registered-models/create", "/api/2.0/mlflow/model-versions/create"),
    *("/api/2.0/mlflow/logged-models", "/api/2.0/mlflow/logged-models/params"),
}
COUNT = int(os.environ.get("TEST_FAULTS", "4"))
UNPACKS = max(2, COUNT // 2)
SEED = int(os.environ.get("TEST_FAULTS_SEED", "7"))


def fill(uri: str) -> Seeded:
    client = MlflowClient(uri)
    made = Seeded(
        experiments={name: client.create_experiment(name) for name in ("first", "second")}
    )
    for role in ("one", "two", "three"):
        run_id = new_run(
            client, made, role, made.experiments["second" if role == "three" else "first"]
        )
        log_metrics(client, run_id, {"loss": [(1.0, T0, 0), (0.5, T0, 1)], "auc": [(0.9, T0, 0)]})
        client.log_param(run_id, "lr", role)
        log_files(client, run_id, {"note.txt": role.encode(), "model/deep/weights.bin": b"1" * 999})
    run_id = made.runs["three"]
    client.create_registered_model("net", {"team": "a"})
    for _ in range(2):
        client.create_model_version("net", f"runs:/{run_id}/model", run_id)
    client.set_registered_model_alias("net", "champion", "2")
    client.register_prompt("greet", "Hello {{name}}")
    model = client.create_logged_model(
        made.experiments["first"], name="logged", source_run_id=run_id
    )
    client.log_model_params(model.model_id, {"depth": "3"})
    return made


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    copy_of_server(folder, fill)
    with start_server(folder) as server:
        yield server.url


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")


def contents(archive: str) -> dict[str, object]:
    """Return what an archive holds, without when it was made: objects and files by member."""
    found: dict[str, object] = {}
    with ArchiveReader.open(archive) as reader:
        for path in reader.paths():
            if not path.startswith("data/") or path == "data/archive.json":
                continue
            data = reader.read(path)
            if "/artifacts/" in path or not path.endswith(".json"):
                found[path] = None if path.endswith(".parquet") else data
            else:
                document = json.loads(data)
                digest = (document["info"].get("metrics") or {}).get("digest")
                found[path] = [document["mlflow"], digest]
    return found


@pytest.mark.timeout(max(300, 30 * COUNT))
def test_nothing_is_lost_in_silence(url: str, tmp_path: Path) -> None:
    archive = str(tmp_path / "a.tar.zst")
    with FaultyProxy(url) as proxy:
        report = pack(archive, tracking_uri=proxy.url, jobs=1)
        assert_count_law(report, snapshot(url))
        not_packed = report.unpacked
        whole, calls = contents(archive), [r.path.partition("?")[0] for r in proxy.seen]
    by_path: defaultdict[str, list[int]] = defaultdict(list)
    for number, path in enumerate(calls, 1):
        by_path[path].append(number)
    chance = random.Random(SEED)
    silent, stopped = [], 0
    for trial in range(COUNT):
        fault = [*FAULTS][trial % len(FAULTS)]
        path = chance.choice(sorted(by_path))
        number = chance.choice(by_path[path])

        def rule(
            request: Request, number: int = number, path: str = path, fault: str = fault
        ) -> int | bytes | None:
            is_it = request.path.partition("?")[0] == path and request.number >= number
            return FAULTS[fault] if is_it else None

        with FaultyProxy(url, rule) as proxy:
            try:
                report = pack(archive, tracking_uri=proxy.url, jobs=1, overwrite=True)
            except EximError:
                stopped += 1
                continue
        told = f"{fault} at {path} from call {number} on"
        assert_count_law(report)
        assert verify(archive).ok, told
        there = contents(archive)
        lost = sorted(p for p in whole if there.get(p, b"gone") != whole[p])
        if lost and report.ok and not report.losses and report.unpacked == not_packed:
            silent.append(f"{told}: {lost}")
    assert silent == []
    assert stopped < COUNT


@pytest.mark.timeout(max(300, 60 * COUNT))
def test_an_unpack_loses_nothing_in_silence(url: str, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.zst"
    pack(str(archive), tracking_uri=url)
    source = snapshot(url)
    chance = random.Random(SEED)
    silent, stopped = [], 0
    with opened("http", tmp_path / "target") as target:
        with FaultyProxy(target.url) as proxy:
            assert target.put(archive, proxy.url).ok
            calls = [(r.method, r.path.partition("?")[0]) for r in proxy.seen]
        whole = _lacking(source, target.url)
        for trial in range(UNPACKS):
            fault = [*FAULTS][trial % len(FAULTS)]
            number = chance.randrange(len(calls)) + 1
            is_lasting = chance.random() < 0.5
            told = f"{fault} at {calls[number - 1]}, call {number}{' and on' * is_lasting}"

            def rule(
                request: Request, n: int = number, on: bool = is_lasting, fault: str = fault
            ) -> int | bytes | None:
                is_it = request.number == n or (on and request.number > n)
                return FAULTS[fault] if is_it else None

            target.empty()
            with FaultyProxy(target.url, rule) as proxy:
                try:
                    report = target.put(archive, proxy.url)
                except EximError:
                    stopped += 1
                else:
                    assert_count_law(report)
                    lacking = _lacking(source, target.url) - whole
                    silent += [f"{told}: {one}" for one in lacking if not _is_named(one, report)]
            again = target.put(archive)
            assert_count_law(again)
            # Numbers of versions that were begun are gone, which it says.
            lacking = _lacking(source, target.url) - whole
            silent += [f"{told}, and again: {one}" for one in lacking if not _is_named(one, again)]
    assert silent == []
    assert stopped < UNPACKS


def test_a_version_that_is_made_unheard_is_made_once(url: str, tmp_path: Path) -> None:
    """What hangs on it is made up for when it is found there."""
    archive = tmp_path / "a.tar.zst"
    pack(str(archive), tracking_uri=url)
    made = itertools.count()

    def cut(request: Request) -> bytes | int | None:
        is_it = request.path.endswith("/model-versions/create") and b'"net"' in request.body
        return FAULTS["half an answer"] if is_it and next(made) == 1 else None

    with opened("http", tmp_path / "target") as target:
        with FaultyProxy(target.url, cut) as proxy:
            failures = target.put(archive, proxy.url).failures
        assert [(str(failure.kind), failure.id) for failure in failures] == [
            ("model_version", "net/2")
        ]
        assert target.put(archive).ok
        client = MlflowClient(target.url)
        assert len(client.search_model_versions("name = 'net'")) == 2
        assert client.get_registered_model("net").aliases == {"champion": "2"}


def test_what_is_made_unheard_is_not_made_again(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's client sends again what got no answer: so there would be two of it."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    client = MlflowClient(url)
    experiment = client.get_experiment_by_name("first").experiment_id
    many = client.create_logged_model(experiment, "many", params={f"p{n}": "x" for n in range(150)})
    archive = tmp_path / "a.tar.zst"
    pack(str(archive), tracking_uri=url)
    heard: set[str] = set()

    def lose(request: Request) -> None:
        path = re.sub(r"/m-\w+", "", request.path.partition("?")[0])
        if path.endswith(("/create", "/logged-models", "/params")) and path not in heard:
            heard.add(path)
            raise ConnectionError(f"nobody hears that {path} is done")

    def made(of: str) -> Counter[str]:
        client = MlflowClient(of)
        ids = [e.experiment_id for e in client.search_experiments()]
        return Counter(
            {
                "experiments": len(ids),
                "runs": len(client.search_runs(ids)),
                "models": len(client.search_registered_models()),
                "versions": len(client.search_model_versions()),
                "logged models": len(client.search_logged_models(ids)),
            }
        )

    with opened("http", tmp_path / "target") as target:
        with FaultyProxy(target.url) as proxy:
            proxy.after = lose
            for _ in range(len(LOST)):  # an experiment comes before its runs
                report = target.put(archive, proxy.url)
                assert_count_law(report)
            assert heard == LOST
        assert target.put(archive).ok
        assert made(target.url) == made(url)
    client.delete_logged_model(many.model_id)


def _lacking(source: Snapshot, url: str) -> set[tuple[str, str, str]]:
    """Return kind, id and field of what a server has otherwise than the source."""
    return {(kind, id_, name) for kind, id_, name, _, _ in differences(source, snapshot(url))}


def _is_named(lacking: tuple[str, str, str], report: Report) -> bool:
    """Whether a line is of this very object, or of a part of it where no more is lacking."""
    kind, identity, name = lacking
    part = name.partition(" ")[2]
    owner, _, number = identity.rpartition("/")  # of a version that another has there
    skips = [skip for skip in report.skips if skip.reason != "it is there already"]
    lines = [(line.kind, line.id, line.reason) for line in (*report.failures, *skips)]
    lines += [(loss.kind, loss.id, loss.what) for loss in report.losses]
    return any(
        id_ in (identity, f"{identity}/{part}" if part else identity)
        or (id_ == "*" and of == kind)
        or (id_.startswith(f"{identity}/") and not part)
        or re.search(rf"(?<!\w){re.escape(identity)}(?!\w)", what)
        or (owner and id_.startswith(f"{owner}/") and re.search(rf"number {number}\b", what))
        for of, id_, what in lines
    )
