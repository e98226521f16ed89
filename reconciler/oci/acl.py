"""POSIX ACLs in the form of system calls and tar headers: which a kernel takes, and how spelt.

`oci.carry` drops what is none; `stages.ownership` compares what comes back from the filesystem.
Layout: `struct posix_acl_xattr_header` of the kernel's headers, version 2, eight bytes an entry.
"""

from __future__ import annotations

import struct

_USER, _GROUP, _MASK = 0x02, 0x08, 0x10
_BASE = (0x01, 0x04, 0x20)
_TAGS = {*_BASE, _USER, _GROUP, _MASK}
_NO_ID = 0xFFFFFFFF


def is_acl(raw: bytes) -> bool:
    """Whether these bytes are an ACL of version 2 that a kernel would take (`setfacl` order).

    The kernel wants the entries in order, each of the three base entries once, and a mask when
    there are named users or groups (posix_acl_valid in its sources).
    """
    if len(raw) < 4 or len(raw) % 8 != 4 or struct.unpack_from("<I", raw)[0] != 2:
        return False
    entries = list(struct.iter_unpack("<HHI", raw[4:]))
    tags = [tag for tag, _, _ in entries]
    named = _USER in tags or _GROUP in tags
    return (
        set(tags) <= _TAGS
        and tags == sorted(tags)
        and all(tags.count(tag) == 1 for tag in _BASE)
        and tags.count(_MASK) <= 1
        and (_MASK in tags or not named)
        and all(permissions <= 7 for _, permissions, _ in entries)
        and all(who != _NO_ID for tag, _, who in entries if tag in (_USER, _GROUP))
    )


def normal_acl(raw: bytes) -> bytes:
    """A valid ACL as it comes back from a filesystem: entries that name nobody carry no id."""
    entries = struct.iter_unpack("<HHI", raw[4:])
    return raw[:4] + b"".join(
        struct.pack("<HHI", tag, bits, who if tag in (_USER, _GROUP) else _NO_ID)
        for tag, bits, who in entries
    )
