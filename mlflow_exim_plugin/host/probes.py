"""What a deployment holds beside what is packed: seen, counted and named, never silently left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError, ServerLostError
from mlflow_exim_plugin.host.connection import Host, translated
from mlflow_exim_plugin.schema.objects import Unpacked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["NEVER_PACKED", "unpacked_kinds"]

_NEXT = "this version does not pack them yet"
_PAGE = 100

NEVER_PACKED = Unpacked(
    "jobs, usage rollups, users and their permissions",
    0,
    at_least=True,
    reason="they belong to the server that runs them",
)
"""What MLflow keeps beside its entities and no archive holds; it cannot be counted."""


def unpacked_kinds(host: Host, experiment_ids: list[str]) -> Iterator[Unpacked]:
    """Yield each kind that the deployment holds and the archive will not.

    Only calls that read are used; ``list_label_schemas`` is a read that writes and is left alone.

    Args:
        host: The deployment.
        experiment_ids: Experiments that were packed.
    """
    tracking = host.tracking
    calls: list[tuple[str, str, Callable[[], Any]]] = []
    if experiment_ids:
        calls = [
            ("trace", _NEXT, lambda: tracking.search_traces(experiment_ids, max_results=_PAGE)),
        ]
    for kind, reason, call in calls:
        seen, more = _ask(kind, call)
        if seen:
            yield Unpacked(kind, seen, at_least=more, reason=reason)
    yield NEVER_PACKED


def _ask(kind: str, call: Callable[[], Any]) -> tuple[int, bool]:
    """Return how many a listing gives and whether there are more.

    A deployment that does not know the kind has none of it.
    """
    try:
        with translated(f"looking for {kind}s"):
            found = call()
    except ServerLostError:
        raise
    except ServerError:
        return 0, False
    # Traces come as a tuple of a list and a token, the others as a list with a token.
    items, token = found if isinstance(found, tuple) else (found, getattr(found, "token", None))
    return len(items), bool(token)
