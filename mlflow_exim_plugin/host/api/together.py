"""Questions about many objects: one call for many where there is one, else doubted together."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from mlflow_exim_plugin.errors import ServerError
from mlflow_exim_plugin.options import within_ids

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Protocol

    class Mapped(Protocol):
        """``map``, or that of a pool of threads."""

        def __call__(
            self, ask: Callable[[str], _Found], about: Iterable[str], /
        ) -> Iterable[_Found]: ...


__all__ = ["AT_ONCE", "asked_of_each", "each_alone", "listed_of_each"]

AT_ONCE = 64
"""Experiments that one question is about: the first servers with traces have it in the URL."""

_Found = TypeVar("_Found")
_Object = TypeVar("_Object")


def listed_of_each(
    experiment_ids: Sequence[str],
    list_some: Callable[[list[str]], dict[str, _Found]],
    at_once: int = AT_ONCE,
) -> Iterator[tuple[str, _Found | ServerError]]:
    """List what experiments have, many in one call; where it fails each is asked about alone.

    Args:
        experiment_ids: The experiments.
        list_some: Lists what some of them have, by experiment; a ``ServerError`` is of them all.
        at_once: How many one call is about.

    Yields:
        Each experiment, and what it has or why nobody knows.
    """
    for start in range(0, len(experiment_ids), at_once):
        some = list(experiment_ids[start : start + at_once])
        found: dict[str, _Found] | None = None
        why: ServerError | None = None
        try:
            found = list_some(some)
        except ServerError as error:
            why = error
        if found is not None:
            yield from ((experiment_id, found[experiment_id]) for experiment_id in some)
        elif why is not None and len(some) == 1:
            yield some[0], why
        else:  # out of reach of that error, which would stand behind each later one
            yield from listed_of_each(some, list_some, 1)


def each_alone(
    experiment_ids: Sequence[str],
    list_one: Callable[[str], Mapping[str, _Object]],
    ids: tuple[str, str],
) -> Iterator[tuple[str, dict[str, _Object] | ServerError]]:
    """List what experiments have within a range of ids, each in a call of its own."""
    return listed_of_each(
        experiment_ids, lambda some: {one: within_ids(list_one(one), ids) for one in some}, 1
    )


def asked_of_each(
    about: Sequence[str],
    ask: Callable[[str], _Found | None],
    require_refusal: Callable[[], None],
    mapped: Mapped = map,
) -> Iterator[tuple[str, _Found | ServerError | None]]:
    """Ask the same about many, and again about those of which there is nothing.

    What lies for a while has lied to a question that is to be refused too, which comes between.

    Args:
        about: What is asked about.
        ask: Asks about one and does not fail; None is nothing.
        require_refusal: Asks what is to be refused; a ``ServerError`` says that nobody did.
        mapped: Asks about many.

    Yields:
        Each, and what there is of it or why it is not believed that there is nothing.
    """
    found: dict[str, _Found | ServerError | None] = {}
    found |= zip(about, mapped(ask, about), strict=True)
    if empty := [one for one, answer in found.items() if answer is None]:
        try:
            require_refusal()
        except ServerError as error:
            found |= dict.fromkeys(empty, error)
        else:
            found |= zip(empty, mapped(ask, empty), strict=True)
    yield from found.items()
