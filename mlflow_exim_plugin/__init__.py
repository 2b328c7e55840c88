"""Move and keep MLflow data: pack any part of a server into one open archive and put it back.

::

    from mlflow_exim_plugin import open_archive, pack, unpack, verify

    report = pack("backup.tar.zst", tracking_uri="sqlite:///mlflow.db")
    with open_archive("backup.tar.zst") as archive:
        table = archive.metric_history(run_id, "loss")
"""

from __future__ import annotations

from typing import Any

_MODULES = {
    "__version__": "version",
    "Archive": "sources.archive.archive",
    "Checking": "options",
    "Clearing": "options",
    "Comparing": "options",
    "Comparison": "comparison.result",
    "Difference": "comparison.result",
    "Drawing": "options",
    "ExtractedFile": "schema.report",
    "Extracting": "options",
    "Extraction": "schema.report",
    "Forgetting": "options",
    "Forgotten": "operations.keeping.forget",
    "FindResult": "operations.look.find",
    "FoundObject": "operations.look.find",
    "Indexed": "operations.keeping.index",
    "Indexing": "options",
    "Occurrence": "operations.lineage",
    "Judged": "operations.keeping.forget",
    "KeyPair": "operations.proving.sign",
    "Leftover": "operations.leftovers",
    "Leftovers": "operations.leftovers",
    "Moving": "options",
    "OnConflict": "options",
    "Opening": "options",
    "Packing": "options",
    "Picture": "pages.plot",
    "Pruned": "operations.keeping.prune",
    "Pruning": "options",
    "TaskPlan": "work.plan",
    "Planning": "options",
    "Publishing": "options",
    "Reading": "options",
    "Rename": "options",
    "Repacked": "operations.repack",
    "Repacking": "options",
    "Report": "schema.report",
    "ReportPage": "pages.report",
    "Retaining": "options",
    "Retention": "operations.retention.retain",
    "Scaling": "options",
    "Scan": "operations.scan",
    "ScanFinding": "operations.scan",
    "Scanning": "options",
    "Seeking": "options",
    "Selection": "options",
    "Signature": "container.signing.check",
    "Signed": "operations.proving.sign",
    "Signing": "options",
    "Unneeded": "operations.keeping.prune",
    "Verification": "operations.proving.checks",
    "Work": "options",
    "Writing": "options",
    "convert": "operations.convert",
    "copies": "operations.lineage",
    "copy": "operations.copy",
    "diff": "operations.diff",
    "forget": "operations.keeping.forget",
    "hold": "operations.keeping.forget",
    "leftovers": "operations.leftovers",
    "extract": "operations.extract",
    "find": "operations.look.find",
    "index": "operations.keeping.index",
    "keygen": "operations.proving.sign",
    "lineage": "operations.lineage",
    "move": "operations.retention.move",
    "open_archive": "sources.archive.archive",
    "pack": "operations.pack",
    "plan": "operations.keeping.plan",
    "plot": "pages.plot",
    "prune": "operations.keeping.prune",
    "release": "operations.keeping.forget",
    "repack": "operations.repack",
    "report": "pages.report",
    "restore": "operations.retention.restore",
    "retain": "operations.retention.retain",
    "sign": "operations.proving.sign",
    "scan": "operations.scan",
    "unpack": "operations.unpack",
    "verify": "operations.proving.verify",
}
"""Where each public name is; their types stand in ``__init__.pyi``."""

__all__ = [*_MODULES]  # noqa: PLE0604 - they are text


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``import mlflow`` loads this package."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
