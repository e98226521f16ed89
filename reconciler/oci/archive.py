"""Images in one tar file, read in place: nothing is unpacked, no name of it becomes a path.

`oci-archive:` and `docker-archive:` files are indexed once, by their headers; a member is then read
at its offset. The names are only keys of a look-up, so tricks with them lead nowhere; what is read
is believed only when its digest is right.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from reconciler.errors import Code, ImageError
from reconciler.oci.blobs import CHUNK
from reconciler.oci.entries import Header, Kind, components
from reconciler.oci.layout import open_regular
from reconciler.oci.limits import Limits, exceeded
from reconciler.oci.tar import read_headers
from reconciler.text import printable

_MAX_NAME = 255
"""Bytes: a digest and some directories; longer names are not remembered."""
_MAX_HOPS = 8
_PACKED = {
    b"\x1f\x8b": "gunzip",
    b"\x28\xb5\x2f\xfd": "unzstd",
    b"\xfd7zXZ\x00": "unxz",
    b"BZh": "bunzip2",
}


@dataclass(frozen=True, slots=True)
class _Member:
    kind: Kind
    offset: int
    size: int
    target: bytes


class Archive:
    """The members of one tar file, by their normalised names.

    Raises ImageError when the file is no whole tar archive, HostError when it cannot be read.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self._path = path
        self.name = printable(str(path))
        self._members: dict[bytes, _Member] = {}
        self._twice: set[bytes] = set()
        with open_regular(path) as handle:
            self._refuse_packed(handle)
            try:
                self._index(handle, limits)
            except ImageError as error:
                brief = f"{self.name}: {error.brief}"
                raise ImageError(brief, code=error.code, resolution=error.resolution) from None

    def size(self, path: str) -> int:
        """Bytes of a member. Raises ImageError as `chunks` does."""
        return self._find(path).size

    def head(self, path: str, count: int) -> bytes:
        """The first bytes of a member."""
        member = self._find(path)
        with open_regular(self._path) as handle:
            handle.seek(member.offset)
            return handle.read(min(count, member.size))

    def chunks(self, path: str) -> Iterator[bytes]:
        """The content of a member, links followed inside the archive.

        Raises ImageError: not-found; when links lead out or in circles; when there are two of it.
        """
        member = self._find(path)
        left = member.size
        with open_regular(self._path) as handle:
            handle.seek(member.offset)
            while left and (chunk := handle.read(min(CHUNK, left))):
                left -= len(chunk)
                yield chunk
        if left:
            raise ImageError(f"{self.name}: {printable(path)} is cut short")

    def _refuse_packed(self, handle: BinaryIO) -> None:
        head = handle.read(8)
        handle.seek(0)
        for magic, program in _PACKED.items():
            if head.startswith(magic):
                raise ImageError(
                    f"{self.name} is compressed, so its members cannot be read in place",
                    resolution=f"Unpack it first, with `{program}`.",
                )

    def _index(self, handle: BinaryIO, limits: Limits) -> None:
        for count, (header, offset) in enumerate(read_headers(handle, limits), 1):
            if count > limits.archive_entries:
                raise exceeded("archive_entries", limits.archive_entries, "the archive")
            name = _normal(b"", header.path)
            if name and header.kind is not Kind.DIRECTORY:
                self._add(name, header, offset)

    def _add(self, name: bytes, header: Header, offset: int) -> None:
        if name in self._members:
            self._twice.add(name)
        target = header.target[: _MAX_NAME + 1]
        self._members[name] = _Member(header.kind, offset, header.size, target)

    def _find(self, path: str) -> _Member:
        name = _normal(b"", path.encode("utf-8", "surrogatepass"))
        for _ in range(_MAX_HOPS):
            member = self._members.get(name or b"")
            if name is None or member is None:
                brief = f"{self.name}: {printable(path)} is not in the archive"
                raise ImageError(brief, code=Code.NOT_FOUND)
            if name in self._twice:
                # readers disagree which one counts
                raise ImageError(f"{self.name} holds {printable(name)} twice")
            if member.kind is Kind.REGULAR:
                return member
            name = self._next(name, member)
        raise ImageError(f"{self.name}: the links at {printable(path)} have no end")

    def _next(self, name: bytes, member: _Member) -> bytes:
        found = None
        if member.kind is Kind.SYMLINK:
            found = _normal(name.rpartition(b"/")[0], member.target)
        elif member.kind is Kind.HARDLINK:
            found = _normal(b"", member.target)
        if found is None:
            raise ImageError(f"{self.name}: {printable(name)} is no file of the archive")
        return found


def _normal(base: bytes, path: bytes) -> bytes | None:
    """`path` from the directory `base`, without `.` and `..`; None when it leads out."""
    if path.startswith(b"/"):
        return None
    names = components(base)
    for name in components(path):
        if name != b"..":
            names.append(name)
        elif names:
            names.pop()
        else:
            return None
    whole = b"/".join(names)
    return whole if len(whole) <= _MAX_NAME else None
