"""Plain downloads: the kernel files that a `[[kernel]]` entry names by URL and sha256."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from reconciler.errors import Code, RemoteError
from reconciler.files import host_errors, sync_directory
from reconciler.oci.retry import Note, retrying
from reconciler.oci.web import Web
from reconciler.text import printable

DOWNLOAD_LIMIT = 4 << 30
"""Bytes: no kernel, initrd or modules archive comes near."""


def download(
    web: Web,
    url: str,
    sha256: str,
    destination: Path,
    *,
    progress: Callable[[int], None],
    note: Note,
) -> None:
    """Fetch `url` to `destination`, which appears whole and verified or not at all.

    sha256: 64 hex digits. progress: called with the bytes there so far; may raise to give up.
    Raises RemoteError (digest-mismatch among them) and HostError.
    """
    if not url.startswith(("https://", "http://")):
        brief = f"{printable(url, 100)!r} is no http or https URL"
        raise RemoteError(brief, code=Code.REGISTRY_INVALID, retryable=False)
    name = printable(url.partition("?")[0], 100)

    def once() -> None:
        with _appearing(destination) as handle:
            if _fetch(web, url, name, handle, progress) != sha256.lower():
                brief = f"{name} has other bytes than its sha256 says"
                raise RemoteError(brief, code=Code.DIGEST_MISMATCH, retryable=False)

    with host_errors(f"download to {destination}"):
        retrying(note, lambda: progress(0), lambda: 0)(once)


def _fetch(web: Web, url: str, name: str, handle: BinaryIO, progress: Callable[[int], None]) -> str:
    """Returns the sha256 of what came, in hex digits."""
    digest, size = hashlib.sha256(), 0
    with web.request(url, {}) as body:
        body.check(name)
        for chunk in body.chunks():
            handle.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            progress(size)
            if size > DOWNLOAD_LIMIT:
                brief = f"{name} is larger than {DOWNLOAD_LIMIT} bytes"
                raise RemoteError(brief, code=Code.LIMIT_EXCEEDED, retryable=False)
    return digest.hexdigest()


@contextmanager
def _appearing(destination: Path) -> Iterator[BinaryIO]:
    """A temporary file that becomes `destination` when the body ends well, and goes when not."""
    number, name = tempfile.mkstemp(dir=destination.parent, prefix=f".{destination.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(number, "w+b") as handle:
            yield handle
            os.fchmod(handle.fileno(), 0o644)
            os.fsync(handle.fileno())
        temporary.rename(destination)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(destination.parent)
