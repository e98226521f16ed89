"""OCI image layouts: directories that hold images as files (image specification, "Image Layout").

What `oci:DIR[:TAG]` names. Only reads; `oci.source` copies what it needs into the blob cache,
verified, so that the rest of the program sees one kind of source.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from reconciler.errors import Code, HostError, ImageError
from reconciler.model import Descriptor, printable
from reconciler.oci.blobs import CHUNK
from reconciler.oci.documents import DOCUMENT_LIMIT, Entry, Index, parse_document, parse_json
from reconciler.oci.reference import Reference, check_digest

_LISTED = 20


class Layout:
    """One layout directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def entries(self, ref: Reference) -> tuple[Entry, ...]:
        """What the reference can mean: one entry, or one for each platform.

        Raises ImageError: not-found with the tags there are, or image-invalid.
        """
        index = self._index()
        if ref.digest:
            found = [entry for entry in index.entries if entry.descriptor.digest == ref.digest]
        elif ref.tag:
            found = [entry for entry in index.entries if entry.name == ref.tag]
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
        with self._open(self.directory / "blobs" / algorithm / encoded) as handle:
            while chunk := handle.read(CHUNK):
                yield chunk

    def _index(self) -> Index:
        name = f"OCI layout {self.directory}"
        marker = parse_json(self._small("oci-layout"), f"{name}/oci-layout")
        version = marker.get("imageLayoutVersion") if isinstance(marker, dict) else None
        if not isinstance(version, str) or not version.startswith("1."):
            raise ImageError(f"{name} has a version that is not supported")
        index = parse_document(self._small("index.json"), "", f"{name}/index.json")
        if not isinstance(index, Index):
            raise ImageError(f"{name}/index.json is no index")
        return index

    def _small(self, name: str) -> bytes:
        with self._open(self.directory / name) as handle:
            raw = handle.read(DOCUMENT_LIMIT + 1)
        if len(raw) > DOCUMENT_LIMIT:
            brief = f"{self.directory / name} is larger than {DOCUMENT_LIMIT} bytes"
            raise ImageError(brief, code=Code.LIMIT_EXCEEDED)
        return raw

    @contextmanager
    def _open(self, path: Path) -> Iterator[BinaryIO]:
        """A regular file, read; anything else (a FIFO would wait for ever) is not opened."""
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise ImageError(f"{path} is no regular file")
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                yield file
        except (FileNotFoundError, NotADirectoryError):
            brief = f"OCI layout {self.directory}: {path} is not there"
            raise ImageError(brief, code=Code.NOT_FOUND) from None
        except OSError as error:
            raise HostError(f"{path} cannot be read: {error.strerror}") from error

    def _no_tag(self, problem: str, index: Index) -> ImageError:
        tags = sorted({printable(entry.name, 100) for entry in index.entries if entry.name})
        listed = ", ".join(tags[:_LISTED]) + (", ..." if len(tags) > _LISTED else "")
        return ImageError(
            f"OCI layout {self.directory} {problem}; its tags are: {listed or 'none'}",
            code=Code.NOT_FOUND,
            resolution=f"Write oci:{self.directory}:TAG with one of its tags.",
        )
