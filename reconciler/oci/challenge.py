"""WWW-Authenticate and token answers: what a registry asks for, and where credentials may go.

Pure. `oci.registry` carries out what is decided here. The header is that of RFC 9110 section 11;
the bearer dance is that of the distribution project ("Token Authentication Specification").
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from reconciler.errors import Code, ImageError, RemoteError
from reconciler.oci.documents import parse_json
from reconciler.text import printable

TOKEN_LIMIT = 64 << 10
"""Bytes of a token: no server accepts headers of that length."""
DEFAULT_LIFETIME = 60
"""Seconds, when the answer does not say ("expires_in")."""
_MAX_LIFETIME = 24 * 3600

_HEADER_LIMIT = 8 << 10
_PART = re.compile(r"[\s,]*([\w!#$%&'*+.^`|~-]+)(?:\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"]*)))?")
_NUMERIC_LABEL = re.compile(r"(?:[0-9]+|0x[0-9a-f]*)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge: scheme and names of parameters in lower case."""

    scheme: str
    params: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token and the seconds it may be used."""

    text: str = field(repr=False)
    lifetime: float


def parse_challenges(headers: list[str]) -> tuple[Challenge, ...]:
    """All challenges of all headers, as far as they can be understood; the rest is left out."""
    found: list[tuple[str, dict[str, str]]] = []
    for header in headers:
        text, position = header[:_HEADER_LIMIT], 0
        while match := _PART.match(text, position):
            position = match.end()
            name, quoted, plain = match.groups()
            if quoted is None and plain is None:
                found.append((name.lower(), {}))
            elif found:
                value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
                found[-1][1].setdefault(name.lower(), value)
    return tuple(Challenge(scheme, params) for scheme, params in found)


def may_get_credentials(
    realm: str, registry_url: str, trusted: frozenset[str], plain: frozenset[str]
) -> bool:
    """Whether the token server at `realm` may see the credentials of the registry.

    trusted: hosts (`host[:port]`) that the configuration names; plain: those with `plain-http`.
    Yes for a host of the registry's own domain and for a trusted one; others are asked without
    credentials. Raises RemoteError when the realm must not be asked at all: http where the registry
    itself is not, and addresses of private networks that nobody configured.
    """
    try:
        url, registry = urlsplit(realm), urlsplit(registry_url)
        host, own, _ = url.hostname or "", registry.hostname or "", url.port
    except ValueError:
        raise _refused(realm, "is no URL") from None
    if url.scheme not in ("http", "https") or not host or "@" in url.netloc or url.fragment:
        raise _refused(realm, "is no plain http or https URL")
    known = url.netloc in trusted or host == own
    if url.scheme == "http" and not (
        url.netloc in plain or (host == own and registry.scheme == "http")
    ):
        raise _refused(realm, "would send credentials over http")
    if not known and is_private(host):
        raise _refused(realm, "lies in a private network")
    return known or _same_domain(host, own)


def parse_token(raw: bytes, what: str) -> Token:
    """The answer of a token server. Raises RemoteError; never quotes the token."""
    try:
        body = parse_json(raw, what)
    except ImageError as error:
        raise RemoteError(error.brief, code=Code.REGISTRY_INVALID) from None
    body = body if isinstance(body, dict) else {}
    text = body.get("token") or body.get("access_token")
    if not isinstance(text, str) or not re.fullmatch(r"[\x21-\x7e]+", text):
        raise RemoteError(f"{what} holds no usable token", code=Code.REGISTRY_INVALID)
    if len(text) > TOKEN_LIMIT:
        brief = f"{what} holds a token of over {TOKEN_LIMIT} bytes"
        raise RemoteError(brief, code=Code.REGISTRY_INVALID, retryable=False)
    lifetime = body.get("expires_in")
    if not isinstance(lifetime, int) or lifetime < DEFAULT_LIFETIME:
        lifetime = DEFAULT_LIFETIME
    return Token(text, min(lifetime, _MAX_LIFETIME))


def is_private(host: str) -> bool:
    """Whether a host name is an address literal, in any spelling, that is not a public one."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        # 127.1 or 0x7f000001: resolvers read them as addresses
        return bool(_NUMERIC_LABEL.fullmatch(host.rstrip(".").rpartition(".")[2]))


def _same_domain(one: str, other: str) -> bool:
    """Equal but for the first label of either, with at least two labels in common."""
    return bool(_domains(one) & _domains(other))


def _domains(host: str) -> set[str]:
    parent = host.partition(".")[2]
    return {host, parent} if "." in parent else {host}


def _refused(realm: str, why: str) -> RemoteError:
    return RemoteError(
        f"the token server {printable(realm, 120)!r} {why}",
        code=Code.UNAUTHORIZED,
        retryable=False,
        resolution="If it is right, name its host in a [[registry]] entry.",
    )
