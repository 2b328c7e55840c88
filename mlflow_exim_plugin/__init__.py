"""Move and keep MLflow data: pack any part of a server into one open archive and put it back.

::

    from mlflow_exim_plugin import open_archive, pack, unpack, verify

    report = pack("backup.tar.zst", tracking_uri="sqlite:///mlflow.db")
    with open_archive("backup.tar.zst") as archive:
        table = archive.metric_history(run_id, "loss")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.version import __version__

if TYPE_CHECKING:
    from mlflow_exim_plugin.comparison.result import Comparison, Difference
    from mlflow_exim_plugin.operations.archive import open_archive
    from mlflow_exim_plugin.operations.copy import copy
    from mlflow_exim_plugin.operations.diff import diff
    from mlflow_exim_plugin.operations.lineage import Occurrence, copies, lineage
    from mlflow_exim_plugin.operations.pack import pack
    from mlflow_exim_plugin.operations.unpack import unpack
    from mlflow_exim_plugin.operations.verify import Verification, verify
    from mlflow_exim_plugin.options import (
        Comparing,
        OnConflict,
        Opening,
        Packing,
        Reading,
        Rename,
        Selection,
        Work,
        Writing,
    )
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sources.archive.archive import Archive

__all__ = [
    "Archive",
    "Comparing",
    "Comparison",
    "Difference",
    "Occurrence",
    "OnConflict",
    "Opening",
    "Packing",
    "Reading",
    "Rename",
    "Report",
    "Selection",
    "Verification",
    "Work",
    "Writing",
    "__version__",
    "copies",
    "copy",
    "diff",
    "lineage",
    "open_archive",
    "pack",
    "unpack",
    "verify",
]

_MODULES = {
    "Comparing": "options",
    "Opening": "options",
    "Packing": "options",
    "Reading": "options",
    "Work": "options",
    "Writing": "options",
    "Archive": "sources.archive.archive",
    "Comparison": "comparison.result",
    "Difference": "comparison.result",
    "OnConflict": "options",
    "Rename": "options",
    "Report": "schema.report",
    "Selection": "options",
    "Occurrence": "operations.lineage",
    "Verification": "operations.verify",
    "copies": "operations.lineage",
    "copy": "operations.copy",
    "diff": "operations.diff",
    "lineage": "operations.lineage",
    "open_archive": "operations.archive",
    "pack": "operations.pack",
    "unpack": "operations.unpack",
    "verify": "operations.verify",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``import mlflow`` loads this package."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
