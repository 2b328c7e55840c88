"""Prompts: every version, what MLflow's prompt functions say of them, and their experiments."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mlflow import MlflowClient

from mlflow_exim_plugin import pack
from mlflow_exim_plugin.options import Selection
from mlflow_exim_plugin.schema.objects import Kind
from tests.compare import assert_count_law, assert_same, snapshot
from tests.compare_models import PROMPT_TAG
from tests.depth import first_of
from tests.filled import copy_of_server
from tests.integration.conftest import rows_of
from tests.integration.test_idempotence import assert_nothing_written, unpack_killed_at
from tests.new_ids import unpack
from tests.proxy import FaultyProxy
from tests.seed_prompts import DELETED, EXPERIMENT_IDS, seed_by_hand, seed_prompts
from tests.servers import old_versions, start_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import MakeServer
    from tests.proxy import Request
    from tests.servers import Server

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("prompts")
    copy_of_server(folder, fill)
    with start_server(folder) as server:
        yield server


def fill(uri: str) -> None:
    seed_prompts(MlflowClient(uri))


@pytest.fixture(scope="module")
def archive(served: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("archive") / "a.tar.zst")
    report = pack(path, tracking_uri=served.url)
    assert report.failures == []
    assert_count_law(report, snapshot(served.url))
    return path


def test_the_seed_has_the_hard_cases(served: Server) -> None:
    found = snapshot(served.url)

    assert set(found.prompts) == {"greet.user", "chat", "versions-gone"}
    numbers = {int(i.rpartition("/")[2]) for i in found.prompt_versions if "greet" in i}
    assert numbers == set(range(1, 13)) - set(DELETED)
    assert set(found.models) == {"a model"}
    assert "temperature" in found.prompt_versions["chat/1"]["as a prompt"]
    assert "properties" in found.prompt_versions["chat/1"]["as a prompt"]


@pytest.mark.parametrize("through_server", first_of(1, [True, False]), ids=["server", "database"])
def test_to_a_server(
    served: Server, make_server: MakeServer, archive: str, tmp_path: Path, *, through_server: bool
) -> None:
    target = make_server()
    # Experiments get other numbers, so that the prompts' links have to follow.
    MlflowClient(target.url).create_experiment("in the way")
    if not through_server:
        archive = str(tmp_path / "from a database.tar.zst")
        assert pack(archive, tracking_uri=served.backend_uri).ok

    report = unpack(archive, tracking_uri=target.url)

    assert report.failures == []
    assert_count_law(report, snapshot(served.url))
    there = snapshot(target.url)
    there.experiments.pop("in the way")
    assert_same(snapshot(served.url), there, report)
    client = MlflowClient(target.url)
    # `load_prompt` would link the prompt to the experiment at work, in a thread of its own.
    loaded = client.get_prompt_version_by_alias("greet.user", "production")
    assert loaded.template == "Hello {{name}}, 10 ✓\n"
    ids = client.get_prompt("greet.user").tags[EXPERIMENT_IDS].strip(",").split(",")
    assert [client.get_experiment(i).name for i in ids] == ["linked 1", "linked 11"]
    before = rows_of(target.backend_uri)
    assert_nothing_written(unpack(archive, tracking_uri=target.url))
    assert rows_of(target.backend_uri) == before


def test_to_a_database(served: Server, archive: str, sqlite_uri: str) -> None:
    report = unpack(archive, tracking_uri=sqlite_uri)

    assert report.failures == []
    assert_same(snapshot(served.url), snapshot(sqlite_uri), report)
    assert_nothing_written(unpack(archive, tracking_uri=sqlite_uri))


@pytest.mark.exhaustive
def test_killed_between_two_calls(served: Server, archive: str, make_server: MakeServer) -> None:
    target = make_server()
    calls = [
        ("POST", "registered-models/create", 2),
        ("POST", "model-versions/create", 4),  # a placeholder among them
        ("DELETE", "model-versions/delete", 1),
        ("POST", "registered-models/alias", 2),
        ("POST", "registered-models/set-tag", 2),
    ]
    unpack_killed_at(archive, target.url, calls)

    report = unpack(archive, tracking_uri=target.url)

    assert report.failures == []
    assert_same(snapshot(served.url), snapshot(target.url), report)
    assert_nothing_written(unpack(archive, tracking_uri=target.url))


def test_a_glob_takes_prompts(served: Server, sqlite_uri: str, tmp_path: Path) -> None:
    archive = str(tmp_path / "a.tar.zst")

    packed = pack(archive, tracking_uri=served.url, selection=Selection(models=("greet*",)))
    report = unpack(archive, tracking_uri=sqlite_uri)

    assert packed.counts[Kind.PROMPT].written == 1
    assert packed.counts[Kind.PROMPT_VERSION].written == 12 - len(DELETED)
    assert Kind.REGISTERED_MODEL not in packed.counts
    assert report.failures == []
    (loss,) = (loss for loss in report.losses if loss.id == "greet.user")
    assert loss.what.startswith("its links to experiments")
    tags = MlflowClient(sqlite_uri, sqlite_uri).get_prompt("greet.user").tags
    assert EXPERIMENT_IDS not in tags


def test_links_come_with_the_later_part(served: Server, archive: str, sqlite_uri: str) -> None:
    unpack(archive, tracking_uri=sqlite_uri, selection=Selection(models=("*",)))

    report = unpack(archive, tracking_uri=sqlite_uri)

    assert report.failures == []
    assert_same(snapshot(served.url), snapshot(sqlite_uri), report)


@pytest.mark.parametrize(
    ("policy", "named"), [("rename", "chat.2"), ("skip", None), ("merge", None)]
)
def test_a_model_in_the_way(archive: str, sqlite_uri: str, policy: str, named: str | None) -> None:
    """A registered model and a prompt share one set of names."""
    client = MlflowClient(sqlite_uri, sqlite_uri)
    client.create_registered_model("chat")

    report = unpack(archive, tracking_uri=sqlite_uri, on_conflict=policy)

    assert_count_law(report)
    failed = [(failure.kind, failure.id) for failure in report.failures]
    versions = [(Kind.PROMPT_VERSION, f"chat/{number}") for number in (1, 2)]
    assert failed == ([(Kind.PROMPT, "chat"), *versions] if policy == "merge" else [])
    assert client.get_registered_model("chat").tags == {}
    if named:
        assert client.get_prompt_version(named, "2").template == [
            {"role": "user", "content": "{{q}}?"}
        ]
        assert_nothing_written(unpack(archive, tracking_uri=sqlite_uri, on_conflict=policy))


def test_versions_join_a_namesakes_prompt(archive: str, sqlite_uri: str) -> None:
    client = MlflowClient(sqlite_uri, sqlite_uri)
    client.register_prompt("chat", "theirs", tags={"mine": "no"})

    report = unpack(archive, tracking_uri=sqlite_uri)

    assert report.failures == []
    assert client.get_prompt_version("chat", "1").template == "theirs"
    assert client.get_prompt_version("chat", "3").template == [
        {"role": "user", "content": "{{q}}?"}
    ]
    lost = {loss.id: loss.what for loss in report.losses}
    assert lost["chat/2"] == "it has number 3 at the target"
    assert_nothing_written(unpack(archive, tracking_uri=sqlite_uri))


@pytest.mark.parametrize(
    "mlflow_version", [None, pytest.param("3.1.4", marks=pytest.mark.generations)]
)
def test_versions_without_a_template(
    sqlite_uri: str, make_server: MakeServer, tmp_path: Path, mlflow_version: str | None
) -> None:
    seed_by_hand(MlflowClient(sqlite_uri, sqlite_uri))
    archive, target = str(tmp_path / "a.tar.zst"), make_server(mlflow_version=mlflow_version)

    packed = pack(archive, tracking_uri=sqlite_uri)
    report = unpack(archive, tracking_uri=target.url)

    assert packed.counts[Kind.PROMPT_VERSION].written == 5
    assert report.failures == []
    assert_count_law(report)
    assert_same(snapshot(sqlite_uri), snapshot(target.url), report)
    assert PROMPT_TAG not in MlflowClient(target.url).get_model_version("by-hand", "4").tags
    before = rows_of(target.backend_uri)
    assert_nothing_written(unpack(archive, tracking_uri=target.url))
    assert rows_of(target.backend_uri) == before


def test_a_tag_that_the_server_wanted_and_keeps(
    sqlite_uri: str, make_server: MakeServer, tmp_path: Path
) -> None:
    seed_by_hand(MlflowClient(sqlite_uri, sqlite_uri))
    archive, target = str(tmp_path / "a.tar.zst"), make_server()
    pack(archive, tracking_uri=sqlite_uri)

    def refuses(request: Request) -> int | None:
        return 403 if "model-versions/delete-tag" in request.path else None

    with FaultyProxy(target.url, refuses) as proxy:
        report = unpack(archive, tracking_uri=proxy.url)

    assert report.failures == []
    (lost,) = (loss for loss in report.losses if loss.id == "by-hand/4")
    assert lost.what.startswith(f"its tag {PROMPT_TAG} is there for the server: ")
    # A later unpack ends what this one could not.
    assert_nothing_written(unpack(archive, tracking_uri=target.url))
    assert_same(snapshot(sqlite_uri), snapshot(target.url), report)


@pytest.mark.exhaustive
@pytest.mark.compat
@pytest.mark.parametrize("mlflow_version", old_versions("2.22.5", "3.1.4"))
def test_old_servers(
    served: Server, archive: str, make_server: MakeServer, mlflow_version: str, tmp_path: Path
) -> None:
    old, again = make_server(mlflow_version=mlflow_version), make_server()
    path = str(tmp_path / "back.tar.zst")

    there = unpack(archive, tracking_uri=old.url)
    packed = pack(path, tracking_uri=old.url)
    back = unpack(path, tracking_uri=again.url)

    for report in (there, packed, back):
        assert report.failures == []
    assert_nothing_written(unpack(archive, tracking_uri=old.url))
    source, end = snapshot(served.url), snapshot(again.url)
    assert_same(source, end, there, back)
