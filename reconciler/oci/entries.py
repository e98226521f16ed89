"""The nouns of a root filesystem: what a tar header says, and the tree that the layers add up to.

Pure data, below everything that reads or writes: `oci.tar` makes headers, `oci.merge` turns them
into a tree, and the builders (`stages`) read the tree. Paths are bytes without a leading slash,
names are whatever bytes the image has, times are nanoseconds since the epoch, sizes are bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Any

from reconciler.errors import ImageError
from reconciler.text import printable

MAX_LINKS_FOLLOWED = 40
"""Symlinks followed on one walk, as in Linux (path_resolution(7)); one more is a loop."""


class Kind(IntEnum):
    """What an entry is. HARDLINK is a further name, it occurs in headers only."""

    REGULAR = 0
    HARDLINK = 1
    SYMLINK = 2
    CHARACTER = 3
    BLOCK = 4
    DIRECTORY = 5
    FIFO = 6


REGULAR, HARDLINK, SYMLINK = Kind.REGULAR, Kind.HARDLINK, Kind.SYMLINK
CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = Kind.CHARACTER, Kind.BLOCK, Kind.DIRECTORY, Kind.FIFO
"""The same by a short way, for loops: asking an enum for a member takes as long as ten names."""

Xattrs = tuple[tuple[bytes, bytes], ...]
"""Extended attributes as (full name, value), values as in a system call."""


@dataclass(slots=True)
class Header:
    """One entry of a layer as its tar header says it: nothing normalised, nothing trusted.

    path: raw, as stored. mode: 07777 at most. size: of the content when expanded. target: of a
    link. rdev: (major, minor). content: serial number of the payload, 0 when there is none.
    """

    path: bytes
    kind: Kind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    target: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    xattrs: Xattrs = ()
    content: int = 0


NO_CHILDREN: Any = MappingProxyType({})
"""Of every node that is no directory: a dict for each of a million files would take 64 MB."""


@dataclass(slots=True, eq=False)
class Node:
    """One inode of the merged tree; every name of a hardlinked file holds the same object.

    size: bytes of content, or of the target of a symlink. content: serial of the payload, 0 = none.
    nlink: names of a file; 2 + subdirectories of a directory. layer: 1-based, which created it.
    """

    kind: Kind
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    content: int = 0
    target: bytes = b""
    rdev: tuple[int, int] = (0, 0)
    xattrs: Xattrs = ()
    nlink: int = 1
    layer: int = 0
    children: dict[bytes, Node] = field(default_factory=dict)

    @property
    def is_linked_symlink(self) -> bool:
        """A symlink of several names: `mkfs.ext4 -d` would make one inode of each."""
        return self.kind is Kind.SYMLINK and self.nlink > 1


@dataclass(slots=True)
class Tree:
    """The merged image; `not_carried` has a line for each thing that ext4 or Linux cannot keep."""

    root: Node
    not_carried: list[str] = field(default_factory=list)

    def walk(self) -> Iterator[tuple[bytes, Node]]:
        """Every name: the root first as `b""`, parents before children, siblings in byte order."""
        todo = [(b"", self.root)]
        while todo:
            path, node = todo.pop()
            yield path, node
            if node.children:
                prefix = path + b"/" if path else b""
                names = sorted(node.children, reverse=True)
                todo.extend([(prefix + name, node.children[name]) for name in names])

    def nodes(self) -> list[Node]:
        """Every inode by each of its names, without the names and in no order: `walk`, but fast."""
        nodes = [self.root]
        for node in nodes:
            if node.children:
                nodes.extend(node.children.values())
        return nodes

    def lookup(self, path: bytes) -> Node | None:
        """The node of exactly this name, no link followed; None when there is none."""
        node: Node | None = self.root
        for name in components(path):
            if node is None:
                return None
            node = node.children.get(name)
        return node

    def resolve(self, path: bytes) -> tuple[bytes, Node | None]:
        """Where a new file at `path` would land: links in its parents are followed in the image.

        Returns the path without links in its parents, and the node of that name, which is not
        followed; None when there is none. Parents that do not exist keep their names. Raises
        ImageError for a loop of links and for a parent that is no directory.
        """
        *parents, name = components(path) or [b""]
        if not name:
            return b"", self.root
        found = follow(self.root, parents)
        if found.missing:
            blocking = found.nodes[-1].children.get(found.missing[0])
            if blocking is not None:
                raise ImageError(f"{printable(path)}: a parent of it is not a directory")
        place = b"/".join([*found.names, name])
        return place, None if found.missing else found.nodes[-1].children.get(name)


@dataclass(slots=True)
class Walk:
    """Where a path led. `nodes` are the directories from the root on, `names` their names and then
    those of what is not there or is no directory; `steps` counts names that came out of links."""

    names: list[bytes]
    nodes: list[Node]
    steps: int = 0

    @property
    def missing(self) -> list[bytes]:
        """The names past the last directory that exists."""
        return self.names[len(self.nodes) - 1 :]


def follow(root: Node, path: list[bytes]) -> Walk:
    """Walk to the directory `path` as a process in a chroot would: every link is followed inside.

    `..` never leaves the root. Raises ImageError when more than MAX_LINKS_FOLLOWED links are met.
    """
    walk = Walk([], [root])
    todo = path[::-1]
    links = 0
    while todo:
        name = todo.pop()
        if name == b"..":
            del walk.names[-1:]
            del walk.nodes[len(walk.names) + 1 :]
            continue
        whole = len(walk.nodes) == len(walk.names) + 1
        node = walk.nodes[-1].children.get(name) if whole else None
        kind = node.kind if node else None
        if node is not None and kind is SYMLINK:
            links += 1
            if links > MAX_LINKS_FOLLOWED:
                shown = printable(b"/".join(path))
                raise ImageError(
                    f"{shown}: more than {MAX_LINKS_FOLLOWED} symbolic links on the way"
                )
            if node.target.startswith(b"/"):
                walk.names, walk.nodes = [], [root]
            more = components(node.target)
            walk.steps += len(more)
            todo.extend(reversed(more))
            continue
        walk.names.append(name)
        if node is not None and kind is DIRECTORY:
            walk.nodes.append(node)
    return walk


def components(path: bytes) -> list[bytes]:
    """The names in a path; empty ones and `.` mean nothing and go, `..` stays."""
    return [name for name in path.split(b"/") if name not in (b"", b".")]
