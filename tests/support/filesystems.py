"""Trees, the staging that flatten would leave of them, and rooms to build them in.

Stands in for flatten alone: mkfs.ext4, debugfs, e2fsck and the disk are the real ones.
"""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import pytest

from reconciler.model import Descriptor, DesiredImage, ImageSpec, PinnedImage, Platform
from reconciler.oci.entries import Kind, Node, Tree
from reconciler.room import Feed, Room
from reconciler.stages import ext4, ownership
from reconciler.tools import Tools

MIB = 1 << 20
DIGEST = "sha256:" + "ab" * 32


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A POSIX ACL as `setxattr` takes it; entries are (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
ACL = acl(
    (1, 6, NOBODY), (2, 7, 1234), (4, 4, NOBODY), (8, 5, 777), (16, 7, NOBODY), (32, 4, NOBODY)
)
"""user::rw-, user:1234:rwx, group::r--, group:777:r-x, mask::rwx, other::r--"""
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""cap_net_bind_service=ep"""


def directory(children: dict[bytes, Node] | None = None, **fields: Any) -> Node:
    return Node(Kind.DIRECTORY, **{"mode": 0o755, "children": children or {}} | fields)


def tree_of(children: dict[bytes, Node], **fields: Any) -> Tree:
    """A tree with these children of the root, and the link counts that a merge would find."""
    tree = Tree(directory(children, **fields))
    seen: set[Node] = set()
    for _, node in tree.walk():
        subdirectories = sum(child.kind is Kind.DIRECTORY for child in node.children.values())
        fresh = 2 + subdirectories if node.kind is Kind.DIRECTORY else 1
        node.nlink = node.nlink + 1 if node in seen else fresh
        seen.add(node)
    return tree


def file(size: int = 0, **fields: Any) -> Node:
    return Node(Kind.REGULAR, **{"mode": 0o644} | fields, size=size)


def link(target: bytes, **fields: Any) -> Node:
    return Node(Kind.SYMLINK, **{"mode": 0o777} | fields, size=len(target), target=target)


def content_of(path: bytes, size: int) -> bytes:
    """Bytes that are never zero, so that no hole saves a block, and different for each file."""
    return ((path or b"/") * (size // max(1, len(path)) + 1))[:size]


def plant(tree: Tree, top: Path) -> None:
    """Write the staging tree: placeholders for devices, host modes, `user.*` attributes."""
    done: dict[Node, Path] = {}
    for path, node in tree.walk():
        where = top / os.fsdecode(path)
        if node in done:
            os.link(done[node], where, follow_symlinks=False)
            continue
        done[node] = where
        if node.kind is Kind.DIRECTORY:
            where.mkdir()
        elif node.kind is Kind.SYMLINK and node.nlink == 1:
            where.symlink_to(os.fsdecode(node.target))
        else:
            long = node.target if node.size >= 60 else b""  # of a linked symlink
            where.write_bytes(content_of(path, node.size) if node.kind is Kind.REGULAR else long)
        for name, value in node.xattrs:
            if name.startswith(b"user."):
                os.setxattr(where, name, value, follow_symlinks=False)


def desired(size: int | None, **entry: Any) -> DesiredImage:
    spec = ImageSpec("test", "oci:/nowhere", size, **{"guest": False} | entry)
    config = Descriptor("application/vnd.oci.image.config.v1+json", DIGEST, 2)
    pinned = PinnedImage(DIGEST, config, (), Platform("linux", "amd64"))
    return DesiredImage(spec, pinned, None, None)


def room_for(tree: Tree, base: Path, emit: Callable[..., None] = lambda *_, **__: None) -> Room:
    """A room in which flatten has just finished with this tree."""
    staging, scratch = base / "staging", base / "scratch"
    staging.mkdir(parents=True)
    scratch.mkdir()
    plant(tree, scratch / "tree")
    unused = {field.name: None for field in fields(Room) if field.default is field.default_factory}
    own = {"tools": Tools(), "emit": emit, "feed": Feed(desired(None).pinned), "tree": tree}
    return Room(**cast(Any, unused | {"staging": staging, "scratch": scratch} | own))


def build(tree: Tree, base: Path, size: int | None = None) -> Room:
    """Both stages; the result is at `room.rootfs`."""
    room = room_for(tree, base)
    image = desired(size)
    ext4.run(image, room)
    ownership.run(image, room)
    return room


@contextmanager
def mounted(rootfs: Path, where: Path, options: str = "loop") -> Iterator[Path]:
    """A kernel's view of an image, to be written to; skips where it may not be had."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount an image")
    where.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-o", options, rootfs, where], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"this host mounts no image: {done.stderr.decode().strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)
