"""The staging tree: a merged image as plain files of this user, for `mkfs.ext4 -d` to copy.

`stages.flatten` calls it. Every operation is relative to an open directory and follows no link, so
that neither long paths nor the image's links lead anywhere else on the host. Nothing special is
ever made: devices and FIFOs are plain files, as are symlinks of several names; modes are 0600 and
0700, owners are left alone. What the files really are is in the metadata map, and the ownership
stage writes it into the image.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from reconciler.ext4.inode import FAST_SYMLINK
from reconciler.oci.entries import Kind, Node, Tree
from reconciler.text import printable

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_USER = b"user."


@contextmanager
def open_directory(name: bytes | Path, parent: int | None = None) -> Iterator[int]:
    """A descriptor of a directory, which is not reached through a link."""
    descriptor = os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def create_file(name: bytes | str, directory: int) -> int:
    """A descriptor to write a new file through; the name must be free."""
    return os.open(name, _CREATE, 0o600, dir_fd=directory)


def materialise(tree: Tree, data: Path, top: Path, checkpoint: Callable[[], None]) -> None:
    """Make the directory `top` and all of the tree in it; payloads are moved out of `data`.

    data: holds the payload with the serial number n in a file named n, on the same filesystem.
    checkpoint: called now and then, may raise to stop the work. User xattrs that the host's
    filesystem refuses are taken out of the tree and listed in `tree.not_carried`. Raises OSError.
    """
    top.mkdir(0o700)
    with open_directory(data) as pool, open_directory(top) as directory:
        writer = _Writer(pool, checkpoint)
        writer.fill(tree.root, directory, b"")
    if writer.refused:
        count = len(writer.refused)
        first = f"/{printable(writer.refused[0])}"
        tree.not_carried.append(f"user xattrs, which {top} cannot hold: {count}, first on {first}")


class _Writer:
    def __init__(self, pool: int, checkpoint: Callable[[], None]) -> None:
        self.refused: list[bytes] = []
        self._pool = pool
        self._checkpoint = checkpoint
        self._pooled: dict[Node, str] = {}
        self._names_left: dict[Node, int] = {}

    def fill(self, directory: Node, descriptor: int, path: bytes) -> None:
        """Put into an open, empty directory what the node has; recursion is at most 128 deep."""
        self._checkpoint()
        if directory.xattrs:
            self._set_xattrs(directory, descriptor, path)
        prefix = path + b"/" if path else b""
        for name, node in sorted(directory.children.items(), key=_by_name):
            if node.kind is Kind.DIRECTORY:
                os.mkdir(name, 0o700, dir_fd=descriptor)
                with open_directory(name, descriptor) as inner:
                    self.fill(node, inner, prefix + name)
                continue
            self._place(node, name, descriptor)
            if node.xattrs and node.kind is Kind.REGULAR:
                file = os.open(name, _OPEN, dir_fd=descriptor)
                try:
                    self._set_xattrs(node, file, prefix + name)
                finally:
                    os.close(file)

    def _place(self, node: Node, name: bytes, directory: int) -> None:
        if node.nlink > 1:
            self._link(node, name, directory)
        elif node.content:
            os.rename(str(node.content), name, src_dir_fd=self._pool, dst_dir_fd=directory)
        else:
            _create(node, name, directory)

    def _link(self, node: Node, name: bytes, directory: int) -> None:
        """One of several names: all but the last are links to what lies in the pool meanwhile."""
        pooled = self._pooled.get(node)
        if pooled is None:
            pooled = str(node.content) if node.content else f"linked-{len(self._pooled)}"
            self._pooled[node] = pooled
            self._names_left[node] = node.nlink
            if not node.content:
                _create(node, pooled.encode(), self._pool)
        self._names_left[node] -= 1
        if self._names_left[node]:
            os.link(
                pooled, name, src_dir_fd=self._pool, dst_dir_fd=directory, follow_symlinks=False
            )
        else:
            os.rename(pooled, name, src_dir_fd=self._pool, dst_dir_fd=directory)

    def _set_xattrs(self, node: Node, descriptor: int, path: bytes) -> None:
        """Set what a normal user may set; mkfs.ext4 copies it. A hardlinked file is set again."""
        refused = []
        for name, value in node.xattrs:
            if name.startswith(_USER):
                try:
                    os.setxattr(descriptor, name, value)
                except OSError:
                    refused.append(name)
                    self.refused.append(path)
        if refused:
            node.xattrs = tuple(pair for pair in node.xattrs if pair[0] not in refused)


def _by_name(item: tuple[bytes, Node]) -> bytes:
    return item[0]


def _create(node: Node, name: bytes, directory: int) -> None:
    if node.kind is Kind.SYMLINK and not node.is_linked_symlink:
        os.symlink(node.target, name, dir_fd=directory)
        return
    descriptor = create_file(name, directory)
    try:
        if content := _placeholder(node):
            os.write(descriptor, content)
    finally:
        os.close(descriptor)


def _placeholder(node: Node) -> bytes:
    """What the file holds that stands for a device, or for a symlink of several names.

    mke2fs links no symlinks, so that is a plain file until the ownership stage changes its type. A
    long target lies in a block as content does; a short one has no block, and its place no content.
    """
    return node.target if node.is_linked_symlink and node.size >= FAST_SYMLINK else b""


def is_tree_whole(tree: Tree, top: Path) -> bool:
    """True when `top` holds just the names of the tree, with the right kinds, sizes and links."""
    try:
        with open_directory(top) as directory:
            return _is_whole(tree.root, directory, {})
    except OSError:
        return False


def _is_whole(directory: Node, descriptor: int, inodes: dict[Node, int]) -> bool:
    if {os.fsencode(name) for name in os.listdir(descriptor)} != directory.children.keys():
        return False
    for name, node in directory.children.items():
        found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
        if node.kind is Kind.DIRECTORY:
            with open_directory(name, descriptor) as inner:
                if not _is_whole(node, inner, inodes):
                    return False
            continue
        symlink = node.kind is Kind.SYMLINK and not node.is_linked_symlink
        wanted = stat.S_IFLNK if symlink else stat.S_IFREG
        size = len(_placeholder(node)) if node.is_linked_symlink else node.size
        same_inode = inodes.setdefault(node, found.st_ino) == found.st_ino
        shape = (stat.S_IFMT(found.st_mode), found.st_size, found.st_nlink)
        if shape != (wanted, size, node.nlink) or not same_inode:
            return False
    return True
