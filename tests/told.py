"""What is told of a database: out of its tables, and by the store of an MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.api.logged_models import LoggedModels
from mlflow_exim_plugin.host.api.reading import Reader
from mlflow_exim_plugin.host.entities import datasets, gateway, judges, registries
from mlflow_exim_plugin.host.sql.entities import entities_of
from mlflow_exim_plugin.host.sql.logged_models import StoredLoggedModels, logged_models_of
from mlflow_exim_plugin.host.sql.reading import StoredReader, reader_of
from mlflow_exim_plugin.host.sql.traces import StoredTraceReader, StoredTraces
from mlflow_exim_plugin.host.traces.listing import TraceListing
from mlflow_exim_plugin.host.traces.reading import TraceReader
from mlflow_exim_plugin.host.traces.search import TraceSearch
from mlflow_exim_plugin.kinds import ENTITY_KINDS
from mlflow_exim_plugin.schema.objects import Entity, Failure, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.schema.objects import Trace

__all__ = ["assert_told_as_by_mlflow", "told"]


def assert_told_as_by_mlflow(host: Host) -> set[str]:
    """Assert that tables and MLflow tell the same of a database; return the kinds that it has."""
    reader = reader_of(host)
    assert isinstance(reader, StoredReader)
    found = told(reader) | _logged_models(host) | _traces(host) | _entities(host)
    expected = told(Reader(host)) | _logged_models(host, by_mlflow=True)
    expected |= _traces(host, by_mlflow=True) | _entities(host, by_mlflow=True)
    assert found == expected
    return {name.partition("/")[0] for name in found}


def told(reader: Reader) -> dict[str, Any]:
    """All that a reader says of experiments, their runs, and the registry."""
    experiments = reader.experiments()
    found: dict[str, Any] = {f"experiment/{e['experiment_id']}": e for e in experiments}
    for experiment in experiments:
        for run_id, header in reader.runs(experiment["experiment_id"]).items():
            found[f"header/{run_id}"] = header
            found[f"run/{run_id}"] = reader.run(run_id)
    models, prompts = reader.registered_models()
    for kind, names in ((Kind.REGISTERED_MODEL, models), (Kind.PROMPT, prompts)):
        for name in names:
            model = found[f"{kind}/{name}"] = reader.registered_model(name)
            aliases = {alias["alias"]: int(alias["version"]) for alias in model["aliases"]}
            for version in reader.found_versions(name, aliases, kind):
                assert not isinstance(version, Failure)
                place = reader.download_uri(name, int(version["version"]))
                found[f"{kind}/{name}/{version['version']}"] = version | {"is at": place}
    return found


def _logged_models(host: Host, *, by_mlflow: bool = False) -> dict[str, Any]:
    models = LoggedModels(host) if by_mlflow else logged_models_of(host)
    assert by_mlflow is not isinstance(models, StoredLoggedModels)
    try:
        ids = set().union(*models.ids_of_some([*_experiments(host)]).values())
    except ServerError:  # before MLflow 3
        return {}
    ids |= set(models.deleted_ids())
    return {f"{Kind.LOGGED_MODEL}/{model_id}": models.read(model_id) for model_id in ids}


def _traces(host: Host, *, by_mlflow: bool = False) -> dict[str, Any]:
    assert host.tables is not None
    stored = StoredTraces(host.tables)
    reader = TraceReader(host) if by_mlflow else StoredTraceReader(host, stored)
    found: dict[str, Any] = {}
    for experiment_id in _experiments(host):
        pages: Iterable[list[Trace] | Failure] = (
            TraceListing(TraceSearch(host)).traces(experiment_id)
            if by_mlflow
            else stored.pages(experiment_id, None)
        )
        for number, page in enumerate(pages):
            assert not isinstance(page, Failure)
            found[f"page/{experiment_id}/{number}"] = [trace.id for trace in page]
            pointing = reader.fill(page)
            for trace in page:
                issues = [(issue.kind, issue.id) for issue in trace.issues]
                its = trace.document, trace.spans, issues, trace.id in pointing
                found[f"{trace.kind}/{experiment_id}/{trace.id}"] = its
    return found


def _entities(host: Host, *, by_mlflow: bool = False) -> dict[str, Any]:
    stored = entities_of(host)
    assert stored is not None
    found = {}
    for kind, described in ENTITY_KINDS.items():
        if not described.table or not stored.tells(kind) or not host.may_have(described.table):
            continue
        for owner in _experiments(host, is_active=True) if described.of_experiment else [""]:
            read = _by_mlflow(host, kind, owner) if by_mlflow else stored.of(kind, owner)
            for number, item in enumerate(read):  # which keeps their order
                assert isinstance(item, Entity)
                its = item.experiment_id, item.document, item.issues
                found[f"{kind}/{owner}/{number}"] = its
    return found


def _by_mlflow(host: Host, kind: Kind, owner: str) -> Iterable[Entity | Failure]:
    if kind is Kind.SCORER:
        return judges.scorers(host, owner)
    if kind is Kind.LABEL_SCHEMA:
        return judges.label_schemas(host, owner, list)
    if kind is Kind.ISSUE:
        return [Entity(kind, issue, owner) for issue in judges.issues(host, owner)]
    if kind is Kind.REVIEW_QUEUE:
        return judges.review_queues(host, owner, judges.queue_documents(host, owner))
    return (datasets.READS | gateway.READS | registries.READS)[kind](host)


def _experiments(host: Host, *, is_active: bool = False) -> Iterator[str]:
    for experiment in Reader(host).experiments():
        if not is_active or experiment["lifecycle_stage"] == "active":
            yield experiment["experiment_id"]
