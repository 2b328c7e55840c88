"""An HTTP server of one file, which counts what is asked of it."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["RangeServer", "serving"]


class RangeServer(BaseHTTPRequestHandler):
    """A static file with ranges, and a list of what was asked.

    Attributes:
        data: The file.
        etag: What it is called; nothing when empty.
        has_ranges: Whether parts of it are given.
        has_ranges_from_the_end: Whether they may be named by their length alone.
        drips: Whether what comes does so byte by byte, with a while between them.
        statuses: What is answered first, one after the other.
        asked: The requests, each with the bytes that were sent.
    """

    data = b""
    etag = ""
    has_ranges = True
    has_ranges_from_the_end = True
    drips = False
    statuses: list[int]
    asked: list[tuple[str, int]]

    def do_GET(self) -> None:
        status, start, end = 200, 0, len(self.data)
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted and self.has_ranges and (wanted[1] or self.has_ranges_from_the_end):
            status = 206
            if wanted[1]:
                start, end = int(wanted[1]), min(int(wanted[2]) + 1, end)
            else:
                start = max(end - int(wanted[2]), 0)
        if self.headers.get("If-Match", self.etag) != self.etag:
            status, start, end = 412, 0, 0
        if self.statuses:
            status, start, end = self.statuses.pop(0), 0, 0
        self.asked.append(("GET", end - start))
        self.send_response(status)
        self.send_header("Content-Length", str(end - start))
        if self.etag:
            self.send_header("ETag", self.etag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(self.data)}")
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # of a whole file nothing was wanted
            if not self.drips:
                self.wfile.write(self.data[start:end])
            for position in range(start, end if self.drips else start):
                self.wfile.write(self.data[position : position + 1])
                self.wfile.flush()
                time.sleep(0.05)

    def log_message(self, *_args: object) -> None:
        """Keep quiet."""


@contextmanager
def serving() -> Iterator[tuple[str, type[RangeServer]]]:
    """Start a server; its file is set on the class."""
    handler = type("Handler", (RangeServer,), {"asked": [], "statuses": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/a.tar.zst", handler
    server.shutdown()
    thread.join()
    server.server_close()
