"""From a merged tree to inodes and directories: all of a filesystem but the content of its files.

`direct.builder` calls it once content has its blocks. Inode numbers follow the tree, directory by
directory in byte order, so that equal trees give equal bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.direct.directory import BLOCK, EMPTY_BLOCK, Entry, Hash, blocks_of
from reconciler.direct.space import ImageSpace, Range
from reconciler.ext4.inode import (
    EXTENTS_FLAG,
    EXTENTS_INSIDE,
    FAST_SYMLINK,
    INDEX_FLAG,
    device_block,
    extents_block,
    pack_inode,
    pack_inode_of_one_extent,
)
from reconciler.ext4.libext2fs import NoRoom, Writer
from reconciler.ext4.reader import LOST_AND_FOUND, ROOT_INODE, Extent, Filesystem
from reconciler.oci.entries import DIRECTORY, FIFO, REGULAR, SYMLINK, Kind, Node
from reconciler.stages.ownership import TYPES
from reconciler.tools import FAKE_TIME

_LOST_AND_FOUND_INODE = 11
_FIRST_INODE = 12
_LOST_AND_FOUND_BLOCKS = 4
"""e2fsck moves what it finds into blocks that are there already; mke2fs makes as many."""

_ENTRY_TYPES = (1, 0, 7, 3, 4, 2, 5)
"""Of directory entries, by the number of the kind; headers alone have the second kind."""
_CREATED = int(FAKE_TIME)
_UNSIGNED_HASH = 2
"""In s_flags: names are hashed as unsigned bytes, which is another version of each hash."""


@dataclass(frozen=True, slots=True)
class Empty:
    """What a filesystem was when mke2fs had made it."""

    inodes: int
    hash_version: int
    hash_seed: bytes
    root: tuple[Range, ...]
    lost_and_found: tuple[Range, ...]

    @classmethod
    def read(cls, image: Path) -> Empty:
        """Read it from the image. Raises HostError when that is no filesystem."""
        with Filesystem(image) as filesystem:
            ranges = [
                tuple((start, count) for _, start, count in filesystem.extents(inode))
                for inode in map(filesystem.inode, (ROOT_INODE, _LOST_AND_FOUND_INODE))
            ]
            with image.open("rb", buffering=0) as stream:
                superblock = os.pread(stream.fileno(), 1024, 1024)
            flags = struct.unpack_from("<I", superblock, 0x160)[0]
            version = superblock[0xFC] + (3 if flags & _UNSIGNED_HASH else 0)
            return cls(filesystem.inodes, version, superblock[0xEC:0xFC], ranges[0], ranges[1])


def number(root: Node) -> dict[Node, int]:
    """The inode number of every node, in the order in which they are written."""
    numbers = {root: ROOT_INODE}
    following = _FIRST_INODE
    todo = [root]
    while todo:
        below = []
        for name, node in sorted(todo.pop().children.items()):
            if node in numbers:
                continue
            if name == LOST_AND_FOUND and root.children.get(name) is node:
                numbers[node] = _LOST_AND_FOUND_INODE
            else:
                numbers[node] = following
                following += 1
            if node.kind is DIRECTORY:
                below.append(node)
        todo.extend(reversed(below))
    return numbers


@dataclass(slots=True)
class Metadata:
    """Writes what the tree says. `extents`: where the content of each serial is."""

    writer: Writer
    space: ImageSpace
    descriptor: int
    empty: Empty
    extents: Mapping[int, tuple[Extent, ...]]
    numbers: dict[Node, int]
    _parents: dict[Node, int] = field(default_factory=dict)

    def write(self, root: Node) -> None:
        """Write every inode. Raises NoRoom, OSError and HostError TOOL_FAILED."""
        if max(self.numbers.values()) > self.empty.inodes:
            raise NoRoom(f"{len(self.numbers)} inodes do not fit")
        self.space.give(self.empty.root)
        if LOST_AND_FOUND in root.children:
            self.space.give(self.empty.lost_and_found)
        self._parents[root] = ROOT_INODE
        self._mark_inodes()
        self.writer.write_inodes(self._simple_files())
        for node, inode in self.numbers.items():
            if node.kind is DIRECTORY:
                self._write_directory(inode, node)
            elif node.kind is SYMLINK:
                self._write_link(inode, node)
            elif node.kind is not REGULAR:
                block = b"" if node.kind is FIFO else device_block(*node.rdev)
                self._put(inode, node, block)
            elif not self._is_simple(node):
                extents = self.extents[node.content] if node.size else ()
                self._put_mapped(inode, node, extents, node.size)
            if node.xattrs:
                self.space.close()  # the library takes the block for them itself
                self.writer.set_xattrs(inode, node.xattrs)

    def _mark_inodes(self) -> None:
        numbered = self.numbers.items()
        kinds = (node.kind is DIRECTORY for node, inode in numbered if inode >= _FIRST_INODE)
        self.writer.mark_inodes(_FIRST_INODE, kinds)

    def _is_simple(self, node: Node) -> bool:
        """Whether a file has one extent, as nearly all have."""
        return bool(node.content) and len(self.extents[node.content]) == 1

    def _simple_files(self) -> Iterator[tuple[int, bytes]]:
        for node, inode in self.numbers.items():
            if node.kind is REGULAR and self._is_simple(node):
                [extent] = self.extents[node.content]
                yield inode, pack_inode_of_one_extent(
                    _FILE | node.mode, node.uid, node.gid, node.nlink, node.size,
                    extent=extent, time_ns=node.mtime_ns, created=_CREATED,
                )  # fmt: skip

    def _put(
        self,
        inode: int,
        node: Node,
        block: bytes,
        *,
        blocks: int = 0,
        flags: int = 0,
        size: int = 0,
    ) -> None:
        links = node.nlink
        if inode == ROOT_INODE and LOST_AND_FOUND not in node.children:
            links += 1
        raw = pack_inode(
            _MODES[node.kind] | node.mode, node.uid, node.gid, links, size,
            time_ns=node.mtime_ns, created=_CREATED, block=block, blocks=blocks, flags=flags,
        )  # fmt: skip
        self.writer.write_inode(inode, raw)

    def _put_mapped(
        self, inode: int, node: Node, extents: Sequence[Extent], size: int, flags: int = 0
    ) -> None:
        """An inode that has blocks; more extents than fit into it go into a tree."""
        blocks = sum(extent[2] for extent in extents) if len(extents) != 1 else extents[0][2]
        inside = extents if len(extents) <= EXTENTS_INSIDE else ()
        flags |= EXTENTS_FLAG
        self._put(inode, node, extents_block(inside), blocks=blocks, flags=flags, size=size)
        if extents and not inside:
            self.space.close()  # as above: the library takes the blocks of the tree
            self.writer.set_extents(inode, extents)

    def _write_link(self, inode: int, node: Node) -> None:
        target = node.target
        if len(target) < FAST_SYMLINK:
            self._put(inode, node, target, size=len(target))
            return
        [(block, _)] = self.space.take(1)
        os.pwrite(self.descriptor, target.ljust(BLOCK, b"\0"), block * BLOCK)
        self._put_mapped(inode, node, [(0, block, 1)], len(target))

    def _write_directory(self, inode: int, node: Node) -> None:
        entries: list[Entry] = []
        numbers, types = self.numbers, _ENTRY_TYPES
        for name, child in sorted(node.children.items()):
            kind = child.kind
            entries.append((name, numbers[child], types[kind]))
            if kind is DIRECTORY:
                self._parents[child] = inode
        if inode == ROOT_INODE and LOST_AND_FOUND not in node.children:
            entries.append((LOST_AND_FOUND, _LOST_AND_FOUND_INODE, _ENTRY_TYPES[DIRECTORY]))
        blocks = blocks_of(inode, self._parents[node], entries, self._hash)
        flags = INDEX_FLAG if len(blocks) > 1 else 0
        if inode == _LOST_AND_FOUND_INODE and not flags:
            blocks += [EMPTY_BLOCK] * (_LOST_AND_FOUND_BLOCKS - 1)
        extents = self._place(inode, blocks)
        self._put_mapped(inode, node, extents, len(blocks) * BLOCK, flags)

    @property
    def _hash(self) -> Hash:
        version, seed = self.empty.hash_version, self.empty.hash_seed
        return lambda name: self.writer.name_hash(version, seed, name)

    def _place(self, inode: int, blocks: list[bytes]) -> list[Extent]:
        extents = []
        done = 0
        for start, count in self.space.take(len(blocks)):
            extents.append((done, start, count))
            for block in range(start, start + count):
                self.writer.write_directory_block(block, blocks[done], inode)
                done += 1
        return extents


_FILE = TYPES[REGULAR]
_MODES = [TYPES.get(kind, 0) for kind in sorted(Kind)]
"""The type bits, by index: an enum hashes in Python, and this is asked for every inode."""
