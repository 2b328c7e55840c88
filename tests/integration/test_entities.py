"""Every kind that is one document: scorers, queues, datasets, gateway, MCP servers, webhooks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import GatewayEndpointModelConfig, GatewayModelLinkageType
from mlflow.store.tracking.abstract_store import AbstractStore

from mlflow_exim_plugin import pack, verify
from mlflow_exim_plugin.errors import ConflictError
from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin.options import OnConflict, Selection, Writing
from mlflow_exim_plugin.schema.objects import (
    ENTITY_KINDS,
    Entity,
    Experiment,
    Failure,
    Kind,
    StreamItem,
    Trace,
)
from mlflow_exim_plugin.sinks.server.sink import ServerSink
from mlflow_exim_plugin.sources.server.source import ServerSource
from mlflow_exim_plugin.transfer import transfer
from tests.compare import assert_count_law
from tests.compare_entities import entities
from tests.filled import copy_of_server
from tests.integration.conftest import rows_of
from tests.new_ids import unpack
from tests.proxy import FaultyProxy, Request
from tests.seed_entities import (
    SECRETS,
    SERVER_ENV,
    SeededEntities,
    add_secrets,
    judge_json,
    seed_entities,
)
from tests.servers import Server, old_versions, start_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report
    from tests.conftest import MakeServer

pytestmark = pytest.mark.integration

KINDS = set(ENTITY_KINDS) - {Kind.WORKSPACE, Kind.SKILL}  # test_skills.py has skills
FOUND = {
    Kind.SCORER: 4,
    Kind.LABEL_SCHEMA: 8,
    Kind.ISSUE: 3,
    Kind.REVIEW_QUEUE: 3,
    Kind.EVALUATION_DATASET: 4,
    Kind.DATASET_RECORD: 1009,
    Kind.MODEL_DEFINITION: 3,
    Kind.ENDPOINT: 2,
    Kind.GUARDRAIL: 2,
    Kind.BUDGET_POLICY: 3,
    Kind.MCP_SERVER: 2,
    Kind.WEBHOOK: 2,
}


@dataclass(frozen=True)
class JudgedSource:
    """A server with all of it, and the same as a database file that no server holds."""

    server: Server
    sqlite_uri: str
    made: SeededEntities
    entities: dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def _few_retries() -> Iterator[None]:
    """A refusal is told at once, and this process may use what the servers may."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        for name, value in SERVER_ENV.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JudgedSource]:
    folder = tmp_path_factory.mktemp("judged")
    made = copy_of_server(folder, seed_entities, env=SERVER_ENV)
    with start_server(folder, env=SERVER_ENV) as server:
        yield JudgedSource(server, server.backend_uri, made, entities(server.url))


@pytest.fixture
def target(make_server: MakeServer) -> str:
    """A server that has the secrets."""
    server = make_server(env=SERVER_ENV)
    add_secrets(server.url)
    return server.url


def read(uri: str, selection: Selection | None = None) -> list[StreamItem]:
    """Return what the source gives of the entities, and everything that is no object."""
    stream = ServerSource(Host(uri, create=False)).stream(selection or Selection())
    return [i for i in stream if isinstance(i, Entity) or not hasattr(i, "document")]


def read_entities(uri: str) -> list[Entity]:
    """Return what the source gives of the entities."""
    return [item for item in read(uri) if isinstance(item, Entity)]


def move(source_uri: str, target_uri: str, **options: Any) -> Report:
    """Transfer from one deployment to another."""
    return transfer(
        ServerSource(Host(source_uri, create=False)),
        ServerSink(Host(target_uri, create=True), Writing(**options)),
        Selection(),
    )


def write(items: Iterable[StreamItem], target_uri: str, **options: Any) -> Report:
    """Write a stream that was made by hand."""

    class Given:
        def stream(self, selection: Selection) -> Iterator[StreamItem]:  # noqa: ARG002
            return iter(items)

    sink = ServerSink(Host(target_uri, create=True), Writing(**options))
    return transfer(Given(), sink, Selection())


def counts(report: Report, of: str) -> dict[Kind, int]:
    """Return one column of the counts, of the entities and of what is not nothing."""
    kinds = {*KINDS, Kind.DATASET_RECORD}
    return {k: getattr(c, of) for k, c in report.counts.items() if k in kinds and getattr(c, of)}


def failures(report: Report) -> dict[Kind, list[str]]:
    """Return the reasons by kind."""
    found: dict[Kind, list[str]] = {}
    for failure in report.failures:
        found.setdefault(failure.kind, []).append(failure.reason)
    return found


