"""The 256 bytes of an inode on disk, made from plain values; the checksum is the library's affair.

`direct.metadata` writes every inode of an image by this. Layout: the kernel's documentation of
ext4, "Index Nodes" and "Extent Tree". The reverse of it is `ext4.reader`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache

Extent = tuple[int, int, int]
"""(logical block, physical block, number of blocks)."""

MADE_AT = 1
"""When all in a filesystem was made: the smallest second that e2fsprogs does not read as unset.

It ends in the superblock and in the creation times. Small, so that no host with a clock that has
fallen behind finds a filesystem from the future.
"""

EXTENTS_FLAG = 0x80000
INDEX_FLAG = 0x1000
EXTENTS_INSIDE = 4
"""Extents that fit into the inode; more need a tree of blocks."""
LONGEST_EXTENT = 32768
FAST_SYMLINK = 60
"""Bytes of a link's target that does not fit into the inode any more."""

_SECOND = 1_000_000_000
_SECTORS = 8
"""i_blocks counts 512 bytes."""

# mode uid size atime ctime mtime dtime gid links blocks flags version i_block generation acl
# size_high fragment blocks_high acl_high uid_high gid_high checksum unused extra_size checksum_high
# ctime_x mtime_x atime_x crtime crtime_x version_high project, and room for attributes
_INODE = struct.Struct("<HHIIIIIHHIII60sIIIIHHHHHHHHIIIIIII96x")
_EXTRA_SIZE = 32
_EXTENT_HEADER = struct.Struct("<HHHHI")
_EXTENT = struct.Struct("<IHHI")
_INODE_OF_ONE_EXTENT = struct.Struct("<HHIIIIIHHIIIHHHHIIHHI36xIIIIHHHHHHHHIIIIIII96x")
"""An inode whose i_block holds one extent."""
_EXTENT_MAGIC = 0xF30A


@lru_cache(maxsize=4096)
def encode_time(nanoseconds: int) -> tuple[int, int]:
    """(low, extra) as unsigned numbers: 32 bits of seconds; 30 bits of ns above 2 more of seconds.

    >>> encode_time(-1)
    (4294967295, 3999999996)
    """
    seconds, rest = divmod(nanoseconds, _SECOND)
    low = seconds & 0xFFFFFFFF
    signed = low - (1 << 32) if low >> 31 else low
    return low, rest << 2 | (seconds - signed) >> 32 & 3


def encode_rdev(major: int, minor: int) -> tuple[int, int]:
    """The first two words of a device's i_block: the old encoding where it suffices, as in Linux.

    >>> encode_rdev(1, 3)
    (259, 0)
    """
    if major < 256 and minor < 256:
        return major << 8 | minor, 0
    return 0, minor & 0xFF | major << 8 | (minor & 0xFFF00) << 12


def device_block(major: int, minor: int) -> bytes:
    """The i_block of a device."""
    return struct.pack("<II", *encode_rdev(major, minor))


def pack_inode(
    mode: int,
    uid: int,
    gid: int,
    links: int,
    size: int,
    *,
    time_ns: int,
    created: int,
    block: bytes,
    blocks: int = 0,
    flags: int = 0,
) -> bytes:
    """One inode. mode: all 16 bits. size: bytes. blocks: 4 KiB blocks that it maps.

    time_ns: of modification, change and access alike. created: seconds since the epoch.
    """
    low, extra = encode_time(time_ns)
    sectors = blocks * _SECTORS
    return _INODE.pack(
        mode, uid & 0xFFFF, size & 0xFFFFFFFF, low, low, low, 0, gid & 0xFFFF, links,
        sectors & 0xFFFFFFFF, flags, 0, block, 0, 0, size >> 32, 0, sectors >> 32, 0,
        uid >> 16, gid >> 16, 0, 0, _EXTRA_SIZE, 0, extra, extra, extra, created, 0, 0, 0,
    )  # fmt: skip


def pack_mapped_inode(
    mode: int,
    uid: int,
    gid: int,
    links: int,
    size: int,
    *,
    extents: Sequence[Extent],
    time_ns: int,
    created: int,
    flags: int = 0,
) -> bytes:
    """`pack_inode` for one with blocks: its extents stand in it, unless there are too many for it.

    More than EXTENTS_INSIDE are counted, and left to be put into a tree of blocks.
    """
    flags |= EXTENTS_FLAG
    if len(extents) == 1:  # nearly all are such
        low, extra = encode_time(time_ns)
        [(logical, physical, count)] = extents
        return _INODE_OF_ONE_EXTENT.pack(
            mode, uid & 0xFFFF, size & 0xFFFFFFFF, low, low, low, 0, gid & 0xFFFF, links,
            count * _SECTORS, flags, 0,
            _EXTENT_MAGIC, 1, EXTENTS_INSIDE, 0, 0, logical, count, physical >> 32,
            physical & 0xFFFFFFFF, 0, 0, size >> 32, 0, 0, 0, uid >> 16, gid >> 16, 0, 0,
            _EXTRA_SIZE, 0, extra, extra, extra, created, 0, 0, 0,
        )  # fmt: skip
    inside = extents if len(extents) <= EXTENTS_INSIDE else ()
    block = _EXTENT_HEADER.pack(_EXTENT_MAGIC, len(inside), EXTENTS_INSIDE, 0, 0) + b"".join(
        _EXTENT.pack(logical, count, physical >> 32, physical & 0xFFFFFFFF)
        for logical, physical, count in inside
    )
    return pack_inode(
        mode, uid, gid, links, size, time_ns=time_ns, created=created, block=block,
        blocks=sum(count for _, _, count in extents), flags=flags,
    )  # fmt: skip
