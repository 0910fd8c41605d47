"""A reverse proxy on the loopback that remembers what was asked and how many bytes were answered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

HOP = {"connection", "transfer-encoding", "host", "keep-alive", "server", "date"}


@dataclass
class Call:
    method: str
    path: str
    range: str | None
    status: int
    bytes: int


@dataclass
class Watch:
    url: str
    calls: list[Call] = field(default_factory=list)
    ignore_ranges: bool = False
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    headers: list[tuple[str, str]] = field(default_factory=list)

    def of(self, suffix: str) -> list[Call]:
        return [call for call in self.calls if urlsplit(call.path).path.endswith(suffix)]


@contextmanager
def watching(upstream: str) -> Iterator[Watch]:
    """Forward to `upstream`; `answers` (path suffix to status and X-Error-Code) are given in its stead.

    `faults` (path suffix to what is left of them) befall a GET each: "cut" sends half an answer, "dropped" none,
    "busy" a 503 with `headers`.
    """
    watch = Watch("")
    host = urlsplit(upstream).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def forward(self) -> None:
            asked = self.headers.get("Range")
            fault = self.fault()
            if fault == "dropped":
                self.close_connection = True
                return
            status, headers, body = (503, watch.headers, b"") if fault == "busy" else self.answer()
            watch.calls.append(Call(self.command, self.path, asked, status, len(body)))
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in HOP | ({"content-length"} if self.command != "HEAD" else set()):
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)
                self.close_connection |= fault == "cut"
            except OSError:
                watch.calls[-1].bytes = -1  # the client had enough

        def fault(self) -> str | None:
            for suffix, left in watch.faults.items():
                if self.command == "GET" and urlsplit(self.path).path.endswith(suffix) and left:
                    return left.pop()
            return None

        def answer(self) -> tuple[int, list[tuple[str, str]], bytes]:
            for suffix, (status, code) in watch.answers.items():
                if urlsplit(self.path).path.endswith(suffix):
                    return status, [("X-Error-Code", code), ("X-Error-Message", "<b>no no</b>")], b""
            headers = {k: v for k, v in self.headers.items() if k.lower() not in HOP}
            if watch.ignore_ranges:
                headers.pop("Range", None)
                headers.pop("range", None)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = HTTPConnection(host, timeout=30)
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()

        do_GET = do_HEAD = do_POST = forward

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    watch.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
