"""An entry of a layer as far as it can be told on its own: its path taken apart, its inode made.

`oci.merge` places items. Layers that wait for older ones are held as items, so that the merge has
little left to do when the oldest has been read. Pure, as the merge is.
"""

from __future__ import annotations

from typing import NamedTuple

from reconciler.errors import ImageError
from reconciler.oci.entries import (
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    HARDLINK,
    NO_CHILDREN,
    REGULAR,
    SYMLINK,
    Header,
    Kind,
    Node,
    components,
)
from reconciler.oci.limits import Budget
from reconciler.text import printable

WHITEOUT = b".wh."

MAX_PATH = 1024
MAX_DEPTH = 128
_MAX_NAME = 255
_NO_NAMES = frozenset((b"", b".", b".."))
_MAX_TARGET = 4095
_MAX_FILE = (1 << 44) - (1 << 12)
"""Bytes of the largest file in ext4 with blocks of 4 KiB: 2^32 - 1 blocks."""

_MAX_MAJOR, _MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1
"""Device numbers that Linux has (dev_t of 32 bits in the kernel)."""


class Item(NamedTuple):
    """One entry. directory: as it is spelt. name: b"" for the root itself.

    node: None for a hardlink, which has a `target` instead, and for a whiteout.
    """

    directory: bytes
    name: bytes
    node: Node | None
    target: bytes = b""

    @property
    def path(self) -> bytes:
        """For messages."""
        return self.directory + b"/" + self.name if self.directory else self.name


_item = tuple.__new__
"""`Item` with all fields in a tuple: in half the time."""


def prepare(header: Header, budget: Budget) -> Item:
    """Count an entry and take it apart.

    Raises ImageError, which names the entry, for what no image can have whatever is around it, and
    for one too many.
    """
    try:
        budget.add(header)
        directory, _, name = header.path.rstrip(b"/").rpartition(b"/")
        if name in _NO_NAMES or len(directory) > MAX_PATH or len(name) > _MAX_NAME or b"\0" in name:
            directory, name = _split(header.path)
        kind = header.kind
        if name[:4] == WHITEOUT:
            return Item(directory, name, None)
        if kind is HARDLINK and name:
            return Item(directory, name, None, header.target)
        if not name and kind is not DIRECTORY:
            raise ImageError("the root can only be a directory")
        return _item(Item, (directory, name, _node(header, kind), b""))
    except ImageError as error:
        raise blamed(error, printable(header.path)) from error


def blamed(error: ImageError, who: str) -> ImageError:
    """The same error, with whose fault it is in front."""
    return ImageError(f"{who}: {error.brief}", code=error.code, resolution=error.resolution)


def check_path(names: list[bytes]) -> None:
    """Raises ImageError for a path that is deeper or longer than is kept."""
    if len(names) > MAX_DEPTH or sum(map(len, names)) + len(names) > MAX_PATH:
        raise ImageError(f"path deeper than {MAX_DEPTH} or longer than {MAX_PATH} bytes")


def check_name(name: bytes) -> None:
    """Raises ImageError for a name that no directory can hold."""
    if len(name) > _MAX_NAME:
        raise ImageError(f"a name of more than {_MAX_NAME} bytes")
    if b"\0" in name:
        raise ImageError("a name with a NUL in it")


def dress(node: Node, like: Node) -> None:
    """Give a directory the attributes of another; what is in it stays."""
    node.mode = like.mode
    node.uid = like.uid
    node.gid = like.gid
    node.mtime_ns = like.mtime_ns
    node.xattrs = like.xattrs


def _split(path: bytes) -> tuple[bytes, bytes]:
    """The directory and the last name of an unusual path; no name stands for the root itself."""
    *parents, name = components(path) or [b""]
    if name == b"..":
        raise ImageError("a path with `..` in it")
    check_path(parents)
    check_name(name)
    return b"/".join(parents), name


def _node(header: Header, kind: Kind) -> Node:
    """The inode that a header describes. Raises ImageError when ext4 or Linux can have no such."""
    if kind is REGULAR:
        size = header.size
        if size > _MAX_FILE:
            raise ImageError(f"a file of {size} bytes, more than ext4 can hold")
        return Node(
            kind, header.mode, header.uid, header.gid, header.mtime_ns, size, header.content, b"",
            (0, 0), header.xattrs, 1, 0, NO_CHILDREN,
        )  # fmt: skip
    size = 0
    target = b""
    if kind is SYMLINK:
        target = header.target
        size = len(target)
        if not target or b"\0" in target or size > _MAX_TARGET:
            raise ImageError(f"a symbolic link to nothing, to a NUL or over {_MAX_TARGET} bytes")
    elif kind is CHARACTER or kind is BLOCK_DEVICE:
        major, minor = header.rdev
        if not (0 <= major <= _MAX_MAJOR and 0 <= minor <= _MAX_MINOR):
            raise ImageError(f"device number {major}:{minor}, which Linux does not have")
    return Node(
        kind, header.mode, header.uid, header.gid, header.mtime_ns, size, 0, target,
        header.rdev, header.xattrs, 1, 0, {} if kind is DIRECTORY else NO_CHILDREN,
    )  # fmt: skip
