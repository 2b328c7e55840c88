"""Exports as mlflow-export-import wrote them in each of its generations, made from one truth.

The shapes are those of its own samples and code; nothing of the package under test is used.
"""

from __future__ import annotations

import json
import zipfile
from copy import deepcopy
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

GENERATIONS = ("0", "1a", "1b", "1c", "2.0", "2.1", "2.2")
EXPORTED_MS = 1_700_000_000_000
_EXPORTED_TEXT = "2023-11-14 22:13:20"

RUNS: dict[str, dict[str, Any]] = {
    "1" * 32: {
        "info": {
            "status": "FINISHED",
            "user_id": "ada",
            "start_time": 1_600_000_000_000,
            "end_time": 1_600_000_009_000,
            "lifecycle_stage": "active",
            "run_name": "first",
        },
        "params": {"depth": "4", "empty": "", "lines": "a\nb"},
        "tags": {"mlflow.user": "ada", "note": "ä – ✓", "mlflow.runName": "first"},
        "metrics": {
            "loss": [(0, 1_600_000_001_000, 0.5), (1, 1_600_000_002_000, 0.25)],
            "odd": [(0, 1_600_000_003_000, float("nan")), (3, 1_600_000_004_000, float("inf"))],
        },
        "datasets": [
            {
                "dataset": {
                    "name": "wine",
                    "digest": "d1",
                    "source_type": "http",
                    "source": '{"url": "http://x/wine.csv"}',
                    "schema": None,
                    "profile": '{"rows": 2}',
                },
                "tags": [{"key": "mlflow.data.context", "value": "training"}],
            }
        ],
        "artifacts": {"model/MLmodel": b"flavors: {}\n", "plots/a b.txt": b"\x00\xff"},
    },
    "2" * 32: {
        "info": {
            "status": "FAILED",
            "user_id": "",
            "start_time": 1_600_000_020_000,
            "end_time": None,
            "lifecycle_stage": "deleted",
            "run_name": "second",
        },
        "params": {},
        "tags": {"mlflow.parentRunId": "1" * 32},
        "metrics": {},
        "datasets": [],
        "artifacts": {},
    },
}
EXPERIMENT = {
    "experiment_id": "7",
    "name": "wine",
    "artifact_location": "/srv/mlruns/7",
    "lifecycle_stage": "active",
    "tags": {"team": "red", "mlflow.note.content": "text"},
    "creation_time": 1_590_000_000_000,
    "last_update_time": 1_590_000_000_001,
}
VERSIONS = [
    {
        "version": str(number),
        "run_id": "1" * 32,
        "source": f"/srv/mlruns/7/{'1' * 32}/artifacts/model",
        "current_stage": "Production" if number == 10 else "None",
        "creation_timestamp": 1_600_000_010_000 + number,
        "last_updated_timestamp": 1_600_000_020_000 + number,
        "description": f"v{number}",
        "user_id": "ada",
        "run_link": "",
        "status": "READY",
        "status_message": "",
        "tags": {"n": str(number)},
    }
    for number in (10, 2, 1)
]
MODEL = {
    "name": "wine model",
    "creation_timestamp": 1_600_000_010_000,
    "last_updated_timestamp": 1_600_000_030_000,
    "description": "red and white",
    "tags": [{"key": "owner", "value": "ada"}],
    "aliases": [{"alias": "champion", "version": "2"}],
}


