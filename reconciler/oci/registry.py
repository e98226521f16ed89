"""HTTP as registries need it: TLS per host, redirects that leak nothing, logins, errors as words.

The only module that knows httpx. `Web` is one GET with everything that can go wrong told as a
RemoteError; `Registry` adds the login of one host (distribution specification, "Pull"). What is
fetched is decided in `oci.repository` and `oci.download`.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path

import httpx

from reconciler import __version__
from reconciler.errors import Code, HostError, RemoteError
from reconciler.model import RegistryConfig, printable
from reconciler.oci.auth import Credential, Keyring
from reconciler.oci.challenge import (
    Challenge,
    may_get_credentials,
    parse_challenges,
    parse_token,
)
from reconciler.oci.limits import exceeded
from reconciler.oci.reference import DOCKER_HUB
from reconciler.oci.refusals import LOGIN_HINT, refusal

MAX_REDIRECTS = 10
DOCUMENT_SECONDS = 60.0
MIN_BYTES, MIN_BYTES_SECONDS = 64 << 10, 60.0
"""A transfer that brings less than this in that time has stalled."""

_HUB_API = "registry-1.docker.io"
_ERROR_LIMIT, _ERROR_SECONDS = 8 << 10, 10.0
_TOKEN_DOCUMENT_LIMIT = 1 << 20
_TIMEOUT = httpx.Timeout(30.0, connect=10.0)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SOON_STALE = 10.0


class Body:
    """A response whose bytes are read with limits; `status` and `headers` are there at once."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
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
        end, parts, size = time.monotonic() + DOCUMENT_SECONDS, [], 0
        for chunk in self._response.iter_raw():
            parts.append(chunk)
            size += len(chunk)
            if size > limit:
                raise self._too_long(limit, field)
            if time.monotonic() > end:
                raise RemoteError(f"{self.host} took over {DOCUMENT_SECONDS:.0f} s for a document")
        return b"".join(parts)

    def _too_long(self, limit: int, field: str) -> RemoteError:
        brief, resolution = f"{self.host} sent a document of over {limit} bytes", ""
        if field:
            error = exceeded(field, limit, f"{self.host} sent a document")
            brief, resolution = error.brief, error.resolution
        return RemoteError(brief, code=Code.LIMIT_EXCEEDED, retryable=False, resolution=resolution)

    def chunks(self) -> Iterator[bytes]:
        """All of it in pieces. Raises RemoteError when it trickles."""
        since, size = time.monotonic(), 0
        for chunk in self._response.iter_raw():
            yield chunk
            size += len(chunk)
            if time.monotonic() - since > MIN_BYTES_SECONDS:
                if size < MIN_BYTES:
                    raise RemoteError(f"{self.host} has sent {size} bytes in a minute")
                since, size = time.monotonic(), 0

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
        end, words = time.monotonic() + _ERROR_SECONDS, b""
        with suppress(httpx.HTTPError):
            for chunk in self._response.iter_raw():
                words += chunk
                if len(words) > _ERROR_LIMIT or time.monotonic() > end:
                    break
        return words[:_ERROR_LIMIT]


class Web:
    """HTTP clients: one for everybody, and one for each CA that a `[[registry]]` entry brings."""

    def __init__(self, registries: tuple[RegistryConfig, ...]) -> None:
        self._ca_files = {entry.host: entry.ca_file for entry in registries}
        self._clients: dict[Path | None, httpx.Client] = {}
        self._lock = threading.Lock()
        for name in ("httpx", "httpcore"):
            # they log whole URLs, and those of a redirect may be signed
            logging.getLogger(name).setLevel(logging.WARNING)

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()

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
            with self._one(method, address, sent, form) as response:
                if response.status_code not in _REDIRECTS or form is not None:
                    yield Body(response)
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
    ) -> Iterator[httpx.Response]:
        try:
            with self._client(url).stream(method, url, headers=headers, data=form) as response:
                yield response
        except httpx.HTTPError as error:
            raise _unreachable(url, error) from error

    def _client(self, url: httpx.URL) -> httpx.Client:
        ca_file = self._ca_files.get(url.netloc.decode())
        with self._lock:
            if ca_file not in self._clients:
                self._clients[ca_file] = _new_client(ca_file)
            return self._clients[ca_file]


