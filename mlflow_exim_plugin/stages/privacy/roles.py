"""What a text in a document is: somebody's own, or what objects are told apart and linked by."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

from mlflow_exim_plugin.kinds import KINDS
from mlflow_exim_plugin.kinds.description import ArtifactUri, Json
from mlflow_exim_plugin.schema.provenance import is_provenance

if TYPE_CHECKING:
    from mlflow_exim_plugin.kinds import Kind

__all__ = ["TAGS", "role"]

TAGS = ("tags", "data.tags", "info.tags")
"""Where documents have tags."""
# What MLflow gives itself or chooses among a few, wherever it is not somebody's own document.
_GIVEN = re.compile(
    r"(?:.*[.\]])?(?!(?:user|source|client_request)_id$)(?:\w*_)?(?:"
    r"ids?|uuid|digest|status|status_code|state|stage|lifecycle_stage|type|version|strategy|action"
    r"|entity|severity|unit|scope|overrides|workspace|mimeType|key|value|provider|linked_runs"
    r"|target_value|budget_\w+|transport_type)(?:\[\])?"
)
_DOCUMENTS = re.compile(
    r"(?:.*[.\]])?(?:attributes|inputs|outputs|expectations|feedback|expectation|metadata"
    r"|source_data|server_json|connect_options|tools)(?:[.\[].*)?"
)


@functools.lru_cache(maxsize=1 << 16)
def role(kind: Kind, place: str) -> str:
    """Return what a text at a place of a document is.

    Args:
        kind: Kind of the object.
        place: Path of the field, as ``kinds`` writes it.

    Returns:
        ``id``: it stays. ``name``: others refer to it by it. ``root``: what others lie below.
        ``text``: anything else. ``json``: the same, and numbers there are somebody's too.
    """
    of = KINDS[kind]
    if any(_is_below(place, path) for path in of.names.split()):
        return "name"
    refers = of.refers.get(place)
    if isinstance(refers, ArtifactUri):
        return "root"
    if refers is not None and not isinstance(refers, Json):
        return "id"
    owner, _, key = place.partition("tags.")
    if key and owner + "tags" in TAGS and is_provenance(key):
        return "id"
    if any(_is_below(place, path) for path in of.secrets.split()):
        if re.search(r"(?:events|links)\[\]\.(?:time_ns|span_id|trace_id)$", place):
            return "id"
        return "json" if _DOCUMENTS.fullmatch(place) else "text"
    return "id" if _GIVEN.fullmatch(place) else "text"


def _is_below(place: str, path: str) -> bool:
    return place == path or place.startswith((f"{path}.", f"{path}["))
