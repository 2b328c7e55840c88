"""References of an object to others, as its kind describes them: followed, or named as lost."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.kinds.description import Version
from mlflow_exim_plugin.schema.objects import Loss

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mlflow_exim_plugin.schema.objects import Entity, Kind

    Find = Callable[[Kind, str], str | None]
    """Gives the id at the target of an object of the source, that of a version for id/number."""

__all__ = ["follow"]


def follow(
    entity: Entity, find: Find, refused: Mapping[tuple[Kind, str], tuple[str, str]] | None = None
) -> tuple[dict[str, Any], list[Loss]]:
    """Return a document that refers to what the target has, and what it loses for that.

    Args:
        entity: The object.
        find: Finds others.
        refused: Name of objects that the target does not have, and why it does not.

    Raises:
        ServerError: The target lacks what the object cannot be without.
    """
    described, document = KINDS[entity.kind], dict(entity.document)
    losses: list[Loss] = []
    for path, sentence in (*described.needs.items(), *described.drops.items()):
        field, value = described.only.get(path, ("", None))
        if field and document.get(field) != value:
            continue
        kind: Any = described.refers[path]
        gone: list[Any] = []
        find_one = (
            partial(_version, kind, find) if isinstance(kind, Version) else partial(find, kind)
        )
        _follow(document, path, find_one, gone)
        for it in gone:
            if path not in described.needs:
                losses.append(Loss(entity.kind, entity.id, sentence.format(it=it)))
                continue
            known = (refused or {}).get((kind, it)) if isinstance(it, str) else None
            named, why = known or (it, "it is not at the target")
            words = {**entity.document, "it": it, "named": named, "why": why}
            raise ServerError(sentence.format_map(words))
    return document, losses


def _follow(
    document: dict[str, Any], path: str, find: Callable[[Any], Any], gone: list[Any]
) -> None:
    """Put what is found at a path; an element of a list goes with what it names."""

    def found(value: Any) -> Any:
        new = find(value)
        if new is None:
            gone.append(value)
        return new

    field, listed, inner = path.partition("[]")
    inner = inner.removeprefix(".")
    if not document.get(field):
        return
    if not listed:
        document[field] = found(document[field])
    elif not inner:
        new = [found(element) for element in document[field]]
        document[field] = list(dict.fromkeys(one for one in new if one is not None))
    else:
        pairs = [(element, found(element[inner])) for element in document[field]]
        document[field] = [one | {inner: new} for one, new in pairs if new is not None]


def _version(of: Version, find: Find, value: dict[str, Any]) -> dict[str, Any] | None:
    owner, number = value[of.id_field], value[of.number_field]
    new_owner, new_number = find(of.kind, owner), find(of.kind, f"{owner}/{number}")
    if new_owner is None or new_number is None:
        return None
    return value | {of.id_field: new_owner, of.number_field: type(number)(new_number)}
