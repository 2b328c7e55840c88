"""Fill an MLflow database and its artifact folder with a realistic load, fast and always the same.

``python -m tests.benchmarks.workload KIND ROOT [--scale F] [--uri U]``

Rows go in bulk through MLflow's own tables; what is in them follows what training code logs: loss
curves and rounded accuracies at shared times, system metrics on a clock of their own, diverged
runs with NaN and infinity, steps logged again after a restart, nested and deleted runs, tags in
many scripts, datasets, registered models with deleted versions and aliases.

===========  ==================================================================================
metrics      1 experiment, 200 runs of 20 metrics with 500 steps: 2M rows
runs         10 experiments of 1,000 runs with 10 parameters and 5 metrics of one step
artifacts    1 experiment, 20 runs with 50 MB of weights and 250 plots each: 1 GB
experiments  200 experiments of 200 runs with 10 parameters, 5 metrics of 20 steps, some files
registry     50 registered models with up to 8 versions, each with its run and files
===========  ==================================================================================
"""

from __future__ import annotations

import argparse
import math
import random
import uuid
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

__all__ = ["Kind", "build"]

Kind = Literal["metrics", "runs", "artifacts", "registry", "experiments"]
Row = dict[str, Any]

EPOCH_MS = 1_700_000_000_000
RUN_INTERVAL_MS = 61_000
# As MLflow keeps an infinity in SQL.
STORED_INFINITY = 1.7976931348623157e308
METRIC_ROWS_PER_INSERT = 50_000
ROWS_BEFORE_FLUSH = 400_000
USERS = ("ana", "li", "omar", "zoë")
NOTES = (
    "baseline",
    "naïve ünïcode ✓",
    "新しい学習率を試す",
    "повторный запуск",
    "تجربة ثانية",
    "🚀 bigger batch\nsecond line\twith a tab",
)
WEIGHTS_BYTES = 50_000_000
PLOTS = 250


def build(kind: Kind, root: Path, *, scale: float = 1.0, uri: str | None = None) -> str:
    """Write a load and return its tracking URI.

    Args:
        kind: Which load.
        root: Gets ``artifacts/`` and, without ``uri``, ``mlflow.db``.
        scale: Multiplies the number of runs of an experiment, or of registered models.
        uri: Another SQL database of MLflow's; must be empty for the same load to come out.
    """
    root.mkdir(parents=True, exist_ok=True)
    uri = uri or f"sqlite:///{root.resolve() / 'mlflow.db'}"
    load = _Load(uri, root.resolve() / "artifacts")
    if kind == "registry":
        _build_registry(load, models=max(1, round(50 * scale)))
    else:
        shape = _SHAPES[kind]
        for number in range(shape.experiments):
            experiment_id = load.experiment(f"{kind}-{number}")
            _build_runs(load, experiment_id, shape, max(1, round(shape.runs * scale)))
    load.flush()
    load.store.engine.dispose()
    return uri


@dataclass(frozen=True)
class _Shape:
    experiments: int
    runs: int
    params: int
    metrics: int
    steps: int
    config_every: int
    weights_bytes: int = 0
    plots: int = 0


_SHAPES: dict[Kind, _Shape] = {
    "metrics": _Shape(1, 200, params=30, metrics=20, steps=500, config_every=1),
    "runs": _Shape(10, 1000, params=10, metrics=5, steps=1, config_every=20),
    "experiments": _Shape(200, 200, params=10, metrics=5, steps=20, config_every=4),
    "artifacts": _Shape(
        1,
        20,
        params=10,
        metrics=3,
        steps=10,
        config_every=1,
        weights_bytes=WEIGHTS_BYTES,
        plots=PLOTS,
    ),
}


