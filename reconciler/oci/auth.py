"""Credentials: what `docker login`, `podman login` and `skopeo login` left, found for one image.

Read only, and read anew for each look-up, so that a login takes effect at once. `oci.registry`
asks; no secret ever becomes part of a message or a repr. The formats are docker's config.json and
containers-auth.json(5).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reconciler.errors import BangerError, Code, HostError, ImageError
from reconciler.model import RegistryConfig
from reconciler.oci.documents import parse_json
from reconciler.oci.reference import DOCKER_HUB, HUB_ALIASES
from reconciler.text import printable

Ask = Callable[[str, str], str]
"""`ask(program, server)`: the output of `<program> get` with `server` on its standard input."""

_HUB_KEY = "https://index.docker.io/v1/"
_FILE_LIMIT = 1 << 20
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name with a password, or an identity token in the place of both."""

    username: str
    password: str = field(repr=False)
    identity_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class AuthFile:
    """A parsed auth file, its keys normalised to `host[/path]`.

    auths: None stands for an empty entry, the mark of a login that `store` keeps.
    """

    auths: Mapping[str, Credential | None]
    helpers: Mapping[str, str]
    store: str

    def match(self, host: str, repository: str) -> Credential | None:
        """The credential of the longest prefix of `host/repository` that has one."""
        prefix = f"{host}/{repository}"
        while prefix:
            if found := self.auths.get(prefix):
                return found
            prefix = prefix.rpartition("/")[0]
        return None

    def helper(self, host: str) -> str:
        """The program that may keep the credentials of this host, or nothing."""
        name = self.helpers.get(host, self.store)
        return f"docker-credential-{name}" if name else ""

    def left_to_helper(self, host: str) -> bool:
        """Whether somebody has logged in to this host and a helper has the secret."""
        return host in self.helpers or (host in self.auths and self.auths[host] is None)


class Keyring:
    """Where the credentials of a registry come from: its `[[registry]]` entry, else login files.

    ask: runs a credential helper; without one, what a helper keeps is an error that says so.
    """

    def __init__(
        self,
        registries: tuple[RegistryConfig, ...],
        environ: Mapping[str, str],
        ask: Ask | None = None,
    ) -> None:
        self._configured = {entry.host: entry for entry in registries}
        self._environ = environ
        self._ask = ask

    def find(self, host: str, repository: str) -> Credential | None:
        """The credential for one repository, or None. Raises HostError for an unusable file."""
        entry = self._configured.get(host)
        if entry and entry.username_file and entry.password_file:
            return Credential(_first_line(entry.username_file), _first_line(entry.password_file))
        if entry and entry.auth_file:
            return self._search(_read(entry.auth_file), host, repository)
        for path in auth_files(self._environ):
            if path.is_file():
                found = self._search(_read(path), host, repository)
                if found:
                    return found
        return None

    def _search(self, file: AuthFile, host: str, repository: str) -> Credential | None:
        helper = file.helper(host)
        found = file.match(host, repository)
        if not helper or (found and host not in file.helpers):
            return found
        if self._ask:
            return parse_helper_answer(self._ask(helper, _HUB_KEY if host == DOCKER_HUB else host))
        if file.left_to_helper(host):
            raise HostError(
                f"the credentials of {host} are kept by {helper}, which is not asked",
                code=Code.UNAUTHORIZED,
                retryable=False,
                resolution=f"Set `auth-file` in a [[registry]] entry for {host}.",
            )
        return None


def auth_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """The files to look into, in order: named by the environment, then podman's, then docker's."""
    if named := environ.get("REGISTRY_AUTH_FILE"):
        return (Path(named),)
    found = []
    home = environ.get("HOME")
    if docker := environ.get("DOCKER_CONFIG"):
        found.append(Path(docker, "config.json"))
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        found.append(Path(runtime, "containers/auth.json"))
    if config := environ.get("XDG_CONFIG_HOME") or (home and f"{home}/.config"):
        found.append(Path(config, "containers/auth.json"))
    if home and not docker:
        found.append(Path(home, ".docker/config.json"))
    return tuple(found)


