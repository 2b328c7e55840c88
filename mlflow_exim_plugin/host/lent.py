"""Connections of ours that MLflow opens by a URI, for as long as this process wants it to.

It stands apart from what else opens a database: an archive that is looked at again needs no more.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from sqlalchemy import CreateEnginePlugin, StaticPool
from sqlalchemy.dialects import plugins

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL, Engine

__all__ = ["Lent", "lend", "take_back"]

_TOKEN = "exim"  # noqa: S105 - names an entry of _LENT
_LENT: dict[str, tuple[Callable[[], Any], Any]] = {}
"""What the connections of open databases are made by, and the lock of those that share one."""


def lend(url: URL, connect: Callable[[], Any], lock: Any = None) -> URL:
    """Return a URL that SQLAlchemy opens by ``connect`` in this process, until it ends."""
    token = uuid.uuid4().hex
    _LENT[token] = (connect, lock)
    return url.update_query_dict({"plugin": Lent.NAME, _TOKEN: token})


def take_back(url: URL) -> None:
    """Open what was lent by a URL no more."""
    del _LENT[str(url.query[_TOKEN])]


class Lent(CreateEnginePlugin):
    """Gives an engine that MLflow makes the connections that were lent.

    Source: SQLAlchemy's ``CreateEnginePlugin``, found by its name in the URI's ``plugin``.
    """

    NAME = "mlflow_exim"

    def __init__(self, url: URL, kwargs: dict[str, Any]) -> None:
        super().__init__(url, kwargs)
        connect, self._lock = _LENT[str(url.query[_TOKEN])]
        for name in ("pool_size", "max_overflow", "pool_recycle"):
            kwargs.pop(name, None)
        kwargs["creator"] = connect
        if self._lock is not None:
            kwargs["poolclass"] = StaticPool

    def update_url(self, url: URL) -> URL:
        """Return the URL without what only this plugin understands."""
        return url.difference_update_query([_TOKEN])

    def engine_created(self, engine: Engine) -> None:
        """Keep the transaction that engines share open, and let one thread ask at a time."""
        dialect: Any = engine.dialect
        if self._lock is None:
            return
        lock, execute = self._lock, dialect.do_execute

        def do_execute(*arguments: Any, **options: Any) -> None:
            with lock:
                execute(*arguments, **options)

        dialect.do_execute = do_execute
        dialect.exim_turn = lock
        dialect.do_commit = dialect.do_rollback = dialect.do_close = lambda _connection: None
        dialect.do_ping = lambda _connection: True


# Whoever has such a URI has this module: no entry points of all packages have to be looked through.
plugins.register(Lent.NAME, __name__, Lent.__name__)
