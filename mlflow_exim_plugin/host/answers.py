"""What a server answers: asked again where it is no answer, and doubted where it is empty.

``{}`` is MLflow's own word for an empty list, and an empty body means the same to its client. It is
also what a cache, a login or a tired proxy between the two says.
"""

from __future__ import annotations

import functools
import inspect
import json
from typing import TYPE_CHECKING, Any, TypeVar

import requests
from google.protobuf.json_format import ParseError

from mlflow_exim_plugin.errors import ServerLostError
from mlflow_exim_plugin.host.errors import chain, is_connection_loss

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "NOBODY_REFUSED",
    "NO_ANSWER",
    "NO_TOKEN",
    "AskedStore",
    "UnbelievableError",
    "answered",
    "doubted",
    "is_no_answer",
    "object_of",
    "require_refusal",
]


class UnbelievableError(Exception):
    """An answer that has the form of one and cannot be true."""


NO_TOKEN = "ZXhpbQ=="  # noqa: S105 - a page token
"""No MLflow gives this page token, and all refuse it: what takes it does not look at questions."""

NOBODY_REFUSED = "it says that there is nothing, and the same to a question without sense"
_Answer = TypeVar("_Answer")
_READS = ("get_", "list_", "search_", "_load_")
_LISTS = ("list_", "search_")
_WITHOUT_SENSE = {
    "page_token": NO_TOKEN,
    "filter_string": NO_TOKEN,
    "experiment_id": NO_TOKEN,
    "max_results": 2**31 - 1,
}
"""Parameters with what a server refuses to read in them.

The first ones had no pages of runs or versions, and took a filter that says nothing for none.
"""
_QUESTIONS = 3
NO_ANSWER = (
    json.JSONDecodeError,
    ParseError,
    RecursionError,
    UnicodeDecodeError,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
    UnbelievableError,
)
"""What is raised where an answer is cut, no JSON, or JSON of another shape."""
_NO_JSON = "not in a valid JSON format"
"""How MLflow's client words an answer of status 200 that is no JSON object."""


class AskedStore:
    """A store of a server, whose reading calls do not believe the first answer.

    Args:
        store: MLflow's own.
    """

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not name.startswith(_READS) or name == "get_host_creds":
            return found
        return _asking(found, is_list=name.startswith(_LISTS))


def _asking(call: Callable[..., Any], *, is_list: bool) -> Callable[..., Any]:
    @functools.wraps(call)
    def ask(*arguments: Any, **named: Any) -> Any:
        found = answered(lambda: call(*arguments, **named))
        if not is_list or not isinstance(found, list) or found:
            return found
        known = inspect.signature(call)
        nonsense = {n: value for n, value in _WITHOUT_SENSE.items() if n in known.parameters}
        refused = known.bind(*arguments, **named).arguments | nonsense
        return doubted(
            lambda: call(*arguments, **named), (lambda: call(**refused)) if nonsense else None
        )

    return ask


def answered(ask: Callable[[], _Answer]) -> _Answer:
    """Ask again where what comes is no answer: no JSON, half of it, or of another shape."""
    for _ in range(_QUESTIONS - 1):
        try:
            return ask()
        except Exception as error:  # MLflow's client raises what its parsers raise: any type
            if not is_no_answer(error):
                raise
    return ask()


def doubted(again: Callable[[], _Answer], refused: Callable[[], Any] | None) -> _Answer:
    """Return the second answer to a question whose first one was empty.

    Where that is empty too, the same is asked in a way that every MLflow refuses.

    Args:
        again: Asks the same once more.
        refused: Asks what is to be refused, None where there is no such question.

    Raises:
        UnbelievableError: Nobody refused.
    """
    found = answered(again)
    if not found and refused is not None:
        require_refusal(refused)
    return found


def require_refusal(refused: Callable[[], Any]) -> None:
    """Ask what every MLflow refuses.

    Raises:
        UnbelievableError: Nobody refused.
    """
    try:
        refused()
    except ServerLostError:
        raise
    except Exception as error:  # the server's own refusal comes in many types
        if is_no_answer(error) or is_connection_loss(error):
            raise
        return
    raise UnbelievableError(NOBODY_REFUSED)


def object_of(
    body: bytes, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> dict[str, Any]:
    """Return the JSON object that a body is, a bare NaN allowed.

    Args:
        body: The whole of it.
        object_hook: Called for each JSON object, innermost first; gives what stands for it.

    Raises:
        ValueError: It is no JSON.
        ParseError: It is something else than an object.
        RecursionError: It is nested too deep.
    """
    found = json.loads(body, object_hook=object_hook)
    if not isinstance(found, dict):
        raise ParseError("no JSON object")
    return found


def is_no_answer(error: BaseException) -> bool:
    """Whether what came is no answer of an MLflow server at all."""
    return any(isinstance(link, NO_ANSWER) or _NO_JSON in str(link) for link in chain(error))
