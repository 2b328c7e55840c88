"""MLflow's own server on an archive: it reads, and whatever would write is refused.

MLflow keeps what it is; what is different stands before it. Calls that would write end there, also
those that never reach a store, and the page of its user interface gets a line that says what is
looked at.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import socket
import sqlite3
import threading
from contextlib import closing
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from mlflow_exim_plugin.errors import UsageError
from mlflow_exim_plugin.plugins.refusal import READ_ONLY
from mlflow_exim_plugin.redaction import redact_url
from mlflow_exim_plugin.stages.in_archive import PLACE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, MutableMapping
    from typing import TypeAlias

    from mlflow_exim_plugin.operations.live.archive import LiveArchives
    from mlflow_exim_plugin.plugins.address import Address
    from mlflow_exim_plugin.sources.archive.archive import Archive

    Scope: TypeAlias = MutableMapping[str, Any]
    Message: TypeAlias = MutableMapping[str, Any]
    Receive: TypeAlias = Callable[[], Awaitable[Message]]
    Send: TypeAlias = Callable[[Message], Awaitable[None]]
    App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

__all__ = ["ReadOnlyApp", "described", "listening", "mlflow_app", "run"]

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_READING_POSTS = re.compile(
    r"/mlflow/(.+/)?(search|search-datasets|get-latest-versions|batchGet\w*|metrics"
    r"|calculate-filter-correlation|presigned-download-url)$|/graphql$"
)
"""Calls that send what they ask for; the stores look again at what comes through."""
_PAGES = frozenset({"/", "/index.html"})
_OF_CACHES = frozenset({b"if-none-match", b"if-modified-since", b"range"})
_TRACED = 12
_LOOKED_EVERY_S = 0.5
_LAST_S = 1
_FOR_MLFLOW = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


def mlflow_app(address: Address, *, has_workspaces: bool) -> App:
    """Return MLflow's server for an archive; one a process, whose environment it reads.

    Args:
        address: The archives.
        has_workspaces: Whether it has more than the default workspace.
    """
    os.environ.update(_FOR_MLFLOW)
    if has_workspaces:
        os.environ["MLFLOW_ENABLE_WORKSPACES"] = "true"
    import uvicorn  # noqa: F401 - by whose presence MLflow sees that it is a server
    from mlflow import server

    for name, value in (
        (server.BACKEND_STORE_URI_ENV_VAR, str(address)),
        (server.REGISTRY_STORE_URI_ENV_VAR, str(address)),
        (server.ARTIFACT_ROOT_ENV_VAR, PLACE),
        (server.ARTIFACTS_DESTINATION_ENV_VAR, address.members),
        (server.SERVE_ARTIFACTS_ENV_VAR, "true"),
    ):
        os.environ[name] = value
    try:
        from mlflow.server.fastapi_app import app
    except ImportError:  # MLflow 2
        from starlette.middleware.wsgi import WSGIMiddleware

        app = WSGIMiddleware(server.app)
    served: App = app
    return served


def described(live: LiveArchives) -> str:
    """Return in one line which archives these are."""
    return "; ".join(map(_described, live.archives))


def _described(archive: Archive) -> str:
    system = archive.summary.system
    packed = datetime.fromtimestamp(system.export_time, timezone.utc)
    source = redact_url(system.mlflow_tracking_uri or "")
    of_source = f" from {source}" if source else ""
    return f"Archive of {packed:%Y-%m-%d %H:%M} UTC{of_source}, root {archive.reader.root}"


class ReadOnlyApp:
    """An ASGI application that stands before MLflow's.

    Args:
        app: MLflow's.
        live: The archives.
    """

    def __init__(self, app: App, live: LiveArchives) -> None:
        self._app = app
        self._banner = _banner(live).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
            return
        path = str(scope["path"])
        if scope["method"] not in _SAFE and not (
            scope["method"] == "POST" and _READING_POSTS.search(path)
        ):
            await _refuse(f"{scope['method']} {path}", send)
        elif scope["method"] == "GET" and path in _PAGES:
            headers = [(name, v) for name, v in scope["headers"] if name not in _OF_CACHES]
            page = _PageWithBanner(send, self._banner)
            await self._app({**scope, "headers": headers}, receive, page)
        else:
            await self._app(scope, receive, send)


class _PageWithBanner:
    """Sends a page on, once it is whole, with a line before its end."""

    def __init__(self, send: Send, banner: bytes) -> None:
        self._send = send
        self._banner = banner
        self._start: Message = {}
        self._body: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body.append(message.get("body", b""))
        if message.get("more_body"):
            return
        before, tag, after = b"".join(self._body).rpartition(b"</body>")
        body = before + self._banner + tag + after if tag else after
        dropped = {b"content-length", b"etag", b"last-modified", b"cache-control", b"expires"}
        headers = [(n, v) for n, v in self._start["headers"] if n.lower() not in dropped]
        headers += [(b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
        await self._send({**self._start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


async def _refuse(what: str, send: Send) -> None:
    body = {"error_code": "PERMISSION_DENIED", "message": f"{what} is refused. {READ_ONLY}"}
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(data))]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def _banner(live: LiveArchives) -> str:
    """Return the line at the foot of MLflow's pages."""
    links = "".join(
        f' <a href="#/experiments/{number}/traces?startTimeLabel=ALL{inside}">'
        f"traces of {html.escape(name)} ({count})</a>"
        for number, name, inside, count in _traced(live)
    )
    return (
        "<style>#mlflow-exim{position:fixed;bottom:0;left:0;right:0;z-index:9999;padding:2px 12px;"
        "font:12px/1.6 system-ui,sans-serif;background:#3b4a54;color:#fff;overflow:hidden;"
        "text-overflow:ellipsis;white-space:nowrap}#mlflow-exim a{color:#cfe8fc;margin-left:12px}"
        "#root{padding-bottom:24px}</style>"
        f'<div id="mlflow-exim" role="note">{html.escape(described(live))}. Read only.{links}</div>'
    )


