"""Tar streams written block by block, right or wrong on purpose.

    tar(entry("etc/", "dir"), entry("etc/motd", data=b"hi\n", pax={"mtime": "1.5"}))
    tar(entry("x", "z"), end=b"")        # an unknown type flag, and no end of the archive

Nothing is checked or normalised. `tarfile` could not write most of what hostile images hold.
"""

from __future__ import annotations

from collections.abc import Mapping

FLAGS = {
    "file": b"0",
    "hardlink": b"1",
    "symlink": b"2",
    "char": b"3",
    "block": b"4",
    "dir": b"5",
    "fifo": b"6",
}
END = bytes(1024)
USTAR = b"ustar\x0000"
GNU = b"ustar  \x00"


def to_bytes(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def number(value: int, width: int) -> bytes:
    """Octal with a NUL at its end, or base 256 where that does not do."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    wrapped = value & ((1 << (8 * width)) - 1)
    if value > 0:
        wrapped |= 0x80 << (8 * (width - 1))
    return wrapped.to_bytes(width, "big")


def header(
    name: str | bytes,
    flag: bytes = b"0",
    size: int = 0,
    *,
    mode: int = 0o644,
    uid: int = 0,
    gid: int = 0,
    mtime: int = 0,
    target: str | bytes = b"",
    rdev: tuple[int, int] = (0, 0),
    magic: bytes = USTAR,
    prefix: bytes = b"",
    fields: Mapping[int, bytes] | None = None,
    checksum: bytes | None = None,
) -> bytes:
    """One header block. `fields` overwrites bytes at offsets before the checksum is made."""
    block = bytearray(512)
    block[0:100] = to_bytes(name)[:100].ljust(100, b"\0")
    block[100:108] = number(mode, 8)
    block[108:116] = number(uid, 8)
    block[116:124] = number(gid, 8)
    block[124:136] = number(size, 12)
    block[136:148] = number(mtime, 12)
    block[156:157] = flag
    block[157:257] = to_bytes(target)[:100].ljust(100, b"\0")
    block[257:265] = magic
    block[329:337] = number(rdev[0], 8)
    block[337:345] = number(rdev[1], 8)
    block[345:500] = prefix.ljust(155, b"\0")
    for offset, raw in (fields or {}).items():
        block[offset : offset + len(raw)] = raw
    block[148:156] = b" " * 8
    block[148:156] = checksum or b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def record(key: str | bytes, value: str | bytes) -> bytes:
    """One record of a PAX header, its length counting itself."""
    body = b" " + to_bytes(key) + b"=" + to_bytes(value) + b"\n"
    length = len(body) + 1
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def pax_header(records: bytes | Mapping[str, str | bytes], flag: bytes = b"x") -> bytes:
    """An extended header (`x`) or a global one (`g`), of records or of raw bytes."""
    data = records
    if not isinstance(data, bytes):
        data = b"".join(record(key, value) for key, value in data.items())
    return header("PaxHeaders/x", flag, len(data)) + padded(data)


def gnu_long(text: str | bytes, flag: bytes = b"L") -> bytes:
    """A GNU long name (`L`) or long link target (`K`)."""
    data = to_bytes(text) + b"\0"
    return header("././@LongLink", flag, len(data), magic=GNU) + padded(data)


def entry(
    path: str | bytes,
    kind: str = "file",
    data: bytes = b"",
    *,
    pax: Mapping[str, str | bytes] | None = None,
    target: str | bytes = b"",
    size: int | None = None,
    mode: int | None = None,
    **fields: object,
) -> bytes:
    """One entry with all that belongs to it. kind: a word of FLAGS, or a type flag of one letter.

    Long names and targets go into a PAX header of themselves. size: what the header claims.
    """
    raw, link = to_bytes(path), to_bytes(target)
    extended: dict[str, str | bytes] = {}
    if len(raw) > 100:
        extended["path"] = raw
    if len(link) > 100:
        extended["linkpath"] = link
    extended.update(pax or {})
    flag = FLAGS.get(kind) or kind.encode("latin-1")
    mode = (0o755 if kind == "dir" else 0o644) if mode is None else mode
    claimed = len(data) if size is None else size
    head = pax_header(extended) if extended else b""
    block = header(raw, flag, claimed, mode=mode, target=link, **fields)  # type: ignore[arg-type]
    return head + block + padded(data)


def tar(*entries: bytes, end: bytes = END) -> bytes:
    """A whole archive."""
    return b"".join(entries) + end
