"""The names inside MLflow that the package uses although they are not public, one by one."""

from __future__ import annotations

import os
import re
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import mlflow
import pytest
from mlflow.entities import Metric, RunData
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.tracking._model_registry.client import ModelRegistryClient
from mlflow.tracking._tracking_service.client import TrackingServiceClient
from packaging.version import Version

import mlflow_exim_plugin
from mlflow_exim_plugin.host.open.host import Host
from mlflow_exim_plugin.host.open.schema_revisions import is_known, latest_revision, revision_of
from mlflow_exim_plugin.host.open.stores import StoreOpener
from mlflow_exim_plugin.host.open.workspaces import entered, workers
from mlflow_exim_plugin.host.sql.histories import StoredHistories
from mlflow_exim_plugin.schema.objects import Failure

if TYPE_CHECKING:
    from tests.servers import Server

pytestmark = pytest.mark.compat

PRIVATE = {
    "_load_dataset_records",
    "_metric_objs",
}


def test_the_clients_behind_the_client_have_its_stores(sqlite_uri: str) -> None:
    client = mlflow.MlflowClient(sqlite_uri, sqlite_uri)
    store = TrackingServiceClient(sqlite_uri).store
    assert store is client._tracking_client.store
    for method in ("search_experiments", "search_runs", "create_run", "log_batch"):
        assert callable(getattr(store, method))
    registry = ModelRegistryClient(sqlite_uri, sqlite_uri).store
    assert registry is client._get_registry_client().store
    for method in ("search_registered_models", "search_model_versions", "create_model_version"):
        assert callable(getattr(registry, method))


def test_a_store_of_files_is_what_its_constructor_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = (tmp_path / "mlruns").as_uri()
    with monkeypatch.context() as allowed:
        allowed.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        made = mlflow.MlflowClient(uri, uri)
        stores = made._tracking_client.store, made._get_registry_client().store
    with Host(uri, uri, create=False) as host:
        for ours, of_mlflow in zip((host.tracking, host.registry), stores, strict=True):
            assert isinstance(ours, type(of_mlflow))
            # The root of artifacts is where new experiments would be.
            assert vars(ours).keys() == vars(of_mlflow).keys() - {"artifact_root_uri"}
            for name in ("root_directory", "trash_folder"):
                assert getattr(ours, name, None) == getattr(of_mlflow, name, None)


@pytest.mark.skipif(Version(mlflow.__version__) < Version("3.10"), reason="no workspaces before")
def test_a_store_with_workspaces_asks_one_method_whether_they_are_used(sqlite_uri: str) -> None:
    from mlflow.store.workspace_aware_mixin import WorkspaceAwareMixin

    with ExitStack() as held:
        opener = StoreOpener(held, reads=True, has_workspaces=True)
        for store in (opener.tracking(sqlite_uri), opener.registry(sqlite_uri, sqlite_uri)):
            assert isinstance(store, WorkspaceAwareMixin)
            assert store.supports_workspaces
            with entered({"name": "team-a"}):
                assert store._get_active_workspace() == "team-a"
        assert "MLFLOW_ENABLE_WORKSPACES" not in os.environ


def test_run_data_keeps_the_steps_of_its_metrics() -> None:
    data = RunData(metrics=[Metric("loss", 0.5, 1_600_000_000_000, 7)])
    assert [(metric.key, metric.step) for metric in data._metric_objs] == [("loss", 7)]


def test_a_proxied_root_is_below_its_server() -> None:
    root = MlflowArtifactsRepository.resolve_uri("mlflow-artifacts:/1/r", "http://127.0.0.1:5000")
    assert root == "http://127.0.0.1:5000/api/2.0/mlflow-artifacts/artifacts/1/r"


def test_the_store_of_a_server_has_credentials(server: Server) -> None:
    with Host(server.url, create=False) as host:
        assert host.tracking.get_host_creds().host == server.url


