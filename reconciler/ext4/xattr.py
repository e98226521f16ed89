"""Extended attributes as ext4 stores them, and POSIX ACLs in their two spellings.

The reader finds attributes by this. On disk an ACL is packed (version 1, no ids where none are
meant); what is read comes out in the form of system calls and tar headers (`oci.acl`). Layout: the
kernel's documentation of ext4, "Extended Attributes".
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from reconciler.errors import Code, HostError

ACL_NAMES = (b"system.posix_acl_access", b"system.posix_acl_default")
CAPABILITY = b"security.capability"

_MAGIC = 0xEA020000
INODE_MAGIC = struct.pack("<I", _MAGIC)
"""How the part of an inode that holds attributes begins, if there are any."""

_HEADER = 32
_ENTRY = struct.Struct("<BBHIII")
_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
    7: b"system.",
}
_USER, _GROUP = 0x02, 0x08
_NO_ID = 0xFFFFFFFF
_BLOCK_ROOM = 4096 - _HEADER - 4
_INODE_ROOM = 256 - 128 - 32 - 4 - 4


def parse_inode_body(body: bytes) -> dict[bytes, bytes]:
    """The attributes behind the fixed part of an inode; values are counted from the first entry."""
    return _entries(body, 4, 4)


def parse_block(block: bytes) -> dict[bytes, bytes]:
    """The attributes of an inode's own block; values are counted from the start of the block."""
    if struct.unpack_from("<I", block)[0] != _MAGIC:
        raise _broken()
    return _entries(block, _HEADER, 0)


def _entries(raw: bytes, at: int, base: int) -> dict[bytes, bytes]:
    found = {}
    while at + 4 <= len(raw) and raw[at : at + 4] != bytes(4):
        if at + _ENTRY.size > len(raw):
            raise _broken()
        length, index, offset, inode, size, _ = _ENTRY.unpack_from(raw, at)
        name = raw[at + _ENTRY.size : at + _ENTRY.size + length]
        start = base + offset
        if index not in _PREFIXES or inode or len(name) != length or start + size > len(raw):
            raise _broken()
        full = _PREFIXES[index] + name
        value = raw[start : start + size]
        found[full] = acl_from_disk(value) if full in ACL_NAMES else value
        at += _ENTRY.size + (length + 3 & ~3)
    return found


def acl_from_disk(raw: bytes) -> bytes:
    """An ACL in the form of system calls, from that of the disk."""
    if len(raw) < 4 or struct.unpack_from("<I", raw)[0] != 1:
        raise _broken()
    converted = [struct.pack("<I", 2)]
    at = 4
    while at < len(raw):
        if at + 4 > len(raw):
            raise _broken()
        tag, permissions = struct.unpack_from("<HH", raw, at)
        who = _NO_ID
        at += 4
        if tag in (_USER, _GROUP):
            if at + 4 > len(raw):
                raise _broken()
            who = struct.unpack_from("<I", raw, at)[0]
            at += 4
        converted.append(struct.pack("<HHI", tag, permissions, who))
    return b"".join(converted)


def blocks_needed(attributes: Iterable[tuple[bytes, bytes]]) -> int | None:
    """Blocks that these attributes take outside the inode: 0 or 1, or None when they do not fit.

    Names are counted in full, which only errs on the safe side.
    """
    total = 0
    for name, value in attributes:
        total += _ENTRY.size + (len(name) + 3 & ~3) + (len(value) + 3 & ~3)
    if total <= _INODE_ROOM:
        return 0
    return 1 if total <= _BLOCK_ROOM else None


def _broken() -> HostError:
    return HostError(
        "the new filesystem cannot be read back: extended attributes are broken",
        code=Code.TOOL_FAILED,
    )
