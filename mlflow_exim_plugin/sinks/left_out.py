"""What is left out because of what became of its copies at the target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.host.files.gate import moved
from mlflow_exim_plugin.schema.objects import LoggedModel, model_behind

if TYPE_CHECKING:
    from mlflow_exim_plugin.schema.objects import ModelVersion, Run

__all__ = ["DELETED_THERE", "LeftOut"]

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