def test_a_store_of_a_database_has_its_engine_and_its_table_of_metrics(sqlite_uri: str) -> None:
    client = mlflow.MlflowClient(sqlite_uri, sqlite_uri)
    run_id = client.create_run("0").info.run_id
    client.log_metric(run_id, "loss", 0.5, timestamp=1_600_000_000_000, step=7)
    engine = Host(sqlite_uri, create=False).engine
    assert engine is not None
    with closing(StoredHistories(engine)) as reader:
        (rows,) = reader.start({run_id: {"loss": 7}}).finish()[run_id]
    assert not isinstance(rows, Failure)
    assert rows.table.to_pylist() == [
        {"key": "loss", "step": 7, "timestamp": 1_600_000_000_000, "value": 0.5}
    ]


@pytest.mark.skipif(Version(mlflow.__version__) < Version("3.4"), reason="no datasets before")
def test_a_store_gives_the_records_of_a_dataset_by_pages(sqlite_uri: str) -> None:
    store = mlflow.MlflowClient(sqlite_uri, sqlite_uri)._tracking_client.store
    dataset = store.create_dataset("questions")
    store.upsert_dataset_records(dataset.dataset_id, [{"inputs": {"n": n}} for n in range(3)])
    first, token = store._load_dataset_records(dataset.dataset_id, max_results=2)
    rest, end = store._load_dataset_records(dataset.dataset_id, max_results=2, page_token=token)
    assert sorted(record.to_dict()["inputs"]["n"] for record in first + rest) == [0, 1, 2]
    assert (len(first), end) == (2, None)


@pytest.mark.skipif(Version(mlflow.__version__) < Version("3.14"), reason="no schemas before")
def test_label_schemas_have_a_table_that_can_be_read_without_writing(sqlite_uri: str) -> None:
    from mlflow.store.tracking.dbmodels.models import SqlLabelSchema

    store = mlflow.MlflowClient(sqlite_uri, sqlite_uri)._tracking_client.store
    (made,) = store.list_label_schemas("0")
    with store.ManagedSessionMaker() as session:
        (row,) = session.query(SqlLabelSchema).filter(SqlLabelSchema.experiment_id == 0)
        assert row.to_mlflow_entity() == made


@pytest.mark.skipif(Version(mlflow.__version__) < Version("3.4"), reason="no datasets before")
def test_records_of_datasets_have_a_table_that_can_be_read_one_by_one(sqlite_uri: str) -> None:
    from mlflow.store.tracking.dbmodels.models import SqlEvaluationDatasetRecord

    store = mlflow.MlflowClient(sqlite_uri, sqlite_uri)._tracking_client.store
    dataset = store.create_dataset("asked", {}, [])
    store.upsert_dataset_records(dataset.dataset_id, [{"inputs": {"q": "?"}}])
    with store.ManagedSessionMaker() as session:
        of = {"dataset_id": dataset.dataset_id}
        row = session.query(SqlEvaluationDatasetRecord).filter_by(**of).one()
        assert row.to_mlflow_entity().inputs == {"q": "?"}
        assert row.to_mlflow_entity().dataset_record_id == row.dataset_record_id


@pytest.mark.skipif(Version(mlflow.__version__) < Version("3.3"), reason="no webhooks before")
def test_webhooks_have_a_table_that_can_be_read_without_its_secret(sqlite_uri: str) -> None:
    from mlflow.store.model_registry.dbmodels.models import SqlWebhook, SqlWebhookEvent

    registry = mlflow.MlflowClient(sqlite_uri, sqlite_uri)._get_registry_client().store
    columns = {column.name for column in SqlWebhook.__table__.columns}
    assert columns >= {"webhook_id", "name", "url", "description", "status", "secret"}
    assert columns >= {"creation_timestamp", "last_updated_timestamp", "deleted_timestamp"}
    with registry.ManagedSessionMaker() as session:
        assert session.query(SqlWebhook.webhook_id).all() == []
        assert session.query(SqlWebhookEvent).all() == []


