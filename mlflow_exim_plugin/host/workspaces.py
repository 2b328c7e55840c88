"""Workspaces of a deployment: which there are, and one after the other as the active one."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import requests

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.connection import Host, translated

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DEFAULT", "Workspaces"]

DEFAULT = "default"
"""Name of the workspace that every deployment has."""

_ENDPOINT = "/api/3.0/mlflow/workspaces"
_WITHOUT_WORKSPACES = {
    requests.codes.not_found,
    requests.codes.method_not_allowed,
    requests.codes.not_implemented,
    requests.codes.service_unavailable,  # the server runs without workspaces
}


class Workspaces:
    """Lists and enters the workspaces of a server.

    Args:
        host: The deployment. One that is no server has the default workspace alone: MLflow opens a
            database with others only inside a server.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    def to_read(self) -> list[dict[str, Any] | None]:
        """Return the workspaces to read: all of them, or the one that the user chose.

        Returns:
            REST's ``Workspace`` of each by name, the default one first; one None where the
            deployment has no workspaces.

        Raises:
            ServerError: The server has workspaces and does not list them.
        """
        listed = self.documents()
        chosen = _active()
        if chosen:
            listed = [document for document in listed if document["name"] == chosen]
        listed.sort(key=lambda workspace: (workspace["name"] != DEFAULT, workspace["name"]))
        return [*listed] or [None]

    def documents(self) -> list[dict[str, Any]]:
        """Return REST's ``Workspace`` of each workspace; empty where there are none.

        Raises:
            ServerError: The server has workspaces and does not list them.
        """
        if not self._host.is_http:
            return []
        doing = "listing the workspaces"
        with self._host.call("GET", _ENDPOINT, doing=doing, retries=False) as response:
            if response.status_code in _WITHOUT_WORKSPACES:
                return []
            with translated("listing the workspaces"):
                if response.status_code != requests.codes.ok:
                    raise ServerError(
                        f"listing the workspaces: the server answered {response.status_code}"
                    )
                listed: list[dict[str, Any]] = response.json().get("workspaces", [])
        return listed

    def create(self, document: dict[str, Any]) -> None:
        """Create a workspace from REST's ``Workspace``.

        Raises:
            ServerError: The server refused.
        """
        self._host.post_json(_ENDPOINT, document)

    @contextlib.contextmanager
    def entered(self, workspace: dict[str, Any] | None) -> Iterator[None]:
        """Make a workspace the active one of this process, and the one before active again.

        MLflow's clients send its name with every call, in every thread.

        Args:
            workspace: REST's ``Workspace``; None changes nothing.

        Raises:
            ServerError: MLflow refuses the name.
        """
        if workspace is None:
            yield
            return
        import mlflow

        before = _active() or None
        name = workspace["name"]
        with translated(f"entering workspace {name!r}"):
            mlflow.set_workspace(name)
        try:
            yield
        finally:
            mlflow.set_workspace(before)


def _active() -> str:
    """Name of the active workspace, empty without one; where MLflow keeps it for its threads."""
    return os.environ.get("MLFLOW_WORKSPACE", "").strip()
