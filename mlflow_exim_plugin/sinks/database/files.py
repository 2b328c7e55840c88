"""Files to where a database says that they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_exim_plugin.errors import EximError, ServerError, ServerLostError, StoreError
from mlflow_exim_plugin.host.errors import translated
from mlflow_exim_plugin.host.files.tree import ArtifactTree
from mlflow_exim_plugin.schema.digests import sha256_of_stream
from mlflow_exim_plugin.schema.objects import Artifact, Failure, Kind, Loss
from mlflow_exim_plugin.sinks.artifact_upload import ArtifactUpload
from mlflow_exim_plugin.sinks.counting import count_artifacts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.database.target import DatabaseTarget

__all__ = ["STAYS", "FileComparison", "complete_missing", "is_elsewhere", "put_files"]

STAYS = "it stays where the source has it"
"""Why a file is not sent."""

_NAMED = 10


def put_files(
    target: DatabaseTarget,
    owner: str,
    root: str,
    artifacts: Iterable[Artifact | Failure],
    report: Report,
) -> None:
    """Send files to where a database says that they are, unless they stay where they were."""
    if not target.keeps_locations:
        ArtifactUpload(target.host, target.count_bytes).put(owner, root, "", artifacts, report)
        return
    for artifact in artifacts:
        if isinstance(artifact, Failure):
            report.failed(artifact)
        else:
            report.skipped(Kind.ARTIFACT, f"{owner}/{artifact.path}", STAYS)


def complete_missing(
    target: DatabaseTarget,
    kind: Kind,
    owner: str,
    root: str,
    artifacts: Iterable[Artifact | Failure],
    report: Report,
) -> bool:
    """Send the files that an object lacks which is there and finished; return whether it did.

    An unpack that found a full disk left it so. Of the others, names and sizes are compared.
    """
    files = FileComparison(target, kind, owner, root, artifacts)
    if not files.lacks:
        files.name_others(report)
        return False
    files.complete(report, replaces=False)
    return True


def is_elsewhere(root: str, source: str | None) -> bool:
    """Whether a place of files at the target is another one than that of the source.

    The same URI is the same place, but for those that a server alone can find.
    """
    return root != source or root.startswith("mlflow-artifacts:")


class FileComparison:
    """The files of an object that is there beside those that come; safe without a lock.

    Args:
        target: The database.
        kind: The object's kind.
        owner: Its id.
        root: Where its files are at the target.
        artifacts: The files that come.
    """

    def __init__(
        self,
        target: DatabaseTarget,
        kind: Kind,
        owner: str,
        root: str,
        artifacts: Iterable[Artifact | Failure],
    ) -> None:
        self._target = target
        self._kind = kind
        self._owner = owner
        self._root = root
        self._coming = list(artifacts)
        self._there: dict[str, int] = {}
        self._tree: ArtifactTree | None = None
        self._problem = ""
        files = [file for file in self._coming if isinstance(file, Artifact)]
        if files and not target.keeps_locations:
            try:
                self._tree = ArtifactTree(target.host, root)
                self._there = dict(self._tree.files())
            except (ServerError, StoreError) as error:
                self._problem = error.message
        self._present = [file for file in files if file.path in self._there]
        self._missing = [file for file in files if file.path not in self._there]

    @property
    def lacks(self) -> bool:
        """Whether the target is known to lack files."""
        return bool(self._missing) and not (self._problem or self._target.keeps_locations)

    def name_others(self, report: Report) -> None:
        """Name the files that are others at the target, as far as their sizes tell."""
        if self._problem:
            what = f"its files cannot be compared: {self._problem}"
            report.lost(Loss(self._kind, self._owner, what))
        others = [file for file in self._present if self._there[file.path] != file.size_bytes]
        self._name("the target has other files, which stay", others, report)

    def complete(self, report: Report, *, replaces: bool) -> None:
        """Send the files that are missing.

        Args:
            report: Counts and names what happens.
            replaces: Whether those that are others there are replaced.
        """
        if self._problem:
            for artifact in self._coming:
                name = f"{self._owner}/"
                unsent = Failure(Kind.ARTIFACT, name, self._problem)
                report.failed(artifact if isinstance(artifact, Failure) else unsent)
            return
        others, unread = self._others(report)
        kept = len(self._present) - unread
        sent: list[Artifact | Failure] = [
            a for a in self._coming if isinstance(a, Failure) or a.path not in self._there
        ]
        if replaces:
            sent += others
            kept -= len(others)
            self._name("files became others at the source and are replaced", others, report)
        else:
            self._name("the target has other files, which stay", others, report)
        report.skipped(Kind.ARTIFACT, self._owner, "they are there already", kept)
        if self._target.options.dry_run:
            count_artifacts(sent, report)
        else:
            put_files(self._target, self._owner, self._root, sent, report)

    def _others(self, report: Report) -> tuple[list[Artifact], int]:
        """Return the files that are others at the target, and how many cannot be compared.

        Each is read to its end first: what is damaged takes nobody's place.
        """
        others: list[Artifact] = []
        unread = 0
        if (tree := self._tree) is None:
            return others, unread
        for file in self._present:
            try:
                with translated(f"reading artifact {file.path}"):
                    coming = sha256_of_stream(file.open())
                    same_size = self._there[file.path] == file.size_bytes
                    if not (same_size and sha256_of_stream(tree.open(file.path)) == coming):
                        others.append(file)
            except ServerLostError:
                raise
            except EximError as error:
                name = f"{self._owner}/{file.path}"
                report.failed(Failure(Kind.ARTIFACT, name, error.message))
                unread += 1
        return others, unread

    def _name(self, what: str, files: Sequence[Artifact], report: Report) -> None:
        if files:
            more = f" and {len(files) - _NAMED} more" if len(files) > _NAMED else ""
            named = ", ".join(file.path for file in files[:_NAMED])
            report.lost(Loss(self._kind, self._owner, f"{what}: {named}{more}"))
