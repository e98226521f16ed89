"""What ext4 and Linux can keep of a merged tree; the rest is taken out, and listed.

`oci.merge` calls it last. Nothing is dropped in silence: each kind of loss gives one line with a
count and a first example, which ends in the manifest and the record as `not_carried`. What no line
could excuse, such as more links than an inode can have, is an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set

from reconciler.errors import ImageError
from reconciler.oci.acl import is_acl
from reconciler.oci.entries import DIRECTORY, REGULAR, SYMLINK, Kind, Node, Tree
from reconciler.oci.limits import Limits, exceeded
from reconciler.text import printable

_MAX_LINKS = 65_000
"""Of an inode (EXT4_LINK_MAX in Linux); for a directory 64,998 subdirectories, `.` and `..`."""

_SECOND = 1_000_000_000
_MIN_MTIME = -(1 << 31) * _SECOND
_MAX_MTIME = ((1 << 34) - (1 << 31)) * _SECOND - 1
"""What an inode of 256 bytes holds: seconds of 34 bits, from 1901 to 2446, and nanoseconds."""

_SUSPECT = range(10_737_418_240 * _SECOND, 12_884_901_888 * _SECOND)
"""From 2310 to 2378, what e2fsck takes for times before 1970 that an old bug wrote, and changes."""
USUAL_TIMES = range(_SUSPECT.start)
"""From 1970 to 2310: these stay as they are."""

_CAPABILITY = b"security.capability"
_ACL = b"system.posix_acl_access"
_DEFAULT_ACL = b"system.posix_acl_default"
_USER = b"user."

_XATTR_ROOM = 4096 - 32 - 4
"""Bytes for the attributes of an inode: one block without its header and its end mark."""

_MAX_NAME = 255
MAX_LINES = 40
"""Of losses; together with the cuts of `_shown` the whole list stays below 16 KiB."""


class _Losses:
    """Losses by kind, so that an image with a label on each file gives one line."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, bytes] = {}

    def add(self, what: str, path: bytes) -> None:
        if what not in self._counts and len(self._counts) >= MAX_LINES:
            what = "other things"
        self._counts[what] += 1
        self._first.setdefault(what, path)

    def lines(self) -> list[str]:
        return [
            f"{what}: {count} {'entry' if count == 1 else 'entries'}, first /{_shown(path)}"
            for what, count in self._counts.items()
            for path in [self._first[what]]
        ]


def carry(root: Node, layers: list[str], limits: Limits, linked: Set[Node]) -> Tree:
    """Count links, clamp times, sort out xattrs; the result holds what the filesystem will hold.

    layers: what to call layer 1, 2, ... in errors; item 0 stands for none. linked: the files that
    hardlinks have named; all others have one name. Raises ImageError.
    """
    tree = Tree(root)
    links: Counter[Node] = Counter()
    unusual = [root]
    directories = [root]
    for directory in directories:
        directory.nlink = 2
        for node in directory.children.values():
            if node.kind is DIRECTORY:
                directory.nlink += 1
                directories.append(node)
            elif node in linked:
                links[node] += 1
            if node.xattrs or node.mtime_ns not in USUAL_TIMES:
                unusual.append(node)
        _check_directory(directory, tree, layers, limits)
    for node, count in links.items():
        node.nlink = count
        _check_links(node, tree, layers)
    # a file of several names is there as often, and has nothing to lose the second time
    same: dict[tuple[str, ...], tuple[str, ...]] = {}  # each file of an image may have a label
    lost = {
        node: same.setdefault(kinds, kinds)
        for node in unusual
        if (kinds := (*_clamp(node), *_sort_out(node)))
    }
    tree.not_carried = _lines(tree, lost)
    return tree


def _lines(tree: Tree, lost: dict[Node, tuple[str, ...]]) -> list[str]:
    """For people. Names are put together for these alone: to do so for all takes long."""
    losses = _Losses()
    if lost:
        for path, node in tree.walk():
            for what in lost.pop(node, ()):
                losses.add(what, path)
    return losses.lines()


def _check_directory(node: Node, tree: Tree, layers: list[str], limits: Limits) -> None:
    _check_links(node, tree, layers)
    if len(node.children) > limits.directory_entries:
        where = f"{_blamed(node, tree, layers)}: names in one directory"
        raise exceeded("directory_entries", limits.directory_entries, where)


def _check_links(node: Node, tree: Tree, layers: list[str]) -> None:
    if node.nlink > _MAX_LINKS:
        raise ImageError(
            f"{_blamed(node, tree, layers)}: more than {_MAX_LINKS} links to it, "
            "or subdirectories in it, which ext4 cannot hold"
        )


def _blamed(node: Node, tree: Tree, layers: list[str]) -> str:
    path = next(path for path, found in tree.walk() if found is node)
    return f"{layers[node.layer]}: {printable(path)}"


def _clamp(node: Node) -> Iterator[str]:
    """Make the time one that can be kept; what is lost by that."""
    if not _MIN_MTIME <= node.mtime_ns <= _MAX_MTIME:
        node.mtime_ns = _MIN_MTIME if node.mtime_ns < 0 else _MAX_MTIME // _SECOND * _SECOND
        yield "mtime outside of 1901..2446, clamped"
    elif node.mtime_ns in _SUSPECT:
        node.mtime_ns = _SUSPECT.start - 1
        yield "mtime in 2310..2378, which e2fsck would change, clamped"


def _sort_out(node: Node) -> Iterator[str]:
    """Keep the attributes that can be kept, capabilities and ACLs first, in one fixed order; what
    is lost by that."""
    kept: list[tuple[bytes, bytes]] = []
    room = _XATTR_ROOM
    for name, value in sorted(node.xattrs):
        obstacle = _obstacle(node.kind, name, value)
        need = 16 + -(-len(name) // 4) * 4 + -(-len(value) // 4) * 4
        if obstacle is None and need > room:
            obstacle = "(no room in the inode's block)"
        if obstacle is not None:
            yield f"xattr {_shown(name)} {obstacle}".rstrip()
        else:
            room -= need
            kept.append((name, value))
    node.xattrs = tuple(kept)


def _obstacle(kind: Kind, name: bytes, value: bytes) -> str | None:
    """Why an attribute cannot be carried; None when it can. An empty reason: its class never is."""
    if len(name) > _MAX_NAME or b"\0" in name:
        return "(impossible name)"
    if name == _CAPABILITY:
        return None
    if name == _ACL:
        fits = kind is not SYMLINK and is_acl(value)
        return None if fits else "(malformed or misplaced)"
    if name == _DEFAULT_ACL:
        fits = kind is DIRECTORY and is_acl(value)
        return None if fits else "(malformed or misplaced)"
    if name.startswith(_USER) and len(name) > len(_USER):
        allowed = kind in (REGULAR, DIRECTORY)
        return None if allowed else "(only files and directories have them)"
    return ""


def _shown(raw: bytes) -> str:
    return printable(raw, 120)
