"""A reader of the ext4 images that we make: what is really in there, by inode number.

`stages.ownership` takes from it which inode a path became, and proves by it afterwards that every
inode is what the image's layers say; `stages.guest` and the tests look into images with it. It
knows the features that `stages.ext4` pins and refuses others. Layout: the kernel's documentation,
"Data Structures and Algorithms" of ext4 (Documentation/filesystems/ext4).

Nothing here trusts the bytes: a bad number ends in a HostError, a loop is not followed.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from reconciler.errors import Code, HostError
from reconciler.ext4.inode import FAST_SYMLINK, Extent
from reconciler.ext4.xattr import INODE_MAGIC, parse_block, parse_inode_body
from reconciler.files import host_errors

ROOT_INODE = 2
LOST_AND_FOUND = b"lost+found"

_MAGIC = 0xEF53
_SUPERBLOCK = 1024
_KNOWN_INCOMPAT = 0x2 | 0x40 | 0x80 | 0x200  # filetype, extents, 64bit, flex_bg
_EXTENTS_FLAG = 0x80000
_EXTENT_MAGIC = 0xF30A
_MAX_EXTENT_DEPTH = 5
_UNWRITTEN = 32768
_INODE_SIZE = 256
_INODES_PER_CHUNK = 256
_CHUNKS_KEPT = 1024  # 64 MiB
_LONGEST_TARGET = 4096

# i_mode up to i_projid and the four bytes behind it, without what nobody here asks for
_INODE = struct.Struct("<HHIIII4xHH4xI4x60s4xII4x2xHHH4xH2xIIIII8x4s")
_EXTRA_SIZE = 32
_EXTENT_HEADER = struct.Struct("<HHHH4x")
_EXTENT = struct.Struct("<IHHI")
_EXTENT_INDEX = struct.Struct("<IIH2x")
_DIRENT = struct.Struct("<IHBB")


class Inode(NamedTuple):
    """One inode. A tuple, because a build makes and compares hundreds of thousands."""

    number: int
    mode: int
    """All 16 bits: the type and 07777."""
    uid: int
    gid: int
    size: int
    links: int
    flags: int
    block: bytes
    """The 60 bytes of i_block: an extent tree, a short link target or a device number."""
    xattr_block: int
    xattr_offset: int
    """Where in the inode its own attributes start, 0 when there are none."""
    mtime: tuple[int, int]
    """As on disk, like the two below: low 32 bits of the seconds, and `i_mtime_extra`."""
    atime: tuple[int, int]
    ctime: tuple[int, int]
    crtime: tuple[int, int]

    @property
    def mtime_ns(self) -> int:
        """Time of the last change of the content, ns since the epoch."""
        return _nanoseconds(*self.mtime)

    @property
    def atime_ns(self) -> int:
        """Time of the last access, ns since the epoch."""
        return _nanoseconds(*self.atime)

    @property
    def ctime_ns(self) -> int:
        """Time of the last change of the inode, ns since the epoch."""
        return _nanoseconds(*self.ctime)

    @property
    def crtime_ns(self) -> int:
        """Time of creation, ns since the epoch."""
        return _nanoseconds(*self.crtime)

    @property
    def has_xattrs(self) -> bool:
        """True when it has extended attributes."""
        return bool(self.xattr_offset or self.xattr_block)

    @property
    def is_directory(self) -> bool:
        """True for a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def rdev(self) -> tuple[int, int]:
        """(major, minor) of a device, else (0, 0); on disk the old encoding or the new one."""
        if not (stat.S_ISCHR(self.mode) or stat.S_ISBLK(self.mode)):
            return (0, 0)
        old, new = struct.unpack_from("<II", self.block)
        if old:
            return (old >> 8 & 0xFF, old & 0xFF)
        return (new >> 8 & 0xFFF, new & 0xFF | new >> 12 & 0xFFF00)


