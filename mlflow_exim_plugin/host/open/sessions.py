"""The HTTP sessions of MLflow's client, where what sends their requests can be put between."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

import requests

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["BUSY", "not_found", "sent_through"]

BUSY = frozenset({408, 429, 502, 503, 504})
"""Statuses after which a call of ours is tried again."""


@contextlib.contextmanager
def sent_through(address: str, between: Callable[[Any], Any]) -> Iterator[None]:
    """Send MLflow's calls to one server in another way; those to others stay as they are.

    Args:
        address: URL that all of them begin with.
        between: Gives the adapter that stands for a session's usual one.
    """
    with contextlib.ExitStack() as mounted:
        for session in _sessions():
            usual, before = session.get_adapter(address), session.adapters.get(address)
            adapter = between(usual)
            session.mount(address, adapter)
            mounted.callback(adapter.close)
            if before is None:
                mounted.callback(session.adapters.pop, address, None)
            else:
                mounted.callback(session.mount, address, before)
        yield


def _sessions() -> Iterator[requests.Session]:
    """Yield the session of each way to try again.

    Source: ``mlflow.utils.rest_utils.http_request``, which keeps one for each.
    """
    from mlflow.environment_variables import (
        MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR,
        MLFLOW_HTTP_REQUEST_BACKOFF_JITTER,
        MLFLOW_HTTP_REQUEST_MAX_RETRIES,
        MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER,
    )
    from mlflow.utils.request_utils import (
        _TRANSIENT_FAILURE_RESPONSE_CODES,
        _get_request_session,
    )

    for codes in (frozenset(_TRANSIENT_FAILURE_RESPONSE_CODES), BUSY, frozenset[int]()):
        yield _get_request_session(
            MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(),
            MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR.get(),
            MLFLOW_HTTP_REQUEST_BACKOFF_JITTER.get(),
            codes,
            True,  # noqa: FBT003 - MLflow's own way to call it
            MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER.get(),
        )


def not_found() -> requests.Response:
    """Return what a server says of a path that it does not know; the first ones send a page."""
    response = requests.Response()
    response.status_code, response.raw = 404, io.BytesIO()
    return response
