"""An HTTP server of one file, which counts what is asked of it."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RangeServer", "serving"]


class RangeServer(BaseHTTPRequestHandler):
    """A static file with ranges, and a list of what was asked."""

    data = b""
    has_ranges = True
    asked: list[tuple[str, int]]

    def do_HEAD(self) -> None:
        self.asked.append(("HEAD", 0))
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.data)))
        if self.has_ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        body = self.data
        if wanted and self.has_ranges:
            body = self.data[int(wanted[1]) : int(wanted[2]) + 1]
            self.send_response(206)
            span = f"bytes {wanted[1]}-{int(wanted[1]) + len(body) - 1}/{len(self.data)}"
            self.send_header("Content-Range", span)
        else:
            self.send_response(200)
        self.asked.append(("GET", len(body)))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Keep quiet."""


@contextmanager
def serving() -> Iterator[tuple[str, type[RangeServer]]]:
    """Start a server; its file is set on the class."""
    handler = type("Handler", (RangeServer,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/a.tar.zst", handler
    server.shutdown()
    thread.join()
    server.server_close()
