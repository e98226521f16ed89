"""The blocks of a directory: entries in a row, or, when they do not fit one block, an index.

`direct.metadata` writes them through the library, which puts the checksums in; room for those is
left here. Layout: the kernel's documentation of ext4, "Directory Entries" and "Hash Tree
Directories". A reader that knows of no index sees its blocks as unused entries.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence

from reconciler.errors import ImageError
from reconciler.oci.entries import Tree

BLOCK = 4096

Entry = tuple[bytes, int, int]
"""(name, inode number, type byte)."""

Hash = Callable[[bytes], tuple[int, int]]
"""The hash of a name, as (major, minor)."""

_DIRENT = struct.Struct("<IHBB")
_DIRECTORY = 2
_TAIL = struct.pack("<IHBBI", 0, 12, 0, 0xDE, 0)
_ROOM = BLOCK - len(_TAIL)
EMPTY_BLOCK = _DIRENT.pack(0, _ROOM, 0, 0) + bytes(_ROOM - 8) + _TAIL
"""A block without entries."""
_DOTS = 24
"""Bytes of `.` and `..`."""
_LENGTH = struct.Struct("<H")
_PADDED = [struct.Struct(f"<IHBB{max(0, 4 * words - 8)}s") for words in range(67)]
"""Entries by their length in words of four bytes."""
_PAIR = struct.Struct("<II")
_LIMITS = struct.Struct("<HH")
_HALF_MD4 = 1
_ROOT_HEAD = 32
"""Of the index's first block: `.`, `..` and what the index says of itself."""
_NODE_HEAD = 8
_FEW = 14
"""Names of which any number below fits one block, however long they are."""
_CHECKSUM = 8
_ROOT_LIMIT = (BLOCK - _ROOT_HEAD - _CHECKSUM) // _PAIR.size
_NODE_LIMIT = (BLOCK - _NODE_HEAD - _CHECKSUM) // _PAIR.size


def blocks_of(own: int, parent: int, entries: Sequence[Entry], name_hash: Hash) -> list[bytes]:
    """All blocks of a directory, in order; more than one means that it has an index.

    own, parent: inode numbers. Raises ImageError when two levels of index do not suffice.
    """
    if len(entries) >= _FEW and _DOTS + sum(_length(entry[0]) for entry in entries) > _ROOM:
        return _indexed(own, parent, entries, name_hash)
    block = [_packed(own, b".", _DIRECTORY), _packed(parent, b"..", _DIRECTORY)]
    block += [_packed(inode, name, kind) for name, inode, kind in entries]
    return [_closed(block)]


def index_blocks(tree: Tree) -> int:
    """Blocks that the indexes of all directories take at most, beside their entries."""
    total = 0
    for node in tree.nodes():
        if len(node.children) >= _FEW:
            leaves = sum(len(name) + 11 for name in node.children) // (_ROOM - 264) + 1
            total += 2 + leaves // _NODE_LIMIT
    return total


def _length(name: bytes) -> int:
    return (len(name) + 11) & ~3


def _packed(inode: int, name: bytes, kind: int) -> bytes:
    """An entry, padded with NULs."""
    length = len(name)
    size = (length + 11) & ~3
    return _PADDED[size >> 2].pack(inode, size, length, kind, name)


def _filled(entries: Iterable[tuple[Entry, int]]) -> list[tuple[bytes, int]]:
    """Entries with their hashes into full blocks: (block, hash of its first entry)."""
    blocks: list[tuple[bytes, int]] = []
    block: list[bytes] = []
    used = first = before = 0
    for (name, inode, kind), value in entries:
        packed = _packed(inode, name, kind)
        if used + len(packed) > _ROOM:
            blocks.append((_closed(block), first))
            block, used = [], 0
            first = value | (value == before)  # the low bit: the hash goes on from the block before
        block.append(packed)
        used += len(packed)
        before = value
    blocks.append((_closed(block), first))
    return blocks


def _closed(block: list[bytes]) -> bytes:
    """The entries, the last of which reaches up to the tail."""
    if not block:
        return EMPTY_BLOCK
    last = block.pop()
    used = b"".join(block)
    length = _ROOM - len(used)
    return used + last[:4] + _LENGTH.pack(length) + last[6:].ljust(length - 6, b"\0") + _TAIL


def _indexed(own: int, parent: int, entries: Sequence[Entry], name_hash: Hash) -> list[bytes]:
    hashed = sorted((*name_hash(entry[0]), entry) for entry in entries)
    leaves = _filled((entry, major) for major, _, entry in hashed)
    pairs = [(value, number) for number, (_, value) in enumerate(leaves, 1)]
    nodes: list[bytes] = []
    if levels := int(len(pairs) > _ROOT_LIMIT):
        parts = [pairs[at : at + _NODE_LIMIT] for at in range(0, len(pairs), _NODE_LIMIT)]
        nodes = [_node(part) for part in parts]
        pairs = [(part[0][0], number) for number, part in enumerate(parts, len(leaves) + 1)]
    if len(pairs) > _ROOT_LIMIT:
        raise ImageError("a directory with more names than ext4 can index")
    return [_root(own, parent, levels, pairs), *(block for block, _ in leaves), *nodes]


def _root(own: int, parent: int, levels: int, pairs: list[tuple[int, int]]) -> bytes:
    dots = _DIRENT.pack(own, 12, 1, _DIRECTORY) + b".\0\0\0"
    dots += _DIRENT.pack(parent, BLOCK - 12, 2, _DIRECTORY) + b"..\0\0"
    return dots + struct.pack("<IBBBB", 0, _HALF_MD4, 8, levels, 0) + _pairs(pairs, _ROOT_LIMIT)


def _node(pairs: list[tuple[int, int]]) -> bytes:
    return _DIRENT.pack(0, BLOCK, 0, 0) + _pairs(pairs, _NODE_LIMIT)


def _pairs(pairs: list[tuple[int, int]], limit: int) -> bytes:
    """A table of hashes and blocks; the place of the first hash holds limit and count."""
    raw = _LIMITS.pack(limit, len(pairs)) + struct.pack("<I", pairs[0][1])
    raw += b"".join(_PAIR.pack(value, number) for value, number in pairs[1:])
    return raw.ljust(limit * _PAIR.size + _CHECKSUM, b"\0")
