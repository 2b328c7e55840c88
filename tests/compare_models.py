"""Logged models and prompts as MLflow's client shows them, for ``tests.compare``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException

from mlflow_exim_plugin.schema.provenance import ORIGIN, TAGS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlflow import MlflowClient
    from mlflow.entities import Metric

__all__ = ["logged_models", "models_put_back", "origins", "prompts", "prompts_put_back"]

PROMPT_TAG = "mlflow.prompt.is_prompt"
EXPERIMENT_IDS = "_mlflow_experiment_ids"
Document = dict[str, Any]


def logged_models(
    client: MlflowClient,
    experiment_ids: Iterable[str],
    runs: dict[str, Document],
    files_of: Callable[[str], Any],
    bits: Callable[[float], str],
) -> dict[str, Document]:
    """Return every logged model by id: those that are listed, and those that runs lead to."""
    found: dict[str, Any] = {}
    for experiment_id in experiment_ids:
        token = None
        while True:
            try:
                page = client.search_logged_models([experiment_id], page_token=token)
            except (AttributeError, MlflowException):  # MLflow 2 has none
                return {}
            found |= {model.model_id: (model, False) for model in page}
            if not (token := page.token):
                break
    for run in runs.values():
        links = [*run["inputs"]["model_inputs"], *run["outputs"]["model_outputs"]]
        for link in links:
            if link["model_id"] not in found:
                model = client._tracking_client.store.get_logged_model(
                    link["model_id"], allow_deleted=True
                )
                found[model.model_id] = (model, True)
    return {
        model_id: {
            "experiment_id": model.experiment_id,
            "name": model.name,
            "model_type": model.model_type or "",
            "source_run_id": model.source_run_id or "",
            "status": str(model.status),
            "is_deleted": is_deleted,
            "tags": dict(model.tags),
            "params": dict(model.params),
            "metrics": sorted(_metric(metric, bits) for metric in model.metrics or ()),
            "files": files_of(model.artifact_location),
        }
        for model_id, (model, is_deleted) in found.items()
    }


def origins(models: dict[str, Document]) -> dict[str, str]:
    """Return the ids at the source by those at the target."""
    return {
        model_id: model["tags"][ORIGIN].split(" ", 1)[0]
        for model_id, model in models.items()
        if ORIGIN in model["tags"]
    }


def models_put_back(
    models: dict[str, Document], back: dict[str, str], experiments: dict[str, str]
) -> dict[str, Document]:
    """Return logged models with the source's ids.

    Args:
        models: By id.
        back: Ids of runs and logged models.
        experiments: Ids of experiments.
    """
    put_back = {}
    for model_id, model in models.items():
        metrics = [(key, back.get(run, run), *rest) for key, run, *rest in model["metrics"]]
        put_back[back.get(model_id, model_id)] = {
            **model,
            "experiment_id": experiments.get(model["experiment_id"], model["experiment_id"]),
            "source_run_id": back.get(model["source_run_id"], model["source_run_id"]),
            "tags": {key: value for key, value in model["tags"].items() if key not in TAGS},
            "metrics": sorted(metrics),
        }
    return put_back


def prompts(client: MlflowClient) -> tuple[dict[str, Document], dict[str, Document]]:
    """Return every prompt by name, and every version by name and number."""
    registry = client._get_registry_client()
    found, versions = {}, {}
    for listed in registry.search_registered_models(f"tags.`{PROMPT_TAG}` = 'true'"):
        model = registry.get_registered_model(listed.name)
        found[model.name] = {
            "description": model.description or "",
            "tags": dict(model._tags),
            "aliases": {alias: str(number) for alias, number in model.aliases.items()},
        }
        highest = max((int(v.version) for v in model.latest_versions), default=0)
        for number in range(1, highest + 1):
            try:
                version = registry.get_model_version(model.name, str(number))
            except MlflowException:
                continue  # a gap
            versions[f"{model.name}/{number}"] = {
                "description": version.description or "",
                "tags": dict(version.tags),
                "source": version.source,
                "run_id": version.run_id or "",
                "aliases": sorted(version.aliases),
                "as a prompt": _as_prompt(client, model.name, number),
            }
    return found, versions


def prompts_put_back(
    found: dict[str, Document], experiments: dict[str, str]
) -> dict[str, Document]:
    """Return prompts, or versions, without our tags and with the source's experiment ids."""
    put_back = {}
    for name, document in found.items():
        tags = {key: value for key, value in document["tags"].items() if key not in TAGS}
        if linked := tags.get(EXPERIMENT_IDS):
            old = sorted(experiments.get(i, i) for i in linked.strip(",").split(","))
            tags[EXPERIMENT_IDS] = f",{','.join(old)},"
        put_back[name] = {**document, "tags": tags}
    return put_back


def _as_prompt(client: MlflowClient, name: str, number: int) -> Any:
    """Return what MLflow's prompt functions say of a version; MLflow 2 has fewer of them."""
    try:
        prompt = client.get_prompt_version(name, str(number))
        return repr((prompt.template, prompt.response_format, prompt.model_config))
    except (AttributeError, MlflowException) as error:
        return type(error).__name__


def _metric(metric: Metric, bits: Callable[[float], str]) -> tuple[Any, ...]:
    dataset = (metric.dataset_name or "", metric.dataset_digest or "")
    return (metric.key, metric.run_id, metric.step, metric.timestamp, bits(metric.value), *dataset)
