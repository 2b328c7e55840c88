"""A deployment with every hard case that a round trip must survive, made through MLflow's client.

It runs under every MLflow from 2.22 on; what only MLflow 3 has stands in ``seed_of_mlflow_3``.
"""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    Metric,
    Param,
    RunTag,
)

from tests.compare import as_default

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mlflow import MlflowClient

__all__ = [
    "BIG_ROWS",
    "MORE_ROWS_THAN_ONE_REPLY",
    "NEW_FILES",
    "T0",
    "Seeded",
    "log_files",
    "log_metrics",
    "new_run",
    "seed",
    "seed_big",
    "seed_models",
    "seed_of_mlflow_3",
]

T0 = 1_700_000_000_000
BIG_ROWS = 25_003
"""More rows of one key in one run than one page of ``get-history`` gives."""
RUNS_OF_SHARED_KEY = 26
ROWS_OF_SHARED_KEY = 1000
MORE_ROWS_THAN_ONE_REPLY = RUNS_OF_SHARED_KEY * ROWS_OF_SHARED_KEY
"""More rows of one key over several runs than ``get-history-bulk`` gives before it cuts off."""

METRICS: dict[str, list[tuple[float, int, int]]] = {
    "not a number": [(math.nan, T0, 0), (0.0, T0, 0), (1.5, T0 + 1, 1)],
    "inf": [(math.inf, T0, 0), (-math.inf, T0, 1), (1.7976931348623157e308, T0 + 5, 0)],
    "minus zero": [(-0.0, T0, 0), (0.0, T0, 1)],
    "negative steps": [(3.0, T0, -3), (1.0, T0, -1), (0.5, T0, 0)],
    "huge step": [(1.0, T0, 2**53 + 1), (2.0, T0, 2**53), (3.0, T0, 2**63 - 1)],
    "lowest step": [(1.0, T0, -(2**63))],
    "timestamp 0": [(0.25, 0, 0)],
    "same moment": [(1.0, T0, 7), (2.0, T0, 7), (3.0, T0, 7)],
    "train/loss": [(0.1 + 0.2, T0, 0)],
    "with space": [(1 / 3, T0, 0)],
    "k" * 250: [(5e-324, T0, 0), (2.2250738585072014e-308, T0, 1), (1e308, T0, 2)],
    "ünï.code-日本": [(1.0, T0, 0)],
    "later is not last": [(1.0, T0 + 9, 1), (2.0, T0, 2), (3.0, T0 + 5, 0)],
}

PARAMS = {
    "empty": "",
    "long": "x" * 6000,
    "newline": "a\nb\r\nc\td",
    "emoji": "🧪 naïve 日本語",
    "quotes": "'\"\\ %s {} $HOME `x`",
    "model/layer size": "128",
    "looks like json": '{"a": NaN}',
    "spaces": "  both ends  ",
}

TAGS = {
    "long": "t" * 8000,
    "empty": "",
    "lines": "first\nsecond\n",
    "ünïcode 日本": "✓ 🧪",
    "mlflow.note.content": "# A note\n\nwith *markdown*",
    "mlflow.source.name": "train.py",
    "mlflow.source.git.commit": "0" * 40,
}

FILES: dict[str, bytes] = {
    "empty.bin": b"",
    "note.txt": "naïve ✓\n".encode(),
    "a/b/c/d/deep.txt": b"deep",
    "100% of it.txt": b"percent",
    "plus+and&semi;.txt": b"plus",
    "what?.txt": b"question",
    "日本語 ✓/Ünï.json": b"{}",
    "%41.txt": b"looks quoted",
    "trailing.": b"dot",
    "model/MLmodel": b"flavors: {}\n",
    "model/data/weights.bin": bytes(range(256)) * 40,
    "-dash": b"dash",
}
LOCAL_FILES = {"issue #7.txt": b"hash", "back\\slash.txt": b"backslash"}
"""Names that the artifact proxy itself refuses."""
NEW_FILES = {"Ünï/日本語 ✓.json": b"{}"}
"""Names that servers on gunicorn (before 3.3) take and list, and then cannot send."""
BIG_FILE_BYTES = 20 << 20


