"""The newc form of cpio, which Linux unpacks as an initramfs.

Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Not packed: a
compressor's version would decide over the bytes, and with them over an artifact's id.
"""

from __future__ import annotations

from stat import S_IFCHR, S_IFDIR, S_IFREG

_ALIGN = 4
_BLOCK = 512
_TRAILER = "TRAILER!!!"


class Archive:
    """Entries in the order in which they are added, parents first; owned 0:0, at the epoch."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._count = 0

    def directory(self, name: str) -> None:
        """A directory, 0755."""
        self._add(name, S_IFDIR | 0o755, links=2)

    def file(self, name: str, content: bytes, mode: int = 0o644) -> None:
        """A regular file."""
        self._add(name, S_IFREG | mode, content)

    def character_device(self, name: str, major: int, minor: int) -> None:
        """A character device, 0600."""
        self._add(name, S_IFCHR | 0o600, device=(major, minor))

    def finish(self) -> bytes:
        """The whole archive."""
        self._count = -1  # the trailer is inode 0
        self._add(_TRAILER, 0)
        raw = b"".join(self._parts)
        return raw + bytes(-len(raw) % _BLOCK)

    def _add(
        self,
        name: str,
        mode: int,
        content: bytes = b"",
        *,
        links: int = 1,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        self._count += 1
        path = name.encode("ascii") + b"\0"
        # inode, mode, uid, gid, nlink, mtime, size, device of the file, its own device, name, check
        fields = (self._count, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._parts += [_padded(header + path), _padded(content)]


def _padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % _ALIGN)
