"""Where each object stands in the archive's tree (spec, "Layout"): ids and names to member paths.

::

    exim.json                                            what this is, how to read it without us
    data/archive.json                                    what was packed, what failed
    data/experiments/<id>/experiment.json
    data/experiments/<id>/metrics/part-<n>.parquet       rows of many runs
    data/experiments/<id>/runs/<run id>/run.json
    data/experiments/<id>/runs/<run id>/artifacts/...
    data/models/<name>/model.json
    data/models/<name>/versions/<number>/version.json
    data/models/<name>/versions/<number>/artifacts/...   only files that no packed run holds

Reserved for the kinds that come next: ``data/workspaces``, ``data/prompts``, ``data/datasets``,
and below an experiment ``logged_models``, ``traces``, ``scorers``, ``label_schemas``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.paths import encode_path, encode_segment

if TYPE_CHECKING:
    from collections.abc import Container

__all__ = [
    "ARCHIVE",
    "EXPERIMENTS",
    "HEADER",
    "MODELS",
    "artifact_member",
    "experiment_folder",
    "experiment_member",
    "metrics_member",
    "model_folder",
    "model_member",
    "run_folder",
    "run_member",
    "version_folder",
    "version_member",
]

HEADER = "exim.json"
ARCHIVE = "data/archive.json"
EXPERIMENTS = "data/experiments/"
MODELS = "data/models/"


def experiment_folder(experiment_id: str) -> str:
    """Folder of an experiment, with its final slash."""
    return f"{EXPERIMENTS}{encode_segment(experiment_id)}/"


def experiment_member(experiment_id: str) -> str:
    """Envelope of an experiment."""
    return experiment_folder(experiment_id) + "experiment.json"


def metrics_member(experiment_id: str, part: int) -> str:
    """Parquet file number ``part`` of an experiment's metric histories."""
    return f"{experiment_folder(experiment_id)}metrics/part-{part:05d}.parquet"


def run_folder(experiment_id: str, run_id: str) -> str:
    """Folder of a run, with its final slash."""
    return f"{experiment_folder(experiment_id)}runs/{encode_segment(run_id)}/"


def run_member(experiment_id: str, run_id: str) -> str:
    """Envelope of a run."""
    return run_folder(experiment_id, run_id) + "run.json"


def model_folder(name: str, taken: Container[str] = ()) -> str:
    """Folder of a registered model, with its final slash.

    Args:
        name: Name of the model.
        taken: Case-folded folders of other models; names that differ in case alone get a number.
    """
    segment = encode_segment(name)
    folder, number = f"{MODELS}{segment}/", 1
    while folder.casefold() in taken:
        number += 1
        folder = f"{MODELS}{segment}~{number}/"
    return folder


def model_member(folder: str) -> str:
    """Envelope of the registered model whose folder is given."""
    return folder + "model.json"


def version_folder(model: str, version: int) -> str:
    """Folder of a version of the model whose folder is given, with its final slash."""
    return f"{model}versions/{version}/"


def version_member(model: str, version: int) -> str:
    """Envelope of a version of the model whose folder is given."""
    return version_folder(model, version) + "version.json"


def artifact_member(folder: str, path: str) -> str:
    """Member of an artifact of the run or version whose folder is given."""
    return f"{folder}artifacts/{encode_path(path)}"
