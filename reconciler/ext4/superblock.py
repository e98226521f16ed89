"""The one field of a finished filesystem that the clock of the host would decide.

libext2fs notes when it wrote the superblock last (s_wtime). `direct.builder` sets that to the
recipe's time, and the checksum (crc32c over the 1020 bytes before it) with it. Layout: the kernel's
documentation of ext4, "Super Block".
"""

from __future__ import annotations

import os
import struct

_OFFSET = 1024
_SIZE = 1024
_WRITTEN, _WRITTEN_HIGH = 0x30, 0x274
_CHECKSUM = _SIZE - 4
_POLYNOMIAL = 0x82F63B78
"""crc32c, bits reversed."""


def set_write_time(descriptor: int, seconds: int) -> None:
    """Set the time of the last write, in an image that no tool has open."""
    block = bytearray(os.pread(descriptor, _SIZE, _OFFSET))
    struct.pack_into("<I", block, _WRITTEN, seconds)
    block[_WRITTEN_HIGH] = 0
    struct.pack_into("<I", block, _CHECKSUM, _register(block[:_CHECKSUM]))
    os.pwrite(descriptor, block, _OFFSET)


def _register(data: bytes | bytearray) -> int:
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (_POLYNOMIAL if register & 1 else 0)
    return register
