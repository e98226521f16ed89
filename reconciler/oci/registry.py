"""The login at one registry host: challenges answered, tokens kept while they last.

`Registry` adds the Authorization that a host asks for to the requests of `oci.web` (distribution
specification, "Pull"; its token protocol is that of the distribution project).
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from reconciler.errors import Code, RemoteError
from reconciler.model import RegistryConfig
from reconciler.oci.auth import Credential, Keyring
from reconciler.oci.challenge import Challenge, may_get_credentials, parse_token
from reconciler.oci.reference import DOCKER_HUB
from reconciler.oci.refusals import LOGIN_HINT
from reconciler.oci.web import Body, Web, origin, with_query

_HUB_API = "registry-1.docker.io"
_TOKEN_DOCUMENT_LIMIT = 1 << 20
_SOON_STALE = 10.0


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
                foreign = body.origin != origin(self.url)
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
        url = with_query(realm, query)
        headers = {"Authorization": _basic(credential)} if credential else {}
        with self._web.request(url, headers) as body:
            yield body


def _basic(credential: Credential) -> str:
    pair = f"{credential.username}:{credential.password}"
    return "Basic " + base64.b64encode(pair.encode()).decode()
