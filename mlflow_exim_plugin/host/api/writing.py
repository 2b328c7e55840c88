"""Single writes to one MLflow deployment, with its limits kept and its answers checked."""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.api.halving import send_entries
from mlflow_exim_plugin.host.documents import dataset_inputs
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.schema.documents import json_number

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from mlflow_exim_plugin.errors import ServerError
    from mlflow_exim_plugin.host.open.host import Host

__all__ = ["BATCH_METRICS", "BATCH_PARAMS", "BATCH_TAGS", "HostWriter"]

BATCH_METRICS = 1000
BATCH_PARAMS = 100
BATCH_TAGS = 100
"""Limits of ``runs/log-batch``, which also takes at most 1000 entries in all."""


class HostWriter:
    """Writes to a ``Host``; each method is one call or one batched sequence of calls."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def create_experiment(
        self, name: str, artifact_location: str | None, tags: dict[str, str]
    ) -> str:
        """Create an experiment and return its id."""
        from mlflow.entities import ExperimentTag

        with translated(f"creating experiment {name!r}"):
            return str(
                self.host.tracking.create_experiment(
                    name, artifact_location, [ExperimentTag(k, v) for k, v in tags.items()]
                )
            )

    def set_experiment_tag(self, experiment_id: str, key: str, value: str) -> None:
        """Set one experiment tag."""
        from mlflow.entities import ExperimentTag

        with translated(f"tagging experiment {experiment_id}"):
            self.host.tracking.set_experiment_tag(experiment_id, ExperimentTag(key, value))

    def set_experiment_deleted(self, experiment_id: str, *, deleted: bool) -> None:
        """Delete or restore an experiment."""
        with translated(f"{'deleting' if deleted else 'restoring'} experiment {experiment_id}"):
            if deleted:
                self.host.tracking.delete_experiment(experiment_id)
            else:
                self.host.tracking.restore_experiment(experiment_id)

    def rename_experiment(self, experiment_id: str, name: str) -> None:
        """Give an experiment another name."""
        with translated(f"renaming experiment {experiment_id}"):
            self.host.tracking.rename_experiment(experiment_id, name)

    def create_run(
        self,
        experiment_id: str,
        user_id: str,
        start_time_ms: int | None,
        run_name: str | None,
        tags: dict[str, str],
    ) -> tuple[str, str]:
        """Create a run and return its id and artifact root."""
        from mlflow.entities import RunTag

        with translated("creating a run"):
            run = self.host.tracking.create_run(
                experiment_id,
                user_id,
                start_time_ms,
                [RunTag(k, v) for k, v in tags.items()],
                run_name,
            )
        return run.info.run_id, run.info.artifact_uri

    def finish_run(
        self, run_id: str, status: str, end_time_ms: int | None, run_name: str | None
    ) -> None:
        """Set status, end time and name."""
        from mlflow.entities import RunStatus

        with translated(f"finishing run {run_id}"):
            self.host.tracking.update_run_info(
                run_id, RunStatus.from_string(status), end_time_ms, run_name
            )

    def set_run_deleted(self, run_id: str, *, deleted: bool) -> None:
        """Delete or restore a run."""
        with translated(f"{'deleting' if deleted else 'restoring'} run {run_id}"):
            if deleted:
                self.host.tracking.delete_run(run_id)
            else:
                self.host.tracking.restore_run(run_id)

    def log_inputs(self, run_id: str, document: dict[str, Any]) -> None:
        """Log the dataset inputs of REST's ``Run``; what is there already stays."""
        with translated(f"reading the datasets of run {run_id}"):
            inputs = dataset_inputs(document)
        for start in range(0, len(inputs), BATCH_METRICS):
            with translated(f"logging the datasets of run {run_id}"):
                self.host.tracking.log_inputs(run_id, inputs[start : start + BATCH_METRICS])

    def log_metrics(self, run_id: str, rows: pa.Table) -> None:
        """Log at most ``BATCH_METRICS`` rows of schema ``HISTORY`` in one call."""
        columns = [rows.column(n).to_pylist() for n in ("key", "value", "timestamp", "step")]
        if self.host.is_http:
            # Bare NaN makes a server drop the rest of the batch and answer 200: strings, always.
            metrics = [
                {"key": k, "value": json_number(v), "timestamp": t, "step": s}
                for k, v, t, s in zip(*columns, strict=True)
            ]
            self._post_batch(run_id, {"metrics": metrics})
            return
        from mlflow.entities import Metric

        with translated(f"logging metrics of run {run_id}"):
            self.host.tracking.log_batch(
                run_id, [Metric(*row) for row in zip(*columns, strict=True)], [], []
            )

    def log_params(self, run_id: str, params: dict[str, str]) -> dict[str, ServerError]:
        """Log params and return those the server refused, with what it said."""
        from mlflow.entities import Param

        def send(batch: dict[str, str]) -> None:
            if self.host.is_http:
                listed = [{"key": k, "value": v} for k, v in batch.items()]
                self._post_batch(run_id, {"params": listed})
                return
            params = [Param(k, v) for k, v in batch.items()]
            with translated(f"logging params of run {run_id}"):
                self.host.tracking.log_batch(run_id, [], params, [])

        return send_entries(params, BATCH_PARAMS, send)

    def log_param(self, run_id: str, key: str, value: str) -> None:
        """Log one param; some servers take more of it alone than among others."""
        from mlflow.entities import Param

        with translated(f"logging param {key!r} of run {run_id}"):
            self.host.tracking.log_param(run_id, Param(key, value))

    def set_run_tag(self, run_id: str, key: str, value: str) -> None:
        """Set one run tag; some servers take more of it alone than among others."""
        from mlflow.entities import RunTag

        with translated(f"setting tag {key!r} of run {run_id}"):
            self.host.tracking.set_tag(run_id, RunTag(key, value))

    def log_tags(self, run_id: str, tags: dict[str, str]) -> dict[str, ServerError]:
        """Set run tags and return those the server refused, with what it said."""
        return send_entries(tags, BATCH_TAGS, partial(self.set_run_tags, run_id))

    def set_run_tags(self, run_id: str, tags: dict[str, str]) -> None:
        """Set at most ``BATCH_TAGS`` run tags in one call."""
        from mlflow.entities import RunTag

        if self.host.is_http:
            self._post_batch(run_id, {"tags": [{"key": k, "value": v} for k, v in tags.items()]})
            return
        with translated(f"tagging run {run_id}"):
            self.host.tracking.log_batch(run_id, [], [], [RunTag(k, v) for k, v in tags.items()])

    def create_registered_model(
        self, name: str, tags: dict[str, str], description: str | None
    ) -> None:
        """Create a registered model."""
        from mlflow.entities.model_registry import RegisteredModelTag

        with translated(f"creating registered model {name!r}"):
            self.host.registry.create_registered_model(
                name, [RegisteredModelTag(k, v) for k, v in tags.items()], description
            )

    def set_model_tag(self, name: str, key: str, value: str) -> None:
        """Set one tag of a registered model."""
        from mlflow.entities.model_registry import RegisteredModelTag

        with translated(f"tagging registered model {name!r}"):
            self.host.registry.set_registered_model_tag(name, RegisteredModelTag(key, value))

    def set_model_description(self, name: str, text: str) -> None:
        """Describe a registered model anew."""
        with translated(f"describing registered model {name!r}"):
            self.host.registry.update_registered_model(name, text)

    def create_version(
        self,
        name: str,
        source: str,
        run_id: str | None,
        tags: dict[str, str],
        run_link: str | None = None,
        description: str | None = None,
        model_id: str | None = None,
    ) -> int:
        """Create a model version and return the number the server gave it."""
        from mlflow.entities.model_registry import ModelVersionTag

        # MLflow 2 has no such argument; where there are no logged models there is none to give.
        of_model = {"model_id": model_id} if model_id else {}
        with translated(f"creating a version of {name!r}"), self._as_default():
            version = self.host.registry.create_model_version(
                name,
                source,
                run_id,
                [ModelVersionTag(k, v) for k, v in tags.items()],
                run_link,
                description,
                **of_model,
            )
        return int(version.version)

    def delete_version(self, name: str, version: int) -> None:
        """Delete a model version; only ever called for our own placeholders."""
        with translated(f"deleting placeholder {name!r} version {version}"):
            self.host.registry.delete_model_version(name, str(version))

    def set_version_tag(self, name: str, version: int, key: str, value: str) -> None:
        """Set one tag of a version."""
        from mlflow.entities.model_registry import ModelVersionTag

        with translated(f"tagging {name!r} version {version}"):
            self.host.registry.set_model_version_tag(
                name, str(version), ModelVersionTag(key, value)
            )

    def delete_version_tag(self, name: str, version: int, key: str) -> None:
        """Take a tag off a version; only ever called for what the server wanted and nobody set."""
        with translated(f"taking tag {key} off {name!r} version {version}"):
            self.host.registry.delete_model_version_tag(name, str(version), key)

    def set_version_description(self, name: str, version: int, text: str) -> None:
        """Describe a version anew."""
        with translated(f"describing {name!r} version {version}"):
            self.host.registry.update_model_version(name, str(version), text)

    def set_stage(self, name: str, version: int, stage: str) -> None:
        """Move a version to a stage and leave the others where they are."""
        with translated(f"moving {name!r} version {version} to {stage}"):
            self.host.registry.transition_model_version_stage(
                name, str(version), stage, archive_existing_versions=False
            )

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias at a version."""
        with translated(f"setting alias {alias!r} of {name!r}"):
            self.host.registry.set_registered_model_alias(name, alias, str(version))

    def _post_batch(self, run_id: str, body: dict[str, Any]) -> None:
        self.host.post_json("/api/2.0/mlflow/runs/log-batch", {"run_id": run_id, **body})

    @contextlib.contextmanager
    def _as_default(self) -> Iterator[None]:
        """Make a local store the default: its registry resolves ``runs:/`` through that alone."""
        if self.host.is_http:
            yield
            return
        import mlflow

        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(self.host.tracking_uri)
        try:
            yield
        finally:
            mlflow.set_tracking_uri(before)
