"""Which init an image would boot with, told from its merged tree alone: pure, so a table test.

`assets` asks, because an init only starts what it is told to in its own way, and an image without
one gets ours. Most public images have none. Some seem to have one: a container image of Alpine
carries busybox's init with an inittab that calls OpenRC, which is not there. A change of the rules
makes other bytes of the same image: raise `model.RECIPE_VERSION` with it.
"""

from __future__ import annotations

from enum import StrEnum

from reconciler.errors import ImageError
from reconciler.oci.entries import MAX_LINKS_FOLLOWED, Kind, Node, Tree, components, follow


class Init(StrEnum):
    """What starts the processes of a guest."""

    SYSTEMD = "systemd"
    OPENRC = "openrc"
    SYSVINIT = "sysvinit"
    NONE = "none"
    """None that would work: the guest binary is PID 1."""
    OTHER = "other"
    """One that is not known: it is left alone, and starts nothing of ours."""


def init_of(tree: Tree) -> Init:
    """The init of an image: by what /sbin/init is in the end, and by what that one needs."""
    if any(find(tree, path) for path in (b"lib/systemd/systemd", b"usr/lib/systemd/systemd")):
        return Init.SYSTEMD
    init = find(tree, b"sbin/init")
    if init is None:
        return Init.NONE
    if find(tree, b"sbin/openrc"):
        return Init.OPENRC
    if find(tree, b"etc/inittab") and find(tree, b"etc/init.d/rc"):
        return Init.SYSVINIT
    if init is find(tree, b"bin/busybox") and not find(tree, b"etc/init.d/rcS"):
        return Init.NONE
    return Init.OTHER


def has_modules(tree: Tree) -> bool:
    """Whether the image brings modules of some kernel along."""
    return any(is_full(tree, path) for path in (b"lib/modules", b"usr/lib/modules"))


def is_full(tree: Tree, path: bytes) -> bool:
    """Whether a directory is there and has something in it."""
    node = find(tree, path)
    return node is not None and bool(node.children)


def find(tree: Tree, path: bytes) -> Node | None:
    """The node that a path leads to, its links followed inside the image; None: to nothing."""
    for _ in range(MAX_LINKS_FOLLOWED):
        *parents, name = components(path) or [b"."]
        try:
            walk = follow(tree.root, parents)
        except ImageError:
            return None
        node = None if walk.missing else walk.nodes[-1].children.get(name)
        if node is None or node.kind is not Kind.SYMLINK:
            return node
        start = b"" if node.target.startswith(b"/") else b"/".join(walk.names)
        path = start + b"/" + node.target
    return None
