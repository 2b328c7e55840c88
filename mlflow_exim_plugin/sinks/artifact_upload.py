"""Files to a deployment: sent side by side, then looked for where they should be."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from mlflow_exim_plugin.container.unicode import folded
from mlflow_exim_plugin.errors import EximError, ServerError, ServerLostError, StoreError
from mlflow_exim_plugin.host.files.gate import require_path
from mlflow_exim_plugin.host.files.tree import ArtifactTree
from mlflow_exim_plugin.schema.objects import Artifact, Failure, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from concurrent.futures import Future

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["ArtifactUpload"]

_UNDER_WAY_BYTES = 32 << 20
"""What is sent of one object at once."""


def _counted(size_bytes: int, report: Report) -> None:
    report.written(Kind.ARTIFACT)
    report.add_bytes(size_bytes)


class ArtifactUpload:
    """Sends files to a deployment; safe to use from several threads.

    Args:
        host: The deployment.
        counted: Counts a file of some bytes that arrived.
        dry_run: Count what would be sent, and send nothing.
    """

    def __init__(
        self,
        host: Host,
        counted: Callable[[int, Report], None] = _counted,
        *,
        dry_run: bool = False,
    ) -> None:
        self._host = host
        self._counted = counted
        self._dry_run = dry_run

    def put(
        self,
        owner: str,
        root: str,
        prefix: str,
        artifacts: Iterable[Artifact | Failure],
        report: Report,
    ) -> bool:
        """Upload files and look whether they arrived.

        Args:
            owner: Id of the run or version, for the report.
            root: Artifact root of a run at the target.
            prefix: Folder below the root, with its final slash, or empty.
            artifacts: The files.
            report: Counts and names what happens.

        Returns:
            True when every file arrived.
        """
        tree: ArtifactTree | None = None
        under_way = _UnderWay(owner, prefix, report)
        for artifact in artifacts:
            if isinstance(artifact, Failure):
                under_way.failed(artifact)
                continue
            try:
                if self._dry_run:
                    require_path(prefix + artifact.path)
                    self._counted(artifact.size_bytes, report)
                    continue
                tree = tree or ArtifactTree(self._host, root)
                under_way.settle(tree.at_once - 1, artifact.size_bytes)
                with artifact.open() as stream:
                    sending = tree.send(prefix + artifact.path, stream, artifact.size_bytes)
            except ServerLostError:
                raise
            except EximError as error:
                under_way.unsent(artifact, error)
            else:
                under_way.add(artifact, sending)
        under_way.settle(0)
        whole = under_way.whole
        if tree is not None and under_way.sent:
            whole &= self._check(owner, tree, under_way.sent, report)
        return whole

    def _check(self, owner: str, tree: ArtifactTree, sent: dict[str, int], report: Report) -> bool:
        try:
            there = dict(tree.files())
        except (ServerError, StoreError) as error:
            report.failed(Failure(Kind.ARTIFACT, f"{owner}/", error.message, len(sent)))
            return False
        whole = True
        taken = {folded(path): path for path in sent.keys() - there.keys()}
        for path, size_bytes in sent.items():
            if (other := taken.get(folded(path), path)) != path:  # whose bytes may be there now
                reason = f"it cannot be told from {other}: the target takes both for one"
                report.failed(Failure(Kind.ARTIFACT, f"{owner}/{path}", reason))
                whole = False
                continue
            if there.get(path) == size_bytes:
                self._counted(size_bytes, report)
                continue
            reason = f"{size_bytes} bytes were sent, the target lists {there.get(path, 'no file')}"
            report.failed(Failure(Kind.ARTIFACT, f"{owner}/{path}", reason))
            whole = False
        return whole


class _UnderWay:
    """The files of one object that are on their way, and what became of those before.

    Args:
        owner: Id of the object.
        prefix: Folder below its root.
        report: Names those that failed.

    Attributes:
        sent: Size in bytes of those that went, by path below the root.
        whole: Whether none has failed.
    """

    def __init__(self, owner: str, prefix: str, report: Report) -> None:
        self._owner = owner
        self._prefix = prefix
        self._report = report
        self._sending: deque[tuple[Artifact, Future[None]]] = deque()
        self._bytes = 0
        self.sent: dict[str, int] = {}
        self.whole = True

    def add(self, artifact: Artifact, sending: Future[None]) -> None:
        """Add one."""
        self._sending.append((artifact, sending))
        self._bytes += artifact.size_bytes

    def settle(self, most: int, coming_bytes: int = 0) -> None:
        """Wait until so few are left, and their bytes and those that come are not too many.

        Raises:
            ServerLostError: The target does not answer any more.
        """
        while self._sending and (
            len(self._sending) > most or self._bytes + coming_bytes > _UNDER_WAY_BYTES
        ):
            artifact, sending = self._sending.popleft()
            self._bytes -= artifact.size_bytes
            try:
                sending.result()
            except ServerLostError:
                raise
            except EximError as error:
                self.unsent(artifact, error)
            else:
                self.sent[self._prefix + artifact.path] = artifact.size_bytes

    def failed(self, failure: Failure) -> None:
        """Name one that failed."""
        self._report.failed(failure)
        self.whole = False

    def unsent(self, artifact: Artifact, error: EximError) -> None:
        """Name one that did not go."""
        self.failed(Failure(Kind.ARTIFACT, f"{self._owner}/{artifact.path}", error.message))
