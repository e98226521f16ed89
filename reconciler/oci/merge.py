"""The merge of layers as data: tar headers in, a tree of nodes out. It touches no file.

A builder feeds it layer after layer, oldest first: `begin_layer`, `add` for each header in order
of the stream, `end_layer`, and `finish` at the end. The rules are those of the OCI image
specification ("Image Layer Filesystem Changeset"): entries are replayed in order and the later one
wins; a whiteout takes away what *lower* layers put there and nothing of its own layer, wherever in
its layer it stands. For that the merge remembers which names the current layer has placed; names
and not nodes, because a name of this layer may be a hardlink to a file of a lower one.
"""

from __future__ import annotations

from dataclasses import dataclass

from reconciler.errors import ImageError
from reconciler.model import printable
from reconciler.oci.carry import carry
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
    Tree,
    Walk,
    components,
    follow,
)
from reconciler.oci.limits import Budget, Limits

__all__ = ["Header", "Kind", "Merge", "Node", "Tree"]

_MAX_NAME = 255
_MAX_PATH = 1024
_MAX_DEPTH = 128
_MAX_TARGET = 4095
_MAX_FILE = (1 << 44) - (1 << 12)
"""Bytes of the largest file in ext4 with blocks of 4 KiB: 2^32 - 1 blocks."""

_MAX_LINK_STEPS = 3_000_000
"""Names out of the targets of links followed, over the whole image; real images stay far below."""

_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = frozenset({b".wh..wh.plnk", b".wh..wh.orph", b".wh..wh.aufs"})
"""Bookkeeping of aufs that old engines left in layers; the first two are directories."""

_IMPLIED = Header(b"", DIRECTORY, mode=0o755)
"""The attributes of a directory that no header describes: 0755 0:0, at the epoch."""

_MAX_MAJOR, _MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1
"""Device numbers that Linux has (dev_t of 32 bits in the kernel)."""


@dataclass(slots=True)
class _Place:
    """A directory into which entries of the current layer go.

    mine: names in it that the current layer has placed. length: bytes of its path with a closing
    slash, as spelt in the image or as it lies in the tree, whichever is more. depth: likewise.
    is_roomy: any name will do here: no path can be too long, none has a meaning of its own.
    """

    node: Node
    mine: set[bytes]
    length: int
    depth: int
    is_roomy: bool


