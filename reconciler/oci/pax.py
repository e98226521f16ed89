"""Numbers and extended headers of tar: everything in a header block that is not at a fixed place.

`oci.tar` calls it. Sources: POSIX.1-2024 "pax" (extended header records), the GNU tar manual
("Tar Internals": base-256 numbers), and the keywords of star and of libarchive for xattrs.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

from reconciler.errors import ImageError
from reconciler.oci.entries import Xattrs
from reconciler.text import printable

Records = dict[bytes, bytes]

_SCHILY = b"SCHILY.xattr."
_LIBARCHIVE = b"LIBARCHIVE.xattr."
_OTHER_FORMS = frozenset(
    {b"SCHILY.acl.access", b"SCHILY.acl.default", b"SCHILY.fflags", b"RHT.security.selinux"}
)
"""Attributes in forms that no engine unpacks; passed on as they are, so that they get listed."""

_SPARSE = b"GNU.sparse."
_KNOWN = {
    *_OTHER_FORMS,
    *(b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"),
    *(b"SCHILY.devmajor", b"SCHILY.devminor"),
    *(_SPARSE + key for key in (b"name", b"major", b"minor", b"size", b"realsize", b"map")),
}
"""What is of use here. The rest goes at once: a global header would cost time at every entry."""

_DECIMAL = re.compile(rb"[0-9]{1,20}")
_TIME = re.compile(rb"(-?)([0-9]{1,30})(?:\.([0-9]{0,64}))?")
_NUL_FREE = (b"path", b"linkpath", b"GNU.sparse.name")


def number(raw: bytes) -> int:
    """A numeric field of a header block: octal digits, or base 256 when the top bit is set.

    An empty field is 0. Raises ImageError for anything else.
    """
    first = raw[0]
    if first & 0x80:
        value = int.from_bytes(raw, "big") - (0x80 << 8 * (len(raw) - 1))
        return value - (0x80 << 8 * (len(raw) - 1)) if first & 0x40 else value
    digits = raw.strip(b" \0")
    if not digits:
        return 0
    try:
        if digits.isdigit():
            return int(digits, 8)
    except ValueError:
        pass
    raise ImageError(f"not a number in a tar header: {printable(digits)}")


def field(records: Records, key: bytes, raw: bytes) -> int:
    """A number from the record `key` (decimal), or else from the header's field."""
    value = records.get(key)
    return number(raw) if value is None else decimal(value)


def decimal(value: bytes) -> int:
    """A non-negative decimal number of sane length."""
    if not _DECIMAL.fullmatch(value):
        raise ImageError(f"not a number in a tar header: {printable(value)}")
    return int(value)


def mtime_ns(records: Records, raw: bytes) -> int:
    """The time in nanoseconds: from the record `mtime` (decimal seconds), or the header's field."""
    value = records.get(b"mtime")
    if value is None:
        return number(raw) * 1_000_000_000
    match = _TIME.fullmatch(value)
    if match is None:
        raise ImageError(f"mtime is not a time: {printable(value)}")
    sign, seconds, fraction = match.groups()
    nanoseconds = int(seconds) * 1_000_000_000 + int((fraction or b"").ljust(9, b"0")[:9])
    return -nanoseconds if sign else nanoseconds


def parse_records(data: bytes) -> Records:
    """The records of one extended header; of two with the same key the later counts.

    Those of no use here are left out. The repeated keys of sparse format 0.0 come back as the one
    key of format 0.1. An empty value is kept: it takes back what the header block says.
    """
    records: Records = {}
    sparse: list[bytes] = []
    for key, value in _split_records(data):
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            sparse.append(value)
        elif b"\0" in key or (key in _NUL_FREE and b"\0" in value):
            raise ImageError(f"a NUL in the extended header {printable(key)}")
        elif key in _KNOWN or key.startswith((_SCHILY, _LIBARCHIVE)):
            records[key] = value
    if sparse:
        records[b"GNU.sparse.map"] = b",".join(sparse)
    return records


def parse_globals(data: bytes) -> Records:
    """The records of a global extended header; a sparse map is of one file and not for all."""
    found = parse_records(data)
    return {key: value for key, value in found.items() if not key.startswith(_SPARSE)}


def _split_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """`length blank key = value newline`, where the length (in decimal) counts the whole record."""
    pos = 0
    while pos < len(data):
        blank = data.find(b" ", pos, pos + 12)
        digits = data[pos : max(blank, pos)]
        end = pos + int(digits) if digits.isdigit() else 0
        key, equals, value = data[blank + 1 : end].partition(b"=")
        if not (key and equals and value.endswith(b"\n")) or end > len(data):
            raise ImageError("malformed extended header")
        yield key, value[:-1]
        pos = end


def xattrs(records: Records) -> Xattrs:
    """The extended attributes among the records, by name; star's form wins over libarchive's."""
    found: dict[bytes, bytes] = {}
    for key, value in records.items():
        if key.startswith(_SCHILY):
            found[key.removeprefix(_SCHILY)] = value
        elif key.startswith(_LIBARCHIVE):
            name = unquote_to_bytes(key.removeprefix(_LIBARCHIVE))
            found.setdefault(name, _base64(value))
        elif key in _OTHER_FORMS:
            found[key.removeprefix(b"RHT.")] = value
    return tuple(sorted(found.items()))


def _base64(value: bytes) -> bytes:
    """Base64 as libarchive writes it, which leaves out the padding."""
    bare = value.rstrip(b"=")
    try:
        return binascii.a2b_base64(bare + b"=" * (-len(bare) % 4), strict_mode=True)
    except binascii.Error as exc:
        raise ImageError(f"an xattr is not base64: {printable(value, 60)}") from exc