class Filesystem:
    """An open image. Use it in a `with`. Inodes are read once: open it anew after a tool has run.

    Raises HostError (TOOL_FAILED) here and in every method when the bytes make no sense. Read by
    pread, not through a mapping: on a full tmpfs the first look at a hole would be a SIGBUS.
    """

    def __init__(self, image: Path) -> None:
        with host_errors("cannot read the filesystem"):
            self._descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._chunks: dict[tuple[int, int], bytes] = {}
        try:
            self._read_superblock()
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    def _read_superblock(self) -> None:
        u32 = struct.Struct("<I").unpack_from
        u16 = struct.Struct("<H").unpack_from
        data = self._read_at(_SUPERBLOCK, _SUPERBLOCK)
        if u16(data, 0x38)[0] != _MAGIC:
            raise _corrupt("there is no ext4 superblock")
        self.inodes: int = u32(data, 0)[0]
        self.blocks: int = u32(data, 4)[0] | u32(data, 0x150)[0] << 32
        self.free_blocks: int = u32(data, 0xC)[0] | u32(data, 0x158)[0] << 32
        self.free_inodes: int = u32(data, 0x10)[0]
        self.uuid = bytes(data[0x68:0x78])
        self._first_block: int = u32(data, 0x14)[0]
        self._per_group: int = u32(data, 0x28)[0]
        blocks_per_group: int = u32(data, 0x20)[0]
        descriptor_size: int = u16(data, 0xFE)[0]
        incompat: int = u32(data, 0x60)[0]
        self.block_size: int = 1024 << min(u32(data, 0x18)[0], 16)
        if (
            incompat & ~_KNOWN_INCOMPAT
            or not incompat & 0x40
            or self.block_size != 4096
            or u16(data, 0x58)[0] != _INODE_SIZE
            or descriptor_size not in (0, 32, 64)
            or not self._per_group
            or not blocks_per_group
            or self.blocks * self.block_size > os.fstat(self._descriptor).st_size
        ):
            raise _corrupt("it is not an ext4 filesystem of the kind that we make")
        self._descriptor_size = descriptor_size if incompat & 0x80 else 32
        self._read_tables(
            (self.blocks - self._first_block + blocks_per_group - 1) // blocks_per_group
        )

    def _read_tables(self, groups: int) -> None:
        """Where the inode table of each group starts, in bytes."""
        size = self._descriptor_size
        if self.inodes > groups * self._per_group:
            raise _corrupt("there are more inodes than groups for them")
        raw = self._read_at((self._first_block + 1) * self.block_size, groups * size)
        self._tables: list[int] = []
        for at in range(0, len(raw), size):
            table = struct.unpack_from("<I", raw, at + 8)[0]
            if size == 64:
                table |= struct.unpack_from("<I", raw, at + 0x28)[0] << 32
            self._tables.append(table * self.block_size)

    def _read_at(self, offset: int, length: int) -> bytes:
        with host_errors("cannot read the filesystem"):
            data = os.pread(self._descriptor, length, offset)
        if len(data) != length:
            raise _corrupt("the file is too short")
        return data

    def _place(self, number: int) -> tuple[bytes, int]:
        """A part of an inode table, and where in it an inode starts."""
        if not 1 <= number <= self.inodes:
            raise _corrupt(f"there is no inode {number}")
        group, index = divmod(number - 1, self._per_group)
        part, within = divmod(index, _INODES_PER_CHUNK)
        chunk = self._chunks.get((group, part))
        if chunk is None:
            if len(self._chunks) >= _CHUNKS_KEPT:
                self._chunks.clear()
            count = min(_INODES_PER_CHUNK, self._per_group - part * _INODES_PER_CHUNK)
            start = self._tables[group] + part * _INODES_PER_CHUNK * _INODE_SIZE
            chunk = self._chunks[group, part] = self._read_at(start, count * _INODE_SIZE)
        return chunk, within * _INODE_SIZE

    def inode_offset(self, number: int) -> int:
        """Where in the image an inode is, in bytes."""
        group, index = divmod(number - 1, self._per_group)
        return self._tables[group] + index * _INODE_SIZE

    def inode(self, number: int) -> Inode:
        """One inode by its number."""
        (
            mode, uid, size, atime, ctime, mtime, gid, links, flags, block, acl, size_high,
            acl_high, uid_high, gid_high, extra, ctime_x, mtime_x, atime_x, crtime, crtime_x, mark,
        ) = _INODE.unpack_from(*self._place(number))  # fmt: skip
        return Inode(
            number,
            mode,
            uid | uid_high << 16,
            gid | gid_high << 16,
            size | size_high << 32,
            links,
            flags,
            block,
            acl | acl_high << 32,
            128 + extra if extra and (mark == INODE_MAGIC or extra != _EXTRA_SIZE) else 0,
            (mtime, mtime_x),
            (atime, atime_x),
            (ctime, ctime_x),
            (crtime, crtime_x),
        )

    def extents(self, inode: Inode) -> list[Extent]:
        """What is mapped, in logical order; holes are left out, unwritten extents too."""
        if not inode.flags & _EXTENTS_FLAG:
            return []
        found: list[Extent] = []
        self._collect(inode.block, found, _MAX_EXTENT_DEPTH, [self.blocks])
        return found

    def _collect(self, node: bytes, found: list[Extent], depth: int, budget: list[int]) -> None:
        magic, entries, _, level = _EXTENT_HEADER.unpack_from(node)
        budget[0] -= 1
        if (
            magic != _EXTENT_MAGIC
            or level > depth
            or 12 * (entries + 1) > len(node)
            or budget[0] < 0
        ):
            raise _corrupt("an extent tree is broken")
        for at in range(12, 12 * (entries + 1), 12):
            if level:
                _, low, high = _EXTENT_INDEX.unpack_from(node, at)
                self._collect(self.block(low | high << 32), found, level - 1, budget)
                continue
            logical, count, high, low = _EXTENT.unpack_from(node, at)
            if count <= _UNWRITTEN:
                physical = low | high << 32
                if physical + count > self.blocks:
                    raise _corrupt("an extent reaches past the end")
                found.append((logical, physical, count))

    def block(self, number: int) -> bytes:
        """The bytes of one block."""
        if not 0 < number < self.blocks:
            raise _corrupt(f"there is no block {number}")
        return self._read_at(number * self.block_size, self.block_size)

    def chunks(self, inode: Inode) -> Iterator[tuple[int, bytes]]:
        """The mapped content of a file as (offset, bytes) of at most 1 MiB; holes are left out."""
        step = (1 << 20) // self.block_size
        for logical, physical, count in self.extents(inode):
            for done in range(0, count, step):
                offset = (logical + done) * self.block_size
                length = min(min(step, count - done) * self.block_size, inode.size - offset)
                if length > 0:
                    start = (physical + done) * self.block_size
                    yield offset, self._read_at(start, length)

    def read(self, inode: Inode) -> bytes:
        """The whole content of a small file (no more than 64 MiB), holes as zeros."""
        if inode.size > 64 << 20:
            raise _corrupt(f"inode {inode.number} is larger than expected")
        content = bytearray(inode.size)
        for offset, data in self.chunks(inode):
            content[offset : offset + len(data)] = data
        return bytes(content)

    def target(self, inode: Inode) -> bytes:
        """The target of a symbolic link."""
        if inode.size > _LONGEST_TARGET:
            raise _corrupt(f"the link in inode {inode.number} is too long")
        return inode.block[: inode.size] if inode.size < FAST_SYMLINK else self.read(inode)

    def xattrs(self, inode: Inode) -> dict[bytes, bytes]:
        """Extended attributes by full name, from the inode's body and its block.

        POSIX ACLs come in the form of system calls and tar headers, not in that of the disk.
        """
        attributes = {}
        if inode.xattr_offset:
            chunk, start = self._place(inode.number)
            body = chunk[start + inode.xattr_offset : start + _INODE_SIZE]
            if body.startswith(INODE_MAGIC):
                attributes = parse_inode_body(body)
        if inode.xattr_block:
            attributes |= parse_block(self.block(inode.xattr_block))
        return attributes

    def directory_blocks(self, directory: Inode) -> Iterator[int]:
        """Physical block numbers of a directory, in order."""
        limit = -(-directory.size // self.block_size)
        for logical, physical, count in self.extents(directory):
            yield from range(physical, physical + min(count, max(0, limit - logical)))

    def entries(self, directory: Inode) -> dict[bytes, int]:
        """Name -> inode number, without `.` and `..`.

        Directories with and without an index: to a linear scan the index is an unused entry.
        """
        if not directory.is_directory:
            raise _corrupt(f"inode {directory.number} is no directory")
        found = {
            name: child
            for number in self.directory_blocks(directory)
            for _, child, name, _ in dirents(self.block(number))
        }
        found.pop(b".", None)
        found.pop(b"..", None)
        return found

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Every path without its leading slash, the root as b"" first, parents before children."""
        root = self.inode(ROOT_INODE)
        seen = {ROOT_INODE}
        pending = [(b"", root)]
        yield b"", root
        while pending:
            prefix, directory = pending.pop()
            for name, number in sorted(self.entries(directory).items()):
                path = prefix + name
                inode = self.inode(number)
                yield path, inode
                if stat.S_ISDIR(inode.mode):
                    if number in seen:
                        raise _corrupt("a directory is its own ancestor or has two names")
                    seen.add(number)
                    pending.append((path + b"/", inode))


def dirents(block: bytes) -> Iterator[tuple[int, int, bytes, int]]:
    """The used entries of a directory block: (offset, inode number, name, type)."""
    at = 0
    end = len(block)
    while at < end:
        if end - at < 8:
            raise _corrupt("a directory block is broken")
        number, length, name_length, kind = _DIRENT.unpack_from(block, at)
        if length < 8 or length % 4 or at + length > end or 8 + name_length > length:
            raise _corrupt("a directory block is broken")
        if number:
            yield at, number, block[at + 8 : at + 8 + name_length], kind
        at += length


def _nanoseconds(low: int, extra: int) -> int:
    """A time: 32 signed bits of seconds, two more above them, 30 bits of nanoseconds."""
    seconds = (low ^ 0x80000000) - 0x80000000 + ((extra & 3) << 32)
    return seconds * 1_000_000_000 + (extra >> 2)


def _corrupt(what: str) -> HostError:
    return HostError(f"the new filesystem cannot be read back: {what}", code=Code.TOOL_FAILED)
