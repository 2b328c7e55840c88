"""Workspaces as a target takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.host.files.gate import place_problem
from mlflow_exim_plugin.schema.objects import Kind, Loss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mlflow_exim_plugin.schema.objects import Entity
    from mlflow_exim_plugin.schema.report import Report

__all__ = ["as_it_is_there", "document_for", "row_of", "say_lost"]

_ROOT = "default_artifact_root"
_ARCHIVAL = "trace_archival_config"
_COLUMN = "trace_archival_{}"


def document_for(workspace: Entity, report: Report) -> dict[str, Any]:
    """Return REST's ``Workspace`` without places that a server could take for its own disk.

    Args:
        workspace: As it comes.
        report: Names what is left out.
    """
    document = dict(workspace.document)
    archival = document.get(_ARCHIVAL)
    if isinstance(archival, dict):
        document[_ARCHIVAL] = archival = dict(archival)
    for field, fields, name in (
        (_ROOT, document, _ROOT),
        (_ARCHIVAL, archival or {}, "location"),
    ):
        place = str(fields.get(name) or "")
        if place and (problem := place_problem(place)):
            del fields[name]
            what = f"its {field} {place!r} is left out: {problem}"
            report.lost(Loss(Kind.WORKSPACE, workspace.id, what))
    return document


def row_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a workspace in a database."""
    row = {name: value for name, value in document.items() if name != _ARCHIVAL}
    archival = document.get(_ARCHIVAL) or {}
    return row | {_COLUMN.format(name): value for name, value in archival.items()}


def as_it_is_there(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> str:
    """Return what is said of a workspace that a target has already, by documents or rows."""
    differing = _differing(wanted, there)
    reason = "it is there already"
    return f"{reason} and keeps its own {', '.join(differing)}" if differing else reason


def say_lost(wanted: Mapping[str, Any], there: Mapping[str, Any], report: Report) -> None:
    """Name what a target was given of a workspace and has not got."""
    for name in _differing(wanted, there):
        report.lost(Loss(Kind.WORKSPACE, str(wanted["name"]), f"its {name} did not arrive"))


def _differing(wanted: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    names = {*wanted, *there}
    return sorted(n for n in names if (wanted.get(n) or "") != (there.get(n) or ""))