@dataclass
class Seeded:
    """Ids by role, so that tests can speak of ``runs["parent"]``."""

    experiments: dict[str, str] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)


def seed(
    client: MlflowClient, *, local_artifacts: bool = False, old_server: bool = False
) -> Seeded:
    """Fill a deployment.

    Args:
        client: Speaks to it.
        local_artifacts: Also file names that only a folder or bucket takes.
        old_server: Without file names that old servers cannot send.
    """
    made = Seeded()
    _seed_experiments(client, made)
    files = FILES | ({} if old_server else NEW_FILES) | (LOCAL_FILES if local_artifacts else {})
    _seed_runs(client, made, files)
    _seed_states(client, made)
    _seed_families(client, made)
    _seed_datasets(client, made)
    seed_models(client, made)
    # A deleted experiment takes no more runs, and deleting it deletes them too.
    client.delete_experiment(made.experiments["deleted"])
    return made


def _seed_experiments(client: MlflowClient, made: Seeded) -> None:
    def create(role: str, name: str, tags: dict[str, Any] | None = None) -> None:
        made.experiments[role] = client.create_experiment(name, tags=tags)

    create("plain", "plain", {"team": "a\nb", "empty": "", "long": "y" * 5000, "ünï": "✓"})
    create("odd name", 'odd/näme ✓ 100% [a-z]* it\'s "x"', {"mlflow.note.content": "odd"})
    create("other", "artifacts")
    create("empty", "nothing in it")
    create("deleted", "deleted with its runs", {"why": "no longer needed"})


def _seed_runs(client: MlflowClient, made: Seeded, files: dict[str, bytes]) -> None:
    plain = made.experiments["plain"]
    run_id = new_run(client, made, "metrics", plain)
    log_metrics(client, run_id, METRICS)
    run_id = new_run(client, made, "params and tags", plain)
    many = {f"p{number:03}": str(number) for number in range(130)}
    _log_params(client, run_id, PARAMS | many)
    many_tags = {f"t{number:03}": str(number) for number in range(120)}
    _log_tags(client, run_id, TAGS | many_tags)
    run_id = new_run(client, made, "artifacts", plain)
    log_files(client, run_id, files)
    client.set_tag(run_id, "mlflow.log-model.history", _log_model_history(run_id))
    run_id = new_run(client, made, "in odd", made.experiments["odd name"])
    log_metrics(client, run_id, {"loss": [(1.0, T0, 0), (0.5, T0 + 1, 1)]})
    run_id = new_run(client, made, "in deleted experiment", made.experiments["deleted"])
    log_metrics(client, run_id, {"loss": [(1.0, T0, 0)]})
    _log_params(client, run_id, {"lr": "0.1"})
    log_files(client, run_id, {"kept.txt": b"kept"})
    run_id = new_run(client, made, "deleted", plain)
    log_metrics(client, run_id, {"loss": [(2.0, T0, 0), (math.nan, T0, 1)]})
    log_files(client, run_id, {"deleted.txt": b"deleted", "model/MLmodel": b"flavors: {}\n"})
    client.delete_run(run_id)
    new_run(client, made, "bare", plain)


def _seed_states(client: MlflowClient, made: Seeded) -> None:
    for number, status in enumerate(("RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED")):
        run_id = new_run(client, made, f"status {status}", made.experiments["other"], finish=False)
        client.update_run(run_id, status=status)
        ended = new_run(
            client, made, f"status {status} ended", made.experiments["other"], finish=False
        )
        client.set_terminated(ended, status, end_time=T0 + 1000 + number)


