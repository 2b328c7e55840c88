"""Asking again, a little later each time, where the clients of stores do not by themselves."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["retried"]

_Result = TypeVar("_Result")

_RETRIES = 5
_BACKOFF_SECONDS = 0.2
_PATIENCE_SECONDS = 120.0
"""After which nothing is asked again."""


def retried(call: Callable[[], _Result], transient: tuple[type[Exception], ...]) -> _Result:
    """Return what a call returns, made again after errors that pass by.

    Args:
        call: May be made more than once.
        transient: Errors after which it is.
    """
    begun = time.monotonic()
    retry = None
    while True:
        try:
            return call()
        except transient:
            from urllib3.util import Retry

            retry = retry or Retry(_RETRIES, backoff_factor=_BACKOFF_SECONDS)
            if not retry.total or time.monotonic() - begun > _PATIENCE_SECONDS:
                raise
            retry = retry.increment()
            time.sleep(retry.get_backoff_time())