def test_round_trip_through_an_archive(source: JudgedSource, target: str, tmp_path: Path) -> None:
    archive = str(tmp_path / "a.tar.zst")

    packed = pack(archive, tracking_uri=source.server.url)
    report = unpack(archive, tracking_uri=target)

    assert packed.failures == report.failures == []
    assert verify(archive).findings == []
    assert counts(packed, "written") == counts(report, "written") == FOUND
    assert_count_law(report)
    assert entities(target) == source.entities
    webhooks = MlflowClient(target)._get_registry_client().store.list_webhooks()
    assert {str(webhook.status) for webhook in webhooks} == {"DISABLED"}
    assert ("notify", "it is disabled: give it its secret, if it had one, and switch it on") in [
        (loss.id, loss.what) for loss in report.losses
    ]
    assert {loss.kind for loss in report.losses if loss.id == "*"} >= set(FOUND)
    for text in (json.dumps(packed.to_dict()), json.dumps(report.to_dict())):
        assert "not-to-be-seen" not in text
    secrets = [u for u in packed.unpacked if u.kind == "gateway_secret"]
    assert [(u.seen, u.at_least) for u in secrets] == [(len(SECRETS), False)]
    assert all(name in secrets[0].reason for name in SECRETS)


def test_again_changes_nothing(
    source: JudgedSource, make_server: MakeServer, tmp_path: Path
) -> None:
    server = make_server(tmp_path / "target", env=SERVER_ENV)
    add_secrets(server.url)
    archive = str(tmp_path / "a.tar.zst")
    pack(archive, tracking_uri=source.server.url)
    assert unpack(archive, tracking_uri=server.url).ok
    before = rows_of(server.backend_uri)

    for policy in ("merge", "skip", "rename", "fail"):
        report = unpack(archive, tracking_uri=server.url, on_conflict=policy)

        assert report.failures == []
        assert counts(report, "skipped") == FOUND
        assert counts(report, "written") == {}
        assert_count_law(report)
    dry = unpack(archive, tracking_uri=server.url, dry_run=True)
    assert counts(dry, "skipped") == FOUND
    assert rows_of(server.backend_uri) == before


def test_a_dry_run_writes_nothing(source: JudgedSource, sqlite_uri: str) -> None:
    add_secrets(sqlite_uri)
    before = rows_of(sqlite_uri)

    report = move(source.server.url, sqlite_uri, dry_run=True)

    assert counts(report, "written") == FOUND
    assert rows_of(sqlite_uri) == before


def test_server_and_database_give_the_same_documents(source: JudgedSource) -> None:
    before = rows_of(source.sqlite_uri)

    by_server, by_database = read(source.server.url), read(source.sqlite_uri)

    def documents(items: list[StreamItem]) -> list[tuple[Kind, str, dict[str, Any]]]:
        return [(i.kind, i.experiment_id, i.document) for i in items if isinstance(i, Entity)]

    assert documents(by_server) == documents(by_database)
    assert {kind for kind, _, _ in documents(by_server)} == KINDS
    assert rows_of(source.sqlite_uri) == before


def test_a_label_schema_that_cannot_be_listed_is_said(make_server: MakeServer) -> None:
    server = make_server()
    client = MlflowClient(server.url)
    store = client._tracking_client.store
    experiment_id = client.create_experiment("never listed")
    given = {"type": "feedback", "input": _pass_fail()}
    seen = store.create_label_schema(experiment_id, name="in a queue", **given)
    store.create_label_schema(experiment_id, name="in no queue", **given)
    store.create_review_queue(
        experiment_id, name="q", queue_type="custom", schema_ids=[seen.schema_id]
    )
    before = rows_of(server.backend_uri)

    items = read(server.url)

    schemas = [i for i in items if isinstance(i, Entity) and i.kind is Kind.LABEL_SCHEMA]
    assert [schema.document["name"] for schema in schemas] == ["in a queue"]
    said = [i.kind for i in items if not isinstance(i, Entity)]
    assert "label schemas that no review queue uses" in said
    in_database = read(server.backend_uri)
    assert [
        i.document["name"]
        for i in in_database
        if isinstance(i, Entity) and i.kind is Kind.LABEL_SCHEMA
    ] == ["in a queue", "in no queue"]
    assert rows_of(server.backend_uri) == before


def test_a_server_without_label_schemas_has_no_line_of_its_own_for_them(
    make_server: MakeServer,
) -> None:
    server = make_server()
    MlflowClient(server.url).create_experiment("no labels")

    said = [str(item.kind) for item in read(server.url)]

    assert [kind for kind in said if "label" in kind] == [
        "jobs, usage rollups, users and their permissions, label schemas that no page has shown yet"
    ]


