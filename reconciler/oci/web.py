"""HTTP as registries need it: TLS per host, redirects that leak nothing, errors as words.

`Web` is one request with everything that can go wrong told as a RemoteError; logins are those of
`oci.registry`, and what is fetched is decided in `oci.repository` and `oci.download`.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from reconciler import __version__
from reconciler.errors import Code, RemoteError
from reconciler.model import RegistryConfig
from reconciler.oci.challenge import Challenge, parse_challenges
from reconciler.oci.limits import exceeded
from reconciler.oci.line import Line, new_line, trust
from reconciler.oci.manners import Deadline, Pauses
from reconciler.oci.refusals import refusal
from reconciler.oci.retry import parse_retry_after
from reconciler.text import printable

MAX_REDIRECTS = 10
HEAD_SECONDS = 60.0
"""From the first packet to the last byte of the headers."""
DOCUMENT_SECONDS = 60.0
MIN_BYTES, MIN_BYTES_SECONDS = 64 << 10, 60.0
"""A transfer that brings less than this in that time has stalled."""
PAUSE = 1.0
"""Seconds that a host is left alone after a 429 that does not say how long."""

_ERROR_LIMIT, _ERROR_SECONDS = 8 << 10, 10.0
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

Origin = tuple[str, str, int]


class Body:
    """A response whose bytes are read with limits; `status` and `headers` are there at once."""

    def __init__(self, response: httpx.Response, deadline: Deadline) -> None:
        self._response = response
        self._deadline = deadline
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.origin = _origin(response.request.url)
        self.host = printable(response.request.url.netloc.decode(), 100)

    def challenges(self) -> tuple[Challenge, ...]:
        """What the server wants for an Authorization."""
        return parse_challenges(self._response.headers.get_list("www-authenticate"))

    def small(self, limit: int, field: str = "") -> bytes:
        """All of it. Raises RemoteError: limit-exceeded, or when it takes longer than a minute.

        field: the one of `Limits` from which `limit` comes, if any.
        """
        self._deadline.renew(DOCUMENT_SECONDS)
        parts, size = [], 0
        for chunk in self._response.iter_raw():
            parts.append(chunk)
            size += len(chunk)
            if size > limit:
                raise self._too_long(limit, field)
        self._whole()
        return b"".join(parts)

    def _too_long(self, limit: int, field: str) -> RemoteError:
        brief, resolution = f"{self.host} sent a document of over {limit} bytes", ""
        if field:
            error = exceeded(field, limit, f"{self.host} sent a document")
            brief, resolution = error.brief, error.resolution
        return RemoteError(brief, code=Code.LIMIT_EXCEEDED, retryable=False, resolution=resolution)

    def chunks(self) -> Iterator[bytes]:
        """All of it in pieces. Raises RemoteError when it trickles."""
        left, size = MIN_BYTES_SECONDS, 0
        begin = time.monotonic()
        self._deadline.renew(left)
        for chunk in self._response.iter_raw():
            self._deadline.stop()  # what the reader does meanwhile is not the server's time
            size += len(chunk)
            left -= time.monotonic() - begin
            yield chunk
            if size >= MIN_BYTES:
                left, size = MIN_BYTES_SECONDS, 0
            begin = time.monotonic()
            self._deadline.renew(left)
        self._whole()

    def _whole(self) -> None:
        """A connection that was cut at its deadline may look like one that ended well."""
        if self._deadline.expired:
            raise _too_slow(self.host)

    def check(
        self, what: str, *, missing: str = "not found", fine: frozenset[int] = frozenset({200})
    ) -> None:
        """Raise RemoteError for every status that is not `fine`, with the server's words."""
        if self.status in fine:
            return
        words = self._first_words()
        raise refusal(
            what,
            missing=missing,
            host=self.host,
            status=self.status,
            body=words,
            headers=self.headers,
        )

    def _first_words(self) -> bytes:
        """The beginning of an error body, which may be endless or break off."""
        self._deadline.renew(_ERROR_SECONDS)
        words = b""
        with suppress(httpx.HTTPError):
            for chunk in self._response.iter_raw():
                words += chunk
                if len(words) > _ERROR_LIMIT:
                    break
        return words[:_ERROR_LIMIT]


