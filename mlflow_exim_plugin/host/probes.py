"""What a deployment holds beside what is packed: seen, counted and named, never silently left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError, ServerLostError
from mlflow_exim_plugin.host.connection import Host, translated
from mlflow_exim_plugin.schema.objects import Unpacked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["unpacked_kinds"]

_NEXT = "this version does not pack them yet"
_SECRET = "they may carry secrets"  # noqa: S105 - a reason, not a password
_PAGE = 100


def unpacked_kinds(host: Host, experiment_ids: list[str], prompts: int) -> Iterator[Unpacked]:
    """Yield each kind that the deployment holds and the archive will not.

    Only calls that read are used; ``list_label_schemas`` is a read that writes and is left alone.

    Args:
        host: The deployment.
        experiment_ids: Experiments that were packed.
        prompts: Prompts seen while listing the registered models.
    """
    if prompts:
        yield Unpacked("prompt", prompts, at_least=False, reason=_NEXT)
    tracking, registry = host.tracking, host.registry
    calls: list[tuple[str, str, Callable[[], Any]]] = []
    if experiment_ids:
        calls = [
            (
                "logged_model",
                _NEXT,
                lambda: tracking.search_logged_models(experiment_ids, max_results=_PAGE),
            ),
            ("trace", _NEXT, lambda: tracking.search_traces(experiment_ids, max_results=_PAGE)),
            (
                "scorer",
                _NEXT,
                lambda: [s for e in experiment_ids for s in tracking.list_scorers(e)],
            ),
        ]
    calls += [
        ("evaluation_dataset", _NEXT, lambda: tracking.search_datasets(max_results=_PAGE)),
        ("webhook", _SECRET, lambda: registry.list_webhooks(max_results=_PAGE)),
    ]
    for kind, reason, call in calls:
        seen, more = _ask(kind, call)
        if seen:
            yield Unpacked(kind, seen, at_least=more, reason=reason)


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
