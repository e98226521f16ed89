"""Proof that this host's libext2fs does what the binding expects, before it touches an image.

`direct.builder` asks once per process. A library whose calls have changed would write nonsense, or
end the process; so a small filesystem with one of everything is built first, in scratch, checked by
e2fsck and read back by our own reader.
"""

from __future__ import annotations

import struct
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

from reconciler.direct.content import Contents
from reconciler.direct.files import Files
from reconciler.direct.image import new_image
from reconciler.direct.metadata import Metadata
from reconciler.errors import Code, HostError
from reconciler.ext4.reader import Filesystem
from reconciler.ext4.size import SMALLEST
from reconciler.model import DesiredImage
from reconciler.oci.entries import Kind, Node, Tree
from reconciler.oci.sparse import Piece
from reconciler.room import Room
from reconciler.stages import ownership

_INODES = 1024
_BLOCK = b"content " * 512
_PIECES: list[Piece] = [_BLOCK, 4096] * 400
"""More extents than an inode holds, and than one block of a tree does."""

_passed = threading.Event()


def require(image: DesiredImage, room: Room) -> None:
    """Check the library, unless this process has done so. Raises HostError TOOL_FAILED."""
    if _passed.is_set():
        return
    with tempfile.TemporaryDirectory(prefix="selfcheck-", dir=room.scratch) as name:
        apart = replace(room, staging=Path(name), tree=_samples(), not_carried=[])
        try:
            _build(image, apart)
        except HostError as error:
            raise HostError(
                f"libext2fs of this host does not pass its self-check: {error.brief}",
                code=Code.TOOL_FAILED if error.code is Code.HOST_IO else error.code,
                resolution='Set builder = "tools", or install another version of e2fsprogs.',
            ) from error
    _passed.set()


def _build(image: DesiredImage, room: Room) -> None:
    tree = room.tree or _samples()
    with new_image(image, room, SMALLEST, _INODES, beside=False) as made:
        contents = Contents(made.descriptor, made.space)
        files = Files(contents, made.inodes)
        files.add(tree.root.children[b"pieces"], _PIECES)
        files.add(tree.root.children[b"plain"], (_BLOCK,))
        files.flush()
        files.settle()
        Metadata(made.writer, made.space, made.empty, contents, made.inodes).write(tree.root)
    with Filesystem(room.rootfs) as filesystem:
        places = ownership.match(filesystem, tree)
        found = next(place.inode for place in places if place.path == b"pieces")
        same = all(part == _BLOCK for _, part in filesystem.chunks(filesystem.inode(found)))
    ownership.verify(room.rootfs, places)
    if not same:
        raise HostError("content came back changed")


def _samples() -> Tree:
    """One of everything that the binding has a call for."""
    acl = struct.pack("<IHHIHHIHHI", 2, 1, 6, 0xFFFFFFFF, 4, 4, 0xFFFFFFFF, 32, 4, 0xFFFFFFFF)
    attributes = ((b"system.posix_acl_access", acl), (b"user.large", b"x" * 2000))
    large = Node(Kind.DIRECTORY, nlink=2)
    large.children = {b"name-%d" % n: Node(Kind.FIFO) for n in range(400)}
    root = Node(Kind.DIRECTORY, nlink=3, mtime_ns=5_000_000_000_000_000_001)
    root.children = {
        b"large": large,
        b"link": Node(Kind.SYMLINK, target=b"t" * 100, size=100),
        b"pieces": Node(Kind.REGULAR, uid=70_000, size=800 * 4096, content=1, xattrs=attributes),
        b"plain": Node(Kind.REGULAR, gid=70_000, size=len(_BLOCK), content=2),
        b"device": Node(Kind.BLOCK, rdev=(300, 70_000)),
    }
    return Tree(root)
