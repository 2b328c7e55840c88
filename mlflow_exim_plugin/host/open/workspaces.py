"""Workspaces of a deployment: which there are, and one after the other as the active one."""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import requests

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.answers import UnbelievableError, answered, object_of
from mlflow_exim_plugin.host.errors import raise_for_status, translated
from mlflow_exim_plugin.host.open.planned import Foresight
from mlflow_exim_plugin.host.open.sessions import BUSY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.host.open.host import Host

__all__ = ["DEFAULT", "Workspaces", "active", "entered", "workers"]

DEFAULT = "default"
"""Name of the workspace that every deployment has."""

_ACTIVE = contextvars.ContextVar("mlflow_exim_workspace", default=DEFAULT)
_ENDPOINT = "/api/3.0/mlflow/workspaces"
_WITHOUT_WORKSPACES = {
    requests.codes.not_found,
    requests.codes.method_not_allowed,
    requests.codes.not_implemented,
}
_SWITCHED_OFF = {"disabled", "workspaces"}
"""Words of a server that runs without them; it has the status of one that is busy (503)."""


class Workspaces:
    """Lists the workspaces of a deployment, and makes others.

    Args:
        host: The deployment.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._planned: set[str] = set()

    def to_read(self) -> list[dict[str, Any] | None]:
        """Return the workspaces to read: all of them, or the one that the user chose.

        Returns:
            REST's ``Workspace`` of each by name, the default one first; one None where the
            deployment has no workspaces.

        Raises:
            ServerError: The server has workspaces and does not list them.
        """
        listed = self.documents()
        chosen = _chosen()
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
            return [dict(workspace) for workspace in self._host.workspaces]
        doing = "listing the workspaces"
        with translated(doing):
            return answered(lambda: self._listed(doing))

    def _listed(self, doing: str) -> list[dict[str, Any]]:
        response = self._host.call("GET", _ENDPOINT, doing=doing, retries=False)
        if response.status_code in _WITHOUT_WORKSPACES or _is_switched_off(response):
            return []
        if response.status_code in BUSY:
            response = self._host.call("GET", _ENDPOINT, doing=doing)
        raise_for_status(response)
        listed = object_of(response.content).get("workspaces")
        # Whoever has workspaces has the default one, or may not see any.
        if not isinstance(listed, list) or not listed:
            raise UnbelievableError("it gives none of its workspaces")
        if not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in listed):
            raise UnbelievableError("what comes is no list of workspaces")
        return listed

    def first(self) -> dict[str, Any] | None:
        """Return the workspace in which what names none lies; None where its server knows."""
        return {"name": _chosen() or DEFAULT} if self._host.workspaces else None

    def create(self, document: dict[str, Any]) -> None:
        """Create a workspace from REST's ``Workspace``.

        Raises:
            ServerError: The server refused.
        """
        if self._host.is_http:
            self._host.post_json(_ENDPOINT, document)
            return
        with translated(f"making workspace {document['name']!r}"):
            from mlflow.entities.workspace import Workspace
            from mlflow.store.workspace.sqlalchemy_store import SqlAlchemyStore

            store = SqlAlchemyStore(self._host.tracking_uri)
            store.create_workspace(Workspace.from_dict(document))
            made = store.get_workspace(document["name"]).to_dict()
        self._host.workspaces.append({k: v for k, v in made.items() if v is not None})

    def plan(self, name: str) -> None:
        """Let the server answer for a workspace that is not there as if it were, and empty."""
        if not self._planned:
            self._host.send_through(lambda usual: Foresight(usual, self._planned, DEFAULT))
        self._planned.add(name)


@contextlib.contextmanager
def entered(workspace: dict[str, Any] | None) -> Iterator[None]:
    """Make a workspace the active one of this thread, and the one before active again.

    MLflow's clients send its name with every call. Other threads stay where they are: one process
    may read a deployment and write another. A pool of ``workers`` is where its maker was.

    Args:
        workspace: REST's ``Workspace``; None is the one that the user chose, or none.

    Raises:
        ServerError: MLflow refuses the name, or knows no workspaces.
    """
    name = workspace["name"] if workspace else None
    with contextlib.ExitStack() as inside:
        if name is not None or "mlflow" in sys.modules:  # where it is not loaded, none is active
            _enter(name, inside)
        before = _ACTIVE.set(name or DEFAULT)
        inside.callback(_ACTIVE.reset, before)
        yield


def _enter(name: str | None, inside: contextlib.ExitStack) -> None:
    try:
        from mlflow.utils.workspace_context import ServerWorkspaceContext
    except ImportError:  # MLflow 3.10.0 and before
        if name is not None:
            raise ServerError(
                f"this MLflow cannot enter workspace {name!r}", 'pip install "mlflow>3.10.0"'
            ) from None
    else:
        with translated(f"entering workspace {name!r}"):
            inside.enter_context(ServerWorkspaceContext(name))


def active() -> str:
    """Name of the workspace that this thread has entered."""
    return _ACTIVE.get()


def workers(most: int, name: str) -> ThreadPoolExecutor:
    """Return a pool of threads that are in the workspace that is active now."""
    return ThreadPoolExecutor(most, name, _adopt, (contextvars.copy_context(),))


def _adopt(context: contextvars.Context) -> None:
    for variable, value in context.items():
        variable.set(value)


def _chosen() -> str:
    """Name of the workspace that the user chose, empty without one."""
    return os.environ.get("MLFLOW_WORKSPACE", "").strip()


def _is_switched_off(response: requests.Response) -> bool:
    is_unavailable = response.status_code == requests.codes.service_unavailable
    return is_unavailable and any(word in response.text.lower() for word in _SWITCHED_OFF)
