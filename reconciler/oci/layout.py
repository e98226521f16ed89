"""OCI image layouts: what `oci:DIR` and `oci-archive:FILE` name (image specification, "Layout").

Only reads; `oci.source` copies what it needs into the blob cache, verified, so that the rest of the
program sees one kind of source. A layout lies in a directory or in an archive (`oci.archive`).
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from reconciler.errors import Code, HostError, ImageError
from reconciler.model import Descriptor
from reconciler.oci.blobs import CHUNK
from reconciler.oci.documents import Entry, Index, parse_document, parse_json
from reconciler.oci.limits import Limits, exceeded
from reconciler.oci.reference import Reference, check_digest
from reconciler.text import printable

_LISTED = 20


class Files(Protocol):
    """Files by a relative path, out of a directory or an archive."""

    @property
    def name(self) -> str:
        """What errors call the whole, safe to print."""

    def chunks(self, path: str) -> Iterator[bytes]:
        """The content of one file. Raises ImageError: not-found, or when it is no file."""


class Directory:
    """Files of a directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.name = printable(str(path))

    def chunks(self, path: str) -> Iterator[bytes]:
        """The content of one file. Raises ImageError, HostError."""
        with open_regular(self._path / path) as handle:
            while chunk := handle.read(CHUNK):
                yield chunk


class Layout:
    """One layout. scheme: of the references that name it, for messages."""

    def __init__(self, files: Files, scheme: str, limits: Limits) -> None:
        self._files = files
        self._scheme = scheme
        self._limits = limits
        self._lock = threading.Lock()
        self._read: Index | None = None
        self._named: dict[str | None, list[Entry]] = {}

    def entries(self, ref: Reference) -> tuple[Entry, ...]:
        """What the reference can mean: one entry, or one for each platform.

        Raises ImageError: not-found with the tags there are, or image-invalid.
        """
        with self._lock:  # once, also when a thousand images ask
            index = self._read = self._read or self._index()
            if not self._named:
                for entry in index.entries:
                    for name in {entry.descriptor.digest, entry.name}:
                        self._named.setdefault(name, []).append(entry)
        if ref.digest or ref.tag:
            found = self._named.get(ref.digest or ref.tag, [])
        else:
            found = [entry for entry in index.entries if not entry.attestation]
            if len({entry.name for entry in found}) > 1:
                raise self._no_tag("holds several images", index)
        if not found:
            wanted = printable(ref.digest or ref.tag or "image", 100)
            raise self._no_tag(f"has no such tag: {wanted}", index)
        return tuple(found)

    def chunks(self, descriptor: Descriptor) -> Iterator[bytes]:
        """The bytes of one blob, not verified. Raises ImageError when it is not there."""
        algorithm, _, encoded = check_digest(descriptor.digest).partition(":")
        return self._files.chunks(f"blobs/{algorithm}/{encoded}")

    def _index(self) -> Index:
        name = f"OCI layout {self._files.name}"
        raw = small_file(self._files, "oci-layout", self._limits)
        marker = parse_json(raw, f"{name}/oci-layout")
        version = marker.get("imageLayoutVersion") if isinstance(marker, dict) else None
        if not isinstance(version, str) or not version.startswith("1."):
            raise ImageError(f"{name} has a version that is not supported")
        raw = small_file(self._files, "index.json", self._limits)
        index = parse_document(raw, "", f"{name}/index.json")
        if not isinstance(index, Index):
            raise ImageError(f"{name}/index.json is no index")
        return index

    def _no_tag(self, problem: str, index: Index) -> ImageError:
        tags = {entry.name for entry in index.entries if entry.name}
        return ImageError(
            f"OCI layout {self._files.name} {problem}; its tags are: {listed(tags)}",
            code=Code.NOT_FOUND,
            resolution=f"Write {self._scheme}:{self._files.name}:TAG with one of its tags.",
        )


def listed(tags: set[str]) -> str:
    """Some tags of a local source, for a message."""
    shown = sorted(printable(tag, 100) for tag in tags)
    return ", ".join(shown[:_LISTED]) + (", ..." if len(shown) > _LISTED else "") or "none"


def small_file(files: Files, path: str, limits: Limits) -> bytes:
    """A whole document. Raises ImageError: limit-exceeded, and what `Files.chunks` raises."""
    raw = b""
    for chunk in files.chunks(path):
        raw += chunk
        if len(raw) > limits.document_bytes:
            what = f"{files.name}: {printable(path)}"
            raise exceeded("document_bytes", limits.document_bytes, what)
    return raw


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """A regular file, unbuffered; anything else (a FIFO would wait for ever) is not opened."""
    shown = printable(str(path))
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError(f"{shown} is no regular file")
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(number, "rb", buffering=0) as file:
            yield file
    except (FileNotFoundError, NotADirectoryError):
        raise ImageError(f"{shown} is not there", code=Code.NOT_FOUND) from None
    except OSError as error:
        raise HostError(f"{shown} cannot be read: {error.strerror}") from error
