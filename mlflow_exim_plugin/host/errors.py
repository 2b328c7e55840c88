"""What MLflow, its HTTP client and its databases raise, as one error of ours with one line."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import requests

from mlflow_exim_plugin.errors import EximError, ServerError, ServerLostError
from mlflow_exim_plugin.redaction import redact_text

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["chain", "is_connection_loss", "raise_for_status", "translated"]

_FILE_STORE_SWITCH = "MLFLOW_ALLOW_FILE_STORE"
_MESSAGE_LIMIT = 400


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Turn whatever MLflow raises inside into one ``ServerError`` with one line.

    Args:
        doing: What was being done, such as ``reading run 4f2``; starts the message.

    Raises:
        ServerLostError: No connection could be made, or it timed out.
        ServerError: Anything else that MLflow, its HTTP client or its database raised.
    """
    try:
        yield
    except EximError:
        raise
    except Exception as error:  # MLflow's stores raise what their back ends raise: any type
        if is_connection_loss(error):
            raise ServerLostError(
                f"{doing}: {_lost_server(error)}",
                "check that the server runs and that its address is right",
            ) from error
        raise ServerError(f"{doing}: {_one_line(error)}", _hint(error)) from error


def raise_for_status(response: requests.Response) -> None:
    """Refuse an answer that is none.

    Raises:
        ServerError: The status says so; the message has the beginning of the answer.
    """
    if not response.ok:
        raise ServerError(
            f"the server answered {response.status_code}: {_shorten(response.text)}",
            _status_hint(response.status_code),
        ) from requests.HTTPError(response=response)


def _one_line(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return _shorten(text.partition("(Background on this error")[0])  # SQLAlchemy's footnote


def _shorten(text: str) -> str:
    line = redact_text(re.sub(r"<[^>]+>", " ", text))
    return line if len(line) <= _MESSAGE_LIMIT else line[: _MESSAGE_LIMIT - 1] + "…"


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those behind it."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def is_connection_loss(error: BaseException) -> bool:
    """Whether no connection could be made, or one broke."""
    return any(
        (
            isinstance(link, requests.exceptions.ConnectionError | requests.exceptions.Timeout)
            and not isinstance(link, requests.exceptions.RetryError)
        )
        or getattr(link, "connection_invalidated", False)  # SQLAlchemy's DBAPIError
        or type(link).__name__ == "InFailedSqlTransaction"  # nothing more comes out of this one
        for link in chain(error)
    )


def _lost_server(error: BaseException) -> str:
    """Say which server does not answer and why, without the layers of its HTTP client."""
    links = list(chain(error))
    requested = [getattr(getattr(link, "request", None), "url", None) for link in links]
    url = urlsplit(next((u for u in requested if u), ""))
    server = f"{url.scheme}://{url.netloc.rpartition('@')[2]}" if url.netloc else "the server"
    reasons = [link.strerror for link in links if isinstance(link, OSError) and link.strerror]
    timed_out = any(isinstance(link, requests.exceptions.Timeout) for link in links)
    reason = reasons[-1] if reasons else "it timed out" if timed_out else _one_line(error)
    return f"{server} does not answer: {reason}"


def _hint(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"pip install {error.name}"
    if _FILE_STORE_SWITCH in str(error):
        return f"use a database such as sqlite:///mlflow.db, or set {_FILE_STORE_SWITCH}=true"
    status = getattr(error, "get_http_status_code", None)
    return _status_hint(status()) if callable(status) else ""


def _status_hint(status: int) -> str:
    if status in {requests.codes.unauthorized, requests.codes.forbidden}:
        return "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    return ""
