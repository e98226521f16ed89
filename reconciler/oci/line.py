"""One connection, and whom it trusts: an httpx client that another thread can cut.

`oci.web` keeps a stack of idle ones. A pool for all requests would be simpler, but with it nobody
can tell which connection a request waits for, and so none could be ended at its deadline.
"""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import Mapping
from contextlib import suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any

import httpx

from reconciler.errors import Code, HostError

_TIMEOUT = httpx.Timeout(30.0, connect=10.0)


class Line:
    """An HTTP client with one connection at a time, which another thread can cut."""

    def __init__(self, context: ssl.SSLContext) -> None:
        jar = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # no cookie is kept or sent
        one = httpx.Limits(max_connections=1, max_keepalive_connections=1)
        self.client = httpx.Client(verify=context, timeout=_TIMEOUT, cookies=jar, limits=one)
        self._socket: tuple[int, object] | None = None
        self._is_cut = False

    def begin(self) -> None:
        """A new request starts."""
        self._is_cut = False

    def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """Hears from httpcore what happens, and notes the socket of each new connection.

        Its number and address, not itself: TLS takes it over, and it keeps both.
        """
        if event.endswith("connect_tcp.complete"):
            with suppress(OSError):
                found = info["return_value"].get_extra_info("socket")
                self._socket = (found.fileno(), found.getsockname())
            if self._is_cut:
                self.cut()

    def cut(self) -> None:
        """Let whoever waits for the server wake up with an error."""
        self._is_cut = True
        if not self._socket:
            return
        number, address = self._socket
        with suppress(OSError):
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                return  # closed meanwhile, and the number is somebody else's
            with socket.socket(fileno=os.dup(number)) as twin:
                if twin.getsockname() == address:
                    twin.shutdown(socket.SHUT_RDWR)


def trust(ca_file: Path | None) -> ssl.SSLContext:
    """The host's authorities, and those of a file. Raises HostError for an unusable file."""
    context = httpx.create_ssl_context()
    context.load_default_certs()  # a CA that the administrator of the host installed counts too
    try:
        if ca_file:
            context.load_verify_locations(cafile=ca_file)
    except OSError as error:
        raise HostError(
            f"ca-file {ca_file} cannot be used: {error.strerror or 'no certificate in it'}",
            code=Code.CONFIG_INVALID,
            retryable=False,
        ) from error
    return context


def new_line(context: ssl.SSLContext) -> Line:
    """A client, with the proxies of the environment. Raises HostError for unusable ones."""
    try:
        return Line(context)
    except (ValueError, httpx.InvalidURL) as error:
        raise HostError(
            "the proxy variables of the environment cannot be used",
            code=Code.CONFIG_INVALID,
            retryable=False,
        ) from error
