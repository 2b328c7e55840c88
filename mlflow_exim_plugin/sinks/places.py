"""Places of files below those of a run or logged model, as model versions name them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.host.files.gate import path_problem
from mlflow_exim_plugin.schema.objects import LoggedModel, model_behind
from mlflow_exim_plugin.storage.urls import path_of_uri

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.objects import ModelVersion, Run

__all__ = ["DELETED_THERE", "LeftOut", "below", "moved"]

DELETED_THERE = "its copy was deleted at the target; restore it there if it is to go on"
"""Why an experiment is left out with all that lies in it."""


class LeftOut:
    """Runs and logged models of a transfer that are left out, and with them versions of them."""

    def __init__(self) -> None:
        self._why: dict[str, tuple[str, str]] = {}

    def add(self, item: Run | LoggedModel, reason: str) -> None:
        """Remember one, and why it is left out."""
        self._why[item.id] = (reason, str(item.info.get("artifact_uri") or ""))

    def reason(self, version: ModelVersion) -> str:
        """Return why a version is left out: its files are those of what is; else nothing."""
        source = str(version.document.get("source") or "")
        for what, identity, scheme in (
            ("logged model", model_behind(version.document), "models"),
            ("run", version.document.get("run_id"), "runs"),
        ):
            reason, root = self._why.get(str(identity), ("", ""))
            roots = (f"{scheme}:/{identity}", root)
            if reason and any(moved(source, old, "") is not None for old in roots):
                return f"its files are those of {what} {identity}, which is left out: {reason}"
        return ""


def moved(uri: str, old_root: str, new_root: str) -> str | None:
    """Return a URI below an old root as it is below the new one, None for another URI."""
    for root, found in ((old_root, uri), (_path(old_root), _path(uri))):
        if root and (rest := below(found, root.rstrip("/"))) is not None:
            return new_root.rstrip("/") + rest
    return None


def below(place: str, root: str) -> str | None:
    """Return the rest of a place behind a root, None where it is not there or leads out of it."""
    rest = place.removeprefix(root)
    is_below = place.startswith(root) and (not rest or rest.startswith("/"))
    return rest if is_below and not (rest.strip("/") and path_problem(rest.strip("/"))) else None


def _path(uri: str) -> str:
    return path_of_uri(uri) or uri
