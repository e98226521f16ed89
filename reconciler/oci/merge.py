"""The merge of layers as data: tar headers in, a tree of nodes out. It touches no file.

A builder feeds it layer after layer, oldest first: `begin_layer`, `add` for each header in order
of the stream, `end_layer`, and `finish` at the end. The rules are those of the OCI image
specification ("Image Layer Filesystem Changeset"): entries are replayed in order and the later one
wins; a whiteout takes away what *lower* layers put there and nothing of its own layer, wherever in
its layer it stands. For that the merge remembers which names the current layer has placed; names
and not nodes, because a name of this layer may be a hardlink to a file of a lower one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from reconciler.errors import ImageError
from reconciler.oci.carry import carry
from reconciler.oci.entries import (
    DIRECTORY,
    SYMLINK,
    Header,
    Kind,
    Node,
    Tree,
    Walk,
    components,
    follow,
)
from reconciler.oci.item import (
    MAX_DEPTH,
    MAX_PATH,
    WHITEOUT,
    Item,
    blamed,
    check_name,
    check_path,
    dress,
    prepare,
)
from reconciler.oci.limits import Budget, Limits
from reconciler.text import printable

__all__ = ["Header", "Kind", "Merge", "Node", "Tree"]

_MAX_NAME = 255

_MAX_LINK_STEPS = 3_000_000
"""Names out of the targets of links followed, over the whole image; real images stay far below."""

_OPAQUE = b".wh..wh..opq"
_AUFS = frozenset({b".wh..wh.plnk", b".wh..wh.orph", b".wh..wh.aufs"})
"""Bookkeeping of aufs that old engines left in layers; the first two are directories."""

_IMPLIED = Node(DIRECTORY)
"""The attributes of a directory that no header describes: 0755 0:0, at the epoch."""


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
    """Layers in, oldest first, a Tree out. Raises ImageError at the first thing that cannot be.

    budget: what the headers take; whoever prepares items counts them there.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._root = Node(DIRECTORY)
        self._names = ["the image"]
        self.budget = Budget(limits)
        self._link_steps = 0
        self._linked_to: set[Node] = set()
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
            item = prepare(header, self.budget)
        except ImageError as exc:
            raise blamed(exc, self._names[-1]) from exc
        return self.place(item)

    def place(self, item: Item) -> bool:
        """`add` for an entry that is prepared and counted."""
        try:
            directory, name, node, _ = item
            if node is not None:
                place = self._places.get(directory)
                if place is not None and place.is_roomy:
                    self._set(place, name, node)
                    return True
            return self._replay(item)
        except ImageError as exc:
            raise blamed(exc, f"{self._names[-1]}: {printable(item.path)}") from exc

    def place_all(self, items: Iterable[Item]) -> None:
        """`place` for each of many, as nearly all of them go: into a directory that is known."""
        places, layer = self._places, len(self._names) - 1
        for item in items:
            directory, name, node, _ = item
            place = places.get(directory)
            if place is not None and place.is_roomy and node is not None:
                children = place.node.children
                if name not in children:
                    place.mine.add(name)
                    node.layer = node.layer or layer
                    children[name] = node
                    continue
            self.place(item)

    def finish(self) -> Tree:
        """The merged tree, with what ext4 or Linux cannot keep taken out and listed."""
        return carry(self._root, self._names, self._limits, self._linked_to)

    def _replay(self, item: Item) -> bool:
        directory, name, node, target = item
        if node is None and name.startswith(WHITEOUT):
            self._whiteout(directory, name)
            return False
        if not name and node is not None:
            dress(self._root, node)
            return True
        node = node or self._linked(target)
        place = self._place(directory)
        if place is None:
            return False
        if place.depth >= MAX_DEPTH or place.length + len(name) > MAX_PATH:
            raise ImageError(f"path deeper than {MAX_DEPTH} or longer than {MAX_PATH} bytes")
        if name == b"lost+found" and place.node is self._root and node.kind is not DIRECTORY:
            raise ImageError(
                "lost+found in the root can only be a directory, e2fsck repairs into it"
            )
        self._set(place, name, node)
        return True

    def _set(self, place: _Place, name: bytes, node: Node) -> None:
        place.mine.add(name)
        old = place.node.children.get(name)
        if old is not None:
            if old.kind is DIRECTORY:
                if node.kind is DIRECTORY:
                    dress(old, node)
                    return
                self._places.clear()
            elif old.kind is SYMLINK:
                self._places.clear()
        if not node.layer:
            node.layer = len(self._names) - 1
        place.node.children[name] = node

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
        self._linked_to.add(node)
        return node

    def _place(self, directory: bytes) -> _Place | None:
        """Where entries of `directory` go; its missing parents are made. None: of no interest."""
        return self._places.get(directory) or self._below(directory) or self._walked(directory)

    def _below(self, directory: bytes) -> _Place | None:
        """The place of a directory that is there, in one that has a place; None for all others."""
        parent, _, name = directory.rpartition(b"/")
        above = self._places.get(parent)
        if above is None or not above.is_roomy:
            return None
        node = above.node.children.get(name)
        if node is None or node.kind is not DIRECTORY:
            return None
        self._touched.add(node)
        return self._keep(directory, node, above.length + len(name) + 1, above.depth + 1)

    def _keep(self, directory: bytes, node: Node, length: int, depth: int) -> _Place:
        roomy = length <= MAX_PATH - _MAX_NAME and depth < MAX_DEPTH and node is not self._root
        place = _Place(node, self._mine_of(node), length, depth, roomy)
        self._places[directory] = place
        return place

    def _walked(self, directory: bytes) -> _Place | None:
        parts = _parents(directory)
        if parts is None:
            return None
        walk = self._follow(parts)
        for name in walk.missing:
            check_name(name)
            if name.startswith(WHITEOUT):
                raise ImageError("a link on the way leads to a directory named like a whiteout")
            self.budget.add_entry()
            node = Node(DIRECTORY, layer=len(self._names) - 1)
            self._mine_of(walk.nodes[-1]).add(name)
            walk.nodes[-1].children[name] = node
            walk.nodes.append(node)
        self._touched.update(walk.nodes)
        length = max(sum(map(len, names)) + len(names) for names in (parts, walk.names))
        depth = max(len(parts), len(walk.names))
        return self._keep(directory, walk.nodes[-1], length, depth)

    def _mine_of(self, directory: Node) -> set[bytes]:
        return self._mine.setdefault(directory, set())

    def _follow(self, parts: list[bytes]) -> Walk:
        walk = follow(self._root, parts)
        self._link_steps += walk.steps
        if self._link_steps > _MAX_LINK_STEPS:
            raise ImageError("the image's symbolic links take too long to follow")
        return walk

    def _whiteout(self, directory: bytes, name: bytes) -> None:
        hidden = name.removeprefix(WHITEOUT)
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
                dress(node, _IMPLIED)
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
                        dress(child, _IMPLIED)
                    todo.append(child)
                elif name not in mine:
                    del node.children[name]


def _parents(directory: bytes) -> list[bytes] | None:
    """The names in a directory's path; None when it is one of aufs' own, which are ignored."""
    parts = components(directory)
    for name in parts:
        if name == b"..":
            raise ImageError("a path with `..` in it")
        if name.startswith(WHITEOUT):
            if parts[0] in _AUFS:
                return None
            raise ImageError("a directory named like a whiteout")
        check_name(name)
    check_path(parts)
    return parts
