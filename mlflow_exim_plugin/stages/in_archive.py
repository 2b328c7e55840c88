"""Let objects of an archive name its members as the place of their files.

Where an archive says that files were, at its source, nothing is opened: who made it could name
any file of whoever reads it.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.host.files.gate import path_problem
from mlflow_exim_plugin.host.traces.documents import ARTIFACT_LOCATION
from mlflow_exim_plugin.schema.objects import (
    Entity,
    Kind,
    LoggedModel,
    ModelVersion,
    Run,
    Trace,
    model_behind,
)
from mlflow_exim_plugin.storage.urls import path_of_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mlflow_exim_plugin.schema.objects import StreamItem

__all__ = ["PLACE", "InArchive"]

PLACE = "mlflow-artifacts:/"
"""What the place of files begins with, before the path of a folder of members.

Clients of a server ask that server for such places; to others they have to be made an address.
"""
_Owner = TypeVar("_Owner", Run, LoggedModel)
_MOST_NAMESAKES = 1_000


class InArchive:
    """A stage between an archive and a database that stands for it.

    Files themselves do not come along.

    Args:
        has_member: Whether the archive has a member.
        start: What paths in it begin with, where others stand beside it.
    """

    def __init__(self, has_member: Callable[[str], bool], start: str = "") -> None:
        self._has_member = has_member
        self._place = PLACE + start
        self._tree = layout.TREE
        self._roots: dict[str, str] = {}
        self._folders: dict[tuple[Kind, str], str] = {}

    def __call__(self, stream: Iterator[StreamItem]) -> Iterator[StreamItem]:
        """Yield the stream with other places."""
        for item in stream:
            if isinstance(item, Entity) and item.kind is Kind.WORKSPACE:
                self._tree = layout.workspace_tree(item.id)
                self._folders.clear()
            yield self._placed(item)

    def _placed(self, item: StreamItem) -> StreamItem:
        if isinstance(item, Run):
            folder = layout.run_folder(self._experiment(item.experiment_id), item.id)
            return self._moved(item, f"{folder}artifacts", f"runs:/{item.id}")
        if isinstance(item, LoggedModel):
            folder = layout.logged_model_folder(self._experiment(item.experiment_id), item.id)
            return self._moved(item, f"{folder}artifacts", f"models:/{item.id}")
        if isinstance(item, Trace):
            folder = layout.attachment_folder(self._experiment(item.experiment_id), item.id)
            tags = item.info["tags"] | {ARTIFACT_LOCATION: self._place + folder}
            document = item.document | {"info": item.info | {"tags": tags}}
            return replace(item, document=document, attachments=())
        if isinstance(item, ModelVersion):
            return replace(item, artifacts=(), files_at=self._place_of(item))
        return item

    def _experiment(self, experiment_id: str) -> str:
        return layout.experiment_folder(experiment_id, self._tree)

    def _moved(self, item: _Owner, folder: str, name: str) -> _Owner:
        """Return a run or logged model whose files are in a folder."""
        for old in (*_written(str(item.info.get("artifact_uri") or "")), name):
            self._roots[old.rstrip("/")] = folder
        document = item.document | {"info": item.info | {"artifact_uri": self._place + folder}}
        return replace(item, document=document, artifacts=())

    def _place_of(self, version: ModelVersion) -> str:
        """Return where a version's files are: its own, or those of its run or logged model."""
        own = layout.version_folder(self._model(version), version.version) + "artifacts"
        if any(True for _ in version.artifacts):
            return self._place + own
        source = str(version.document.get("source") or "").rstrip("/")
        found = next(filter(None, map(self._below_a_root, _written(source))), None)
        if found is None and (model_id := model_behind(version.document)):
            found = self._roots.get(f"models:/{model_id}")
        return self._place + (own if found is None else found)

    def _below_a_root(self, place: str) -> str | None:
        root = place
        while root:
            if (folder := self._roots.get(root)) is not None:
                tail = place[len(root) :].strip("/")
                return None if tail and path_problem(tail) else f"{folder}/{tail}".rstrip("/")
            root = root.rpartition("/")[0]
        return None

    def _model(self, version: ModelVersion) -> str:
        """Return the folder of a version's registered model or prompt."""
        kind = Kind.PROMPT if version.kind is Kind.PROMPT_VERSION else Kind.REGISTERED_MODEL
        if (kind, version.name) not in self._folders:
            first = layout.model_folder(version.name, kind=kind, tree=self._tree)
            # Names that differ in case alone have numbers.
            folders = chain([first], (f"{first[:-1]}~{n}/" for n in range(2, _MOST_NAMESAKES)))
            there = (f for f in folders if self._has_member(layout.model_member(f)))
            self._folders[kind, version.name] = next(there, first)
        return self._folders[kind, version.name]


def _written(place: str) -> list[str]:
    """Return the ways in which a place may be written: a path of this kind is a URI too."""
    return list(filter(None, dict.fromkeys((place, path_of_uri(place)))))
