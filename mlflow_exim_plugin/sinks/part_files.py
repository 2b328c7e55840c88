"""Files of an object's parts, by the part that they belong to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from mlflow_exim_plugin.errors import InvalidArchiveError
from mlflow_exim_plugin.host.files.gate import path_problem
from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.schema.objects import Artifact, Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_exim_plugin.schema.objects import Entity

__all__ = ["files_of_parts", "require_places_inside"]


def require_places_inside(entity: Entity) -> None:
    """Refuse an object that says of its own files that they are outside of what a server keeps.

    Raises:
        InvalidArchiveError: It does.
    """
    described = KINDS[entity.kind].files
    for part in entity.document[described.at] if described else ():
        root = described.root(part) if described else None
        if root and (problem := path_problem(urlsplit(root).path.lstrip("/"))):
            raise InvalidArchiveError(f"the place of its files {root!r} is refused: {problem}")


def files_of_parts(
    entity: Entity,
) -> Iterator[tuple[dict[str, Any], str, list[Artifact | Failure]]]:
    """Yield each part that has files of its own, where the source has them, and those that came."""
    described = KINDS[entity.kind].files
    if described is None:
        return
    came: dict[str, list[Artifact | Failure]] = {}
    for file in entity.artifacts:
        if isinstance(file, Failure):
            folder = file.id.removeprefix(f"{entity.id}/").partition("/")[0]
            came.setdefault(folder, []).append(file)
        else:
            folder, _, below = file.path.partition("/")
            came.setdefault(folder, []).append(replace(file, path=below))
    for part in entity.document[described.at]:
        if (root := described.root(part)) is not None:
            yield part, root, came.get(str(part[described.name]), [])
