"""Move and keep MLflow data: pack any part of a server into one open archive and put it back.

::

    from mlflow_exim_plugin import open_archive, pack, unpack, verify

    report = pack("backup.tar.zst", tracking_uri="sqlite:///mlflow.db")
    with open_archive("backup.tar.zst") as archive:
        table = archive.metric_history(run_id, "loss")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_exim_plugin.comparison.result import Comparison, Difference
    from mlflow_exim_plugin.operations import Verification, diff, open_archive, pack, unpack, verify
    from mlflow_exim_plugin.schema.report import Report
    from mlflow_exim_plugin.sinks.client_options import OnConflict
    from mlflow_exim_plugin.sources.archive import Archive
    from mlflow_exim_plugin.stages.rename import Rename
    from mlflow_exim_plugin.stages.select import Selection
    from mlflow_exim_plugin.transfer import transfer
    from mlflow_exim_plugin.whereabouts import Sighting, copies, lineage

__version__ = "0.2.0.dev0"

__all__ = [
    "Archive",
    "Comparison",
    "Difference",
    "OnConflict",
    "Rename",
    "Report",
    "Selection",
    "Sighting",
    "Verification",
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

_HOMES = {
    "Archive": "sources.archive",
    "Comparison": "comparison.result",
    "Difference": "comparison.result",
    "OnConflict": "sinks.client_options",
    "Rename": "stages.rename",
    "Report": "schema.report",
    "Selection": "stages.select",
    "Sighting": "whereabouts",
    "Verification": "operations",
    "copies": "whereabouts",
    "copy": "operations",
    "diff": "operations",
    "lineage": "whereabouts",
    "open_archive": "operations",
    "pack": "operations",
    "transfer": "transfer",
    "unpack": "operations",
    "verify": "operations",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``import mlflow`` loads this package."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
