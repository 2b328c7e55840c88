"""How long a server that is busy or down is waited for, and that somebody is told of it."""

from __future__ import annotations

import contextlib
import copy
import logging
import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from urllib3.exceptions import MaxRetryError, ResponseError
from urllib3.util import Retry

from mlflow_exim_plugin.errors import NOTICE
from mlflow_exim_plugin.host.answers import UnbelievableError
from mlflow_exim_plugin.host.errors import translated, why_lost
from mlflow_exim_plugin.host.open.sessions import sent_through
from mlflow_exim_plugin.redaction import redact_url

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["patient"]

_LIMIT_S = 120.0
"""So long one call waits at most, and no longer because a server asks for it."""
_TOLD_S = 5.0
_HOPELESS = re.compile("WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|CERTIFICATE_VERIFY_FAILED")
"""What OpenSSL says that will be so the next time too."""
_TOLD_EVERY_S = 1.0
_MAKES = re.compile(
    r"/(create|register|logged-models|params|issues|mcp-servers|access-endpoints|skills|versions"
    r"|webhooks)$"
)
"""Ends of the paths of calls that make something which has no id before, or may be there once."""
_LOST_BY_A_PROXY = frozenset({502, 504})
_log = logging.getLogger(__name__)


class _Patience(Retry):
    """Waits as MLflow's own does, within a limit, and says so.

    What makes something is not sent again when its answer was lost: it may have been done.

    Attributes:
        server: Address without secrets.
        told: When it was last said of the server that it does not answer, for all calls to it.
    """

    waited_s = 0.0
    server = ""
    told: list[float]

    def new(self, **kw: Any) -> _Patience:
        made = super().new(**kw)
        made.waited_s, made.server, made.told = self.waited_s, self.server, self.told
        return made

    def increment(self, method: Any = None, url: Any = None, *more: Any, **named: Any) -> _Patience:
        response = named.get("response", more[0] if more else None)
        if self._may_be_done(method, url or "", response, named.get("error")):
            problem = ResponseError("its answer was lost, so it may have been done")
            lost = UnbelievableError(str(problem))
            raise MaxRetryError(named.get("_pool"), url or "", problem) from lost  # type: ignore[arg-type]
        if (error := named.get("error")) is not None and _HOPELESS.search(str(error)):
            raise MaxRetryError(named.get("_pool"), url or "", error)  # type: ignore[arg-type]
        following = super().increment(method, url, *more, **named)
        asked_s = self._asked_s(response)
        if asked_s + self.waited_s > _LIMIT_S:
            pool: Any = named.get("_pool")
            problem = ResponseError(
                f"it asks to wait {asked_s:.0f} s, {_LIMIT_S:.0f} s is the limit"
            )
            raise MaxRetryError(pool, url or "", problem)
        return following

    def _may_be_done(self, method: Any, url: str, response: Any, error: Any) -> bool:
        if method != "POST" or not _MAKES.search(urlsplit(url).path):
            return False
        if error is not None:
            return not self._is_connection_error(error)
        return response is not None and response.status in _LOST_BY_A_PROXY

    def sleep(self, response: Any = None) -> None:
        """Wait before the next attempt."""
        wait_s = self._asked_s(response) or self.get_backoff_time()
        if response is None and self.history and self.history[-1].error is not None:
            self._tell_down(self.history[-1].error, wait_s)
        elif wait_s >= _TOLD_S:
            _log.log(NOTICE, "The server is busy: waiting %.0f s before it is asked again.", wait_s)
        self.waited_s += wait_s
        time.sleep(wait_s)

    def _tell_down(self, error: Exception, wait_s: float) -> None:
        now_s = time.monotonic()
        met_by_others = bool(self.told) and now_s - self.told[-1] < _TOLD_EVERY_S
        if wait_s < _TOLD_EVERY_S or met_by_others:
            return
        self.told[:] = [now_s]
        what = f"{self.server} does not answer ({why_lost(error)})"
        _log.log(NOTICE, "%s: it is asked again in %.0f s.", what, wait_s)

    def _asked_s(self, response: Any) -> float:
        if not self.respect_retry_after_header or response is None:
            return 0.0
        with contextlib.suppress(Exception):  # a header that is no time is none
            return float(self.get_retry_after(response) or 0)
        return 0.0


@contextlib.contextmanager
def patient(address: str) -> Iterator[list[Retry]]:
    """Let MLflow's calls to one server wait with patience.

    Args:
        address: URL that all of them begin with.

    Yields:
        How each of them is tried again, which may be changed.
    """
    ways: list[Retry] = []
    told: list[float] = []
    server = redact_url(address)

    def with_patience(usual: Any) -> Any:
        adapter = copy.copy(usual)
        adapter.max_retries = _Patience()
        vars(adapter.max_retries).update(vars(usual.max_retries), server=server, told=told)
        ways.append(adapter.max_retries)
        return adapter

    with contextlib.ExitStack() as mounted:
        with translated("reading MLflow's settings"):
            mounted.enter_context(sent_through(address, with_patience))
        yield ways