class _Load:
    """Rows waiting for their tables, and the two sources of randomness."""

    def __init__(self, uri: str, artifacts: Path) -> None:
        from mlflow.store.model_registry.sqlalchemy_store import (
            SqlAlchemyStore as RegistryStore,
        )
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        self.artifacts = artifacts
        self.store = SqlAlchemyStore(uri, artifacts.as_uri())
        RegistryStore(uri)
        self.random = random.Random(7)
        self.numbers = np.random.default_rng(7)
        self.runs_made = 0
        self._rows: dict[Any, list[Row]] = defaultdict(list)
        self._waiting = 0

    def add(self, table: Any, *rows: Row) -> None:
        self._rows[table] += rows
        self._waiting += len(rows)

    def flush(self, *, at_least: int = 0) -> None:
        """Insert what waits, parents first: in the order in which the tables were first used."""
        if self._waiting < at_least:
            return
        with self.store.engine.begin() as connection:
            for table, rows in self._rows.items():
                # Columns come and go with MLflow's versions.
                columns = {column.name for column in table.__table__.columns}
                for start in range(0, len(rows), METRIC_ROWS_PER_INSERT):
                    part = rows[start : start + METRIC_ROWS_PER_INSERT]
                    connection.execute(
                        table.__table__.insert(),
                        [{name: row[name] for name in row.keys() & columns} for row in part],
                    )
                rows.clear()
        self._waiting = 0

    def experiment(self, name: str) -> str:
        from mlflow.entities import ExperimentTag
        from mlflow.store.tracking.dbmodels import models

        tags = [ExperimentTag("purpose", "bench"), ExperimentTag("owner", "équipe α")]
        experiment_id = str(self.store.create_experiment(name, tags=tags))
        with self.store.engine.begin() as connection:
            table = models.SqlExperiment.__table__
            # The default experiment too: MLflow stamps both with the present.
            connection.execute(
                table.update().values(creation_time=EPOCH_MS, last_update_time=EPOCH_MS)
            )
        return experiment_id

    def identifier(self) -> str:
        return f"{self.random.getrandbits(128):032x}"

    def folder(self, experiment_id: str, run_id: str) -> Path:
        return self.artifacts / experiment_id / run_id / "artifacts"


def _build_runs(load: _Load, experiment_id: str, shape: _Shape, count: int) -> None:
    datasets = _add_datasets(load, experiment_id)
    parent = None
    for number in range(count):
        is_parent = number % 10 == 0
        run_id, start_ms = _add_run(load, experiment_id, parent=None if is_parent else parent)
        if is_parent:
            parent = run_id
        _add_params(load, run_id, shape.params)
        _add_metrics(load, run_id, start_ms, shape)
        _add_inputs(load, run_id, datasets)
        if number % shape.config_every == 0:
            folder = load.folder(experiment_id, run_id)
            folder.mkdir(parents=True)
            (folder / "config.json").write_text(f'{{"lr": {load.random.random():.6f}}}')
            _write_model(load, folder, shape.weights_bytes)
            _write_plots(load, folder, shape.plots)
        load.flush(at_least=ROWS_BEFORE_FLUSH)


def _add_run(load: _Load, experiment_id: str, parent: str | None = None) -> tuple[str, int]:
    from mlflow.store.tracking.dbmodels import models

    load.runs_made += 1
    number = load.runs_made
    run_id = load.identifier()
    start_ms = EPOCH_MS + number * RUN_INTERVAL_MS
    end_ms = start_ms + load.random.randint(10_000, 9_000_000)
    is_deleted = number % 37 == 0
    # The last of each hundred is still running: it has no end.
    is_running = number % 100 == 99
    user = load.random.choice(USERS)
    name = f"{load.random.choice(('brave', 'calm', 'rare'))}-owl-{number}"
    load.add(
        models.SqlRun,
        {
            "run_uuid": run_id,
            "name": name,
            "source_type": "UNKNOWN",
            "source_name": "",
            "entry_point_name": "",
            "user_id": user,
            "status": "RUNNING"
            if is_running
            else load.random.choice(["FINISHED"] * 8 + ["FAILED", "KILLED"]),
            "start_time": start_ms,
            "end_time": None if is_running else end_ms,
            "deleted_time": end_ms + 1 if is_deleted else None,
            "source_version": "",
            "lifecycle_stage": "deleted" if is_deleted else "active",
            "artifact_uri": load.folder(experiment_id, run_id).as_uri(),
            "experiment_id": int(experiment_id),
        },
    )
    tags = {
        "mlflow.runName": name,
        "mlflow.user": user,
        "mlflow.source.name": "train.py",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": f"{load.random.getrandbits(160):040x}",
        "mlflow.note.content": load.random.choice(NOTES) + "." * load.random.randint(0, 80),
        "team": load.random.choice("abcdef"),
    }
    if parent:
        tags["mlflow.parentRunId"] = parent
    rows = [{"run_uuid": run_id, "key": key, "value": value} for key, value in tags.items()]
    load.add(models.SqlTag, *rows)
    return run_id, start_ms


