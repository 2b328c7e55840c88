"""Logged models of one deployment, MLflow 3.0 and newer: read as documents, write call by call."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import NotFoundError, ServerError
from mlflow_exim_plugin.host.answers import UnbelievableError
from mlflow_exim_plugin.host.api.halving import send_halving
from mlflow_exim_plugin.host.api.reading import pages
from mlflow_exim_plugin.host.documents import logged_model_document
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.open.absent import method

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mlflow_exim_plugin.host.open.host import Host

__all__ = ["LoggedModels"]

_PAGE = 100
_BATCH = 100


class LoggedModels:
    """Reads and writes the logged models of a ``Host``.

    Args:
        host: The deployment.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    def documents(self, *experiment_ids: str) -> Iterator[dict[str, Any]]:
        """Yield every logged model of experiments but the deleted ones, the oldest first.

        Raises:
            ServerError: They cannot be listed; ``is_absent`` tells a deployment that has none.
        """
        with translated(f"listing the logged models of experiment {', '.join(experiment_ids[:3])}"):
            search = method(self._host.tracking, "search_logged_models")
            yield from (
                logged_model_document(model)
                for model in pages(
                    lambda token: search(
                        [*experiment_ids],
                        max_results=_PAGE,
                        order_by=[{"field_name": "creation_timestamp", "ascending": True}],
                        page_token=token,
                    )
                )
            )

    def ids_of_some(self, experiment_ids: list[str]) -> dict[str, set[str]]:
        """Return the logged models of experiments but the deleted ones, by experiment.

        Raises:
            ServerError: They cannot be listed; ``is_absent`` tells a deployment that has none.
        """
        ids: dict[str, set[str]] = {experiment_id: set() for experiment_id in experiment_ids}
        with translated(f"listing the logged models of experiment {', '.join(experiment_ids[:3])}"):
            for found in self.documents(*experiment_ids):
                if (owner := str(found["info"]["experiment_id"])) not in ids:
                    raise UnbelievableError(f"what comes is of experiment {owner}")
                ids[owner].add(str(found["info"]["model_id"]))
        return ids

    def deleted_ids(self) -> list[str]:
        """Return the deleted logged models, where a store can say them: no server does."""
        listed = getattr(self._host.tracking, "_get_deleted_logged_models", None)
        if listed is None:
            return []
        with translated("listing the deleted logged models"):
            return [str(model_id) for model_id in listed()]

    def there(self, model_ids: Iterable[str]) -> set[str]:
        """Return those of some logged models that are there, or may be."""
        there = set()
        for model_id in model_ids:
            try:
                self.read(model_id)
            except NotFoundError:
                continue
            except ServerError:
                pass  # it is named where it is read
            there.add(model_id)
        return there

    def read(self, model_id: str) -> dict[str, Any]:
        """Return one logged model; ``info.lifecycle_stage`` says it where it is deleted.

        Raises:
            NotFoundError: There is none of that id, or it is deleted and not given any more.
            ServerError: It cannot be read.
        """
        with translated(f"reading logged model {model_id}"):
            get = method(self._host.tracking, "get_logged_model")
        found = self._got(model_id, lambda: get(model_id))
        if found is None and "allow_deleted" in inspect.signature(get).parameters:
            found = self._got(model_id, lambda: get(model_id, allow_deleted=True))
            if found is not None:
                found["info"]["lifecycle_stage"] = "deleted"
        if found is None:
            raise NotFoundError(f"there is no logged model {model_id}, or it is deleted")
        return found

    def _got(self, model_id: str, get: Callable[[], Any]) -> dict[str, Any] | None:
        try:
            with translated(f"reading logged model {model_id}"):
                document = logged_model_document(get())
                if (found := document["info"].get("model_id")) != model_id:
                    raise UnbelievableError(f"what comes is logged model {found!r}")
                return document
        except ServerError as error:
            if getattr(error.__cause__, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def create(
        self,
        experiment_id: str,
        info: dict[str, Any],
        source_run_id: str | None,
        params: dict[str, str],
        tags: dict[str, str],
    ) -> dict[str, Any]:
        """Create a logged model with the name and type of ``info`` and return it."""
        from mlflow.entities import LoggedModelParameter, LoggedModelTag

        with translated("creating a logged model"):
            created = method(self._host.tracking, "create_logged_model")(
                experiment_id,
                info.get("name"),
                source_run_id,
                [LoggedModelTag(key, value) for key, value in tags.items()],
                [LoggedModelParameter(key, value) for key, value in params.items()],
                info.get("model_type"),
            )
        return logged_model_document(created)

    def add_params(self, model_id: str, params: dict[str, str]) -> None:
        """Add params, which must be new to the model."""
        from mlflow.entities import LoggedModelParameter

        with translated(f"logging params of logged model {model_id}"):
            self._host.tracking.log_logged_model_params(
                model_id, [LoggedModelParameter(key, value) for key, value in params.items()]
            )

    def set_tags(self, model_id: str, tags: dict[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import LoggedModelTag

        with translated(f"tagging logged model {model_id}"):
            self._host.tracking.set_logged_model_tags(
                model_id, [LoggedModelTag(key, value) for key, value in tags.items()]
            )

    def set_status(self, model_id: str, status: str) -> None:
        """Set the status, given as REST names it."""
        from mlflow.entities import LoggedModelStatus
        from mlflow.protos.service_pb2 import LoggedModelStatus as ProtoStatus

        with translated(f"setting the status of logged model {model_id}"):
            value = LoggedModelStatus.from_proto(ProtoStatus.Value(status))
            self._host.tracking.finalize_logged_model(model_id, value)

    def delete(self, model_id: str) -> None:
        """Delete a model that an unpack has just written and that is deleted at its source."""
        with translated(f"deleting logged model {model_id}"):
            self._host.tracking.delete_logged_model(model_id)

    def log_metrics(
        self, run_id: str, model_id: str, metrics: list[dict[str, Any]]
    ) -> list[tuple[dict[str, Any], ServerError]]:
        """Log metrics of a model through the run that made them, which gets the same rows.

        Args:
            run_id: The run; it must not be deleted.
            model_id: The model.
            metrics: REST's ``Metric`` each.

        Returns:
            The metrics that were refused, each with what the deployment said.
        """
        from mlflow.entities import Metric

        def send(batch: list[dict[str, Any]]) -> None:
            if self._host.is_http:
                fields = ("key", "value", "timestamp", "step", "dataset_name", "dataset_digest")
                entries = [
                    {"model_id": model_id, **{name: m[name] for name in fields if name in m}}
                    for m in batch
                ]
                self._host.post_json(
                    "/api/2.0/mlflow/runs/log-batch", {"run_id": run_id, "metrics": entries}
                )
                return
            with translated(f"logging metrics of logged model {model_id}"):
                rows = [
                    Metric(
                        m["key"],
                        float(m["value"]),
                        int(m.get("timestamp", 0)),
                        int(m.get("step", 0)),
                        model_id=model_id,
                        dataset_name=m.get("dataset_name"),
                        dataset_digest=m.get("dataset_digest"),
                    )
                    for m in batch
                ]
                self._host.tracking.log_batch(run_id, rows, [], [])

        return send_halving(_batches(metrics), send)

    def link(self, run_id: str, inputs: Iterable[str], outputs: Iterable[tuple[str, int]]) -> None:
        """Make models the inputs and outputs (with their steps) of a run that has them not yet."""
        from mlflow.entities import LoggedModelInput, LoggedModelOutput

        with translated(f"linking run {run_id} with logged models"):
            if models := [LoggedModelInput(model_id) for model_id in inputs]:
                self._host.tracking.log_inputs(run_id, models=models)
            if made := [LoggedModelOutput(model_id, step) for model_id, step in outputs]:
                self._host.tracking.log_outputs(run_id, made)


def _batches(metrics: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Cut metrics into batches that give the run no row twice.

    Metrics that differ in their dataset alone give the run the same row; MLflow 3.1 refuses a batch
    with two of them, though not one after the other.
    """
    times: Counter[tuple[Any, ...]] = Counter()
    rounds: dict[int, list[dict[str, Any]]] = {}
    for metric in metrics:
        row = tuple(metric.get(name) for name in ("key", "value", "timestamp", "step"))
        rounds.setdefault(times[row], []).append(metric)
        times[row] += 1
    for listed in rounds.values():
        for start in range(0, len(listed), _BATCH):
            yield listed[start : start + _BATCH]
