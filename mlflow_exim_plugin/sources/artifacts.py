"""The files of what a source yields: where their owners say, listed and opened, some read ahead."""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import ServerError, StoreError
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.files.tree import ArtifactTree
from mlflow_exim_plugin.schema.objects import Artifact, Failure, Kind, Loss, model_behind
from mlflow_exim_plugin.sources.read_ahead import ReadAhead
from mlflow_exim_plugin.storage.urls import path_of_uri

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import ThreadPoolExecutor
    from typing import Protocol

    from mlflow_exim_plugin.host.files.tree import RootResolver
    from mlflow_exim_plugin.options import Selection
    from mlflow_exim_plugin.schema.objects import ModelVersion
    from mlflow_exim_plugin.stages.select import Plan

    class HeldModels(Protocol):
        """The logged models that were taken."""

        def holds(self, model_id: str | None, uri: str) -> bool:
            """Whether files at a URI are those of a model that was taken."""


__all__ = ["ArtifactReader", "Listing"]

_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
_POINTER_BYTES = range(len(_POINTER) + 83, len(_POINTER) + 96)
"""Sizes of what Git LFS leaves in the place of a file that it did not fetch, of up to a TB."""

Listing = tuple[str, ArtifactTree, list[tuple[str, int]]] | Failure | None
"""Owner, tree, path and size of each file; or why they cannot be listed; None without a root."""


class ArtifactReader:
    """Lists and opens files.

    Args:
        deployment: Knows where artifact roots are to be found.
        selection: Which files to take.
        pool: Lists, and reads small files from afar ahead.
        contents: False reads nothing ahead.
    """

    def __init__(
        self,
        deployment: RootResolver,
        selection: Selection,
        pool: ThreadPoolExecutor,
        *,
        contents: bool,
    ) -> None:
        self._deployment = deployment
        self._selection = selection
        self._pool = pool
        self._contents = contents
        self._losses: list[Loss] = []
        self._nothing: Future[Listing] = Future()
        self._nothing.set_result(None)

    @property
    def takes_any(self) -> bool:
        """Whether any file may be taken."""
        return self._selection.artifacts

    def start(self, owner: str, root: str | None) -> Future[Listing]:
        """Begin to list the files below an owner's root."""
        if not root or not self.takes_any:  # a thread that does nothing costs each run more
            return self._nothing
        return self._pool.submit(self.listed, owner, root)

    def listed(self, owner: str, root: str | None) -> Listing:
        """List the files below an owner's root, where any are taken."""
        if not root or not self.takes_any:
            return None
        try:
            with translated(f"listing the artifacts of {root}"):
                # A version, whose id has its number after a slash, is no owner to its server.
                tree = ArtifactTree(self._deployment, root, None if "/" in owner else owner)
                return owner, tree, list(tree.files())
        except (ServerError, StoreError) as error:
            hint = f"; {error.hint}" if error.hint else ""
            return Failure(Kind.ARTIFACT, f"{owner}/", error.message + hint)

    def said(self) -> Iterator[Loss]:
        """Yield what is to be told of files that were listed and not where or as they should be."""
        yield from self._losses
        self._losses.clear()
        if (roots := self._deployment.roots) is None:
            return
        for number, has in ((roots.moved, "the files"), (roots.bare, "but an empty folder")):
            if number:
                what = f"{number} roots are not where they are said to be: the store has {has}"
                yield Loss(Kind.ARTIFACT, "*", what)
        for location in sorted(roots.unsure):
            what = f"{location} is not there: it never had a file, or --artifact-root is needed"
            yield Loss(Kind.ARTIFACT, "*", what)
        roots.moved = roots.bare = 0
        roots.unsure.clear()

    def files(self, owner: str, root: str | None) -> list[Artifact | Failure]:
        """Return the files below an owner's root that are taken."""
        return self.take(self.listed(owner, root))

    def take(self, listing: Listing) -> list[Artifact | Failure]:
        """Return the files of a listing that are taken; from afar, some are read at once."""
        if listing is None:
            return []
        if isinstance(listing, Failure):
            return [listing]
        owner, tree, _ = listing
        for path, name in tree.renamed.items():
            what = f"its name {name} is no UTF-8, and kept escaped"
            self._losses.append(Loss(Kind.ARTIFACT, f"{owner}/{path}", what))
        artifacts = self.named(listing)
        if tree.is_remote and self._contents:
            self._begin([file for file in artifacts if isinstance(file, Artifact)], tree)
        elif self._contents:
            for file in artifacts:
                if isinstance(file, Artifact) and _is_pointer(file):
                    what = "it is a pointer of Git LFS, and not the file: git lfs pull brings that"
                    self._losses.append(Loss(Kind.ARTIFACT, f"{owner}/{file.path}", what))
        return artifacts

    def _begin(self, files: list[Artifact], tree: ArtifactTree) -> None:
        """Read some files at once, and let all be opened in the order in which they come."""
        if files:
            ahead = ReadAhead(tree, [(file.path, file.size_bytes) for file in files], self._pool)
            for number, file in enumerate(files):
                file.open = partial(ahead.open, number)

    def named(self, listing: Listing) -> list[Artifact | Failure]:
        """Return the files of a listing that are taken; nothing of them is read."""
        if listing is None:
            return []
        if isinstance(listing, Failure):
            return [listing]
        owner, tree, files = listing
        problems: list[Artifact | Failure] = [
            Failure(Kind.ARTIFACT, f"{owner}/{path}", reason)
            for path, reason in tree.problems.items()
            if self._selection.takes_artifact(path)
        ]
        return problems + [
            Artifact(path, size_bytes, partial(tree.open, path, size_bytes), stamp=tree.stamp(path))
            for path, size_bytes in files
            if self._selection.takes_artifact(path)
        ]

    def of_version(
        self, version: ModelVersion, root: str, plan: Plan, models: HeldModels
    ) -> list[Artifact | Failure]:
        """Return the files of a version that no packed run or logged model holds.

        Args:
            version: The version.
            root: Where the registry says its files are.
            plan: Which runs are taken.
            models: Which logged models are.
        """
        try:
            with translated(f"looking for the files of {version.id}"):
                if models.holds(model_behind(version.document), root):
                    return []
                run_id = str(version.document.get("run_id") or "")
                # One that was copied from another version says no place, so that its target could
                # not tell where in the run its files are.
                is_copy = str(version.document.get("source") or "").startswith("models:/")
                if (
                    not is_copy
                    and plan.holds(run_id)
                    and _lies_in(root, run_id, self._deployment.run_root(run_id))
                ):
                    return []
                listing = self.listed(version.id, root)
        except ServerError as error:
            return [Failure(Kind.ARTIFACT, f"{version.id}/", error.message)]
        if listing is not None and not isinstance(listing, Failure) and not listing[2]:
            listing = Failure(Kind.ARTIFACT, f"{version.id}/", "no files are where its source says")
        return self.take(listing)


def _is_pointer(artifact: Artifact) -> bool:
    if artifact.size_bytes not in _POINTER_BYTES:
        return False
    try:
        with artifact.open() as stream:
            return stream.read(len(_POINTER)) == _POINTER
    except StoreError:  # said when it is its turn
        return False


def _lies_in(uri: str, run_id: str, artifact_uri: str) -> bool:
    if uri.startswith(f"runs:/{run_id}/"):
        return True
    root = _plain(artifact_uri)
    return bool(root) and (_plain(uri) + "/").startswith(root + "/")


def _plain(uri: str) -> str:
    return (path_of_uri(uri) or uri).rstrip("/")
