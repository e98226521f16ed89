"""From a merged tree to inodes and directories: all of a filesystem but the content of its files.

`direct.builder` calls it once content has its blocks. Inode numbers follow the tree, directory by
directory in byte order, so that equal trees give equal bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reconciler.direct.content import Contents
from reconciler.direct.directory import BLOCK, EMPTY_BLOCK, Entry, blocks_of
from reconciler.direct.files import FileInodes
from reconciler.direct.space import ImageSpace, Range
from reconciler.ext4.inode import (
    EXTENTS_INSIDE,
    FAST_SYMLINK,
    INDEX_FLAG,
    MADE_AT,
    Extent,
    device_block,
    pack_inode,
    pack_mapped_inode,
)
from reconciler.ext4.libext2fs import NoRoom, Writer
from reconciler.ext4.reader import LOST_AND_FOUND, ROOT_INODE, Filesystem
from reconciler.oci.entries import DIRECTORY, FIFO, REGULAR, SYMLINK, Kind, Node
from reconciler.stages.ownership import TYPES

_LOST_AND_FOUND_INODE = 11
_LOST_AND_FOUND_BLOCKS = 4
"""e2fsck moves what it finds into blocks that are there already; mke2fs makes as many."""

_ENTRY_TYPES = (1, 0, 7, 3, 4, 2, 5)
"""Of directory entries, by the number of the kind; headers alone have the second kind."""
_FILE, _DIRECTORY = _ENTRY_TYPES[REGULAR], _ENTRY_TYPES[DIRECTORY]
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


@dataclass(slots=True)
class Metadata:
    """Writes what the tree says.

    contents: where that of each file is; what takes blocks here goes the same way. files: which
    inodes are written already. The tree is walked once: what is in a directory gets inode numbers,
    and its inodes are written as far as they are not, then the blocks of the directory itself.
    """

    writer: Writer
    space: ImageSpace
    empty: Empty
    contents: Contents
    files: FileInodes
    _linked: dict[Node, int] = field(default_factory=dict)
    """The inode numbers of files that have more names than one, and of which one has come."""
    _renamed: list[Node] = field(default_factory=list)
    """Files of more names than one whose inodes were written when nobody knew of that."""
    _kinds: bytearray = field(default_factory=bytearray)
    """Of each inode after those of `files`, whether it is a directory."""

    def write(self, root: Node) -> None:
        """Write every inode. Raises NoRoom, OSError and HostError TOOL_FAILED."""
        self.space.give(self.empty.root)
        if LOST_AND_FOUND in root.children:
            self.space.give(self.empty.lost_and_found)
        todo = [(root, ROOT_INODE, ROOT_INODE)]
        while todo:
            directory, inode, parent = todo.pop()
            entries = self._write_children(directory, inode)
            for name, number, kind in reversed(entries):
                if kind == _DIRECTORY:
                    todo.append((directory.children[name], number, inode))
            self._write_directory(directory, inode, parent, entries)
        self.contents.flush()
        self.files.rewrite(self._renamed, self.contents.extents)
        self.writer.mark_inodes(self.files.following, self._kinds)

    def _write_children(self, directory: Node, inode: int) -> list[Entry]:
        """Number what is in a directory, and write the inodes of all that are no directories."""
        entries: list[Entry] = []
        inodes: list[tuple[int, bytes]] = []
        incomplete: list[tuple[int, Node]] = []
        linked, kinds, extents = self._linked, self._kinds, self.contents.extents
        written = self.files.number
        following = self.files.following + len(kinds)
        for name, node in sorted(directory.children.items()):
            kind = node.kind
            number = node.content and written(node.content)
            if number:
                if node.nlink > 1 and node not in linked:
                    linked[node] = number
                    self._renamed.append(node)
                entries.append((name, number, _FILE))
                continue
            number = following
            if kind is DIRECTORY:
                if name == LOST_AND_FOUND and inode == ROOT_INODE:
                    number = _LOST_AND_FOUND_INODE
            elif node.nlink > 1 and node in linked:
                number = linked[node]
            else:
                if node.nlink > 1:
                    linked[node] = number
                inodes.append((number, self._packed(node)))
                if node.xattrs or (node.content and len(extents[node.content]) > EXTENTS_INSIDE):
                    incomplete.append((number, node))
            if number == following:
                kinds.append(kind is DIRECTORY)
                following += 1
            entries.append((name, number, _ENTRY_TYPES[kind]))
        if following - 1 > self.empty.inodes:
            raise NoRoom(f"{following - 1} inodes and more do not fit")
        self.writer.write_inodes(inodes)
        for number, node in incomplete:
            self._complete(number, node, extents[node.content] if node.content else ())
        return entries

    def _complete(self, inode: int, node: Node, extents: Sequence[Extent]) -> None:
        """Add what does not fit into an inode: the library takes the blocks for it by itself."""
        self.space.close()
        if len(extents) > EXTENTS_INSIDE:
            self.writer.set_extents(inode, extents)
        if node.xattrs:
            self.writer.set_xattrs(inode, node.xattrs)

    def _packed(self, node: Node) -> bytes:
        """The inode of a node that is no directory."""
        kind = node.kind
        if kind is REGULAR:
            extents = self.contents.extents[node.content] if node.content else ()
            return pack_mapped_inode(
                _MODES[kind] | node.mode, node.uid, node.gid, node.nlink, node.size,
                extents=extents, time_ns=node.mtime_ns, created=MADE_AT,
            )  # fmt: skip
        if kind is not SYMLINK:
            return _pack(node, b"" if kind is FIFO else device_block(*node.rdev), 0)
        target = node.target
        if len(target) < FAST_SYMLINK:
            return _pack(node, target, len(target))
        [(block, _)] = self.space.take(1)
        self.contents.put(block * BLOCK, target.ljust(BLOCK, b"\0"))
        return pack_mapped_inode(
            _MODES[kind] | node.mode, node.uid, node.gid, node.nlink, len(target),
            extents=[(0, block, 1)], time_ns=node.mtime_ns, created=MADE_AT,
        )  # fmt: skip

    def _write_directory(self, node: Node, inode: int, parent: int, entries: list[Entry]) -> None:
        links = node.nlink
        if inode == ROOT_INODE and LOST_AND_FOUND not in node.children:
            entries.append((LOST_AND_FOUND, _LOST_AND_FOUND_INODE, _DIRECTORY))
            links += 1
        blocks = blocks_of(inode, parent, entries, self._hash)
        flags = INDEX_FLAG if len(blocks) > 1 else 0
        if inode == _LOST_AND_FOUND_INODE and not flags:
            blocks += [EMPTY_BLOCK] * (_LOST_AND_FOUND_BLOCKS - 1)
        extents = self._place(inode, blocks)
        raw = pack_mapped_inode(
            _MODES[DIRECTORY] | node.mode, node.uid, node.gid, links, len(blocks) * BLOCK,
            extents=extents, time_ns=node.mtime_ns, created=MADE_AT, flags=flags,
        )  # fmt: skip
        self.writer.write_inodes([(inode, raw)])
        if node.xattrs or len(extents) > EXTENTS_INSIDE:
            self._complete(inode, node, extents)

    def _hash(self, name: bytes) -> tuple[int, int]:
        return self.writer.name_hash(self.empty.hash_version, self.empty.hash_seed, name)

    def _place(self, inode: int, blocks: list[bytes]) -> list[Extent]:
        raw = bytearray().join(blocks)
        self.writer.seal_directory(inode, raw)
        extents = []
        done = 0
        for start, count in self.space.take(len(blocks)):
            extents.append((done, start, count))
            self.contents.put(start * BLOCK, memoryview(raw)[done * BLOCK : (done + count) * BLOCK])
            done += count
        return extents


def _pack(node: Node, block: bytes, size: int) -> bytes:
    """An inode without blocks."""
    return pack_inode(
        _MODES[node.kind] | node.mode, node.uid, node.gid, node.nlink, size,
        time_ns=node.mtime_ns, created=MADE_AT, block=block,
    )  # fmt: skip


_MODES = [TYPES.get(kind, 0) for kind in sorted(Kind)]
"""The type bits, by index: an enum hashes in Python, and this is asked for every inode."""