def _add_params(load: _Load, run_id: str, count: int) -> None:
    from mlflow.store.tracking.dbmodels import models

    choose = load.random.choice
    params: dict[str, Any] = {
        "learning_rate": choose((0.1, 0.03, 0.01, 3e-4)),
        "batch_size": choose((16, 32, 64, 128)),
        "optimizer": choose(("adam", "sgd", "adamw")),
        "augmentation": choose(("", "flip", "flip+crop")),
        "layers": str([load.random.randint(8, 512) for _ in range(load.random.randint(1, 40))]),
    }
    params |= {f"param_{number}": load.random.random() for number in range(count - len(params))}
    rows = [{"run_uuid": run_id, "key": key, "value": str(value)} for key, value in params.items()]
    load.add(models.SqlParam, *rows)


def _add_metrics(load: _Load, run_id: str, start_ms: int, shape: _Shape) -> None:
    from mlflow.store.tracking.dbmodels import models

    steps = np.arange(shape.steps)
    # Training logs its metrics together; the system monitor has a clock of its own.
    training_ms = start_ms + np.cumsum(load.numbers.integers(900, 1100, shape.steps))
    system_ms = start_ms + 10_000 * (steps + 1) + load.numbers.integers(0, 30, shape.steps)
    diverges = shape.steps > 10 and load.runs_made % 20 == 7
    restarts = shape.steps > 10 and load.runs_made % 15 == 4
    for number in range(shape.metrics):
        key, values = _curve(load.numbers, number, shape.steps)
        is_system = key.startswith("system/")
        times = system_ms if is_system else training_ms
        rows = [
            {
                "key": key,
                "value": value,
                "timestamp": timestamp,
                "step": step,
                "is_nan": False,
                "run_uuid": run_id,
            }
            for step, value, timestamp in zip(
                steps.tolist(), values.tolist(), times.tolist(), strict=True
            )
        ]
        if diverges and key.endswith("loss"):
            rows[-4]["value"] = STORED_INFINITY
            for row in rows[-3:]:
                row.update(value=0.0, is_nan=True)
        if restarts and not is_system:
            # From a checkpoint: the last steps once more, later and a little different.
            again = rows[-max(2, shape.steps // 50) :]
            rows += [
                row | {"timestamp": row["timestamp"] + 3_600_000, "value": row["value"] * 0.999}
                for row in again
            ]
        load.add(models.SqlMetric, *rows)
        load.add(
            models.SqlLatestMetric,
            max(rows, key=lambda row: (row["step"], row["timestamp"], row["value"])),
        )


def _curve(numbers: np.random.Generator, number: int, steps: int) -> tuple[str, np.ndarray]:
    """The name and the values of a run's metric of this number."""
    progress = np.arange(steps) / max(1, steps)
    noise = numbers.normal(0, 0.02, steps)
    falling = 2.5 * np.exp(-4 * progress) + 0.1
    rising = 1 - np.exp(-3 * progress)
    curves = {
        "train/loss": falling * (1 + noise),
        "train/acc": np.round(np.clip(rising + noise, 0, 1), 4),
        "val/loss": falling * 1.1 + noise,
        "val/acc": np.round(np.clip(rising * 0.95 + noise, 0, 1), 4),
        "lr": 3e-4 * (1 + np.cos(math.pi * progress)) / 2,
        # Came from a GPU: single precision.
        "grad_norm": np.float32(np.exp(noise * 20)).astype(np.float64),
        "epoch": np.floor(progress * 10),
        "system/cpu_utilization_percentage": np.round(40 + 500 * np.abs(noise), 1),
        "system/memory_usage_megabytes": np.round(16_000 + np.cumsum(np.abs(noise)) * 50, 1),
    }
    if number < len(curves):
        return list(curves.items())[number]
    gpu = number - len(curves)
    busy = numbers.random(steps) < 0.9
    return f"system/gpu_{gpu}_utilization_percentage", np.where(
        busy, 95 + np.rint(noise * 100), 0.0
    )


def _add_datasets(load: _Load, experiment_id: str) -> list[str]:
    from mlflow.store.tracking.dbmodels import models

    identifiers = [load.identifier() for _ in range(3)]
    rows = [
        {
            "dataset_uuid": identifier,
            "experiment_id": int(experiment_id),
            "name": f"images-{number}",
            "digest": identifier[:8],
            "dataset_source_type": "http",
            "dataset_source": f'{{"url": "https://example.org/images-{number}.csv"}}',
            "dataset_schema": '{"mlflow_colspec": [{"type": "double", "name": "größe"}]}',
            "dataset_profile": '{"num_rows": 1000, "num_elements": 5000}',
        }
        for number, identifier in enumerate(identifiers)
    ]
    load.add(models.SqlDataset, *rows)
    return identifiers


def _add_inputs(load: _Load, run_id: str, datasets: list[str]) -> None:
    from mlflow.store.tracking.dbmodels import models

    for dataset, context in zip(load.random.sample(datasets, 2), ("train", "eval"), strict=True):
        input_id = load.identifier()
        load.add(
            models.SqlInput,
            {
                "input_uuid": input_id,
                "source_type": "DATASET",
                "source_id": dataset,
                "destination_type": "RUN",
                "destination_id": run_id,
                "step": 0,
            },
        )
        load.add(
            models.SqlInputTag,
            {"input_uuid": input_id, "name": "mlflow.data.context", "value": context},
        )


def _write_model(load: _Load, folder: Path, weights_bytes: int) -> None:
    if not weights_bytes:
        return
    (folder / "model" / "data").mkdir(parents=True)
    (folder / "model" / "MLmodel").write_text(
        f"flavors:\n  python_function:\n    loader_module: x\nmodel_uuid: {uuid.UUID(int=1).hex}\n"
    )
    weights = load.numbers.standard_normal(weights_bytes // 4, dtype=np.float32)
    (folder / "model" / "data" / "weights.bin").write_bytes(weights.tobytes())


def _write_plots(load: _Load, folder: Path, count: int) -> None:
    if not count:
        return
    (folder / "plots").mkdir()
    for number in range(count):
        points = ",".join(f"{value:.5f}" for value in load.numbers.normal(size=120))
        (folder / "plots" / f"p{number:04d}.json").write_text(f'{{"points": [{points}]}}')


def _build_registry(load: _Load, models: int) -> None:
    from mlflow.store.model_registry.dbmodels import models as registry

    shape = _Shape(1, 1, params=5, metrics=3, steps=1, config_every=1)
    experiment_id = load.experiment("registry-0")
    for number in range(models):
        name = f"model-{number:03d}" if number % 9 else f"modèle {number:03d}"
        created_ms = EPOCH_MS + number * RUN_INTERVAL_MS
        load.add(
            registry.SqlRegisteredModel,
            {
                "name": name,
                "creation_time": created_ms,
                "last_updated_time": created_ms + 5,
                "description": load.random.choice(NOTES),
            },
        )
        load.add(
            registry.SqlRegisteredModelTag,
            {"name": name, "key": "owner", "value": load.random.choice(USERS)},
        )
        if number % 10 == 9:
            continue  # a model whose versions were all deleted
        # Versions 1 to 8 of which some were deleted.
        versions = sorted(load.random.sample(range(1, 9), 5))
        for version in versions:
            _add_version(load, experiment_id, shape, name, version, versions[-1])
        for alias, version in (("champion", versions[-1]), ("challenger", versions[1])):
            load.add(
                registry.SqlRegisteredModelAlias,
                {"name": name, "alias": alias, "version": version},
            )


def _add_version(
    load: _Load, experiment_id: str, shape: _Shape, name: str, version: int, newest: int
) -> None:
    from mlflow.store.model_registry.dbmodels import models as registry

    run_id, start_ms = _add_run(load, experiment_id)
    _add_params(load, run_id, shape.params)
    _add_metrics(load, run_id, start_ms, shape)
    folder = load.folder(experiment_id, run_id)
    _write_model(load, folder, weights_bytes=4096)
    source = f"{folder.as_uri()}/model"
    load.add(
        registry.SqlModelVersion,
        {
            "name": name,
            "version": version,
            "creation_time": start_ms,
            "last_updated_time": start_ms + 7,
            "description": load.random.choice(NOTES),
            "user_id": load.random.choice(USERS),
            "current_stage": "Production" if version == newest else "None",
            "source": source,
            "storage_location": source,
            "run_id": run_id,
            "run_link": "",
            "status": "READY",
            "status_message": None,
        },
    )
    load.add(
        registry.SqlModelVersionTag,
        {"name": name, "version": version, "key": "validated", "value": "✓"},
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=get_args(Kind))
    parser.add_argument("root", type=Path)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--uri")
    arguments = parser.parse_args()
    print(build(arguments.kind, arguments.root, scale=arguments.scale, uri=arguments.uri))


if __name__ == "__main__":
    main()
