"""How large a filesystem must be for a tree: the arithmetic of mke2fs, done before mke2fs runs.

`stages.ext4` asks it, so that an image that cannot fit is refused with the number that would do.
Pure. The layout is that of the options which `stages.ext4` pins: blocks of 4 KiB, inodes of 256
bytes, 32768 blocks a group, 64-byte descriptors, room for growth by resize2fs, no reserved blocks.
Where exactness would need the allocator itself, the sum errs upwards: a build at the size named
here succeeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from reconciler.errors import ImageError
from reconciler.ext4.inode import FAST_SYMLINK
from reconciler.ext4.xattr import blocks_needed
from reconciler.oci.entries import DIRECTORY, REGULAR, SYMLINK, Node, Tree
from reconciler.text import printable

BLOCK = 4096
MIB = 1 << 20
SMALLEST = 12 * MIB
"""Below this mke2fs finds no room for its smallest journal."""
LARGEST = 1 << 44
"""16 TiB, where 32-bit block numbers of other tools end."""

_BLOCKS_PER_GROUP = 32768
_INODES_PER_BLOCK = 16
_INODES_PER_GROUP_LIMIT = 32768
_DESCRIPTORS_PER_BLOCK = 64
_BYTES_PER_INODE = 16384
_RESERVED_INODES = 11
_SPARE_INODES = 512
_EXTENTS_IN_INODE = 4
_EXTENTS_PER_BLOCK = 170
"""340 fit; blocks that were split are half full."""
_DIRENT_ROOM = BLOCK - 12 - 264
"""Of a directory block: without the checksum, and with a longest name that just did not fit."""
_UNBROKEN = (_BLOCKS_PER_GROUP - 1) * BLOCK
"""Bytes below which a file has no more extents than its inode holds."""
_SLACK = 32


@dataclass(frozen=True, slots=True)
class Need:
    """What a tree takes beside the filesystem's own tables: 4 KiB blocks and inodes."""

    blocks: int
    inodes: int


def required_size(tree: Tree, extra: Iterable[int] = ()) -> int:
    """The size in bytes, a multiple of 1 MiB, at which a build of this tree is sure to succeed.

    extra: sizes in bytes of files that later stages add (guest assets, kernel modules). Raises
    ImageError for attributes that ext4 cannot hold.
    """
    return size_for(need_of(tree), extra)


