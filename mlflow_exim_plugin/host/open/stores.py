"""MLflow's own stores of a deployment, opened without a switch in the process's environment.

MLflow looks for one there twice: a folder of files is refused without ``MLFLOW_ALLOW_FILE_STORE``,
and a database's workspaces are looked at only while ``MLFLOW_ENABLE_WORKSPACES`` says so. Both are
of the whole process, of which we may be a small part.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlflow_exim_plugin.host.open.locations import is_database, store_folder

if TYPE_CHECKING:
    from contextlib import ExitStack

__all__ = ["StoreOpener", "asks_server", "cut_nothing_off"]


class StoreOpener:
    """Opens the stores of a deployment.

    Args:
        held: Closed when they are no longer needed.
        reads: Whether nothing will be written.
        has_workspaces: Whether a database is used by workspaces, those of each calling thread.
        artifact_root: Below which such a database has the files of new experiments, None for
            MLflow's own default: no experiment has a place of its own there.
    """

    def __init__(
        self,
        held: ExitStack,
        *,
        reads: bool,
        has_workspaces: bool,
        artifact_root: str | None = None,
    ) -> None:
        self._held = held
        self._reads = reads
        self._has_workspaces = has_workspaces
        self._artifact_root = artifact_root

    def tracking(self, uri: str) -> Any:
        """Return MLflow's tracking store, which hides less than the client does."""
        from mlflow.tracking._tracking_service.client import TrackingServiceClient

        if self._reads and (folder := store_folder(uri)):
            from mlflow.store.tracking.file_store import FileStore

            trash = folder / FileStore.TRASH_FOLDER_NAME
            trash = trash if trash.exists() else self._empty_folder()
            return _of_folder(FileStore, folder, trash_folder=str(trash))
        if self._has_workspaces and is_database(uri):
            from mlflow.store.tracking import DEFAULT_LOCAL_FILE_AND_ARTIFACT_PATH as FILES
            from mlflow.store.tracking.sqlalchemy_workspace_store import (
                WorkspaceAwareSqlAlchemyStore,
            )

            root = self._artifact_root or FILES
            return _in_workspaces(WorkspaceAwareSqlAlchemyStore)(uri, root)
        return TrackingServiceClient(uri).store

    def registry(self, uri: str, tracking_uri: str) -> Any:
        """Return MLflow's model registry store."""
        from mlflow.tracking._model_registry.client import ModelRegistryClient

        if self._reads and (folder := store_folder(uri)):
            from mlflow.store.model_registry.file_store import FileStore

            if not (folder / FileStore.MODELS_FOLDER_NAME).exists():
                folder = self._empty_folder()
                (folder / FileStore.MODELS_FOLDER_NAME).mkdir()
            return _of_folder(FileStore, folder)
        if self._has_workspaces and is_database(uri):
            from mlflow.store.model_registry.sqlalchemy_workspace_store import (
                WorkspaceAwareSqlAlchemyStore,
            )

            return _in_workspaces(WorkspaceAwareSqlAlchemyStore)(uri)
        return ModelRegistryClient(uri, tracking_uri).store

    def _empty_folder(self) -> Path:
        """Return what stands for a folder that MLflow's constructor would make in the source."""
        return Path(self._held.enter_context(TemporaryDirectory(prefix="mlflow-exim-")))


def _of_folder(store: Any, folder: Path, **attributes: str) -> Any:
    """Return a store of files as its constructor, which is not called, would leave it."""
    opened = object.__new__(store)
    super(store, opened).__init__()
    vars(opened).update(attributes, root_directory=str(folder))
    return opened


def _in_workspaces(store: Any) -> Any:
    """Return a store's class that is in the active workspace whatever the environment says.

    Its constructor makes no default experiment: MLflow's own sets ``MLFLOW_WORKSPACE`` for that.
    """
    own = {"_workspaces_enabled": staticmethod(lambda: True)}
    return type(store.__name__, (store,), own | {"_initialize_store_state": lambda _: None})


def asks_server(uri: str, store: Any) -> bool:
    """Whether a store asks an MLflow server, whatever scheme a plugin has for that.

    What Databricks answers is another API.
    """
    scheme = urlsplit(uri).scheme.partition("-")[0]
    return hasattr(store, "get_host_creds") and scheme not in {"", "databricks", "uc"}


def cut_nothing_off(*stores: Any) -> None:
    """Let MySQL and MariaDB refuse what a column cannot hold, instead of keeping a part of it.

    By default they do, but MLflow leaves that off in the connection with which it has made the
    default experiment, and the next who writes gets that one out of the pool.

    Source: ``SqlAlchemyStore._create_default_experiment``.
    """
    for store in stores:
        if (engine := getattr(store, "engine", None)) is None:
            continue
        from sqlalchemy import Engine, event

        if isinstance(engine, Engine) and engine.dialect.name == "mysql":
            event.listen(engine, "checkout", _be_strict)


def _be_strict(connection: Any, *_: object) -> None:
    with contextlib.closing(connection.cursor()) as cursor:
        cursor.execute("SET SESSION sql_mode = CONCAT(@@SESSION.sql_mode, ',STRICT_ALL_TABLES')")
