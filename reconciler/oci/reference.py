"""Image references: what an operator writes in `ref`, checked and taken apart.

Pure. `config` derives names with it, `oci.source` decides with it where an image comes from.
Nothing that has not passed through here becomes part of a path or a URL. The grammar is that of the
OCI distribution specification ("Pulling manifests": name, reference) with docker's short forms.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from reconciler.errors import Code, ImageError
from reconciler.text import printable

DOCKER_HUB = "docker.io"
LOCAL_SCHEMES = ("oci", "oci-archive", "docker-archive")

HUB_ALIASES = (DOCKER_HUB, "index.docker.io", "registry-1.docker.io")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]{{2,45}}\])(?::[0-9]{{1,5}})?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_ARCHIVE_SUFFIX = re.compile(r"\.(tar|tgz|tar\.gz|tar\.zst|oci)$")
_MAX_TEXT = 4096
_MAX_REPOSITORY = 255


@dataclass(frozen=True, slots=True)
class Reference:
    """One parsed reference.

    scheme: "registry", "oci", "oci-archive" or "docker-archive".
    host, repository: of a registry (`host[:port]`, normalised); empty for local sources.
    tag: None when a digest alone, or for a local source nothing, was given.
    digest: wins over the tag.
    path: of a local source, as written; empty for a registry.
    """

    scheme: str
    host: str
    repository: str
    tag: str | None
    digest: str | None
    path: str
    text: str

    def __str__(self) -> str:
        """The canonical spelling: what two ways of writing the same reference have in common."""
        start = f"{self.scheme}:{self.path}" if self.path else f"{self.host}/{self.repository}"
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return start + tag + digest


@lru_cache(4096)
def parse_reference(text: str) -> Reference:
    """Take a reference apart. Raises ImageError (reference-invalid) that quotes the input.

    >>> str(parse_reference("debian:bookworm"))
    'docker.io/library/debian:bookworm'
    """
    if not text or len(text) > _MAX_TEXT or text != text.strip() or not text.isprintable():
        raise _invalid(text, "it is empty, too long, or has blanks around or control codes in it")
    scheme, colon, rest = text.partition(":")
    if colon and scheme in LOCAL_SCHEMES:
        return _parse_local(text, scheme, rest)
    return _parse_remote(text, text.removeprefix("docker://"))


def check_digest(text: str) -> str:
    """The digest itself when it is `sha256:<64 hex>` or `sha512:<128 hex>`, else ImageError.

    Every digest passes here before a path or a URL is made of it.
    """
    if not _DIGEST.fullmatch(text):
        raise ImageError(f"{printable(text, 80)!r} is no sha256 or sha512 digest")
    return text


def is_host(text: str) -> bool:
    """Whether this is `host[:port]`: a lower-case DNS name, an IPv4 or a bracketed IPv6 address."""
    port = text.rpartition("]")[2].partition(":")[2]
    return bool(_HOST.fullmatch(text)) and (not port or 0 < int(port) < 65536)


def is_name(text: str) -> bool:
    """Whether an image can be called so: it becomes a path."""
    return bool(_NAME.fullmatch(text))


def default_name(ref: Reference) -> str:
    """The image name that an entry without `name` gets: last component, and tag.

    A digest never becomes part of the name: the name is what stays when the digest is moved.

    >>> default_name(parse_reference("docker.io/library/debian:bookworm"))
    'debian-bookworm'
    """
    base = (ref.repository or _ARCHIVE_SUFFIX.sub("", ref.path.rstrip("/"))).rpartition("/")[2]
    wanted = f"{base}-{ref.tag}" if ref.tag else base
    name = re.sub(r"[^a-z0-9._-]+", "-", wanted.lower()).strip("-._")
    if not is_name(name):
        raise ImageError(
            f"no image name can be derived from {printable(ref.text)!r}",
            code=Code.REFERENCE_INVALID,
            resolution="Set `name` in the [[image]] entry.",
        )
    return name


def _parse_local(text: str, scheme: str, rest: str) -> Reference:
    """`oci:DIR[:TAG][@DIGEST]`: as in skopeo, the path ends at its first colon."""
    start, _, digest = rest.rpartition("@")
    if not _DIGEST.fullmatch(digest):
        start, digest = rest, ""  # a path may hold an @ of its own
    path, colon, tag = start.partition(":")
    if not path:
        raise _invalid(text, f"{scheme}: needs a path")
    if colon and not tag:
        raise _invalid(text, "the tag after the last colon is empty")
    return Reference(scheme, "", "", tag or None, digest or None, path, text)


def _parse_remote(text: str, rest: str) -> Reference:
    if "://" in rest:
        raise _invalid(text, "a reference has no URL scheme; write host/repository:tag")
    rest, digest = _split_digest(text, rest)
    host, repository = _split_host(rest)
    repository, colon, tag = repository.partition(":")
    if not is_host(host):
        raise _invalid(text, f"{printable(host, 80)!r} is no registry host")
    if not _REPOSITORY.fullmatch(repository) or len(repository) > _MAX_REPOSITORY:
        raise _invalid(text, f"{printable(repository, 80)!r} is no repository name in lower case")
    if colon and not _TAG.fullmatch(tag):
        raise _invalid(text, f"{printable(tag, 80)!r} is no tag")
    if not colon and digest is None:
        tag = "latest"
    return Reference("registry", host, repository, tag or None, digest, "", text)


def _split_digest(text: str, rest: str) -> tuple[str, str | None]:
    start, at, digest = rest.rpartition("@")
    if not at:
        return rest, None
    if not _DIGEST.fullmatch(digest):
        raise _invalid(text, f"{printable(digest, 80)!r} is no sha256 or sha512 digest")
    return start, digest


def _split_host(rest: str) -> tuple[str, str]:
    """The first component is a host when it looks like one; everything else is on Docker Hub."""
    first, slash, repository = rest.partition("/")
    if not slash or not (first == "localhost" or "." in first or ":" in first):
        host, repository = DOCKER_HUB, rest
    else:
        host = first.lower()
    if host not in HUB_ALIASES:
        return host, repository
    return DOCKER_HUB, repository if "/" in repository else f"library/{repository}"


def _invalid(text: str, why: str) -> ImageError:
    return ImageError(
        f"reference {printable(text)!r} is invalid: {why}", code=Code.REFERENCE_INVALID
    )
