"""The guest assets as one more layer: files of ours into a merged tree, where its links lead.

`direct.builder` calls it before inodes are written. What is in the way there is what is in the way
for `stages.guest`, which puts the assets into a finished filesystem, and the errors are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

from reconciler.errors import ImageError
from reconciler.ext4.inode import MADE_AT
from reconciler.guest.assets import Asset
from reconciler.guest.places import in_the_way
from reconciler.oci.entries import Kind, Node, Tree, follow

_NEW_NS = MADE_AT * 1_000_000_000

Store = Callable[[Asset], int]
"""Takes the content of an asset, and tells its serial."""


def add_assets(tree: Tree, assets: Iterable[Asset], store: Store) -> set[int]:
    """Put assets into the tree; gives the serials of content that no name has any more.

    Raises ImageError when the image has something in the way.
    """
    taken: set[tuple[Node, bytes]] = set()
    lost: set[int] = set()
    for asset in assets:
        path = PurePosixPath(asset.path)
        directory = _directory(tree.root, asset.path, path.parts[1:-1])
        name = path.name.encode()
        if (directory, name) in taken:
            raise in_the_way(asset.path, "is the same as another path of ours")
        taken.add((directory, name))
        old = directory.children.get(name)
        if old is not None:
            if old.kind is Kind.DIRECTORY:
                raise in_the_way(asset.path, "is a directory")
            old.nlink -= 1
            if old.content and not old.nlink:
                lost.add(old.content)
        directory.children[name] = _node(asset, store)
    return lost


def _node(asset: Asset, store: Store) -> Node:
    node = Node(Kind.REGULAR, asset.mode, mtime_ns=_NEW_NS)
    if asset.target is not None:
        node.kind = Kind.SYMLINK
        node.target = asset.target.encode()
        node.size = len(node.target)
    elif size := asset.size:
        node.size = size
        node.content = store(asset)
    return node


def _directory(root: Node, path: str, names: tuple[str, ...]) -> Node:
    """The directory of an asset; what is missing of it is made."""
    trail = [name.encode() for name in names]
    here = root
    for depth, name in enumerate(trail, 1):
        child = here.children.get(name)
        if child is None:
            child = here.children[name] = Node(Kind.DIRECTORY, 0o755, mtime_ns=_NEW_NS, nlink=2)
            here.nlink += 1
        elif child.kind is Kind.SYMLINK:
            child = _followed(root, path, trail[:depth])
        elif child.kind is not Kind.DIRECTORY:
            raise in_the_way(path, "leads through something that is no directory")
        here = child
    return here


def _followed(root: Node, path: str, trail: list[bytes]) -> Node:
    """The directory that a link leads to."""
    try:
        walk = follow(root, trail)
    except ImageError as error:
        raise in_the_way(path, "leads through too many links") from error
    if walk.missing:
        if walk.missing[0] in walk.nodes[-1].children:
            raise in_the_way(path, "leads through something that is no directory")
        raise in_the_way(path, "leads through a link to nothing")
    return walk.nodes[-1]