def _pass_fail() -> Any:
    from mlflow.genai.label_schemas import InputPassFail

    return InputPassFail("yes", "no")


@pytest.mark.exhaustive
def test_a_target_that_lacks_secrets_and_trust(
    source: JudgedSource, make_server: MakeServer
) -> None:
    # No secrets, no custom scorers, no hosts on loopback.
    server = make_server(env=dict.fromkeys(SERVER_ENV, "false"))

    report = move(source.server.url, server.url)

    found = failures(report)
    assert {kind: len(reasons) for kind, reasons in found.items()} == {
        Kind.SCORER: 2,
        Kind.MODEL_DEFINITION: 3,
        Kind.ENDPOINT: 2,
        Kind.GUARDRAIL: 1,
        Kind.BUDGET_POLICY: 1,
        Kind.WEBHOOK: 2,
    }
    needs = "needs the gateway secret 'openai key' (provider openai) at the target: create it, then"
    assert sum(needs in reason for reason in found[Kind.MODEL_DEFINITION]) == 2
    assert any("needs model definition 'spare': " in reason for reason in found[Kind.ENDPOINT])
    assert any("needs the gateway secret" in reason for reason in found[Kind.ENDPOINT])
    assert "needs version 1 of scorer 'safe'" in found[Kind.GUARDRAIL][0]
    assert any("Custom scorer registration" in reason for reason in found[Kind.SCORER])
    assert_count_law(report)
    icons = [loss for loss in report.losses if "icons of MCP server" in loss.what]
    assert [loss.id for loss in icons] == ["com.example/weather"]
    server.stop()

    trusting = make_server(server.directory, env=SERVER_ENV)
    add_secrets(trusting.url)
    rest = move(source.server.url, trusting.url)

    assert rest.failures == []
    expected = {kind: len(reasons) for kind, reasons in found.items()}
    assert counts(rest, "written") == expected | {Kind.MCP_SERVER: 1}  # it has its icons now
    assert entities(trusting.url) == source.entities


def test_one_bad_record_is_one_failure(source: JudgedSource, target: str) -> None:
    items = read_entities(source.sqlite_uri)
    many = next(i for i in items if i.id == source.made.ids["many"])
    bad = many.document["records"][700]
    bad["source"] = {"source_type": "NOBODY KNOWS", "source_data": {}}

    report = write([many], target)

    assert [(f.kind, f.id, f.count) for f in report.failures] == [
        (Kind.DATASET_RECORD, f"{many.id}/{bad['dataset_record_id']}", 1)
    ]
    assert counts(report, "written") == {Kind.EVALUATION_DATASET: 1, Kind.DATASET_RECORD: 1002}
    assert_count_law(report)


def test_a_reference_that_is_not_there_is_said(source: JudgedSource, target: str) -> None:
    kinds = {Kind.REVIEW_QUEUE, Kind.GUARDRAIL, Kind.ENDPOINT, Kind.EVALUATION_DATASET}
    items = [i for i in read_entities(source.sqlite_uri) if i.kind in kinds]
    full = next(i for i in items if i.id == source.made.ids["full"])

    report = write(items, target)

    assert {k: len(v) for k, v in failures(report).items()} == {
        Kind.ENDPOINT: 2,
        Kind.GUARDRAIL: 2,
        Kind.REVIEW_QUEUE: 3,  # their experiment is not there
    }
    said = [loss.what for loss in report.losses if loss.id == full.id]
    assert len(said) == len(full.document["experiment_ids"]) == 2
    assert all("its link to experiment" in what for what in said)
    assert_count_law(report)


@pytest.mark.skipif(
    not hasattr(AbstractStore, "list_scorers_across_experiments"),
    reason="this MLflow lists the scorers of one experiment",
)
def test_an_experiment_without_scorers_costs_no_call_for_them(source: JudgedSource) -> None:
    with FaultyProxy(source.server.url) as proxy:
        found = list(ServerSource(Host(proxy.url, create=False)).stream(Selection()))
        calls = [r.path for r in proxy.seen if r.path.partition("?")[0].endswith("/scorers/list")]
    having = {i.experiment_id for i in found if isinstance(i, Entity) and i.kind is Kind.SCORER}
    assert having
    assert len(having) < sum(isinstance(item, Experiment) for item in found)
    asked = {call.partition("experiment_id=")[2].partition("&")[0] for call in calls}
    assert asked == having | {""}


