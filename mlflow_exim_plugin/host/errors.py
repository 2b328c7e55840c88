"""What MLflow, its HTTP client and its databases raise, as one error of ours with one line."""

from __future__ import annotations

import contextlib
import re
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import requests

from mlflow_exim_plugin.errors import EximError, ServerError, ServerLostError
from mlflow_exim_plugin.redaction import redact_text

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["chain", "is_connection_loss", "raise_for_status", "translated", "why_lost"]

_FILE_STORE_SWITCH = "MLFLOW_ALLOW_FILE_STORE"
_MESSAGE_LIMIT = 400
_TLS = re.compile("WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE")
"""What OpenSSL makes of an answer in plain HTTP."""
_HINTS = {
    r"failed with error code 404 != 200": "is it an MLflow server? If one answers below a path, "
    "write that too: http://HOST/PATH",
    r"plain HTTP request was sent to HTTPS": "write https:// in place of http://",
    r'database "[^"]*" does not exist|Unknown database': "make the database, or check its name at "
    "the end of the URI",
    r"(?i)password|Access denied": "check user and password in the URI",
    r"Connection refused|Can't connect to": "check that the database runs and that its address is "
    "right",
    r"could not translate host name|[Nn]ame or service not known": "check the name of the host in "
    "the URI",
    r"file is not a database": "check that the file is the store's: SQLite does not know it",
}
"""What helps by what is said, beginning with what says most."""


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
            raise ServerLostError(f"{doing}: {_lost_server(error)}", _lost_hint(error)) from error
        raise ServerError(f"{doing}: {_one_line(error)}", _hint(error)) from error


def raise_for_status(response: requests.Response) -> None:
    """Refuse an answer that is none.

    Raises:
        ServerError: The status says so; the message has the beginning of the answer.
    """
    if not response.ok:
        raise ServerError(
            f"the server answered {response.status_code}: {_shorten(response.text)}",
            _said_hint(response.text) or _status_hint(response.status_code),
        ) from requests.HTTPError(response=response)


def _one_line(error: BaseException) -> str:
    if _FILE_STORE_SWITCH in str(error):
        return "this MLflow does not write to folders of files"
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
    if any(_TLS.search(str(link)) for link in links):
        return f"{server} does not speak TLS"
    return f"{server} does not answer: {why_lost(error)}"


def why_lost(error: BaseException) -> str:
    """Return why a server does not answer, in a few words."""
    links = list(chain(error))
    reasons = [link.strerror for link in links if isinstance(link, OSError) and link.strerror]
    timed_out = any(isinstance(link, requests.exceptions.Timeout | TimeoutError) for link in links)
    return reasons[-1] if reasons else "it timed out" if timed_out else _one_line(error)


def _lost_hint(error: BaseException) -> str:
    links = list(chain(error))
    if any(_TLS.search(str(link)) for link in links):
        return "write http:// in place of https://"
    if any(isinstance(link, ssl.SSLCertVerificationError) for link in links):
        return "give MLflow the certificate of who signed it as MLFLOW_TRACKING_SERVER_CERT_PATH"
    return "check that the server runs and that its address is right"


def _hint(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"pip install {error.name}"
    if _FILE_STORE_SWITCH in str(error):
        return f"use a database such as sqlite:///mlflow.db, or set {_FILE_STORE_SWITCH}=true"
    if hint := _said_hint(str(error)):
        return hint
    status = getattr(error, "get_http_status_code", None)
    return _status_hint(status()) if callable(status) else ""


def _said_hint(text: str) -> str:
    return next((hint for said, hint in _HINTS.items() if re.search(said, text)), "")


def _status_hint(status: int) -> str:
    if status in {requests.codes.unauthorized, requests.codes.forbidden}:
        return "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
    return ""
