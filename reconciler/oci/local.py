"""Images of this host's file system: layouts, and archives that are indexed once while they last.

`oci.source` asks here for every reference with a path.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from reconciler.model import Descriptor, Fingerprint
from reconciler.oci.documents import Entry
from reconciler.oci.layout import Directory, Layout
from reconciler.oci.limits import Limits
from reconciler.oci.reference import Reference


class LocalSource(Protocol):
    """One layout or archive."""

    def entries(self, ref: Reference) -> tuple[Entry, ...]:
        """What the reference can mean: one entry, or one for each platform. Raises ImageError."""

    def chunks(self, descriptor: Descriptor) -> Iterator[bytes]:
        """The bytes of one blob, not verified. Raises ImageError when it is not there."""


class LocalImages:
    """All local sources of a pass, each index read once. Safe to share between threads."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[Fingerprint, LocalSource]] = {}

    def open(self, ref: Reference) -> LocalSource:
        """The source that a reference with a path names. Raises ImageError, HostError."""
        seen = _fingerprint(f"{ref.path}/index.json" if ref.scheme == "oci" else ref.path)
        with self._lock:
            known = self._known.get((ref.scheme, ref.path))
            if known and known[0] == seen:
                return known[1]
            source = self._index(ref)
            self._known[ref.scheme, ref.path] = (seen, source)
            return source

    def _index(self, ref: Reference) -> LocalSource:
        if ref.scheme == "oci":
            return Layout(Directory(Path(ref.path)), ref.scheme, self._limits)
        from reconciler.oci.archive import Archive  # the reader of tars: only where one is named

        archive = Archive(Path(ref.path), self._limits)
        if ref.scheme == "oci-archive":
            return Layout(archive, ref.scheme, self._limits)
        from reconciler.oci.saved import SavedImages

        return SavedImages(archive, self._limits)


def _fingerprint(path: str) -> Fingerprint:
    try:
        found = os.stat(path)  # noqa: PTH116 - asked for each of a thousand images
    except OSError:
        return (0, 0, 0)  # whoever opens it says what is wrong
    return (found.st_size, found.st_mtime_ns, found.st_ino)
