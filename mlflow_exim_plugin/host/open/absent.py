"""What a deployment does not have: told from its answers, never from its version."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from mlflow_exim_plugin.errors import ServerError

__all__ = ["Absence", "is_absent", "is_no_such", "is_refused", "judged", "method", "release"]

_STATUS = re.compile(r"failed with error code (\d{3})")
"""How MLflow's client words an answer that is no JSON, as for a path the server does not know."""
_ABSENT_CODES = {"ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED", "FEATURE_DISABLED"}
_OF_ANY_404 = {"ENDPOINT_NOT_FOUND"}
"""What MLflow's client makes of it, whoever answered."""
_ABSENT_STATUSES = {"404", "405", "501"}
_REFUSED_CODES = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}
_NO_SUCH = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}
_DISABLED = "disabled"
_UNAVAILABLE = "functionality is unavailable"
"""What servers on folders of files say of the model registry, and others of what they lack."""


def method(store: Any, name: str) -> Callable[..., Any]:
    """Return a method of an MLflow store.

    Raises:
        NotImplementedError: This MLflow's store does not have it.
    """
    found = getattr(store, name, None)
    if found is None:
        raise NotImplementedError(f"this MLflow has no {name}")
    method_of_store: Callable[..., Any] = found
    return method_of_store


@dataclass(frozen=True)
class Absence:
    """What is made of a part of a deployment that could not be asked.

    Attributes:
        is_said: Whether it says that it does not have it at all.
        failure: What is wrong, empty where it is believed.
        is_open: Whether it is believed for no more than that nothing speaks against it.
    """

    is_said: bool
    failure: str = ""
    is_open: bool = False


def judged(
    error: ServerError | None,
    since: str,
    version: Callable[[], str | None],
    *,
    of_files: bool = False,
) -> Absence:
    """Return whether a deployment has a part, has it not, or is not believed.

    A proxy says that a path is not found in the same words as a server from before it.

    Args:
        error: What was answered; None for a status alone that says that nothing is there.
        since: MLflow that has the part first.
        version: Asks for the deployment's MLflow: empty where it does not say, None where it is
            one from before the part in any case.
        of_files: Whether it is a server on a folder of files, which does not have the part.
    """
    if error is not None and not is_absent(error, of_files=of_files):
        return Absence(is_said=False, failure=error.message)
    if of_files or (error is not None and _is_mlflows_word(error)) or (told := version()) is None:
        return Absence(is_said=True)
    if not told or release(told) < release(since):
        return Absence(is_said=True, is_open=not told)
    answer = f": {error.message}" if error is not None else ""
    what = f"it says that it has none, and MLflow {told} has them{answer}"
    return Absence(is_said=True, failure=what)


def release(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version."""
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


def is_absent(error: ServerError, *, of_files: bool = False) -> bool:
    """Whether a deployment said that it does not have what was asked for at all.

    An object that is not there is something else: then the server knows the question.

    Args:
        error: What it said.
        of_files: Whether it is a server on a folder of files.
    """
    cause = error.__cause__
    if isinstance(cause, NotImplementedError):
        return True
    body = getattr(cause, "json", None)
    if isinstance(body, dict) and body.get("detail") in {"Not Found", "Method Not Allowed"}:
        return True  # the words of the part of the server that is not Flask
    if getattr(cause, "error_code", "") in _ABSENT_CODES:
        return True
    if _UNAVAILABLE in str(cause):
        return True
    status = _STATUS.search(str(cause))
    if status and status.group(1) in _ABSENT_STATUSES | ({"500"} if of_files else set()):
        return True
    return getattr(cause, "error_code", "") == "TEMPORARILY_UNAVAILABLE" and _DISABLED in str(cause)


def is_no_such(error: ServerError) -> bool:
    """Whether a deployment said that it has no object of an id: who cannot read one says else."""
    cause = error.__cause__
    if isinstance(cause, NotFoundError):
        return True
    return getattr(cause, "error_code", "") in _NO_SUCH or is_refused(error)


def _is_mlflows_word(error: ServerError) -> bool:
    """Whether it is MLflow that says of an absence why, and no proxy before it can be meant."""
    cause = error.__cause__
    return (
        isinstance(cause, NotImplementedError)
        or getattr(cause, "error_code", "") in _ABSENT_CODES - _OF_ANY_404
        or _UNAVAILABLE in str(cause)
        or _DISABLED in str(cause)
    )


def is_refused(error: ServerError, *, by_failing: bool = False) -> bool:
    """Whether MLflow refused what was asked or sent, as it does with a filter it cannot read.

    Args:
        error: What it said.
        by_failing: Whether it is one that fails (500) at what it refuses.
    """
    cause = error.__cause__
    if getattr(cause, "error_code", "") in _REFUSED_CODES:
        return True
    response = getattr(cause, "response", None)
    if response is not None:
        return response.status_code in {400, 500 if by_failing else 400}
    status = getattr(cause, "get_http_status_code", None)
    return by_failing and callable(status) and bool(status() == 500)
