"""ownership: every inode of `rootfs.ext4` gets what the layers say of it, and is then read back.

mkfs.ext4 copied names and content, but owner, mode and times of the builder's files, and empty
files where devices belong. One debugfs script mends that, by inode number: our own reader tells
which inode a path became, so no name of the image is ever part of a script. debugfs may fail in
silence, therefore the proof is a clean e2fsck and a comparison of every inode with the tree.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG
from typing import NamedTuple

from reconciler.errors import Code, HostError
from reconciler.ext4 import dirent
from reconciler.ext4.debugfs import Script
from reconciler.ext4.imagefile import durable, failure
from reconciler.ext4.inode import FAST_SYMLINK, MADE_AT, encode_rdev, encode_time
from reconciler.ext4.reader import LOST_AND_FOUND, ROOT_INODE, Filesystem, Inode
from reconciler.ext4.xattr import ACL_NAMES, CAPABILITY
from reconciler.files import host_errors
from reconciler.hot import hot_loop
from reconciler.model import DesiredImage
from reconciler.oci.acl import normal_acl
from reconciler.oci.entries import Kind, Node, Tree
from reconciler.room import Room
from reconciler.text import printable

TYPES = {
    Kind.REGULAR: S_IFREG,
    Kind.DIRECTORY: S_IFDIR,
    Kind.SYMLINK: S_IFLNK,
    Kind.CHARACTER: S_IFCHR,
    Kind.BLOCK: S_IFBLK,
    Kind.FIFO: S_IFIFO,
}
_TYPE_BITS = [TYPES.get(kind, 0) for kind in sorted(Kind)]
"""The same, by index: an enum hashes in Python, and this is asked for every inode."""

_ENTRY_TYPES = {
    Kind.CHARACTER: dirent.CHARACTER,
    Kind.BLOCK: dirent.BLOCK,
    Kind.FIFO: dirent.FIFO,
    Kind.SYMLINK: dirent.SYMLINK,
}
_WORDS = (*map(str, range(12)), "IND", "DIND", "TIND")
"""The words of i_block as debugfs calls them."""

_SET_BY_SCRIPT = (CAPABILITY, *ACL_NAMES)
"""Attributes that only root may set on a file of the host; `user.*` comes with the staging tree."""

_HOST_ATTRIBUTES = tuple(
    f"security.{name}".encode()
    for name in ("selinux", "ima", "evm", "apparmor", "SMACK64", "SMACK64EXEC")
)
"""Attributes that a host puts on new files by itself, and which must not travel into the image."""

_PROOF = "the new filesystem is not what the image says"
_SECOND = 1_000_000_000
_LOST_AND_FOUND = Node(Kind.DIRECTORY, 0o700, mtime_ns=MADE_AT * _SECOND, nlink=2)


class Place(NamedTuple):
    """One inode of the filesystem and the node that it must equal; `path` is its first name."""

    path: bytes
    inode: int
    node: Node


def run(image: DesiredImage, room: Room) -> None:
    """Give every inode its attributes, sync, check, and read all of them back.

    Raises HostError TOOL_FAILED naming the path and the field that differ, DISK_FULL when that is
    the likely reason. A filesystem on which this stage failed must be made anew.
    """
    if room.tree is None:
        raise HostError("the ownership stage was started before flatten", code=Code.INTERNAL)
    with hot_loop(), durable(room.rootfs) as descriptor, Filesystem(room.rootfs) as filesystem:
        places = match(filesystem, room.tree)
        room.checkpoint()
        _apply(room, filesystem, places)
        _correct_entries(descriptor, filesystem, places)
    room.tools.e2fsck(room.rootfs, checkpoint=room.checkpoint)
    with hot_loop():
        verify(room.rootfs, places)


def verify(rootfs: Path, places: list[Place]) -> None:
    """Compare every inode with its node. Raises HostError naming the first field that differs."""
    with Filesystem(rootfs) as filesystem:
        for place in places:
            if difference := _difference(filesystem, place):
                raise failure(rootfs, f"{_PROOF}: {_shown(place.path)}: {difference}")


def match(filesystem: Filesystem, tree: Tree) -> list[Place]:
    """Which inode each node became: every inode once, the root first, `lost+found` included.

    Raises HostError when the names or the hardlinks are not those of the tree.
    """
    places = [Place(b"", ROOT_INODE, tree.root)]
    linked: dict[int, int] = {}
    pending = [places[0]]
    while pending:
        parent = pending.pop()
        for name, number, node in _children(filesystem, parent):
            path = parent.path + b"/" + name if parent.path else name
            if node.nlink > 1 and node.kind is not Kind.DIRECTORY:
                if id(node) in linked:
                    if linked[id(node)] != number:
                        raise HostError(f"{_PROOF}: {_shown(path)}: links", code=Code.TOOL_FAILED)
                    continue
                linked[id(node)] = number
            place = Place(path, number, node)
            places.append(place)
            if node.kind is Kind.DIRECTORY:
                pending.append(place)
    return places


def _children(filesystem: Filesystem, parent: Place) -> list[tuple[bytes, int, Node]]:
    """The entries of one directory beside their nodes: name, inode, node."""
    found = filesystem.entries(filesystem.inode(parent.inode))
    wanted = parent.node.children
    if parent.inode == ROOT_INODE and LOST_AND_FOUND not in wanted:
        wanted = wanted | {LOST_AND_FOUND: _LOST_AND_FOUND}
    if found.keys() != wanted.keys():
        name = min(found.keys() ^ wanted.keys())
        state = "is missing" if name in wanted else "is in excess"
        raise HostError(
            f"{_PROOF}: {_shown(parent.path)}: {printable(name)} {state}", code=Code.TOOL_FAILED
        )
    return [(name, found[name], node) for name, node in sorted(wanted.items())]


def _apply(room: Room, filesystem: Filesystem, places: list[Place]) -> None:
    with (
        host_errors("cannot write the ownership script"),
        tempfile.TemporaryDirectory(prefix="ownership-", dir=room.scratch) as name,
    ):
        script = Script()
        script.forget_writes()
        values = Path(name)
        for place in places:
            inode = filesystem.inode(place.inode)
            script.extend(_field_lines(inode, place.node))
            if place.node.xattrs or inode.has_xattrs:
                _add_xattrs(script, values, inode, place.node, filesystem.xattrs(inode))
        room.tools.debugfs_write(room.rootfs, script, values, checkpoint=room.checkpoint)


def _field_lines(inode: Inode, node: Node) -> list[str]:
    """The lines for one inode: what it has already is left alone."""
    where = f"sif <{inode.number}>"
    lines = []
    mode = _TYPE_BITS[node.kind] | node.mode
    if inode.mode != mode:
        lines.append(f"{where} mode {mode}")
    if inode.uid != node.uid:
        lines.append(f"{where} uid {node.uid}")
    if inode.gid != node.gid:
        lines.append(f"{where} gid {node.gid}")
    time = encode_time(node.mtime_ns)
    if inode.mtime != time:
        lines.append(_time_lines(f"{where} mtime", inode.mtime, time))
    if inode.atime != time:
        lines.append(_time_lines(f"{where} atime", inode.atime, time))
    if inode.ctime != time:
        lines.append(_time_lines(f"{where} ctime", inode.ctime, time))
    if node.is_linked_symlink:
        lines.extend(_symlink_lines(where, inode, node))
    elif _is_special(node):
        first, second = encode_device(node)
        lines.append(f"{where} flags 0\n{where} block[0] {first}\n{where} block[1] {second}")
    return lines


def _symlink_lines(where: str, inode: Inode, node: Node) -> list[str]:
    """Make a symlink of a placeholder: a short target goes into the inode, as numbers.

    Of a long one nothing is left to do: it lies in the block of the placeholder.
    """
    if node.size >= FAST_SYMLINK:
        return []
    words = struct.unpack("<15I", node.target.ljust(FAST_SYMLINK, b"\0"))
    fields = [f"{where} block[{name}] {word}" for name, word in zip(_WORDS, words, strict=True)]
    return [f"{where} flags 0", f"{where} size {node.size}", *fields]


def _time_lines(field: str, old: tuple[int, int], new: tuple[int, int]) -> str:
    """One line, or two: debugfs fills the upper bits from a number that it takes for unsigned."""
    low, extra = new
    if extra != old[1] or low >> 31:
        return f"{field} @{low}\n{field}_extra {extra}"
    return f"{field} @{low}"


def _is_special(node: Node) -> bool:
    return node.kind is Kind.CHARACTER or node.kind is Kind.BLOCK or node.kind is Kind.FIFO


def encode_device(node: Node) -> tuple[int, int]:
    """The first two words of a device's i_block: the old encoding where it suffices, as in Linux.

    >>> encode_device(Node(Kind.CHARACTER, rdev=(1, 3)))
    (259, 0)
    """
    return (0, 0) if node.kind is Kind.FIFO else encode_rdev(*node.rdev)


def _add_xattrs(
    script: Script, values: Path, inode: Inode, node: Node, present: dict[bytes, bytes]
) -> None:
    """Set what only root could set in staging, and remove what the host added there."""
    wanted = _wanted_xattrs(node)
    for name in _SET_BY_SCRIPT:
        if name in wanted and present.get(name) != wanted[name]:
            source = len(script)
            (values / str(source)).write_bytes(dict(node.xattrs)[name])
            script.set_xattr(inode.number, name.decode(), source)
    for name in (*_SET_BY_SCRIPT, *_HOST_ATTRIBUTES):
        if name in present and name not in wanted:
            script.remove_xattr(inode.number, name.decode())


def _wanted_xattrs(node: Node) -> dict[bytes, bytes]:
    """The attributes as the filesystem gives them back."""
    return {name: normal_acl(value) if name in ACL_NAMES else value for name, value in node.xattrs}


def _correct_entries(descriptor: int, filesystem: Filesystem, places: list[Place]) -> None:
    """Let the names of what was a plain file in staging say what it is: see `ext4.dirent`."""
    special = {
        place.inode: place.node.kind
        for place in places
        if _is_special(place.node) or place.node.is_linked_symlink
    }
    if not special:
        return
    nodes = {place.node for place in places if place.inode in special}
    for place in places:
        if nodes.isdisjoint(place.node.children.values()):
            continue
        directory = filesystem.inode(place.inode)
        names = {
            name: _ENTRY_TYPES[special[number]]
            for name, number in filesystem.entries(directory).items()
            if number in special
        }
        if names:
            dirent.set_types(descriptor, filesystem, directory, names)


def _difference(filesystem: Filesystem, place: Place) -> str:
    """The first field in which an inode is not what its node says; empty when it equals it."""
    node, inode = place.node, filesystem.inode(place.inode)
    links = node.nlink
    if place.inode == ROOT_INODE and LOST_AND_FOUND not in node.children:
        links += 1
    mode = _TYPE_BITS[node.kind] | node.mode
    time = encode_time(node.mtime_ns)
    found = (inode.mode, inode.uid, inode.gid, inode.mtime, inode.links)
    wanted = (mode, node.uid, node.gid, time, links)
    if found != wanted:
        fields = ("mode", "uid", "gid", "mtime", "link count")
        triples = zip(fields, found, wanted, strict=True)
        return next(
            f"{field} is {one}, not {other}" for field, one, other in triples if one != other
        )
    if node.xattrs or inode.has_xattrs:
        attributes = filesystem.xattrs(inode)
        if attributes != _wanted_xattrs(node):
            return f"attributes are {printable(str(attributes))}"
    if node.kind is Kind.REGULAR and inode.size != node.size:
        return f"size is {inode.size}, not {node.size}"
    if node.kind is Kind.SYMLINK and (target := filesystem.target(inode)) != node.target:
        return f"target is {printable(target)}, not {printable(node.target)}"
    if _is_special(node) and inode.rdev != _rdev(node):
        return f"device numbers are {inode.rdev}, not {_rdev(node)}"
    return ""


def _rdev(node: Node) -> tuple[int, int]:
    return (0, 0) if node.kind is Kind.FIFO else node.rdev


def _shown(path: bytes) -> str:
    return printable(b"/" + path)
