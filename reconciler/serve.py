"""`--listen`: health, metrics, status and the page for people, over loopback or a unix socket.

Read-only and without secrets, yet nothing that a network should see: addresses of this machine
alone are taken. Requests are answered by threads of their own; none touches the loop.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from reconciler.errors import BangerError, Code, HostError
from reconciler.files import host_errors
from reconciler.text import printable

_TIMEOUT = 10.0
_HTML = "text/html; charset=utf-8"
_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a path gives."""

    body: bytes
    content_type: str = _JSON
    status: HTTPStatus = HTTPStatus.OK


def as_json(document: object, *, good: bool = True) -> Answer:
    """A document as an answer; 503 when it tells of something that is not good."""
    status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
    return Answer(json.dumps(document, ensure_ascii=True).encode() + b"\n", _JSON, status)


def as_page(text: str) -> Answer:
    """A page as an answer."""
    return Answer(text.encode(), _HTML)


Routes = dict[str, Callable[[], Answer]]


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen: a unix socket, or host and port; port 0 takes a free one."""

    path: Path | None = None
    host: str = ""
    port: int = 0


def parse_address(text: str) -> Address:
    """Read `unix:PATH`, `/PATH`, `HOST:PORT` or `[HOST]:PORT`. Raises HostError for other hosts."""
    if text.startswith(("unix:", "/")):
        return Address(path=Path(text.removeprefix("unix:")))
    host, _, port = text.rpartition(":")
    host = "127.0.0.1" if host in ("", "localhost") else host.strip("[]")
    if not (port.isdigit() and int(port) < 65536):
        raise _refused(text, "is no HOST:PORT and no unix:PATH")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise _refused(text, "is no address of this machine alone")
    return Address(host=host, port=int(port))


def _refused(text: str, why: str) -> HostError:
    return HostError(
        f"--listen: {printable(text)} {why}",
        code=Code.NOT_PERMITTED,
        resolution="Give 127.0.0.1:PORT, [::1]:PORT or unix:PATH; a proxy can take it from there.",
        retryable=False,
    )


class Server:
    """A listening server; `close` ends it and removes its socket file."""

    def __init__(self, address: Address, routes: Routes) -> None:
        self._path = address.path
        with host_errors("--listen: cannot listen"):
            self._http = _listen(address, routes)
        self._thread = threading.Thread(target=self._http.serve_forever, name="listen", daemon=True)
        self._thread.start()

    @property
    def where(self) -> str:
        """The address that it has got, as a reader would write it."""
        if self._path:
            return f"unix:{self._path}"
        host, port = self._http.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else str(host)
        return f"http://{shown}:{port}/"

    def close(self) -> None:
        """Stop listening."""
        self._http.shutdown()
        self._http.server_close()
        if self._path:
            self._path.unlink(missing_ok=True)


def _listen(address: Address, routes: Routes) -> ThreadingHTTPServer:
    handler = type("Handler", (_Handler,), {"routes": routes, "local": address.path is not None})
    if address.path is None:
        kind = _V6 if ":" in address.host else _Here
        return kind((address.host, address.port), handler)
    _make_room(address.path)
    server = _Unix(os.fspath(address.path), handler)
    address.path.chmod(0o660)
    return server


def _make_room(path: Path) -> None:
    """Remove the socket of one that was killed; that of a living one stays. Raises HostError."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            return  # and bind says so
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_TIMEOUT)
            probe.connect(os.fspath(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return
    raise HostError(
        f"--listen: another process listens on {path}",
        code=Code.BUSY,
        resolution="Give each daemon a socket of its own.",
        retryable=False,
    )


class _Here(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up, or a daemon out of descriptors: nothing for the log to hold."""


class _V6(_Here):
    address_family = socket.AF_INET6


class _Unix(_Here):
    address_family = socket.AF_UNIX

    def __init__(self, path: str, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(path, handler)  # type: ignore[arg-type]  # typeshed knows hosts and ports only

    def server_bind(self) -> None:
        """Bind without asking for a host name, which a path has not."""
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "localhost", 0


class _Handler(BaseHTTPRequestHandler):
    routes: Routes
    local: bool
    timeout = _TIMEOUT
    server_version = "banger-reconcile"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        route = self.routes.get(self.path.partition("?")[0])
        if not (self.local or _is_here(self.headers.get("Host", ""))):
            answer = Answer(b"", status=HTTPStatus.MISDIRECTED_REQUEST)
        elif route is None:
            answer = as_json({"error": "no such page", "pages": sorted(self.routes)})
            answer = Answer(answer.body, status=HTTPStatus.NOT_FOUND)
        else:
            try:
                answer = route()
            except BangerError as error:  # the records of a newer program, a disk that fails
                said = {"error": error.brief, "hint": error.resolution}
                answer = as_json(said, good=False)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)

    def address_string(self) -> str:
        """A name for the log, which a unix socket's client has not."""
        return "local"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: a probe every second is nothing that happened."""


def _is_here(host: str) -> bool:
    """Whether a Host header names this machine: a page elsewhere must not reach us by its name."""
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:  # some other name, whatever it begins with
        return False