def _seed_families(client: MlflowClient, made: Seeded) -> None:
    plain, other = made.experiments["plain"], made.experiments["other"]
    new_run(client, made, "parent", plain)
    # Runs are written in the order of their random ids: a child that comes before its parent, ...
    number = 0
    while True:
        role = f"child {number}"
        new_run(client, made, role, plain, parent=made.runs["parent"])
        if made.runs[role] < made.runs["parent"]:
            break
        number += 1
    new_run(client, made, "grandchild", plain, parent=made.runs["child 0"])
    # ... one whose experiment comes after or before, ...
    new_run(client, made, "child elsewhere", other, parent=made.runs["parent"])
    new_run(client, made, "parent elsewhere", other)
    new_run(client, made, "child of elsewhere", plain, parent=made.runs["parent elsewhere"])
    # ... one whose parent is deleted, one whose parent was purged, a ring, its own parent.
    new_run(client, made, "deleted parent", plain)
    new_run(client, made, "child of deleted", plain, parent=made.runs["deleted parent"])
    client.delete_run(made.runs["deleted parent"])
    new_run(client, made, "child of gone", plain, parent="f" * 32)
    new_run(client, made, "ring 1", plain)
    new_run(client, made, "ring 2", plain, parent=made.runs["ring 1"])
    client.set_tag(made.runs["ring 1"], "mlflow.parentRunId", made.runs["ring 2"])
    new_run(client, made, "own parent", plain)
    client.set_tag(made.runs["own parent"], "mlflow.parentRunId", made.runs["own parent"])


def _seed_datasets(client: MlflowClient, made: Seeded) -> None:
    def dataset(name: str, **more: str) -> Dataset:
        return Dataset(name, f"d-{name}"[:36], "local", f'{{"uri": "/data/{name}"}}', **more)

    train = dataset("träin", schema='{"columns": []}', profile='{"rows": 3}')
    test = dataset("test")
    for role, inputs in {
        "two datasets": [
            DatasetInput(train, [InputTag("mlflow.data.context", "training"), InputTag("x", "")]),
            DatasetInput(test, []),
        ],
        "one dataset": [DatasetInput(train, [InputTag("mlflow.data.context", "eval ✓")])],
    }.items():
        client.log_inputs(new_run(client, made, role, made.experiments["plain"]), inputs)


def seed_big(client: MlflowClient, made: Seeded) -> None:
    """Histories and a file of the size where replies are cut off and pages turn."""
    made.experiments["big"] = client.create_experiment("big")
    run_id = new_run(client, made, "long history", made.experiments["big"])
    log_metrics(
        client, run_id, {"long": [(1 / (n + 1), T0 + n, n % 20_000) for n in range(BIG_ROWS)]}
    )
    for number in range(RUNS_OF_SHARED_KEY):
        run_id = new_run(client, made, f"shared key {number}", made.experiments["big"])
        # All rows at step 0: nothing in the run's latest metrics tells how many there are.
        rows = [(float(n), T0 + n, 0) for n in range(ROWS_OF_SHARED_KEY)]
        log_metrics(client, run_id, {"shared": rows})
    block = bytes(range(251)) * 4096
    data = (block * (BIG_FILE_BYTES // len(block) + 1))[:BIG_FILE_BYTES]
    log_files(client, made.runs["long history"], {"checkpoints/weights.bin": data})


def seed_models(client: MlflowClient, made: Seeded) -> None:
    """Registered models: twelve versions without 3 and 7, aliases, stages, a deleted run's."""
    name = "churn ✓ model"
    client.create_registered_model(name, {"team": "a", "empty": ""}, "Predicts *churn*.\n")
    owners = ["artifacts", "deleted"]
    for number in range(1, 13):
        run_id = made.runs[owners[number % 2]]
        root = client.get_run(run_id).info.artifact_uri
        client.create_model_version(
            name,
            f"runs:/{run_id}/model" if number % 3 else f"{root}/model",
            run_id,
            {"number": str(number), "long": "v" * 5000} if number % 2 else None,
            description=f"version {number}" if number % 4 else None,
        )
    for deleted in ("3", "7"):
        client.delete_model_version(name, deleted)
    for alias, version in {"champion": "2", "old-champion": "2", "challenger": "10"}.items():
        client.set_registered_model_alias(name, alias, version)
    for version, stage in {"5": "Production", "4": "Staging", "1": "Archived"}.items():
        store = client._get_registry_client().store
        store.transition_model_version_stage(name, version, stage, archive_existing_versions=False)
    client.create_registered_model("it's empty")
    client.create_registered_model("starts at two")
    run_id = made.runs["artifacts"]
    client.create_model_version("starts at two", f"runs:/{run_id}/model", run_id)
    client.create_model_version("starts at two", f"runs:/{run_id}/model", run_id)
    client.delete_model_version("starts at two", "1")


def seed_of_mlflow_3(client: MlflowClient, made: Seeded) -> None:
    """One of each kind that only MLflow 3 has."""
    from mlflow.entities import (
        LoggedModelInput,
        LoggedModelOutput,
        TraceInfo,
        TraceLocation,
        TraceState,
    )

    experiment_id = made.experiments["plain"]
    model = client.create_logged_model(experiment_id, "net")
    run_id = new_run(client, made, "with models", experiment_id)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=4)])
    client.log_inputs(run_id, models=[LoggedModelInput(model.model_id)])
    client.register_prompt("greeting", "Hello {{name}}")
    location = TraceLocation.from_experiment_id(experiment_id)
    trace = TraceInfo("tr-" + "0" * 32, location, T0, TraceState.OK, execution_duration=5)
    client._tracing_client.start_trace(trace)


