"""Where images come from: one front for registries, mirrors, layouts and archives.

`stages.resolve` pins an image with it, `stages.pull` fetches blobs, `stages.kernel` downloads
files. Everything lands in the blob cache, verified by size and digest, before anybody reads it;
after that nobody needs to know what kind of source it was.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from reconciler.errors import BangerError, Code, ImageError, RemoteError
from reconciler.model import Descriptor, Emit, ImageSpec, PinnedImage, RegistryConfig
from reconciler.oci.blobs import BlobCache, Claim
from reconciler.oci.documents import (
    CONFIG_TYPES,
    Index,
    Manifest,
    choose,
    parse_config,
    parse_document,
    pin,
)
from reconciler.oci.limits import DEFAULTS, Limits, exceeded
from reconciler.oci.local import LocalImages, LocalSource
from reconciler.oci.memory import Memory
from reconciler.oci.reference import Reference, parse_reference
from reconciler.text import printable

if TYPE_CHECKING:
    from reconciler.oci.auth import Ask
    from reconciler.oci.remote import Remote
    from reconciler.oci.repository import Progress, Repository

MAX_NESTING = 4
"""Indexes within indexes."""
TIMEOUT = 1800.0


class Sources:
    """All sources of a configuration; safe to share between threads, closes connections on exit.

    offline: no request leaves. frozen: nobody is asked for manifests, only for layers. read_only:
    what tags stand for is not remembered. ask: runs credential helpers, see `oci.auth.Ask`.
    limits: what documents and archives may ask for. timeout: seconds for one blob, as `timeout`
    of [reconcile] is for one image.
    """

    def __init__(
        self,
        registries: tuple[RegistryConfig, ...],
        blobs: BlobCache,
        emit: Emit,
        *,
        offline: bool = False,
        frozen: bool = False,
        read_only: bool = False,
        ask: Ask | None = None,
        limits: Limits = DEFAULTS,
        timeout: float = TIMEOUT,
    ) -> None:
        self.blobs = blobs
        self._offline = offline
        self._frozen = frozen
        self._read_only = read_only
        self._limits = limits
        self._local = LocalImages(limits)
        self._memory = Memory(blobs.memory)
        self._lock = threading.Lock()
        self._remote: Remote | None = None
        self._turns: dict[str, threading.Lock] = {}
        self._tops: dict[str, Descriptor] = {}

        def connect() -> Remote:
            from reconciler.oci.remote import Remote  # and with it the HTTP client

            return Remote(registries, emit, ask, limits, timeout)

        self._connect = connect

    def __enter__(self) -> Sources:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remember()
        if self._remote:
            self._remote.close()

    def remember(self) -> None:
        """Keep what was resolved so far for the passes to come."""
        if not self._read_only:
            self._memory.save()

    def resolve(self, spec: ImageSpec) -> PinnedImage:
        """Pin an image: its manifest and config land in the blob cache.

        A digest whose documents are cached, `pull = "never"` and offline make no request.
        Raises ImageError, RemoteError, HostError.
        """
        ref = parse_reference(spec.ref)
        top = self._top(ref, spec)
        pinned = self._memory.pinned(top, spec.platform)
        if pinned is None:
            pinned = self._pin(ref, spec, top)
            self._memory.keep(top, pinned)
        if not (ref.path or ref.digest or spec.lock):
            self._memory.keep_tag(str(ref), top)
        return pinned

    def is_at_hand(self, spec: ImageSpec) -> bool:
        """Whether `resolve` need not wait for a registry: a local image, or a digest that is known.

        Raises nothing: an invalid reference is at hand, and its error with it.
        """
        try:
            ref = parse_reference(spec.ref)
        except ImageError:
            return True
        digest = spec.lock.digest if spec.lock else ref.digest
        return bool(ref.path or (digest and self._known(replace(ref, digest=digest))))

    def fetch(self, spec: ImageSpec, descriptor: Descriptor, progress: Progress) -> Path:
        """Bring one blob into the cache; returns its path. Nothing is fetched when it is there.

        progress: called with the bytes there so far, also while waiting; it may raise to give up.
        Wrong bytes are deleted and fetched once more, from the origin itself.
        Raises RemoteError, ImageError, HostError.
        """
        ref = parse_reference(spec.ref)
        try:
            self._fill(ref, spec, descriptor, progress, origin_only=False)
        except ImageError as error:
            if error.code is not Code.DIGEST_MISMATCH or ref.path:
                raise
            try:
                self._fill(ref, spec, descriptor, progress, origin_only=True)
            except ImageError as again:
                raise _sent_wrong(ref.host, again) from again
        progress(descriptor.size)
        return self.blobs.path(descriptor.digest)

    def download(
        self, url: str, sha256: str, destination: Path, progress: Callable[[int], None]
    ) -> None:
        """Fetch a file by URL, verified, atomically. Raises RemoteError, HostError."""
        if self._offline:
            raise _forbidden(printable(url.partition("?")[0]), "--offline")
        self._connected().download(url, sha256, destination, progress)

    def documents(self, specs: Iterable[ImageSpec]) -> frozenset[str]:
        """Digests of the indexes or manifests that these references stood for last.

        For the collector: with them in the cache, the next resolve needs no download.
        """
        found = set()
        for spec in specs:
            ref = parse_reference(spec.ref)
            known = self._known(ref)
            if known:
                found.add(known.digest)
        return frozenset(found)

    def _connected(self) -> Remote:
        with self._lock:
            if self._remote is None:
                self._remote = self._connect()
            return self._remote

    def _top(self, ref: Reference, spec: ImageSpec) -> Descriptor:
        """The index or manifest that the reference stands for now, or that a lock file names."""
        if spec.lock:
            return self._locked(replace(ref, digest=spec.lock.digest), spec)
        if ref.path:
            entries = self._local.open(ref).entries(ref)
            return choose(entries, spec.platform, printable(ref.text)).descriptor
        known = self._known(ref)
        if known and (ref.digest or self._offline or spec.pull == "never"):
            return known
        self._demand_documents(spec, f"the manifest of {printable(ref.text)}")
        return self._asked(ref, None if spec.pull == "always" else known)

    def _asked(self, ref: Reference, known: Descriptor | None) -> Descriptor:
        """Ask a registry, once a pass: all images of a reference get what it stood for then."""
        name = str(ref)
        with self._lock:
            turn = self._turns.setdefault(name, threading.Lock())
        with turn:
            if name not in self._tops:
                self._tops[name] = self._connected().ask(ref, partial(self._ask, ref, known))
            return self._tops[name]

    def _pin(self, ref: Reference, spec: ImageSpec, top: Descriptor) -> PinnedImage:
        manifest, body = self._manifest(ref, spec, top)
        config = self._document(ref, spec, body.config)
        parsed = parse_config(config, f"{printable(ref.text)}: its config")
        return pin(manifest, body, parsed, spec.platform)

    def _locked(self, ref: Reference, spec: ImageSpec) -> Descriptor:
        """The manifest of a digest; of a local source, also when no tag leads there any more."""
        known = self._known(ref)
        if known:
            return known
        self._demand_documents(spec, f"{ref.digest} of {printable(ref.text)}")
        try:
            if not ref.path:
                return self._connected().ask(ref, partial(self._ask, ref, None))
            return self._read_locked(ref)
        except BangerError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            raise _gone(spec, error) from error

    def _read_locked(self, ref: Reference) -> Descriptor:
        digest, raw = str(ref.digest), b""
        for chunk in self._local.open(ref).chunks(Descriptor("", digest, 0)):
            raw += chunk
            if len(raw) > self._limits.document_bytes:
                limit = self._limits.document_bytes
                raise exceeded("document_bytes", limit, f"{printable(ref.text)}: {digest}")
        found = Descriptor("", digest, len(raw))
        self.blobs.ingest(found, iter([raw]))
        return found

    def _known(self, ref: Reference) -> Descriptor | None:
        found = self.blobs.known(ref.digest) if ref.digest else self._memory.tag(str(ref))
        return found if found and self.blobs.has(found) else None

    def _ask(self, ref: Reference, known: Descriptor | None, at: Repository) -> Descriptor:
        if known and ref.tag and at.digest(ref.tag) == known.digest:
            return known
        raw, media_type = at.manifest(ref.digest or ref.tag or "latest")
        if not ref.digest:
            return self.blobs.add(raw, media_type)
        return self._keep(at, Descriptor(media_type, ref.digest, len(raw)), raw)

    def _manifest(
        self, ref: Reference, spec: ImageSpec, top: Descriptor
    ) -> tuple[Descriptor, Manifest]:
        """Down from the top through indexes to the manifest for the platform."""
        what = printable(ref.text)
        for _ in range(MAX_NESTING):
            raw = self._document(ref, spec, top)
            body = parse_document(raw, top.media_type, what, self._limits)
            if not isinstance(body, Index):
                return top, body
            top = choose(body.entries, spec.platform, what).descriptor
        raise ImageError(f"{what} has indexes nested deeper than {MAX_NESTING}")

    def _document(self, ref: Reference, spec: ImageSpec, descriptor: Descriptor) -> bytes:
        """A small document, out of the cache when it is intact there."""
        limit = self._limits.document_bytes
        if descriptor.size > limit:
            what = f"{printable(ref.text)}: {descriptor.digest}"
            raise exceeded("document_bytes", limit, what)
        if self.blobs.has(descriptor):
            # a damaged one is out of the way after this, and fetched again
            with suppress(ImageError):
                return self.blobs.read(descriptor, limit)
        if ref.path:
            self.blobs.ingest(descriptor, self._local.open(ref).chunks(descriptor))
        else:
            self._demand_documents(spec, f"{descriptor.digest} of {printable(ref.text)}")
            self._connected().ask(ref, partial(self._get_document, descriptor))
        return self.blobs.read(descriptor, limit)

    def _get_document(self, descriptor: Descriptor, at: Repository) -> Descriptor:
        if descriptor.media_type in CONFIG_TYPES:
            return self._keep(at, descriptor, at.document(descriptor))
        return self._keep(at, descriptor, at.manifest(descriptor.digest)[0])

    def _keep(self, at: Repository, descriptor: Descriptor, raw: bytes) -> Descriptor:
        try:
            self.blobs.ingest(descriptor, iter([raw]))
        except ImageError as error:
            raise _sent_wrong(at.registry.host, error) from error
        return descriptor

    def _fill(
        self,
        ref: Reference,
        spec: ImageSpec,
        descriptor: Descriptor,
        progress: Progress,
        *,
        origin_only: bool,
    ) -> None:
        with self.blobs.claim(descriptor, lambda: progress(0)) as claim:
            if claim is None:
                return
            if ref.path:
                _copy(self._local.open(ref), claim, progress)
                return
            self._demand_online(spec, f"{descriptor.digest} of {printable(ref.text)}")
            self._connected().ask(ref, lambda at: at.blob(claim, progress), origin_only=origin_only)

    def _demand_documents(self, spec: ImageSpec, what: str) -> None:
        if self._frozen:
            raise _forbidden(what, "--frozen")
        self._demand_online(spec, what)

    def _demand_online(self, spec: ImageSpec, what: str) -> None:
        if self._offline:
            raise _forbidden(what, "--offline")
        if spec.pull == "never":
            raise _forbidden(what, 'pull = "never"')


def _copy(local: LocalSource, claim: Claim, progress: Progress) -> None:
    claim.restart()
    for chunk in local.chunks(claim.descriptor):
        claim.write(chunk)
        progress(claim.offset)


def _sent_wrong(host: str, error: BangerError) -> RemoteError:
    return RemoteError(f"{host} sent wrong bytes: {error.brief}", code=Code.DIGEST_MISMATCH)


def _gone(spec: ImageSpec, error: BangerError) -> ImageError:
    return ImageError(
        f"the digest that {spec.name} is locked to is gone: {error.brief}",
        code=Code.NOT_FOUND,
        resolution=f"Run `banger-reconcile lock CONFIG --upgrade {spec.name}`.",
    )


def _forbidden(what: str, by: str) -> RemoteError:
    return RemoteError(
        f"{what} is not in the cache, and {by} forbids to ask for it",
        code=Code.OFFLINE,
        retryable=False,
        resolution="Run once without it.",
    )
