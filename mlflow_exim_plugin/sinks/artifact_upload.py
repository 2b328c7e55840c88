"""Files to a deployment: sent one by one, then looked for where they should be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import EximError, ServerError, ServerLostError, StoreError
from mlflow_exim_plugin.host.files.gate import require_path
from mlflow_exim_plugin.host.files.tree import ArtifactTree
from mlflow_exim_plugin.schema.objects import Artifact, Failure, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["ArtifactUpload"]


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
        sent: dict[str, int] = {}
        whole = True
        for artifact in artifacts:
            if isinstance(artifact, Failure):
                report.failed(artifact)
                whole = False
                continue
            try:
                if self._dry_run:
                    require_path(prefix + artifact.path)
                    self._counted(artifact.size_bytes, report)
                    continue
                tree = tree or ArtifactTree(self._host, root)
                with artifact.open() as stream:
                    tree.put(prefix + artifact.path, stream, artifact.size_bytes)
                sent[prefix + artifact.path] = artifact.size_bytes
            except ServerLostError:
                raise
            except EximError as error:
                report.failed(Failure(Kind.ARTIFACT, f"{owner}/{artifact.path}", error.message))
                whole = False
        if tree is not None and sent:
            whole &= self._check(owner, tree, sent, report)
        return whole

    def _check(self, owner: str, tree: ArtifactTree, sent: dict[str, int], report: Report) -> bool:
        try:
            there = dict(tree.files())
        except (ServerError, StoreError) as error:
            report.failed(Failure(Kind.ARTIFACT, f"{owner}/", error.message, len(sent)))
            return False
        whole = True
        for path, size_bytes in sent.items():
            if there.get(path) == size_bytes:
                self._counted(size_bytes, report)
                continue
            reason = f"{size_bytes} bytes were sent, the target lists {there.get(path, 'no file')}"
            report.failed(Failure(Kind.ARTIFACT, f"{owner}/{path}", reason))
            whole = False
        return whole