@pytest.mark.skipif(Version(mlflow.__version__) < Version("3.10"), reason="no workspaces before")
def test_a_workspace_can_be_entered_by_one_thread() -> None:
    from mlflow.utils.workspace_context import get_request_workspace

    before = get_request_workspace()
    with entered({"name": "team-a"}), workers(1, "there") as there:
        with entered(None), workers(1, "elsewhere") as elsewhere:
            assert get_request_workspace() == elsewhere.submit(get_request_workspace).result()
            assert get_request_workspace() == before
        assert get_request_workspace() == there.submit(get_request_workspace).result() == "team-a"
    assert get_request_workspace() == before


def test_migrations_say_which_revision_comes_before(sqlite_uri: str) -> None:
    engine = Host(sqlite_uri, create=True).engine
    assert engine is not None
    with engine.connect() as connection:
        assert revision_of(connection) == latest_revision()
    assert is_known("451aebb31d03")  # MLflow 0.9
    assert not is_known("0" * 12)


def test_a_store_says_where_new_experiments_are(sqlite_uri: str) -> None:
    host = Host(sqlite_uri, create=True)
    experiment = mlflow.MlflowClient(sqlite_uri).get_experiment("0")
    assert f"{host.tracking.artifact_root_uri}/0" == experiment.artifact_location


@pytest.mark.skipif(Version(mlflow.__version__) < Version("3.17"), reason="no columns before")
def test_metadata_of_traces_become_columns_and_come_back() -> None:
    from mlflow.store.tracking.utils import trace_analytics

    metadata = {
        "mlflow.trace.session": "s",
        "mlflow.trace.tokenUsage": '{"input_tokens": 5}',
        "mlflow.trace.cost": '{"total_cost": 0.5}',
    }
    columns = trace_analytics.analytics_columns_from_metadata(dict(metadata))
    assert columns == {"session_id": "s", "input_tokens": 5, "total_cost": 0.5}
    assert metadata.keys() == trace_analytics.PROMOTED_TRACE_METADATA_KEYS
    row = dict.fromkeys(
        [
            *trace_analytics.TOKEN_COLUMN_BY_KEY.values(),
            *trace_analytics.COST_COLUMN_BY_KEY.values(),
        ]
    )
    given = trace_analytics.compatibility_metadata_from_columns(SimpleNamespace(**row | columns))
    assert given == metadata


@pytest.mark.skipif(Version(mlflow.__version__) < Version("3.14"), reason="no schemas before")
def test_entities_become_rows() -> None:
    from mlflow.entities import AssessmentSource, Feedback
    from mlflow.genai.label_schemas.label_schemas import InputText, LabelSchema, LabelSchemaType
    from mlflow.store.tracking.dbmodels.models import SqlAssessments, SqlLabelSchema

    source = AssessmentSource("HUMAN", "ada")
    row = SqlAssessments.from_mlflow_entity(Feedback(name="good", value=0.5, source=source))
    assert (row.name, row.value, row.source_id) == ("good", "0.5", "ada")
    schema = LabelSchema(
        name="topics",
        type=LabelSchemaType.FEEDBACK,
        input=InputText(),
        schema_id="ls-1",
        experiment_id="1",
    )
    made = SqlLabelSchema.from_mlflow_entity(schema)
    assert (made.schema_id, made.experiment_id, made.input_type) == ("ls-1", 1, "text")


@pytest.mark.skipif(Version(mlflow.__version__) < Version("3.17"), reason="no MCP servers before")
def test_versions_of_mcp_servers_have_a_key_to_sort_by() -> None:
    from mlflow.utils.semver_utils import encode_prerelease_sort_key, parse_semver

    first, second = parse_semver("1.2.3-rc.1"), parse_semver("1.2.3")
    assert (first.major, first.minor, first.patch) == (1, 2, 3)
    assert encode_prerelease_sort_key(first) < encode_prerelease_sort_key(second)


def test_no_other_private_name_is_used() -> None:
    package = Path(mlflow_exim_plugin.__file__).parent
    used = {
        name
        for wing in ("host", "sources", "sinks")
        for path in package.glob(f"{wing}/**/*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if "SLF001" in line
        for name in re.findall(r"(?<!self)\.(_[a-z]\w*)", line)
    }
    assert used == PRIVATE