@pytest.mark.exhaustive
def test_an_item_whose_trace_is_gone_is_named(source: JudgedSource, target: str) -> None:
    stream = ServerSource(Host(source.sqlite_uri, create=False)).stream(Selection())
    gone = f"tr-{3:032x}"
    items = [i for i in stream if not (isinstance(i, Trace) and i.id == gone)]

    report = write(items, target)

    assert not failures(report).get(Kind.REVIEW_QUEUE)
    named = [loss for loss in report.losses if loss.kind is Kind.REVIEW_QUEUE and gone in loss.what]
    assert [loss.id for loss in named] == ["Expert Review"]
    queues = entities(target)["experiments"]["judged"]["review_queues"]
    assert len(queues["Expert Review"]["items"]) == 4


@pytest.mark.exhaustive
@pytest.mark.parametrize("mlflow_version", old_versions("2.22.5", "3.1.4"))
def test_an_old_target_is_given_the_rest(
    source: JudgedSource, make_server: MakeServer, mlflow_version: str
) -> None:
    server = make_server(mlflow_version=mlflow_version)

    report = move(source.server.url, server.url)

    assert not set(failures(report)) & KINDS
    assert counts(report, "skipped") == FOUND
    assert_count_law(report)
    named = {loss.kind: loss.what for loss in report.losses if loss.id == "*"}
    for kind in KINDS:
        assert named[kind] == (f"the target's MLflow does not have them: {FOUND[kind]} left out")
    names = {e.name for e in MlflowClient(server.url).search_experiments()}
    assert names >= {"judged", "also judged"}


@pytest.mark.exhaustive
@pytest.mark.parametrize("mlflow_version", old_versions("2.22.5", "3.1.4"))
def test_an_old_source_has_none(make_server: MakeServer, mlflow_version: str) -> None:
    server = make_server(mlflow_version=mlflow_version)
    MlflowClient(server.url).create_experiment("old")

    items = read(server.url)

    assert [getattr(item, "kind", item) for item in items] == [
        "jobs, usage rollups, users and their permissions"
    ]


def test_a_kind_that_cannot_be_listed_is_one_failure(source: JudgedSource) -> None:
    def refuse(request: Request) -> int | None:
        if "/datasets/search" in request.path:
            return 501  # the back end does not have it
        if "/mcp-servers" in request.path or "/issues/search" in request.path:
            return 503
        if "/scorers/versions" in request.path and "is_short" in request.path:
            return 500
        return None

    with FaultyProxy(source.server.url, refuse) as proxy:
        items = read(proxy.url)

    failed = [(i.kind, i.id) for i in items if isinstance(i, Failure)]
    assert sorted(failed) == sorted(
        [
            (Kind.MCP_SERVER, "all"),
            (Kind.SCORER, "is_short"),
            *((Kind.ISSUE, f"experiment {number}") for number in range(3)),
        ]
    )
    kinds = {i.kind for i in items if isinstance(i, Entity)}
    assert kinds == KINDS - {Kind.EVALUATION_DATASET, Kind.MCP_SERVER, Kind.ISSUE}


def test_a_narrow_selection_takes_what_belongs_to_its_experiments(source: JudgedSource) -> None:
    items = read(source.sqlite_uri, Selection(experiments=("also judged",)))

    assert [(i.kind, i.id) for i in items if isinstance(i, Entity)] == [
        (Kind.SCORER, "tone"),
        *sorted((Kind.EVALUATION_DATASET, source.made.ids[name]) for name in ("full", "many")),
    ]
    assert not [
        i
        for i in read(source.sqlite_uri, Selection(runs=(source.made.run_id,)))
        if isinstance(i, Entity)
    ]


def test_a_database_file_takes_all_of_it(
    source: JudgedSource, make_sqlite: Callable[[], str]
) -> None:
    uri = make_sqlite()
    add_secrets(uri)

    report = move(source.server.url, uri)

    assert not set(failures(report)) & {*KINDS, Kind.DATASET_RECORD}
    assert counts(report, "written") == FOUND
    assert entities(uri) == source.entities
    assert counts(move(source.server.url, uri), "written") == {}


def namesakes(uri: str) -> None:
    """Make other objects under names of the source."""
    client = MlflowClient(uri, uri)
    store = client._tracking_client.store
    add_secrets(uri)
    experiment_id = client.create_experiment("judged")
    store.register_scorer(experiment_id, "tone", judge_json("tone", "My own {{ outputs }}"))
    store.create_label_schema(
        experiment_id, name="stars", type="feedback", input=_pass_fail(), enable_comment=True
    )
    store.create_review_queue(
        experiment_id, name="EXPERT review", queue_type="custom", users=["carol"]
    )
    secret = store.list_secret_infos()[0].secret_id
    mine = store.create_gateway_model_definition("fast", secret, "openai", "my-model")
    primary = GatewayModelLinkageType.PRIMARY
    store.create_gateway_endpoint(
        "untracked",
        [GatewayEndpointModelConfig(mine.model_definition_id, primary)],
        usage_tracking=False,
    )
    store.create_mcp_server("com.example/weather", description="My own weather")
    store.create_mcp_server_version({"name": "com.example/weather", "version": "9.9.9"})