def parse_auth_file(raw: bytes, what: str) -> AuthFile:
    """docker's and podman's format. Raises HostError that names the file and quotes no secret."""
    try:
        body = parse_json(raw, what)
    except ImageError as error:
        raise _unusable(error.brief) from None
    if not isinstance(body, dict):
        raise _unusable(f"{what} holds no JSON object")
    auths: dict[str, Credential | None] = {}
    for name, value in _object(body, "auths", what).items():
        place = _normalise(name)
        credential = _credential(value, f"{what}: auths.{printable(name, 80)}")
        auths[place] = auths.get(place) or credential
    helpers = {
        _normalise(name): value for name, value in _object(body, "credHelpers", what).items()
    }
    store = body.get("credsStore") or ""
    for name in (*helpers.values(), *([store] if store else [])):
        if not isinstance(name, str) or not _HELPER.fullmatch(name):
            raise _unusable(f"{what} names a credential helper that is no program name")
    return AuthFile(auths, helpers, store)


def parse_helper_answer(text: str) -> Credential | None:
    """What a credential helper prints; None when it has nothing. Raises HostError."""
    try:
        body = parse_json(text.encode(), "the credential helper's answer")
        user, secret = body["Username"], body["Secret"]
    except (ImageError, KeyError, TypeError):
        return None
    if not isinstance(user, str) or not isinstance(secret, str):
        return None
    return Credential("", "", secret) if user == "<token>" else Credential(user, secret)


def _credential(value: Any, what: str) -> Credential | None:
    """One value of `auths`: empty ones only say that a helper has it."""
    if not isinstance(value, dict):
        raise _unusable(f"{what} is no JSON object")
    token = value.get("identitytoken") or ""
    user, secret = value.get("username") or "", value.get("password") or ""
    if encoded := value.get("auth"):
        try:
            decoded = base64.b64decode(encoded, validate=True).decode()
        except (binascii.Error, TypeError, ValueError):
            raise _unusable(f"{what}: `auth` is not base64") from None
        user, _, secret = decoded.strip("\0").partition(":")
    if not all(isinstance(part, str) for part in (token, user, secret)):
        raise _unusable(f"{what} holds something else than text")
    return Credential(user, secret, token) if token or user else None


def _normalise(name: str) -> str:
    """`https://index.docker.io/v1/`, `http://host/v2/` and `host:5000/team` as `host[/path]`."""
    bare = name.removeprefix("https://").removeprefix("http://").strip("/")
    host, _, path = bare.partition("/")
    host = DOCKER_HUB if host.lower() in HUB_ALIASES else host.lower()
    return host if path in ("", "v1", "v2") else f"{host}/{path}"


def _object(body: dict[str, Any], name: str, what: str) -> dict[str, Any]:
    value = body.get(name) or {}
    if not isinstance(value, dict):
        raise _unusable(f"{what}: {name} is no JSON object")
    return value


def _read(path: Path) -> AuthFile:
    return parse_auth_file(_bytes(path), f"auth file {path}")


def _first_line(path: Path) -> str:
    try:
        return _bytes(path).decode().partition("\n")[0].rstrip("\r")
    except UnicodeDecodeError:
        raise _unusable(f"{path} is not UTF-8") from None


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as handle:
            raw = handle.read(_FILE_LIMIT + 1)
    except OSError as error:
        raise _unusable(f"{path} cannot be read: {error.strerror}") from error
    if len(raw) > _FILE_LIMIT:
        raise _unusable(f"{path} is larger than {_FILE_LIMIT} bytes")
    return raw


def _unusable(brief: str) -> BangerError:
    return HostError(brief, code=Code.UNAUTHORIZED, retryable=False)
