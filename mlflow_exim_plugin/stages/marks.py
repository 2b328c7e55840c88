"""Marks: what tells, without reading all of an object, whether it is as it was.

A mark is made of the object's document, of what its source says of its rows, and of names, sizes
and times of its files. It is compared with none but marks of the same source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.container import layout
from mlflow_exim_plugin.kinds import ENTITY_KINDS, Kind
from mlflow_exim_plugin.schema.canonical import document_bytes
from mlflow_exim_plugin.schema.digests import sha256_of
from mlflow_exim_plugin.schema.metric_rows import MetricsDigest, RunRows
from mlflow_exim_plugin.schema.objects import (
    Artifact,
    Entity,
    Experiment,
    Failure,
    LoggedModel,
    ModelVersion,
    RegisteredModel,
    Run,
    Trace,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mlflow_exim_plugin.schema.objects import StreamObject

__all__ = ["Marks", "is_whole", "mark_of", "path_of"]

_HALF = 8
_FORM = b"1\n"
"""Counted up when marks are made of something else."""


class Marks:
    """The marks of an earlier state, by the path of each object.

    Args:
        known: Them.
    """

    def __init__(self, known: Mapping[str, bytes]) -> None:
        self._known = known

    @property
    def is_empty(self) -> bool:
        """Whether there was nothing, so that nothing need be compared."""
        return not self._known

    def knows(self, path: str) -> bool:
        """Whether an object was there."""
        return path in self._known

    def same(self, path: str, mark: bytes) -> bool:
        """Whether an object is as it was: where its files cannot be listed, all else of it."""
        known = self._known.get(path, b"")
        return bool(known) and known[: len(mark)] == mark

    def as_known(self, path: str, mark: bytes) -> bytes:
        """Return a mark; that of the earlier state where it is equal, so that it is there once."""
        known = self._known.get(path)
        return known if known is not None and known == mark else mark


def mark_of(item: StreamObject, files: Iterable[Artifact | Failure] = ()) -> bytes:
    """Return the mark of an object; half of one where its files cannot be listed.

    Args:
        item: The object.
        files: Its files.

    Raises:
        ValueError: Its document is none that JSON can hold.
    """
    content = [
        _FORM,
        document_bytes(item.document, item.doubles if isinstance(item, Run) else None),
    ]
    if isinstance(item, Run):
        content.append(item.stamp.encode())
        if isinstance(item.histories, tuple) and item.histories:  # they are in memory
            rows = MetricsDigest()
            for part in item.histories:
                if isinstance(part, RunRows):
                    rows.update(part)
            content.append(rows.hexdigest().encode())
    elif isinstance(item, Trace):
        content.append(item.stamp.encode() if item.stamp else document_bytes(item.spans))
    half = sha256_of(b"".join(content)).digest()[:_HALF]
    listed = []
    for file in files:
        if isinstance(file, Artifact):
            listed.append(f"{file.path}\n{file.size_bytes}\n{file.stamp}\n")
        elif file.id.endswith("/"):
            return half
        else:
            listed.append(f"{file.id}\n{file.reason}\n")
    names = "".join(listed).encode(errors="surrogatepass")
    return half + sha256_of(names).digest()[:_HALF]


def is_whole(mark: bytes) -> bool:
    """Whether a mark tells of an object's files too."""
    return len(mark) > _HALF


def path_of(item: StreamObject, tree: str) -> str:
    """Return the path of an object in the archive of a state, where its name meets no other's.

    Args:
        item: The object; a trace, which has no envelope of its own, has the path it would have.
        tree: The workspace's tree.
    """
    if isinstance(item, Experiment):
        return layout.experiment_member(item.id, tree)
    if isinstance(item, RegisteredModel):
        return layout.model_member(layout.model_folder(item.name, kind=item.kind, tree=tree))
    if isinstance(item, ModelVersion):
        kind = Kind.PROMPT if item.kind is Kind.PROMPT_VERSION else Kind.REGISTERED_MODEL
        folder = layout.model_folder(item.name, kind=kind, tree=tree)
        return layout.version_member(folder, item.version)
    if isinstance(item, Entity):
        folder = ""
        if ENTITY_KINDS[item.kind].of_experiment:
            folder = layout.experiment_folder(item.experiment_id, tree)
        return layout.entity_member(item.kind, item.id, tree=tree, experiment=folder)
    experiment = layout.experiment_folder(item.experiment_id, tree)
    if isinstance(item, Run):
        return layout.run_member(layout.run_folder(experiment, item.id))
    if isinstance(item, LoggedModel):
        return layout.logged_model_member(layout.logged_model_folder(experiment, item.id))
    return layout.trace_path(experiment, item.id)
