"""Objects that are one document as rows of MLflow's tables, as ``kinds`` describes them."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.schema.objects import Entity, Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.host.sql.writer import Rows

__all__ = ["association", "entity_rows"]


def entity_rows(entity: Entity, experiment_id: int | None, workspace: str) -> Rows:
    """Return the rows of an object, its own first.

    Args:
        entity: The object; what it refers to has the target's ids.
        experiment_id: Its experiment at the target, None where it belongs to none.
        workspace: Its workspace.

    Raises:
        KeyError: The document lacks a field that MLflow's always have.
        TypeError: A field of it has another type.
        ValueError: A field of it has no value that MLflow knows.
    """
    document = entity.document | {"workspace": workspace}
    if experiment_id is not None:
        document["experiment_id"] = experiment_id
    described = KINDS[entity.kind].rows
    if described is None:
        raise ValueError(f"{entity.kind} has no tables")
    rows = [*described.of(document)]
    finish = _FINISHED_BY_MLFLOW.get(entity.kind)
    return finish(document, rows) if finish else rows


def association(source: tuple[str, str], destination: tuple[str, str]) -> Rows:
    """Return the row of a link between two objects, each given as type and id."""
    row = {
        "association_id": f"a-{uuid.uuid4().hex}",
        "source_type": source[0],
        "source_id": source[1],
        "destination_type": destination[0],
        "destination_id": destination[1],
    }
    return [("entity_associations", row)]


def _dataset(document: dict[str, Any], rows: Rows) -> Rows:
    dataset = ("evaluation_dataset", document["dataset_id"])
    for experiment_id in document.get("experiment_ids", ()):
        rows += association(dataset, ("experiment", experiment_id))
    return rows


def _mcp_server(_: dict[str, Any], rows: Rows) -> Rows:
    from mlflow.utils.semver_utils import encode_prerelease_sort_key, parse_semver

    for table, row in rows:
        if table == "mcp_server_versions":
            number = parse_semver(row["version"])
            row |= {
                "version_major": number.major,
                "version_minor": number.minor,
                "version_patch": number.patch,
                "version_prerelease_sort_key": encode_prerelease_sort_key(number),
            }
    return rows


def _issue(document: dict[str, Any], rows: Rows) -> Rows:
    try:
        from mlflow.utils.issue_utils import issue_category_hash
    except ImportError:  # before MLflow 3.18
        return rows
    categories = {issue_category_hash(c): c for c in document.get("categories") or ()}
    for digest, category in categories.items():
        of = {"issue_id": document["issue_id"], "category_hash": digest, "category": category}
        rows.append(("issue_categories", of))
    return rows


_FINISHED_BY_MLFLOW: dict[Kind, Callable[[dict[str, Any], Rows], Rows]] = {
    Kind.EVALUATION_DATASET: _dataset,
    Kind.MCP_SERVER: _mcp_server,
    Kind.ISSUE: _issue,
}
