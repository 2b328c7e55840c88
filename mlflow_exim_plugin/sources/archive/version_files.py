"""The files of a version of a model, where those of its run or logged model are them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import InvalidArchiveError, NotFoundError
from mlflow_exim_plugin.schema.objects import model_behind
from mlflow_exim_plugin.storage.urls import path_of_uri

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from mlflow_exim_plugin.schema.envelope import ArtifactEntry, VersionEnvelope
    from mlflow_exim_plugin.sources.archive.archive import Archive
    from mlflow_exim_plugin.stages.select import Plan

__all__ = ["files_behind", "files_left_behind"]


def files_behind(archive: Archive, version: VersionEnvelope) -> tuple[ArtifactEntry, ...]:
    """Return the files of the logged model or run that a version was made of, as its own.

    Args:
        archive: Open archive.
        version: Its envelope.

    Returns:
        Their paths are as seen from the folder of the version; none where the archive never had
        them, or they are lost: its envelopes say so.
    """
    document = version.mlflow.model_version
    source, run_id = str(document.get("source") or ""), str(document.get("run_id") or "")
    model_id = model_behind(document)
    try:
        if model_id:
            model = archive.logged_model(model_id)
            uri = str(model.mlflow.logged_model["info"].get("artifact_uri") or "")
            return _below(source, (f"models:/{model_id}", uri), model.info.artifacts)
        if run_id:
            run = archive.run(run_id)
            uri = str(run.mlflow.run["info"].get("artifact_uri") or "")
            return _below(source, (f"runs:/{run_id}", uri), run.info.artifacts)
    except (NotFoundError, InvalidArchiveError):
        pass
    return ()


def files_left_behind(
    archive: Archive, version: VersionEnvelope, plan: Plan, models: Container[str]
) -> tuple[ArtifactEntry, ...]:
    """Return the files of a version that those of its run or logged model are, which stays.

    Args:
        archive: Open archive.
        version: Its envelope.
        plan: Which runs are taken.
        models: Ids of the logged models that are.
    """
    document = version.mlflow.model_version
    model_id, run_id = model_behind(document), str(document.get("run_id") or "")
    comes_along = model_id in models if model_id else plan.holds(run_id)
    return () if comes_along else files_behind(archive, version)


def _below(
    source: str, roots: Iterable[str], entries: Iterable[ArtifactEntry]
) -> tuple[ArtifactEntry, ...]:
    """Return the files below a place that is below one of some roots, by their paths from there."""
    place = (path_of_uri(source) or source).rstrip("/") + "/"
    for root in filter(None, roots):
        above = (path_of_uri(root) or root).rstrip("/") + "/"
        if place.startswith(above):
            folder = place.removeprefix(above)
            return tuple(
                entry.model_copy(update={"path": entry.path.removeprefix(folder)})
                for entry in entries
                if entry.path.startswith(folder)
            )
    return ()
