"""The type byte of directory entries, corrected in place.

Staging holds a plain file for a device, a FIFO or a symlink of several names, so mkfs.ext4 records
"regular file" beside the name. debugfs could only mend that by the name, and no name of an image
goes into a script. `stages.ownership` has this module change the byte, and with it the block's
checksum.

The checksum (crc32c, of which ext4 keeps the plain register) is linear: changing a byte changes it
by a value that depends on the change and on the distance to the end, and on nothing else in the
block. Neither the seed nor the other 4083 bytes matter, so this takes no time in Python either.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping

from reconciler.errors import Code, HostError
from reconciler.ext4.reader import Filesystem, Inode, dirents
from reconciler.files import host_errors

CHARACTER, BLOCK, FIFO, SYMLINK = 3, 4, 5, 7
"""Values of the type byte (EXT4_FT_CHRDEV and so on)."""

_TAIL = 12
_TAIL_MARK = struct.pack("<IHBB", 0, _TAIL, 0, 0xDE)
_POLYNOMIAL = 0x82F63B78
"""crc32c, bits reversed."""


def set_types(
    descriptor: int, filesystem: Filesystem, directory: Inode, types: Mapping[bytes, int]
) -> None:
    """Give the names of one directory new type bytes, through a descriptor of the image.

    Raises HostError when a name is not there or the directory is not of the form that we make.
    """
    missing = set(types)
    for number in filesystem.directory_blocks(directory):
        block = filesystem.block(number)
        changed = bytearray(block)
        for at, _, name, kind in dirents(block):
            if name in missing:
                missing.discard(name)
                _set_type(changed, at + 7, kind, types[name])
        if changed != block:
            with host_errors("cannot write the filesystem"):
                os.pwrite(descriptor, changed, number * filesystem.block_size)
    if missing:
        raise HostError("the new filesystem lacks a device's name", code=Code.TOOL_FAILED)


def _set_type(block: bytearray, at: int, old: int, new: int) -> None:
    end = len(block) - _TAIL
    if block[end : end + 8] != _TAIL_MARK or at >= end:
        raise HostError("a directory of the new filesystem has no checksum", code=Code.TOOL_FAILED)
    block[at] = new
    checksum = struct.unpack_from("<I", block, end + 8)[0] ^ _effect(old ^ new, end - at)
    struct.pack_into("<I", block, end + 8, checksum)


def _table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        register = value
        for _ in range(8):
            register = register >> 1 ^ (_POLYNOMIAL if register & 1 else 0)
        table.append(register)
    return tuple(table)


_TABLE = _table()


def _effect(change: int, distance: int) -> int:
    """How the checksum changes with a byte, `distance` bytes before the end of what it covers."""
    register = change
    for _ in range(distance):
        register = _TABLE[register & 0xFF] ^ register >> 8
    return register
