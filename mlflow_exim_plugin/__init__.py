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
    from mlflow_exim_plugin.operations.lineage import Occurrence, copies, lineage
    from mlflow_exim_plugin.operations.verbs import (
        Verification,
        diff,
        open_archive,
        pack,
        unpack,
        verify,
    )
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.policy import OnConflict
    from mlflow_exim_plugin.sources.archive.archive import Archive
    from mlflow_exim_plugin.stages.rename import Rename
    from mlflow_exim_plugin.stages.select import Selection
    from mlflow_exim_plugin.transfer import transfer

__all__ = [
    "Archive",
    "Comparison",
    "Difference",
    "Occurrence",
    "OnConflict",
    "Rename",
    "Report",
    "Selection",
    "Verification",
    "__version__",
    "copies",
    "copy",
    "diff",
    "lineage",
    "open_archive",
    "pack",
    "transfer",
    "unpack",
    "verify",
]

_MODULES = {
    "Archive": "sources.archive.archive",
    "Comparison": "comparison.result",
    "Difference": "comparison.result",
    "OnConflict": "sinks.policy",
    "Rename": "stages.rename",
    "Report": "schema.report",
    "Selection": "stages.select",
    "Occurrence": "operations.lineage",
    "Verification": "operations.verbs",
    "copies": "operations.lineage",
    "copy": "operations.verbs",
    "diff": "operations.verbs",
    "lineage": "operations.lineage",
    "open_archive": "operations.verbs",
    "pack": "operations.verbs",
    "transfer": "transfer",
    "unpack": "operations.verbs",
    "verify": "operations.verbs",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``import mlflow`` loads this package."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