def size_for(need: Need, extra: Iterable[int] = ()) -> int:
    """`required_size` for a tree that is measured already."""
    whole = with_extra(need, extra)
    size = max(SMALLEST, whole.blocks * BLOCK)
    size += -size % MIB
    while (missing := _missing(size, need, whole)) > 0:
        size += max(MIB, missing * BLOCK // MIB * MIB)
    return size


def inode_count(need: Need, size: int) -> int:
    """The `-N` for a tree in a filesystem of `size` bytes: one in 16 KiB, as everywhere else.

    Never less than the tree's own, an eighth of that and 512 to spare. The guest's files do not
    count: equal layers and an equal size give an equal filesystem, whatever is added to it later.
    """
    own = need.inodes + _RESERVED_INODES
    return max(own + own // 8 + _SPARE_INODES, size // _BYTES_PER_INODE)


def journal_mib(size: int) -> int:
    """The size of the journal in MiB: that of mke2fs, but no more than 64."""
    for limit, journal in ((128, 4), (1024, 16), (2048, 32)):
        if size < limit * MIB:
            return journal
    return 64


def need_of(tree: Tree) -> Need:
    """Measure a tree. Holes count as full. Raises ImageError for attributes that do not fit."""
    nodes = tree.nodes()
    blocks, again = 0, 0
    seen: set[Node] = set()
    for node in nodes:
        kind = node.kind
        if node.nlink > 1 and kind is not DIRECTORY:
            if node in seen:
                again += 1
                continue
            seen.add(node)
        if kind is REGULAR and (size := node.size) < _UNBROKEN:
            blocks += (size + BLOCK - 1) // BLOCK
        else:
            blocks += _content_blocks(node)
        if node.xattrs:
            blocks += _xattr_blocks(tree, node)
    return Need(blocks, len(nodes) - again)


def with_extra(need: Need, extra: Iterable[int]) -> Need:
    """A need with the files of later stages: each may come with a directory of its own."""
    blocks, inodes = need.blocks, need.inodes
    for size in extra:
        blocks += _file_blocks(size) + 2
        inodes += 2
    return Need(blocks, inodes)


def _content_blocks(node: Node) -> int:
    if node.kind is REGULAR:
        return _file_blocks(node.size)
    if node.kind is DIRECTORY:
        names = sum((len(name) + 11) & ~3 for name in node.children)
        count = 1 + (24 + names) // _DIRENT_ROOM
        return count + _tree_blocks(count)  # written one by one, so each is an extent at worst
    if node.kind is SYMLINK and len(node.target) >= FAST_SYMLINK:
        return 1
    return 0


def _file_blocks(size: int) -> int:
    """A file is written in one go: it breaks at the tables of groups and where the space wraps."""
    count = _up(size, BLOCK)
    extents = min(count, 3 + 3 * (count // _BLOCKS_PER_GROUP))
    return count + _tree_blocks(extents)


def _tree_blocks(extents: int) -> int:
    if extents <= _EXTENTS_IN_INODE:
        return 0
    leaves = _up(extents, _EXTENTS_PER_BLOCK)
    return leaves + (0 if leaves <= _EXTENTS_IN_INODE else 1 + leaves // _EXTENTS_PER_BLOCK)


def _xattr_blocks(tree: Tree, node: Node) -> int:
    blocks = blocks_needed(node.xattrs)
    if blocks is None:
        path = next(path for path, found in tree.walk() if found is node)
        raise ImageError(
            f"{printable(path)}: its extended attributes exceed the 4 KiB that ext4 has for them"
        )
    return blocks


def _missing(size: int, need: Need, whole: Need) -> int:
    """Blocks by which `size` is too small; 0 or less when everything fits."""
    inodes = inode_count(need, size)
    wanted = whole.inodes + _RESERVED_INODES
    groups = _up(size // BLOCK, _BLOCKS_PER_GROUP)
    if inodes > groups * _INODES_PER_GROUP_LIMIT:
        return groups * _BLOCKS_PER_GROUP + 1 - size // BLOCK
    if wanted > inodes:
        return (wanted - inodes) * (_BYTES_PER_INODE // BLOCK)
    return whole.blocks + _SLACK - _free_blocks(size, inodes)


def _free_blocks(size: int, inodes: int) -> int:
    """Blocks that an empty filesystem has to give, after its tables, its journal and lost+found."""
    blocks = size // BLOCK
    groups = _up(blocks, _BLOCKS_PER_GROUP)
    table = _up(_up(inodes, groups), _INODES_PER_BLOCK)
    descriptors = _up(groups, _DESCRIPTORS_PER_BLOCK)
    copies = set(_backup_groups(groups))
    copy = 1 + descriptors + _reserved_descriptors(blocks, descriptors)
    last = blocks % _BLOCKS_PER_GROUP
    if 0 < last < 2 + table + (copy if groups - 1 in copies else 0) + 50:
        return _free_blocks(size - last * BLOCK, inodes)  # mke2fs gives up a group this short
    lost_and_found, root, resize = 4, 1, 1
    own = groups * (2 + table) + len(copies) * copy + lost_and_found + root + resize
    return blocks - own - journal_mib(size) * MIB // BLOCK


def _reserved_descriptors(blocks: int, descriptors: int) -> int:
    """Descriptor blocks that mke2fs sets aside to let the filesystem grow 1024-fold."""
    grown = min(0xFFFFFFFF, blocks * 1024)
    groups = _up(grown, _BLOCKS_PER_GROUP)
    return max(0, min(BLOCK // 4, _up(groups, _DESCRIPTORS_PER_BLOCK) - descriptors))


def _backup_groups(groups: int) -> Iterator[int]:
    """Groups with a copy of the superblock: 0, 1 and the powers of 3, 5 and 7 (sparse_super)."""
    yield from range(min(groups, 2))
    for base in (3, 5, 7):
        power = base
        while power < groups:
            yield power
            power *= base


def _up(number: int, unit: int) -> int:
    """How many units it takes to hold a number of things."""
    return -(-number // unit)