def log_files(client: MlflowClient, run_id: str, files: dict[str, bytes]) -> None:
    """Log files under the given paths."""
    # MLflow 2 looks for the artifact proxy behind the default tracking URI alone.
    uri = client.tracking_uri
    with tempfile.TemporaryDirectory() as folder, as_default(uri):
        for path, data in files.items():
            local = Path(folder) / path
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(data)
            parent = path.rpartition("/")[0]
            client.log_artifact(run_id, str(local), parent or None)


def new_run(
    client: MlflowClient,
    made: Seeded,
    role: str,
    experiment_id: str,
    *,
    parent: str | None = None,
    finish: bool = True,
) -> str:
    """Create a run, with times and a user that depend on nothing but the number of runs before."""
    number = len(made.runs)
    tags = {"mlflow.user": f"user {number % 3}", "role": role}
    if parent:
        tags["mlflow.parentRunId"] = parent
    name = f"run: {role} ✓"
    run = client.create_run(experiment_id, T0 + number * 1000, tags, name)
    made.runs[role] = str(run.info.run_id)
    if finish:
        client.set_terminated(run.info.run_id, end_time=T0 + number * 1000 + 500)
    return made.runs[role]


def log_metrics(
    client: MlflowClient, run_id: str, rows: dict[str, list[tuple[float, int, int]]]
) -> None:
    """Log rows of value, timestamp and step by key."""
    metrics = [
        Metric(key, value, timestamp, step)
        for key, points in rows.items()
        for value, timestamp, step in points
    ]
    for part in _parts(metrics, 1000):
        client.log_batch(run_id, metrics=part)


def _log_params(client: MlflowClient, run_id: str, params: dict[str, str]) -> None:
    for part in _parts([Param(*item) for item in params.items()], 100):
        client.log_batch(run_id, params=part)


def _log_tags(client: MlflowClient, run_id: str, tags: dict[str, str]) -> None:
    for part in _parts([RunTag(*item) for item in tags.items()], 100):
        client.log_batch(run_id, tags=part)


def _parts(items: Sequence[Any], size: int) -> Iterable[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


def _log_model_history(run_id: str) -> str:
    return json.dumps([{"run_id": run_id, "artifact_path": "model", "flavors": {}}])
