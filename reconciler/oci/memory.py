"""What references stood for, and what their documents said: one file, so that a pass over a
thousand images that finds nothing new reads that and not thousands.

Losing it costs requests and some parsing. It holds a checksum, and what it says of a digest was
read from verified documents; every layer is verified against it again. `oci.source` fills it.
"""

from __future__ import annotations

import hashlib
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from reconciler.errors import BangerError
from reconciler.files import write_durably
from reconciler.model import Descriptor, PinnedImage, Platform

_KEPT = 20_000
"""Entries of a kind: the oldest go first."""


@dataclass(frozen=True, slots=True)
class _Known:
    tags: dict[str, Descriptor] = field(default_factory=dict)
    pins: dict[str, PinnedImage] = field(default_factory=dict)


_document = TypeAdapter(_Known)


class Memory:
    """References (in canonical spelling) to descriptors, and those to pinned images.

    Read once, when it is first asked; `save` writes what is new. Safe to share between threads.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._known: _Known | None = None
        self._new = _Known()

    def tag(self, reference: str) -> Descriptor | None:
        """What the reference stood for when it was last asked for."""
        return self._read().tags.get(reference)

    def pinned(self, top: Descriptor, platform: Platform) -> PinnedImage | None:
        """The image that an index or manifest holds for a platform, if that was read before."""
        return self._read().pins.get(_key(top, platform))

    def keep(self, top: Descriptor, pinned: PinnedImage) -> None:
        """Remember the image that an index or manifest holds for the platform of `pinned`."""
        key = _key(top, pinned.platform)
        self._read().pins[key] = self._new.pins[key] = pinned

    def keep_tag(self, reference: str, top: Descriptor) -> None:
        """Remember what a reference stands for."""
        if self.tag(reference) != top:
            self._read().tags[reference] = self._new.tags[reference] = top

    def save(self) -> None:
        """Write what is new, beside what others wrote. A cache that cannot be written is no error.

        Two that save at one moment may lose the entries of one: they are found again.
        """
        with self._lock:
            new, self._new = self._new, _Known()
            if not (new.tags or new.pins):
                return
            there = self._load()
            known = _Known(
                dict([*(there.tags | new.tags).items()][-_KEPT:]),
                dict([*(there.pins | new.pins).items()][-_KEPT:]),
            )
            raw = _document.dump_json(known)
            with suppress(OSError, BangerError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_durably(self._path, _checksum(raw) + b"\n" + raw)

    def _read(self) -> _Known:
        if self._known is None:
            with self._lock:
                if self._known is None:
                    self._known = self._load()
        return self._known

    def _load(self) -> _Known:
        try:
            checksum, _, raw = self._path.read_bytes().partition(b"\n")
            if checksum == _checksum(raw):
                return _document.validate_json(raw)
        except (OSError, ValidationError):
            pass
        return _Known()


def _key(top: Descriptor, platform: Platform) -> str:
    return f"{top.digest} {platform}"


def _checksum(raw: bytes) -> bytes:
    return hashlib.sha256(raw).hexdigest().encode()
