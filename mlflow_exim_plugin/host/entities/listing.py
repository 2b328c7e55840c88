"""How the objects of a kind are listed, page after page: one that is unreadable costs itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.host.api.reading import pages
from mlflow_exim_plugin.host.open.absent import method
from mlflow_exim_plugin.schema.objects import Entity, Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mlflow_exim_plugin.host.open.host import Host
    from mlflow_exim_plugin.schema.objects import Kind

__all__ = ["each", "every", "whole"]

_PAGE = 1000


def every(store: Any, name: str, *arguments: Any) -> Iterator[Any]:
    """Yield everything that a listing of an MLflow store gives.

    Raises:
        NotImplementedError: This MLflow's store does not have it.
    """
    find = method(store, name)
    return pages(lambda token: find(*arguments, max_results=_PAGE, page_token=token))


def each(
    kind: Kind, identities: Iterable[str], read: Callable[[str], Entity]
) -> Iterator[Entity | Failure]:
    """Read objects one by one."""
    for identity in identities:
        try:
            found = read(identity)
        except ServerError as error:
            yield Failure(kind, identity, error.message)
        else:
            yield found


def whole(
    kind: Kind, listed: Callable[[Host], Iterable[dict[str, Any]]]
) -> Callable[[Host], Iterator[Entity]]:
    """Make what reads a kind whose listing gives its documents as they are."""
    return lambda host: (Entity(kind, document) for document in listed(host))