class Web:
    """Requests of a pass. A CA of a `[[registry]]` entry holds for that host alone.

    A host that answers 429, or 5xx with Retry-After, is left alone by all requests.
    """

    def __init__(self, registries: tuple[RegistryConfig, ...]) -> None:
        self._ca_files = {entry.host: entry.ca_file for entry in registries}
        self._contexts: dict[Path | None, ssl.SSLContext] = {}
        self._idle: dict[tuple[Path | None, Origin], list[Line]] = {}
        self._pauses = Pauses()
        self._lock = threading.Lock()
        for name in ("httpx", "httpcore"):
            # they log whole URLs, and those of a redirect may be signed
            logging.getLogger(name).setLevel(logging.WARNING)

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for line in (line for lines in self._idle.values() for line in lines):
                line.client.close()
            self._idle.clear()

    @contextmanager
    def request(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        method: str = "GET",
        form: Mapping[str, str] | None = None,
    ) -> Iterator[Body]:
        """One request, redirects followed; also a broken body is told as a RemoteError.

        Another origin gets no Authorization, https never becomes http, and after ten hops it ends.
        With a form nothing is followed: it holds secrets.
        """
        address = _address(url)
        sent = {"User-Agent": f"banger-reconcile/{__version__}", "Accept-Encoding": "identity"}
        sent.update(headers)
        for _ in range(MAX_REDIRECTS + 1):
            with self._one(method, address, sent, form) as (response, deadline):
                if response.status_code not in _REDIRECTS or form is not None:
                    yield Body(response, deadline)
                    return
                target = _target(response)
            if _origin(target) != _origin(address):
                sent.pop("Authorization", None)
            address = target
        brief = f"{_host(address)} redirects more than {MAX_REDIRECTS} times"
        raise RemoteError(brief, code=Code.REGISTRY_INVALID, retryable=False)

    @contextmanager
    def _one(
        self,
        method: str,
        url: httpx.URL,
        headers: Mapping[str, str],
        form: Mapping[str, str] | None,
    ) -> Iterator[tuple[httpx.Response, Deadline]]:
        self._pauses.check(_host(url))
        with self._line(url) as line, Deadline(HEAD_SECONDS, line.cut) as deadline:
            try:
                trace = {"trace": line.trace}
                with line.client.stream(
                    method, url, headers=headers, data=form, extensions=trace
                ) as response:
                    self._heed(response)
                    yield response, deadline
            except httpx.HTTPError as error:
                if deadline.expired:
                    raise _too_slow(_host(url)) from error
                raise _unreachable(url, error) from error

    def _heed(self, response: httpx.Response) -> None:
        """Leave the host alone when it asks for it."""
        if response.status_code != 429 and response.status_code < 500:
            return
        seconds = parse_retry_after(response.headers.get("retry-after"))
        if seconds is None and response.status_code == 429:
            seconds = PAUSE
        if seconds:
            self._pauses.ask(_host(response.request.url), seconds)

    @contextmanager
    def _line(self, url: httpx.URL) -> Iterator[Line]:
        ca_file = self._ca_files.get(url.netloc.decode())
        with self._lock:
            if ca_file not in self._contexts:
                self._contexts[ca_file] = trust(ca_file)
            idle = self._idle.setdefault((ca_file, _origin(url)), [])
            line = idle.pop() if idle else new_line(self._contexts[ca_file])
        line.begin()
        try:
            yield line
        except BaseException:
            line.client.close()  # httpcore never frees a tunnel whose TLS failed
            raise
        with self._lock:
            idle.append(line)


def origin(url: str) -> Origin:
    """Scheme, host and port."""
    return _origin(_address(url))


def with_query(url: str, query: Mapping[str, str]) -> str:
    """The URL with these parameters beside those that it has."""
    return str(_address(url).copy_merge_params(query))


def _address(url: str) -> httpx.URL:
    try:
        return httpx.URL(url)
    except httpx.InvalidURL as error:
        brief = f"{printable(url, 100)!r} is no URL"
        raise RemoteError(brief, code=Code.REGISTRY_INVALID, retryable=False) from error


def _target(response: httpx.Response) -> httpx.URL:
    """Where a redirect leads. Raises RemoteError where it must not."""
    here = response.request.url
    try:
        there = here.join(response.headers.get("location", ""))
    except httpx.InvalidURL:
        there = httpx.URL()
    web = there.scheme in ("http", "https") and there.host and not there.userinfo
    if not web or (here.scheme == "https" and there.scheme == "http"):
        brief = f"{_host(here)} redirects to where nothing is fetched from"
        raise RemoteError(brief, code=Code.REGISTRY_INVALID, retryable=False)
    return there


def _origin(url: httpx.URL) -> Origin:
    return url.scheme, url.host, url.port or {"http": 80}.get(url.scheme, 443)


def _host(url: httpx.URL) -> str:
    return printable(url.netloc, 100)


def _too_slow(host: str) -> RemoteError:
    return RemoteError(f"{host} sends nothing, or next to nothing")


def _unreachable(url: httpx.URL, error: httpx.HTTPError) -> RemoteError:
    causes: dict[type[httpx.HTTPError], str] = {
        httpx.ConnectTimeout: "no connection in time",
        httpx.ReadTimeout: "no answer in time",
    }
    cause = causes.get(type(error)) or printable(str(error)) or type(error).__name__
    hint, entry = "", f"in a [[registry]] entry for {_host(url)}"
    if "CERTIFICATE" in cause:
        hint = f"For a CA of your own, set `ca-file` {entry}."
    elif "WRONG_VERSION_NUMBER" in cause:  # what OpenSSL says of an answer in plain text
        hint = f"If it speaks http only, set `plain-http = true` {entry}."
    return RemoteError(f"{_host(url)} cannot be reached: {cause}", resolution=hint)