class Merge:
    """Layers in, oldest first, a Tree out. Raises ImageError at the first thing that cannot be."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._root = Node(DIRECTORY)
        self._names = ["the image"]
        self._budget = Budget(limits)
        self._link_steps = 0
        self.end_layer()

    def begin_layer(self, name: str = "") -> None:
        """The next layer starts; `name` is what errors call it ("layer 2" when empty)."""
        self._names.append(name or f"layer {len(self._names)}")

    def end_layer(self) -> None:
        """The layer is complete: what it placed is from now on something that a whiteout hides."""
        self._mine: dict[Node, set[bytes]] = {}
        self._touched: set[Node] = set()
        self._stripped: set[Node] = set()
        self._places: dict[bytes, _Place] = {}

    def add(self, header: Header) -> bool:
        """Replay one entry. False when its payload is of no use: a whiteout, or ignored."""
        try:
            self._budget.add(header)
            directory, name = _split(header.path)
            if name and header.kind is not HARDLINK and not name.startswith(_WHITEOUT):
                place = self._places.get(directory)
                if place is not None and place.is_roomy:
                    self._set(place, name, header, None)
                    return True
            return self._replay(header, directory, name)
        except ImageError as exc:
            brief = f"{self._names[-1]}: {printable(header.path)}: {exc.brief}"
            raise ImageError(brief, code=exc.code, resolution=exc.resolution) from exc

    def finish(self) -> Tree:
        """The merged tree, with what ext4 or Linux cannot keep taken out and listed."""
        return carry(self._root, self._names, self._limits)

    def _replay(self, header: Header, directory: bytes, name: bytes) -> bool:
        if not name:
            if header.kind is not DIRECTORY:
                raise ImageError("the root can only be a directory")
            _dress(self._root, header)
            return True
        if name.startswith(_WHITEOUT):
            self._whiteout(directory, name)
            return False
        linked = self._linked(header.target) if header.kind is HARDLINK else None
        place = self._place(directory)
        if place is None:
            return False
        if place.depth >= _MAX_DEPTH or place.length + len(name) > _MAX_PATH:
            raise ImageError(f"path deeper than {_MAX_DEPTH} or longer than {_MAX_PATH} bytes")
        if name == b"lost+found" and place.node is self._root:
            _check_lost_and_found(header)
        self._set(place, name, header, linked)
        return True

    def _set(self, place: _Place, name: bytes, header: Header, linked: Node | None) -> None:
        place.mine.add(name)
        old = place.node.children.get(name)
        if old is not None:
            if old.kind is DIRECTORY:
                if header.kind is DIRECTORY:
                    _dress(old, header)
                    return
                self._places.clear()
            elif old.kind is SYMLINK:
                self._places.clear()
        place.node.children[name] = linked or _node(header, len(self._names) - 1)

    def _linked(self, target: bytes) -> Node:
        """The node that a hardlink to `target` names; a link at its end is not followed."""
        shown = f"hardlink to {printable(target)}"
        parts = components(target)
        if b".." in parts:
            raise ImageError(f"{shown}, which may lie outside the image")
        if not parts:
            raise ImageError(f"{shown}, which is no file")
        walk = self._follow(parts[:-1])
        node = None if walk.missing else walk.nodes[-1].children.get(parts[-1])
        if node is None:
            raise ImageError(f"{shown}, which does not exist")
        if node.kind is DIRECTORY:
            raise ImageError(f"{shown}, which is a directory")
        return node

    def _place(self, directory: bytes) -> _Place | None:
        """Where entries of `directory` go; its missing parents are made. None: of no interest."""
        place = self._places.get(directory)
        if place is not None:
            return place
        parts = _parents(directory)
        if parts is None:
            return None
        walk = self._follow(parts)
        for name in walk.missing:
            _check_name(name)
            if name.startswith(_WHITEOUT):
                raise ImageError("a link on the way leads to a directory named like a whiteout")
            self._budget.add_entry()
            node = Node(DIRECTORY, layer=len(self._names) - 1)
            self._mine_of(walk.nodes[-1]).add(name)
            walk.nodes[-1].children[name] = node
            walk.nodes.append(node)
        self._touched.update(walk.nodes)
        length = max(sum(map(len, names)) + len(names) for names in (parts, walk.names))
        depth = max(len(parts), len(walk.names))
        node = walk.nodes[-1]
        roomy = length <= _MAX_PATH - _MAX_NAME and depth < _MAX_DEPTH and node is not self._root
        place = _Place(node, self._mine_of(node), length, depth, roomy)
        self._places[directory] = place
        return place

    def _mine_of(self, directory: Node) -> set[bytes]:
        return self._mine.setdefault(directory, set())

    def _follow(self, parts: list[bytes]) -> Walk:
        walk = follow(self._root, parts)
        self._link_steps += walk.steps
        if self._link_steps > _MAX_LINK_STEPS:
            raise ImageError("the image's symbolic links take too long to follow")
        return walk

    def _whiteout(self, directory: bytes, name: bytes) -> None:
        hidden = name.removeprefix(_WHITEOUT)
        if hidden in (b"", b".", b".."):
            raise ImageError("a whiteout that names nothing")
        parts = _parents(directory)
        if parts is None or name in _AUFS:
            return
        walk = self._follow(parts)
        if walk.missing:
            return
        self._places.clear()
        if name == _OPAQUE:
            self._strip(walk.nodes[-1])
        else:
            self._hide(walk.nodes[-1], hidden)

    def _hide(self, directory: Node, name: bytes) -> None:
        """Take away one name as far as lower layers made it; nothing when they did not."""
        node = directory.children.get(name)
        if node is None:
            return
        mine = name in self._mine.get(directory, ())
        if node.kind is DIRECTORY and (mine or node in self._touched):
            if not mine:
                _dress(node, _IMPLIED)
            self._strip(node)
        elif not mine:
            del directory.children[name]

    def _strip(self, directory: Node) -> None:
        """Take away all that lower layers put below a directory: each one once in a layer."""
        todo = [directory]
        while todo:
            node = todo.pop()
            if node in self._stripped:
                continue
            self._stripped.add(node)
            mine = self._mine.get(node, set())
            for name, child in list(node.children.items()):
                if child.kind is DIRECTORY and (name in mine or child in self._touched):
                    if name not in mine:
                        _dress(child, _IMPLIED)
                    todo.append(child)
                elif name not in mine:
                    del node.children[name]


def _split(path: bytes) -> tuple[bytes, bytes]:
    """The directory as it is spelt, and the last name; no name stands for the root itself."""
    directory, _, name = path.rstrip(b"/").rpartition(b"/")
    if name in (b"", b".", b".."):
        *parents, name = components(path) or [b""]
        if name == b"..":
            raise ImageError("a path with `..` in it")
        directory = b"/".join(parents)
    if len(name) > _MAX_NAME or b"\0" in name:
        _check_name(name)
    return directory, name


def _parents(directory: bytes) -> list[bytes] | None:
    """The names in a directory's path; None when it is one of aufs' own, which are ignored."""
    parts = components(directory)
    for name in parts:
        if name == b"..":
            raise ImageError("a path with `..` in it")
        if name.startswith(_WHITEOUT):
            if parts[0] in _AUFS:
                return None
            raise ImageError("a directory named like a whiteout")
        _check_name(name)
    if len(parts) > _MAX_DEPTH or sum(map(len, parts)) + len(parts) > _MAX_PATH:
        raise ImageError(f"path deeper than {_MAX_DEPTH} or longer than {_MAX_PATH} bytes")
    return parts


def _check_name(name: bytes) -> None:
    if len(name) > _MAX_NAME:
        raise ImageError(f"a name of more than {_MAX_NAME} bytes")
    if b"\0" in name:
        raise ImageError("a name with a NUL in it")


def _check_lost_and_found(header: Header) -> None:
    if header.kind is not DIRECTORY:
        raise ImageError("lost+found in the root can only be a directory, e2fsck repairs into it")


def _node(header: Header, layer: int) -> Node:
    """The inode that a header describes. Raises ImageError when ext4 or Linux can have no such."""
    kind = header.kind
    size = content = 0
    target = b""
    if kind is REGULAR:
        size, content = header.size, header.content
        if size > _MAX_FILE:
            raise ImageError(f"a file of {size} bytes, more than ext4 can hold")
    elif kind is SYMLINK:
        target = header.target
        size = len(target)
        if not target or b"\0" in target or size > _MAX_TARGET:
            raise ImageError(f"a symbolic link to nothing, to a NUL or over {_MAX_TARGET} bytes")
    elif kind is CHARACTER or kind is BLOCK_DEVICE:
        major, minor = header.rdev
        if not (0 <= major <= _MAX_MAJOR and 0 <= minor <= _MAX_MINOR):
            raise ImageError(f"device number {major}:{minor}, which Linux does not have")
    return Node(
        kind, header.mode, header.uid, header.gid, header.mtime_ns, size, content, target,
        header.rdev, header.xattrs, 1, layer, {} if kind is DIRECTORY else NO_CHILDREN,
    )  # fmt: skip


def _dress(node: Node, header: Header) -> None:
    """Give a directory the attributes of a header; what is in it stays."""
    node.mode = header.mode
    node.uid = header.uid
    node.gid = header.gid
    node.mtime_ns = header.mtime_ns
    node.xattrs = header.xattrs
