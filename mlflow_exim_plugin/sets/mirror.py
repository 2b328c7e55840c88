"""What a copy found at its source, remembered on this machine for the next one."""

from __future__ import annotations

import contextlib
import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from mlflow_exim_plugin.errors import NOTICE
from mlflow_exim_plugin.schema.digests import sha256_of
from mlflow_exim_plugin.sets.merging import Doubt
from mlflow_exim_plugin.stages.marks import Marks
from mlflow_exim_plugin.storage.upload.under_way import state_folder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.stages.changes import Changes

__all__ = ["Mirror"]

_log = logging.getLogger(__name__)

_COLUMNS = pa.schema([("path", pa.string()), ("mark", pa.binary())])
_TARGET = b"experiments"


@dataclass(frozen=True)
class Mirror:
    """One source, target and way of copying.

    Attributes:
        file: Where it is remembered.
    """

    file: Path

    @classmethod
    def of(cls, *what: object) -> Mirror:
        """Return the mirror of what is copied, from where, to where and how."""
        name = sha256_of("\n".join(map(repr, what)).encode()).hexdigest()
        return cls(state_folder("mirrors") / f"{name}.parquet")

    def marks(self, experiments: Iterable[str]) -> Marks:
        """Return what the last copy found; nothing where the target is not what it was.

        Args:
            experiments: Ids of the experiments that the target has.
        """
        try:
            table = pq.read_table(self.file)
            known = json.loads((table.schema.metadata or {})[_TARGET])
            marks = zip(
                table.column("path").to_pylist(), table.column("mark").to_pylist(), strict=True
            )
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            _log.debug("no last copy is known: %s", error)
            _log.log(NOTICE, "No earlier copy is known on this machine: all is copied.")
            return Marks({})
        if not {*known} <= {*experiments}:
            _log.log(NOTICE, "The target lacks what it had after the last copy: all is copied.")
            return Marks({})
        return Marks(dict(marks))

    def remember(self, changes: Changes, report: Report, experiments: Iterable[str]) -> None:
        """Remember what a copy found, but for what failed.

        Args:
            changes: What it found.
            report: What failed.
            experiments: Ids of the experiments that the target has now.
        """
        doubt = Doubt(report.failures, set())
        if doubt.of_all:
            return  # the next one looks at all
        rows = [
            (path, seen.mark)
            for path, seen in changes.seen.items()
            if seen.id not in doubt.cut and not doubt.of(path, seen.kind)
        ]
        columns = [[path for path, _ in rows], [mark for _, mark in rows]]
        told = {_TARGET: json.dumps(sorted(experiments)).encode()}
        table = pa.table(columns, schema=_COLUMNS.with_metadata(told))
        new = self.file.with_suffix(".new")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, new, compression="zstd")
            new.replace(self.file)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink()
            _log.warning("this copy is not remembered for the next one: %s", error)
