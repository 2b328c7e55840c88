"""What of a state is lost where archives of its snapshot are gone or cannot be opened.

The table of the state tells of each object which content it has: what the archives that are left
have of it in an earlier state is not it, and is not shown for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlflow_exim_plugin.kinds import Kind
from mlflow_exim_plugin.sources.archive.snapshot.layers import state_table

if TYPE_CHECKING:
    from mlflow_exim_plugin.sources.archive.snapshot.documents import SnapshotInfo
    from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder

__all__ = ["LostObject", "StatedContent"]


@dataclass(frozen=True)
class LostObject:
    """An object of a state that no archive has.

    Attributes:
        kind: Its kind.
        path: Path of its envelope; of a trace see ``layout.trace_path``.
        reason: Which archives are lost, and why.
        has_earlier: Whether its document of an earlier state stands for it, because others belong
            to it.
    """

    kind: Kind
    path: str
    reason: str
    has_earlier: bool = False


@dataclass
class StatedContent:
    """What a state says of the content of its objects.

    Attributes:
        envelopes: Kind and content digest by path of the envelope, 32 bytes.
        traces: Content digests by folder of the traces and segment of the trace's id.
    """

    envelopes: dict[str, tuple[Kind, bytes]] = field(default_factory=dict)
    traces: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: SetFolder, info: SnapshotInfo) -> StatedContent | None:
        """Return it, None where the snapshot does not say what its state is.

        Raises:
            InvalidArchiveError: The table is damaged.
            NotFoundError: It is not there.
            StoreError: The store refused or died.
        """
        table = state_table(folder, info)
        if table is None:
            return None
        names = ("path", "kind", "content_digest", "member")
        found = cls()
        for path, kind, digest, member in zip(
            *(table.column(name).to_pylist() for name in names), strict=True
        ):
            if Kind(kind) is Kind.TRACE:
                traces, _, segment = path.rpartition("/")
                found.traces.setdefault(f"{traces}/", {})[segment] = digest
            else:
                found.envelopes[member or path] = Kind(kind), digest
        return found
