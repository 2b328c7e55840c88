"""An ``mlruns`` folder on any store that fsspec knows: a bucket, a server of files, a zip file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import NotFoundError, StoreError
from mlflow_exim_plugin.host.open.roots import owner_in
from mlflow_exim_plugin.sources.folder.files import StoreFiles, UnreadableError
from mlflow_exim_plugin.storage.urls import path_of_uri

if TYPE_CHECKING:
    from mlflow_exim_plugin.sources.file_tree import FilesOfTree, FileTree

__all__ = ["FarStoreFiles"]


class FarStoreFiles(StoreFiles):
    """What lies below a folder that was listed once.

    Args:
        tree: Its files.
    """

    def __init__(self, tree: FileTree) -> None:
        super().__init__(tree.location)
        self._tree = tree

    def _content(self, place: str, *, path: str, folder: int | None = None) -> bytes:
        del path, folder
        try:
            return self._tree.read(place.removeprefix(f"{self.root}/"))
        except (NotFoundError, StoreError) as error:
            raise UnreadableError(error.message, error.hint) from error

    def found(self, root: str) -> str:
        """Return where the files of an artifact root are: in the store, if this machine has none.

        A store that was copied has its files below the same folders. Such stores have no empty
        folders, so a run that is there without files has none.
        """
        path = path_of_uri(root)
        if path is None or os.path.lexists(path) or (place := self._in_store(path)) is None:
            return root
        return f"{self.root}/{place}"

    def folder_at(self, root: str) -> FilesOfTree | None:
        """Return the files of a root that lies in the store."""
        inside = f"{self.root}/"
        return self._tree.folder(root.removeprefix(inside)) if root.startswith(inside) else None

    def _in_store(self, path: str) -> str | None:
        """Return the folder of the store that ends as a path does, down from its owner's id."""
        parts = path.replace("\\", "/").strip("/").split("/")
        if (owner := owner_in(parts)) is None:
            return None
        for first in range(owner + 1):
            if self._tree.children("/".join(parts[first : owner + 1])) is not None:
                return "/".join(parts[first:])
        return None

    def _listed(self, path: str, *, follows: bool = True) -> list[tuple[str, bool]] | None:
        del follows
        return self._tree.children(path)