class Export:
    """Writes one export.

    Args:
        folder: Where to.
        generation: One of ``GENERATIONS``.
    """

    def __init__(self, folder: Path, generation: str) -> None:
        self.folder = folder
        self.generation = generation

    @property
    def is_wrapped(self) -> bool:
        return self.generation.startswith("2")

    def write_all(self) -> Path:
        """Write an experiment with its runs, and a model with its versions, as bulk exports do."""
        self.write_experiment()
        for run_id in RUNS:
            self.write_run(run_id)
        self.write_model()
        return self.folder

    def experiment_folder(self) -> Path:
        return self.folder / "experiments" / "7"

    def run_folder(self, run_id: str) -> Path:
        inner = "runs" if self.generation == "2.2" else ""
        return self.experiment_folder() / inner / run_id

    def write_experiment(self, runs: list[str] | None = None) -> None:
        listed = list(RUNS) if runs is None else runs
        found: dict[str, Any] = {"experiment": deepcopy(EXPERIMENT)}
        if self.generation in {"0", "1a"}:
            for name in ("creation_time", "last_update_time"):
                del found["experiment"][name]
        if self.is_wrapped:
            found["runs"] = listed
            if self.generation == "2.2":
                found |= {"logged_models": [], "traces": []}
        name = "manifest.json" if self.generation in {"0", "1a"} else "experiment.json"
        info = {"num_total_runs": len(listed), "num_ok_runs": len(listed), "failed_runs": []}
        if not self.is_wrapped:
            info["ok_runs"] = listed
        self._write(self.experiment_folder() / name, found, info)

    def run_payload(self, run_id: str) -> dict[str, Any]:
        run = RUNS[run_id]
        info = run["info"] | {
            "run_id": run_id,
            "run_uuid": run_id,
            "experiment_id": "7",
            "artifact_uri": f"/srv/mlruns/7/{run_id}/artifacts",
        }
        metrics: dict[str, Any] = {
            key: [{"value": v, "timestamp": t, "step": s} for s, t, v in rows]
            for key, rows in run["metrics"].items()
        }
        if self.generation == "0":
            metrics = {key: rows[-1][2] for key, rows in run["metrics"].items()}
            del info["run_name"]
        found = {"info": info, "params": run["params"], "metrics": metrics, "tags": run["tags"]}
        if self.generation == "2.1":
            found["inputs"] = run["datasets"]
        if self.generation == "2.2":
            found["inputs"] = {"dataset_inputs": run["datasets"], "model_inputs": []}
            found["outputs"] = {"model_outputs": []}
        return deepcopy(found)

    def write_run(self, run_id: str, folder: Path | None = None) -> Path:
        folder = folder or self.run_folder(run_id)
        self._write(folder / "run.json", self.run_payload(run_id), {})
        for path, content in RUNS[run_id]["artifacts"].items():
            file = folder / "artifacts" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return folder

    def zip_run(self, run_id: str) -> None:
        """Write a run as the first exports could: a zip file in its folder's place."""
        folder = self.write_run(run_id, self.folder / "unzipped")
        self.experiment_folder().mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(self.experiment_folder() / f"{run_id}.zip", "w") as packed:
            for path in sorted(folder.rglob("*")):
                packed.write(path, path.relative_to(folder))
                if path.is_file():
                    path.unlink()

    def write_model(self) -> None:
        name = "versions" if self.generation not in {"0", "1a"} else "latest_versions"
        versions = [
            version | {"name": MODEL["name"], "_experiment_name": "wine"} for version in VERSIONS
        ]
        versions.sort(key=lambda version: str(version["version"]))  # as texts, as it did
        model = MODEL | {name: versions}
        if self.generation in {"2.1", "2.2"}:
            for version in versions:
                version["aliases"] = ["champion"] if version["version"] == "2" else []
        else:
            del model["aliases"]
        path = self.folder / "models" / "wine model" / "model.json"
        self._write(path, {"registered_model": model}, {})

    def _write(self, path: Path, found: dict[str, Any], info: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._document(found, info), indent=2) + "\n")

    def _document(self, found: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
        said = {"mlflow_version": "1.30.0", "mlflow_tracking_uri": "http://old:5000"}
        seconds = EXPORTED_MS // 1000
        match self.generation:
            case "0":
                return found | ({"export_info": info} if info else {})
            case "1a":
                return {"export_info": said | {"export_time": _EXPORTED_TEXT} | info} | found
            case "1b" | "1c":
                when = {
                    "seconds": seconds,
                    "local_time": _EXPORTED_TEXT,
                    "utc_time": _EXPORTED_TEXT,
                }
                stamp = {"export_info": said | {"export_time": when}}
                if self.generation == "1b":
                    return {"export_info": stamp["export_info"] | info} | found
                return stamp | {"custom_info": info} | found
            case _:
                pass
        system = said | {
            "package_version": "1.2.0",
            "script": "export.py",
            "export_time": seconds,
            "_export_time": _EXPORTED_TEXT,
            "platform": {"python_version": "3.10", "system": "Linux"},
            "user": "ada",
        }
        if self.generation != "2.0":
            system["export_file_version"] = "2"
        return {"system": system} | ({"info": info} if info else {}) | {"mlflow": found}
