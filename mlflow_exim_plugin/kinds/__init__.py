"""The kinds, each described once; the order is that in which objects come in the stream."""

from __future__ import annotations

from mlflow_exim_plugin.kinds import datasets, gateway, judges, models, registries, runs
from mlflow_exim_plugin.kinds.description import Description
from mlflow_exim_plugin.kinds.kind import Kind

__all__ = [
    "ENTITY_KINDS",
    "GIVEN_BY_CALLERS",
    "KINDS",
    "VERSION_KINDS",
    "Description",
    "Kind",
    "rest_fields",
]

_DESCRIBED = {
    described.kind: described
    for family in (datasets, gateway, judges, models, registries, runs)
    for described in vars(family).values()
    if isinstance(described, Description)
}
KINDS: dict[Kind, Description] = {kind: _DESCRIBED[kind] for kind in Kind if kind in _DESCRIBED}
"""One for every kind that stands in the stream by itself."""

ENTITY_KINDS = {kind: described for kind, described in KINDS.items() if described.folder}
"""The kinds whose objects are ``Entity``: one document and no more."""

VERSION_KINDS = {
    kind: described.versions[1] for kind, described in KINDS.items() if described.versions
}
"""Kind of the versions of each kind that has numbered ones."""


def rest_fields(rule: str) -> tuple[str, ...]:
    """Return the fields, with their kinds, that REST cannot keep for the reason of a rule."""
    return tuple(
        f"{kind}.{path}" for kind, of in KINDS.items() for path in of.rest.get(rule, "").split()
    )


GIVEN_BY_CALLERS = {path.rpartition(".")[2] for path in rest_fields("empty is absent")}
"""Fields whose empty text a source tells: it stands for what a caller of a server did not give."""
