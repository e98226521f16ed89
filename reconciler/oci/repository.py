"""One repository on one registry: manifests by tag or digest, blobs that continue where they broke.

The protocol of the OCI distribution specification ("Pull"), without HTTP's details. `oci.source`
has one of these for the origin and for each mirror of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from reconciler.errors import BangerError, Code, RemoteError
from reconciler.model import Descriptor
from reconciler.oci.blobs import Claim
from reconciler.oci.documents import ACCEPT
from reconciler.oci.limits import Limits
from reconciler.oci.reference import check_digest
from reconciler.oci.registry import Registry
from reconciler.oci.retry import Note, retrying
from reconciler.oci.web import Body

Progress = Callable[[int], None]
"""Called with the bytes there so far, also while waiting; it may raise to give up."""


@dataclass(frozen=True, slots=True)
class Repository:
    """`name` on `registry`; `note` hears of every attempt that failed and is repeated."""

    registry: Registry
    name: str
    note: Note
    limits: Limits
    timeout: float
    """Seconds for one blob, all attempts together."""

    def manifest(self, reference: str) -> tuple[bytes, str]:
        """The bytes of a manifest or index by tag or digest, not verified, and their media type."""
        return retrying(self.note, _nothing, _zero)(self._manifest, reference)

    def digest(self, tag: str) -> str | None:
        """The digest that the registry says a tag has; None when it does not say.

        Asks with HEAD, which registries that count pulls do not count.
        """
        return retrying(self.note, _nothing, _zero)(self._digest, tag)

    def document(self, descriptor: Descriptor) -> bytes:
        """A config, not verified."""
        return retrying(self.note, _nothing, _zero)(self._document, descriptor)

    def blob(self, claim: Claim, progress: Progress) -> None:
        """Fill the claim. Attempts that bring bytes are not counted, but the time is."""
        end = time.monotonic() + self.timeout

        def going_on(done: int) -> None:
            progress(done)
            if time.monotonic() > end:
                raise self._out_of_time(claim)

        def waiting() -> None:
            going_on(claim.offset)

        attempt = retrying(self.note, waiting, lambda: claim.offset, self.timeout)
        attempt(self._blob, claim, going_on)

    def _out_of_time(self, claim: Claim) -> RemoteError:
        digest, size = claim.descriptor.digest, claim.descriptor.size
        came = f"{claim.offset} of {size} bytes came in {self.timeout:g} s"
        return RemoteError(
            f"{self._called(digest)}: {came}",
            resolution="Try again: what came stays. Or raise `timeout` of [reconcile].",
        )

    def _manifest(self, reference: str) -> tuple[bytes, str]:
        with self.registry.request(self.name, f"manifests/{reference}", {"Accept": ACCEPT}) as body:
            missing = "no such manifest" if ":" in reference else "no such tag"
            body.check(self._called(reference), missing=missing)
            media_type = body.headers.get("content-type", "")
            if "html" in media_type:
                brief = f"{self._called(reference)}: {body.host} answers with a web page"
                raise RemoteError(brief, code=Code.REGISTRY_INVALID)
            return body.small(self.limits.document_bytes, "document_bytes"), media_type

    def _digest(self, tag: str) -> str | None:
        with self.registry.request(
            self.name, f"manifests/{tag}", {"Accept": ACCEPT}, "HEAD"
        ) as body:
            if body.status != 200:
                return None
            try:
                return check_digest(body.headers.get("docker-content-digest", ""))
            except BangerError:
                return None

    def _document(self, descriptor: Descriptor) -> bytes:
        with self.registry.request(
            self.name, f"blobs/{check_digest(descriptor.digest)}", {}
        ) as body:
            body.check(self._called(descriptor.digest), missing="no such blob")
            return body.small(self.limits.document_bytes, "document_bytes")

    def _blob(self, claim: Claim, progress: Progress) -> None:
        size = claim.descriptor.size
        if claim.offset == size:
            return
        ranged = {"Range": f"bytes={claim.offset}-"} if claim.offset else {}
        with self.registry.request(
            self.name, f"blobs/{check_digest(claim.descriptor.digest)}", ranged
        ) as body:
            if body.status == 416:
                claim.restart()
                raise RemoteError(f"{body.host} cannot continue {claim.descriptor.digest}")
            called = self._called(claim.descriptor.digest)
            body.check(called, missing="no such blob", fine=frozenset({200, 206}))
            if claim.offset and not _continues(body, claim):
                claim.restart()
            for chunk in body.chunks():
                claim.write(chunk)
                progress(claim.offset)
        if claim.offset < size:
            brief = f"{body.host} sent {claim.offset} of {size} bytes"
            raise RemoteError(f"{self._called(claim.descriptor.digest)}: {brief}")

    def _called(self, reference: str) -> str:
        mark = "@" if ":" in reference else ":"
        return f"{self.registry.host}/{self.name}{mark}{reference}"


def _continues(body: Body, claim: Claim) -> bool:
    """Whether this is the part that was asked for (RFC 9110, 14.4), not the whole or another."""
    wanted = f"bytes {claim.offset}-{claim.descriptor.size - 1}/"
    return body.status == 206 and body.headers.get("content-range", "").startswith(wanted)


def _nothing() -> None:
    """Documents are small: nobody waits for their progress."""


def _zero() -> int:
    return 0