class Registry:
    """One registry host: adds the Authorization that it asks for.

    host: as in references; prefix: path of a mirror below `/v2/`, empty or ending in a slash.
    """

    def __init__(
        self, host: str, web: Web, keyring: Keyring, registries: tuple[RegistryConfig, ...]
    ) -> None:
        self.host = host
        self._trusted = frozenset(entry.host for entry in registries)
        self._plain = frozenset(entry.host for entry in registries if entry.plain_http)
        scheme = "http" if host in self._plain else "https"
        self.url = f"{scheme}://{_HUB_API if host == DOCKER_HUB else host}"
        self._web = web
        self._keyring = keyring
        self._lock = threading.Lock()
        self._authorizations: dict[str, tuple[str, float]] = {}

    @contextmanager
    def request(
        self, repository: str, path: str, headers: Mapping[str, str], method: str = "GET"
    ) -> Iterator[Body]:
        """`/v2/<repository>/<path>`, logged in when the registry wants it: one refresh, no more."""
        url = f"{self.url}/v2/{repository}/{path}"
        for again in (False, True):
            used = self._authorization(repository)
            sent = {**headers, "Authorization": used} if used else headers
            with self._web.request(url, sent, method=method) as body:
                foreign = body.origin != _origin(httpx.URL(self.url))
                if body.status != 401 or again or foreign:
                    yield body
                    return
                challenges = body.challenges()
            self._log_in(repository, challenges, used)

    def _authorization(self, repository: str) -> str:
        text, end = self._authorizations.get(repository, ("", 0.0))
        return text if time.monotonic() < end else ""

    def _log_in(self, repository: str, challenges: tuple[Challenge, ...], used: str) -> None:
        """Get an Authorization, once for all threads that found out that they need one."""
        with self._lock:
            if self._authorization(repository) not in ("", used):
                return
            credential = self._keyring.find(self.host, repository)
            by_scheme = {challenge.scheme: challenge for challenge in reversed(challenges)}
            if "bearer" in by_scheme:
                fresh = self._bearer(repository, by_scheme["bearer"], credential)
            elif "basic" in by_scheme and credential and not credential.identity_token:
                fresh = (_basic(credential), float("inf"))
            else:
                raise RemoteError(
                    f"registry {self.host} wants a login for {repository}",
                    code=Code.UNAUTHORIZED,
                    retryable=False,
                    resolution=LOGIN_HINT.format(host=self.host),
                )
            self._authorizations[repository] = fresh

    def _bearer(
        self, repository: str, challenge: Challenge, credential: Credential | None
    ) -> tuple[str, float]:
        """A token for pulling from one repository, and when (monotonic) to ask for the next."""
        realm = challenge.params.get("realm", "")
        if not may_get_credentials(realm, self.url, self._trusted, self._plain):
            credential = None
        query = {"scope": f"repository:{repository}:pull"}
        if service := challenge.params.get("service"):
            query["service"] = service
        what = f"token for {self.host}/{repository}"
        with self._ask_for_token(realm, query, credential) as body:
            body.check(what)
            token = parse_token(body.small(_TOKEN_DOCUMENT_LIMIT), what)
        return f"Bearer {token.text}", time.monotonic() + token.lifetime - _SOON_STALE

    @contextmanager
    def _ask_for_token(
        self, realm: str, query: Mapping[str, str], credential: Credential | None
    ) -> Iterator[Body]:
        if credential and credential.identity_token:
            form = {
                **query,
                "grant_type": "refresh_token",
                "client_id": "banger-reconcile",
                "refresh_token": credential.identity_token,
            }
            with self._web.request(realm, {}, method="POST", form=form) as body:
                yield body
            return
        url = str(httpx.URL(realm).copy_merge_params(query))
        headers = {"Authorization": _basic(credential)} if credential else {}
        with self._web.request(url, headers) as body:
            yield body


def _new_client(ca_file: Path | None) -> httpx.Client:
    context = httpx.create_ssl_context()
    context.load_default_certs()  # a CA that the administrator of the host installed counts too
    try:
        if ca_file:
            context.load_verify_locations(cafile=ca_file)
        jar = CookieJar(DefaultCookiePolicy(allowed_domains=[]))  # no cookie is kept or sent
        return httpx.Client(verify=context, timeout=_TIMEOUT, cookies=jar)
    except OSError as error:
        raise HostError(
            f"ca-file {ca_file} cannot be used: {error.strerror or 'no certificate in it'}",
            code=Code.CONFIG_INVALID,
            retryable=False,
        ) from error
    except (ValueError, httpx.InvalidURL) as error:
        raise HostError(
            "the proxy variables of the environment cannot be used",
            code=Code.CONFIG_INVALID,
            retryable=False,
        ) from error


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


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or {"http": 80}.get(url.scheme, 443)


def _host(url: httpx.URL) -> str:
    return printable(url.netloc, 100)


def _basic(credential: Credential) -> str:
    pair = f"{credential.username}:{credential.password}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _unreachable(url: httpx.URL, error: httpx.HTTPError) -> RemoteError:
    causes: dict[type[httpx.HTTPError], str] = {
        httpx.ConnectTimeout: "no connection in time",
        httpx.ReadTimeout: "no answer in time",
    }
    cause = causes.get(type(error)) or printable(str(error)) or type(error).__name__
    certificate = "CERTIFICATE" in cause
    hint = f"For a CA of your own, set `ca-file` in a [[registry]] entry for {_host(url)}."
    return RemoteError(
        f"{_host(url)} cannot be reached: {cause}", resolution=hint if certificate else ""
    )
