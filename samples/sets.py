"""Write the samples of sets: one that is sound, and one for each requirement that it breaks.

    python -m samples.sets

The sound ones are packed from a store of MLflow that grows; they are written once and stay, as archives do.
The first was written by version 1.0, before states had layers.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin import pack

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BAD", "GOOD", "IN_LAYERS", "break_samples"]

ROOT = Path(__file__).parent / "v1" / "sets"
GOOD = ROOT / "good" / "three_snapshots"
IN_LAYERS = ROOT / "good" / "in_layers"
_RUNS = 24
_AS_OF_MS = 1_790_000_000_000
_DAY_MS = 86_400_000


def _grow(target: Path) -> None:
    """Pack a store three times: a run grows, one is gone, a model comes."""
    from mlflow import MlflowClient
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        client = MlflowClient(uri, uri)
        place = f"{folder}/files"
        experiment = client.create_experiment("churn", artifact_location=place)
        runs = []
        for number in range(_RUNS):
            run_id = client.create_run(experiment, run_name=f"run {number}").info.run_id
            client.log_param(run_id, "lr", number / 10)
            for step in range(3):
                client.log_metric(run_id, "loss", 1 / (step + 1), step=step)
            client.log_text(run_id, f"notes of run {number}\n", "notes.txt")
            runs.append(run_id)
        for moment in range(3):
            if moment == 1:
                client.log_metric(runs[0], "loss", 0.1, step=3)
                client.set_terminated(runs[0])
                store = SqlAlchemyStore(uri, place)
                store.delete_run(runs[2])
                store._hard_delete_run(runs[2])  # noqa: SLF001 - what `mlflow gc` calls
            if moment == 2:
                client.create_registered_model("churn")
                client.create_model_version("churn", f"runs:/{runs[0]}/notes.txt", runs[0])
            when = _AS_OF_MS + moment * _DAY_MS
            pack(set=str(target), tracking_uri=uri, as_of_ms=when, source_moved=True)


def _edit(change: Callable[[dict[str, Any]], object], number: int = 3) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "snapshots" / f"{number:08d}.json"
        document = json.loads(file.read_text())
        change(document)
        file.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")

    return edit


def _cut_table(folder: Path) -> None:
    document = json.loads((folder / "snapshots/00000003.json").read_text())
    table = folder / document["info"]["gone"]["path"]
    table.write_bytes(table.read_bytes()[:-1])


def _remove_pack(folder: Path) -> None:
    document = json.loads((folder / "snapshots/00000003.json").read_text())
    (folder / document["info"]["packs"][0]["path"]).unlink()


def _same_block(folder: Path) -> None:
    """Let a snapshot name an archive twice, under two names."""
    document = json.loads((folder / "snapshots/00000003.json").read_text())
    first = document["info"]["packs"][0]
    name = f"packs/00/{'0' * 64}.tar.zst"
    (folder / "packs/00").mkdir()
    shutil.copy(folder / first["path"], folder / name)
    document["info"]["packs"].append({**first, "path": name})
    file = folder / "snapshots" / "00000003.json"
    file.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


BAD: dict[str, Callable[[Path], None]] = {
    "N001_document": _edit(lambda d: d["info"].pop("packs") and d["info"].update(packs=7)),
    "N002_number": _edit(lambda d: d["info"].update(number=4)),
    "N004_parent": _edit(lambda d: d["info"]["parent"].update(sha256="0" * 64)),
    "N005_table": _cut_table,
    "N006_archive": _remove_pack,
    "N007_content_root": _edit(lambda d: d["info"].update(content_root="0" * 64)),
    "N008_tables": _same_block,
    "N009_layers": _edit(lambda d: d["info"]["layers"].pop()),
}
"""What breaks each requirement; N003 is of who expects a root."""
_LATER = {"N009_layers": IN_LAYERS}
"""Which set is broken of those that are not the first."""


def break_samples(target: Path) -> None:
    """Write one broken set for each requirement into a folder."""
    for name, damage in BAD.items():
        shutil.copytree(_LATER.get(name, GOOD), target / name)
        damage(target / name)


if __name__ == "__main__":
    if not IN_LAYERS.exists():
        _grow(IN_LAYERS)
    shutil.rmtree(ROOT / "bad", ignore_errors=True)
    break_samples(ROOT / "bad")
