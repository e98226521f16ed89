"""A scripted HTTP server on loopback: routes that misbehave as a test wants, and what was asked.

with scripted({"/v2/x/manifests/1": lambda r: r.reply(200, b"...")}) as server: ...
"""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Request(BaseHTTPRequestHandler):
    """One request. A route calls `reply`, or writes to `wfile` itself."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def reply(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def cut(self, body: bytes, length: int, status: int = 200, **headers: str) -> None:
        """Announce `length` bytes, send `body`, hang up."""
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def _serve(self) -> None:
        path = self.path.partition("?")[0]
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        script = self.server.script
        script.seen.append(Seen(self.command, self.path, dict(self.headers), self.body))
        route = script.routes.get(path)
        if route is None:
            self.reply(404, b'{"errors":[{"code":"NAME_UNKNOWN","message":"unknown"}]}')
        else:
            route(self)

    do_GET = do_HEAD = do_POST = _serve  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Tests look at `seen`."""


Route = Callable[[Request], None]


@dataclass(frozen=True)
class Seen:
    """One request that arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Script:
    """A running server: `routes` may be changed, `seen` grows."""

    host: str
    routes: dict[str, Route]
    seen: list[Seen] = field(default_factory=list)

    def asked(self, path: str) -> list[Seen]:
        """The requests for one path, without its query."""
        return [one for one in self.seen if one.path.partition("?")[0] == path]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    script: Script


@contextmanager
def scripted(
    routes: Mapping[str, Route] | None = None, tls: Path | None = None
) -> Iterator[Script]:
    """Serve on a free loopback port until the block ends.

    tls: a directory with the `cert.pem` and `key.pem` to speak https with.
    """
    server = _Server(("127.0.0.1", 0), Request)
    if tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(tls / "cert.pem", tls / "key.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.script = Script(f"127.0.0.1:{server.server_address[1]}", dict(routes or {}))
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
    )
    thread.start()
    try:
        yield server.script
    finally:
        server.shutdown()
        server.server_close()