def _traced(live: LiveArchives) -> list[tuple[int, str, str, int]]:
    """Return the experiments with traces, as far as there is room: MLflow shows a week of them."""
    inside = "'&amp;workspace=' || e.workspace" if live.has_workspaces else "''"
    query = (
        f"SELECT e.experiment_id, e.name, {inside}, count(*) FROM trace_info AS t "  # noqa: S608
        "JOIN experiments AS e USING (experiment_id) WHERE e.lifecycle_stage = 'active' "
        "GROUP BY 1, 2, 3 ORDER BY 4 DESC LIMIT ?"
    )
    with closing(sqlite3.connect(f"{live.database.as_uri()}?mode=ro", uri=True)) as database:
        return database.execute(query, (_TRACED,)).fetchall()


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Take a port, before anything that takes long is done.

    Raises:
        UsageError: It cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise UsageError(
                f"nothing can listen at {host}:{port}: {error}", "give another --port, 0 is any"
            ) from error
        yield listener


def run(app: App, listener: socket.socket, tell: Callable[[str], None]) -> None:
    """Serve an application until Ctrl-C.

    Args:
        app: The application.
        listener: What it listens at.
        tell: Called with the address once it answers.
    """
    import uvicorn

    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    started = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started.set()

    config = uvicorn.Config(
        app,
        lifespan="off",  # that of MLflow's server clears up after other servers of it
        log_level="warning",
        timeout_graceful_shutdown=_LAST_S,
    )
    server = Server(config)
    serving = threading.Thread(target=server.run, args=([listener],), daemon=True)
    serving.start()
    try:
        while serving.is_alive() and not started.wait(_LOOKED_EVERY_S):
            pass
        tell(url)
        while serving.is_alive():
            serving.join(_LOOKED_EVERY_S)
    except KeyboardInterrupt:
        server.should_exit = True
        serving.join(2 * _LAST_S)