def test_namesakes_are_merged_with(source: JudgedSource, make_sqlite: Callable[[], str]) -> None:
    uri = make_sqlite()
    namesakes(uri)
    mine = entities(uri)

    report = move(source.server.url, uri)

    assert report.failures == []
    assert_count_law(report)
    there = entities(uri)
    theirs, ours = there["experiments"]["judged"], source.entities["experiments"]["judged"]
    contents = [json.loads(text) for _, text in theirs["scorers"]["tone"]["versions"]]
    own = mine["experiments"]["judged"]["scorers"]["tone"]["versions"]
    given = ours["scorers"]["tone"]["versions"]
    assert contents == [json.loads(text) for _, text in own + given]
    # MLflow's default schema is there now, so a listing shows the namesake's too.
    assert theirs["label_schemas"]["stars"]["input"] == {
        "pass_fail": {"positive_label": "yes", "negative_label": "no"}
    }
    queue = theirs["review_queues"]["EXPERT review"]
    assert (queue["users"], queue["schemas"]) == (["carol"], [])
    assert queue["items"] == ours["review_queues"]["Expert Review"]["items"]
    assert there["model_definitions"]["fast"] == mine["model_definitions"]["fast"]
    assert there["endpoints"]["untracked"] == mine["endpoints"]["untracked"]
    # The guardrail's scorer has another number here: its second version is the third.
    assert there["guardrails"]["keep it kind"][2] == 3
    weather = there["mcp_servers"]["com.example/weather"]
    assert weather["description"] == "My own weather"
    assert set(weather["versions"]) == {"1.0.0", "1.1.0-rc.1", "2.0.0", "9.9.9"}
    said = {(loss.kind, loss.what.split(":")[0]) for loss in report.losses}
    assert (Kind.SCORER, "versions are renumbered") in said
    keeps = {loss.kind for loss in report.losses if "stays as it is" in loss.what}
    assert keeps == {Kind.LABEL_SCHEMA, Kind.MODEL_DEFINITION}
    joined = {loss.kind for loss in report.losses if "which keeps its own" in loss.what}
    assert joined >= {Kind.REVIEW_QUEUE, Kind.ENDPOINT, Kind.MCP_SERVER}

    assert counts(move(source.server.url, uri), "written") == {}
    assert entities(uri) == there


@pytest.mark.parametrize("policy", [OnConflict.SKIP, OnConflict.RENAME])
def test_namesakes_are_left_alone(
    source: JudgedSource, make_sqlite: Callable[[], str], policy: OnConflict
) -> None:
    uri = make_sqlite()
    namesakes(uri)
    mine = entities(uri)
    of_workspace = {Kind.MODEL_DEFINITION, Kind.ENDPOINT, Kind.MCP_SERVER}
    items = [i for i in read_entities(source.sqlite_uri) if i.kind in of_workspace]

    report = write(items, uri, on_conflict=policy)

    assert_count_law(report)
    there = entities(uri)
    for kind in ("model_definitions", "endpoints", "mcp_servers"):
        for name, value in mine[kind].items():
            assert there[kind][name] == value
    if policy is OnConflict.RENAME:
        assert report.failures == []
        assert set(there["model_definitions"]) == {"fast", "fast-2", "good", "spare"}
        assert set(there["endpoints"]) == {"chat", "untracked", "untracked-2"}
        renamed = there["mcp_servers"]["com.example/weather-2"]
        assert set(renamed["versions"]) == {"1.0.0", "1.1.0-rc.1", "2.0.0"}
        named = [loss.what for loss in report.losses if "is named" in loss.what]
        assert len(named) == 3
    before = rows_of(uri)
    assert counts(write(items, uri, on_conflict=policy), "written") == {}
    assert rows_of(uri) == before


def test_a_namesake_stops_a_careful_unpack(
    source: JudgedSource, make_sqlite: Callable[[], str]
) -> None:
    uri = make_sqlite()
    namesakes(uri)
    items = [i for i in read_entities(source.sqlite_uri) if i.kind is Kind.MODEL_DEFINITION]

    with pytest.raises(ConflictError, match="another model definition named 'fast'"):
        write(items, uri, on_conflict=OnConflict.FAIL)
