"""A snapshot written: by its number, where nobody else has written that one (spec/v1/set.md)."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ArchiveExistsError
from mlflow_exim_plugin.kinds import Kind
from mlflow_exim_plugin.schema.canonical import document_bytes
from mlflow_exim_plugin.schema.digests import sha256_of
from mlflow_exim_plugin.schema.report import entries, failed_runs
from mlflow_exim_plugin.sets.layers import first_layer, next_layers
from mlflow_exim_plugin.sources.archive.snapshot.documents import (
    SET_FORMAT,
    SET_VERSION,
    Marker,
    Parent,
)
from mlflow_exim_plugin.sources.archive.snapshot.set_folder import (
    MARKER,
    StoredSnapshot,
    snapshot_path,
)
from mlflow_exim_plugin.sources.archive.snapshot.tables import (
    GONE,
    gone_table,
    read_table,
    write_table,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow_exim_plugin.schema.envelope import System
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sets.merging import NextState
    from mlflow_exim_plugin.sets.state import SetState
    from mlflow_exim_plugin.sources.archive.snapshot.documents import LayerEntry, PackEntry
    from mlflow_exim_plugin.sources.archive.snapshot.set_folder import SetFolder

__all__ = ["NewSnapshot", "begin_set"]

_READ_ME = (
    "A set of archives: packs/ holds them, each readable alone; snapshots/ says which of them make "
    "a state. See spec/v1/set.md of mlflow-exim-plugin."
)


def begin_set(folder: SetFolder) -> None:
    """Make a folder a set, if it is none yet.

    Raises:
        UnsupportedFormatError: It is one that needs a newer reader.
        StoreError: The store refused or died.
    """
    if not folder.is_there():
        marker = Marker(format=SET_FORMAT, format_version=SET_VERSION, read_me=_READ_ME)
        folder.put_named_by_content(MARKER, document_bytes(marker.to_json()))


@dataclass(frozen=True)
class NewSnapshot:
    """A snapshot that is to be published.

    Attributes:
        parent: The one before it.
        system: Who made it.
        selection: What was asked for.
        packs: The archives that are new.
        following: What it is made of.
        kept_until_ms: Until when it is not to be forgotten.
        is_compact: Whether the new archives stand for all earlier ones.
        stored: What the layers of the parent hold, None where it has none.
    """

    parent: StoredSnapshot | None
    system: System
    selection: dict[str, Any]
    packs: Sequence[PackEntry]
    following: NextState
    kept_until_ms: int | None = None
    is_compact: bool = False
    stored: SetState | None = None

    @property
    def number(self) -> int:
        """Its number."""
        return 1 if self.parent is None else self.parent.number + 1

    def publish(self, folder: SetFolder, report: Report) -> StoredSnapshot | None:
        """Write it under the next number; None where another writer has taken that.

        Args:
            folder: The set.
            report: What could not be packed, and is named in it.

        Raises:
            StoreError: The store refused or died.
        """
        data = document_bytes(self._document(folder, report))
        with contextlib.suppress(ArchiveExistsError):
            folder.put(snapshot_path(self.number), data)
        there = folder.snapshot(self.number)
        # It is ours also where the store took it and its answer was lost, so that a retry found it.
        return there if there.sha256 == sha256_of(data).hexdigest() else None

    def _document(self, folder: SetFolder, report: Report) -> dict[str, Any]:
        state, said = self.following.state, report.to_dict()
        before = None if self.parent is None else self.parent.document.info
        earlier = before.packs if before is not None and not self.is_compact else ()
        packs = [*earlier, *self.packs]
        failed = failed_runs(report.failures)
        counts = state.counts((f.kind, f.count) for f in report.failures)
        runs = counts.get(str(Kind.RUN), {}).get("written", 0)
        first_ms, last_ms = state.started()
        info: dict[str, Any] = {
            "number": self.number,
            "counts": counts,
            "num_total_runs": runs + failed["num_failed_runs"],
            "num_ok_runs": runs,
            **failed,
            "metric_rows": state.total("metric_rows"),
            "artifact_bytes": state.total("artifact_bytes"),
            "failures": entries(report.failures),
            "lossy": entries(report.losses),
            "not_packed": said["not_packed"],
            "content_root": state.content_root(),
            "packs": [pack.to_json() for pack in packs],
        }
        if self.parent is not None:
            parent = Parent(number=self.parent.number, sha256=self.parent.sha256)
            info["parent"] = parent.to_json()
        if gone := self._gone(folder):
            info["gone"] = write_table(folder, "lists", gone_table(gone)).to_json()
        info["layers"] = [layer.to_json() for layer in self._layers(folder)]
        if self.kept_until_ms is not None:
            info["kept_until_ms"] = self.kept_until_ms
        if first_ms is not None:
            info |= {"first_start_ms": first_ms, "last_start_ms": last_ms}
        return {
            "format": SET_FORMAT,
            "format_version": SET_VERSION,
            "system": self.system.to_json(),
            "info": info,
            "mlflow": {"selection": self.selection, **state.listing()},
        }

    def _layers(self, folder: SetFolder) -> tuple[LayerEntry, ...]:
        state = self.following.state
        if self.parent is None or self.stored is None:
            return first_layer(folder, state)
        return next_layers(folder, self.parent.document.info.layers, self.stored, state)

    def _gone(self, folder: SetFolder) -> set[str]:
        """Return all that archives of the set have and the state has not."""
        before = None if self.parent is None or self.is_compact else self.parent.document.info.gone
        gone = set(self.following.gone)
        if before is not None:
            gone |= set(read_table(folder, before, GONE).column("path").to_pylist())
        here = {row.member or path for path, row in self.following.state.rows.items()}
        return gone - here
