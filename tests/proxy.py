"""A real HTTP proxy in front of a real server, which can refuse, cut and count what passes."""

from __future__ import annotations

import http.client
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["CUT", "CUT_BODY", "SWALLOWED", "FaultyProxy", "Reply", "Request"]

CUT = -1
"""Close the connection without an answer."""
CUT_BODY = -2
"""Send the head and half of the body, then close the connection."""
SWALLOWED = -3
"""Say that all is well, and let nobody hear of it."""
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}


@dataclass(frozen=True)
class Request:
    """What a rule sees: ``number`` counts from 1, ``path`` has its query."""

    number: int
    method: str
    path: str
    body: bytes
    authorization: str = ""


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class FaultyProxy:
    """Forwards everything, except where its rule says otherwise.

    Args:
        target: URL of the server.
        rule: Returns None to forward, a status to answer with, a body to answer with status 200,
            ``CUT``, ``CUT_BODY`` or ``SWALLOWED``.

    Attributes:
        seen: What came, in order.
        after: Called when the server has done a request and before the client hears of it.
        bend: Gives what the client hears in place of a body.
        reply: Gives what the client hears in place of an answer.
        range: Gives what the server hears in place of a range, nothing for none.
        refusal: Headers of the statuses that the rule answers with.
        refused: Body of these.
        strip: Parameter that the server does not hear of, empty for none.
    """

    def __init__(
        self, target: str, rule: Callable[[Request], int | bytes | None] = lambda _: None
    ) -> None:
        self.rule = rule
        self.after: Callable[[Request], object] = lambda _: None
        self.bend: Callable[[Request, bytes], bytes] = lambda _, data: data
        self.reply: Callable[[Request, Reply], Reply] = lambda _, reply: reply
        self.range: Callable[[Request, str], str] = lambda _, asked: asked
        self.refusal: list[tuple[str, str]] = []
        self.refused = b"refused by the proxy"
        self.strip = ""
        self.seen: list[Request] = []
        self._target = urlsplit(target).netloc
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                try:
                    proxy._answer(self)
                except (OSError, http.client.HTTPException):
                    # Either end is gone, on purpose: the other must not wait for it.
                    self.close_connection = True

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _answer  # noqa: N815
            do_PROPFIND = do_MKCOL = do_MOVE = _answer  # noqa: N815

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: Any) -> None:
                """A client that is killed is no error here."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = _body(handler)
        with self._lock:
            said = handler.headers.get("Authorization", "")
            request = Request(len(self.seen) + 1, handler.command, handler.path, body, said)
            self.seen.append(request)
            action = self.rule(request)
        if isinstance(action, bytes):
            _send(handler, 200, [("Content-Type", "application/json")], action)
            return
        if action == SWALLOWED:
            _send(handler, 200, [], b"")
            return
        if action == CUT:
            handler.close_connection = True
            return
        if action is not None and action > 0:
            # Plain text, as MLflow's basic-auth app and any proxy before a server give it.
            named = [("Content-Type", "text/plain"), *self.refusal]
            _send(handler, action, named, self.refused)
            return
        connection = http.client.HTTPConnection(self._target, timeout=120)
        try:
            headers = {
                name: value
                for name, value in handler.headers.items()
                if name.lower() not in _HOP_BY_HOP
            }
            for name in [name for name in headers if name.lower() in {"range", "x-ms-range"}]:
                if asked := self.range(request, headers.pop(name)):
                    headers[name] = asked
            path = handler.path
            if self.strip:
                path = re.sub(rf"{self.strip}=[^&]*&?", "", path)
                body = re.sub(rf'"{self.strip}": *"[^"]*"'.encode(), b'"stripped": ""', body)
            connection.request(handler.command, path, body, headers)
            reply = connection.getresponse()
            data = reply.read()
            self.after(request)
            data = self.bend(request, data)
            kept = [(n, v) for n, v in reply.getheaders() if n.lower() not in _HOP_BY_HOP]
            length = reply.getheader("Content-Length", "0") if request.method == "HEAD" else ""
            _send(handler, reply.status, kept, data, length, cut=action == CUT_BODY)
        finally:
            connection.close()


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    parts = []
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        parts.append(handler.rfile.read(size))
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(parts)


def _send(
    handler: BaseHTTPRequestHandler,
    status: int,
    headers: list[tuple[str, str]],
    body: bytes,
    length: str = "",
    *,
    cut: bool = False,
) -> None:
    handler.send_response(status)
    for name, value in headers:
        handler.send_header(name, value)
    handler.send_header("Content-Length", length or str(len(body)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body[: len(body) // 2] if cut else body)
    if cut:
        handler.close_connection = True
