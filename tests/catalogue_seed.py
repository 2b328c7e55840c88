"""Runs for catalogues: documents as MLflow has them, of a seed, and what is true of them."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.sets.catalogue.rows import ArchiveTold, CatalogueRows

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Pack", "packs", "rows_of_pack"]

DAY_MS = 86_400_000
START_MS = 1_700_000_000_000
_NAMES = ("bald", "crow", "fun", "sloth", "gifted", "mare", "nosy", "shrew")
_USERS = tuple(f"user{n:02}@example.org" for n in range(40))
_TEAMS = ("risk", "fraud", "search", "ads", "rare")
_OPTIMIZERS = ("adam", "sgd", "lamb", "adagrad")


@dataclass
class Pack:
    """What one archive holds.

    Attributes:
        archive: Its path.
        packed_ms: When it was packed.
        runs: Documents of its runs with their files.
    """

    archive: str
    packed_ms: int
    runs: list[tuple[dict[str, Any], list[tuple[str, str, int]]]] = field(default_factory=list)


def packs(count: int, runs: int, *, grown: int = 0, seed: int = 7) -> Iterator[Pack]:
    """Yield packs of runs, one a day; of those of the day before some have grown.

    Args:
        count: How many packs.
        runs: New runs of each.
        grown: How many runs of the pack before come again, in a later state.
        seed: Of chance.
    """
    chance = random.Random(seed)
    before: list[tuple[dict[str, Any], list[tuple[str, str, int]]]] = []
    for number in range(count):
        packed_ms = START_MS + (number + 1) * DAY_MS
        pack = Pack(f"{number:05}.tar.zst", packed_ms)
        for document, files in before[:grown]:
            metrics = [dict(m, value=m["value"] + 1000) for m in document["data"]["metrics"]]
            data = document["data"] | {"metrics": metrics}
            info = document["info"] | {"status": "FINISHED", "end_time": packed_ms}
            pack.runs.append((document | {"info": info, "data": data}, files))
        new = [_run(chance, number, packed_ms) for _ in range(runs)]
        pack.runs += new
        before = new
        yield pack


def _run(
    chance: random.Random, number: int, packed_ms: int
) -> tuple[dict[str, Any], list[tuple[str, str, int]]]:
    run_id = f"{chance.getrandbits(128):032x}"
    start_ms = packed_ms - chance.randrange(1, DAY_MS)
    params = {
        "lr": f"{chance.choice((0.1, 0.01, 0.001, 0.0003))}",
        "depth": str(chance.randrange(2, 20)),
        "seed": str(chance.randrange(100_000)),
        "optimizer": chance.choice(_OPTIMIZERS),
        **{f"param_{n}": f"{chance.random():.6f}" for n in range(6)},
    }
    metrics = {
        "acc": chance.random(),
        "loss": chance.expovariate(1),
        "auc": chance.betavariate(8, 2),
        "f1": chance.random(),
        "seconds": chance.random() * 1000,
    }
    user = chance.choice(_USERS)
    tags = {
        "team": chance.choices(_TEAMS, (40, 30, 20, 10, 0.01))[0],
        "mlflow.user": user,
        "mlflow.source.name": "train.py",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": f"{chance.randrange(5000):040x}",
        "mlflow.runName": (name := f"{chance.choice(_NAMES)}-{chance.randrange(1_000_000)}"),
        "ticket": f"ML-{chance.randrange(100_000)}",
    }
    dataset = {"name": "churn", "digest": f"{chance.randrange(2000):08x}", "source": "s3://x"}
    document = {
        "info": {
            "run_id": run_id,
            "run_uuid": run_id,
            "run_name": name,
            "experiment_id": str(number % 200),
            "user_id": user,
            "status": "RUNNING",
            "start_time": start_ms,
            "end_time": start_ms + 60_000,
            "artifact_uri": f"s3://mlflow/{number % 200}/{run_id}/artifacts",
            "lifecycle_stage": "active",
        },
        "data": {
            "metrics": [
                {"key": k, "value": v, "step": 99, "timestamp": start_ms + 50_000}
                for k, v in metrics.items()
            ],
            "params": [{"key": k, "value": v} for k, v in params.items()],
            "tags": [{"key": k, "value": v} for k, v in tags.items()],
        },
        "inputs": {"dataset_inputs": [{"dataset": dataset, "tags": []}]},
    }
    files = [
        (f"{chance.getrandbits(256):064x}", path, chance.randrange(1 << 24))
        for path in ("model/MLmodel", "model/model.pkl", "plots/roc.png")
    ]
    return document, files


def rows_of_pack(pack: Pack, rows: CatalogueRows | None = None) -> CatalogueRows:
    """Return the rows of a pack, as those of an archive with its documents are made."""
    rows = rows or CatalogueRows()
    source = "http://mlflow.example.org"
    told = ArchiveTold(pack.archive, f"{pack.packed_ms:064x}", 1000, "", pack.packed_ms, source)
    rows.begin(told)
    for document, files in pack.runs:
        rows.run(document, f"experiment {document['info']['experiment_id']}", files)
    rows.end()
    return rows
