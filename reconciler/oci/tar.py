"""A streaming tar parser that trusts nothing: ustar, GNU and PAX, headers and payload pieces.

`oci.layers` drives it. The standard library's `tarfile` is not used, because a corrupt header or a
truncation ends it in silence; here either is an ImageError, and so is anything but zeros after the
end of the archive. A stream that ends at a block boundary without its two zero blocks is accepted:
the digest over the whole stream (`diff_id`) tells whether something is missing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import count
from typing import Any, BinaryIO
from zlib import adler32

from reconciler.errors import ImageError
from reconciler.oci import pax
from reconciler.oci.entries import (
    BLOCK_DEVICE,
    CHARACTER,
    DIRECTORY,
    FIFO,
    HARDLINK,
    REGULAR,
    SYMLINK,
    Header,
)
from reconciler.oci.limits import Limits, exceeded
from reconciler.oci.pax import Records, number
from reconciler.oci.sparse import (
    Piece,
    SparseMap,
    expand,
    map_from_blocks,
    map_from_payload,
    map_from_records,
)
from reconciler.oci.stream import BLOCK, SeekingStream, Stream
from reconciler.text import printable

Payload = Iterable[Piece]
"""The content of an entry in order; a tuple when it is there already, as one piece.

Whoever does not read it to its end skips the rest of it.
"""

_ZEROS = bytes(BLOCK)
_MAX_SIZE = (1 << 63) - 1

_MAX_ID = (1 << 32) - 2
"""The largest uid and gid: 2^32 - 1 means "leave as it is" to chown(2)."""

_EXTENDED = frozenset(b"xgLK")
_OLD_SPARSE = ord("S")
_SPARSE_KEYS = frozenset({b"GNU.sparse.major", b"GNU.sparse.size", b"GNU.sparse.map"})

_KINDS = {
    ord("0"): REGULAR,
    0: REGULAR,
    ord("7"): REGULAR,  # contiguous: a hint to file systems of another age
    _OLD_SPARSE: REGULAR,  # of GNU
    ord("1"): HARDLINK,
    ord("2"): SYMLINK,
    ord("3"): CHARACTER,
    ord("4"): BLOCK_DEVICE,
    ord("5"): DIRECTORY,
    ord("6"): FIFO,
}


_FIELDS = struct.Struct("<100s24s12s12s8sB100s88x?166x")
"""name; mode, uid and gid; size; mtime; checksum; type; link name; whether there is a prefix."""
_PLAIN = {flag: _KINDS[flag] for flag in b"0125"}


def read_tar(
    chunks: Iterable[bytes | memoryview], limits: Limits, serials: Iterator[int]
) -> Iterator[tuple[Header, Payload]]:
    """Parse a whole archive; each regular file with content takes the next of `serials`.

    Reads `chunks` to their end, whatever the archive says. Raises ImageError, which names the
    entry or the offset (bytes of the uncompressed stream).
    """
    return _Reader(Stream(iter(chunks)), limits, serials).entries()


def read_headers(handle: BinaryIO, limits: Limits) -> Iterator[tuple[Header, int]]:
    """The headers of an archive in a file, each with the offset of its content in bytes.

    Contents are skipped by seeking: the cost does not depend on their size. Raises ImageError.
    """
    stream = SeekingStream(handle)
    for header, _ in _Reader(stream, limits, count(1)).entries():
        yield header, stream.offset


class _Reader:
    def __init__(self, stream: Stream, limits: Limits, serials: Iterator[int]) -> None:
        self._stream = stream
        self._limits = limits
        self._serials = serials
        self._globals: Records = {}
        self._records: Records = {}
        self._extended = 0
        self._global_bytes = 0
        self._holes = 0

    def entries(self) -> Iterator[tuple[Header, Payload]]:
        stream, unpack = self._stream, _FIELDS.unpack
        while block := stream.view():
            fields = unpack(block)
            _, _, size, _, checksum, flag, _, has_prefix = fields
            if adler32(block) & 0xFFFF != _expected(checksum):
                if block == _ZEROS:
                    self._end()
                    break
                _check_signed(bytes(block), stream.offset - BLOCK)
            if flag in _EXTENDED:
                self._extend(flag, number(size))
            elif flag in _PLAIN and not (has_prefix or self._extended or self._globals):
                yield self._plain(fields)
                if stream.is_open:
                    stream.close()
            else:
                yield self._entry(bytes(block), flag)
                stream.close()
        if self._extended:
            raise ImageError("the tar stream ends after an extended header")

    def _end(self) -> None:
        if self._stream.block() != _ZEROS:
            raise ImageError("a lone zero block in the tar stream")
        if not self._stream.is_zero_to_end():
            raise ImageError("data after the end of the tar archive")

    def _extend(self, flag: int, size: int) -> None:
        """Take in an extended header: GNU's L and K for long names, PAX's x and g."""
        if flag == ord("g"):
            self._global_bytes += BLOCK + size
        else:
            self._extended += BLOCK + size
        if size < 0 or max(self._extended, self._global_bytes) > self._limits.pax_bytes:
            raise exceeded("pax_bytes", self._limits.pax_bytes, "extended tar header")
        data = self._stream.read(size)
        if flag == ord("L"):
            self._records[b"path"] = data.partition(b"\0")[0]
        elif flag == ord("K"):
            self._records[b"linkpath"] = data.partition(b"\0")[0]
        elif flag == ord("x"):
            self._records.update(pax.parse_records(data))
        else:
            self._globals.update(pax.parse_globals(data))

    def _plain(self, fields: tuple[Any, ...]) -> tuple[Header, Payload]:
        """`_entry` for what has no extended header and is of a usual kind, as most are."""
        name, owner, size, mtime, _, flag, link, _ = fields
        path = name.partition(b"\0")[0]
        kind = _PLAIN[flag]
        try:
            header = Header(path, kind, *_owner(owner), _time(mtime))
            length = _length(size)
            if kind is REGULAR:
                if not 0 < length <= _MAX_SIZE:
                    _check_size(length)
                    return header, ()
                header.size = length
                header.content = next(self._serials)
                return header, self._stream.payload(length)
            if kind is not DIRECTORY:
                header.target = link.partition(b"\0")[0]
            return header, ()
        except ImageError as exc:
            raise _blamed(exc, path) from exc

    def _entry(self, block: bytes, flag: int) -> tuple[Header, Payload]:
        """The entry that a block starts, with the extended headers before it, which it uses up."""
        records = self._take_records() if self._extended or self._globals else {}
        path = _path(block, records)
        try:
            header = _header(block, flag, path, records)
            if header.kind is not REGULAR:
                return header, ()  # a size in such a header says nothing, as for other readers
            payload: Payload = ()
            if flag == _OLD_SPARSE or (records and records.keys() & _SPARSE_KEYS):
                sparse = self._sparse(header, block, flag, records)
                self._stream.open(sparse.stored)
                header.size = sparse.size
                payload = expand(sparse, self._stream.pieces())
            elif header.size:
                payload = self._stream.payload(header.size)
        except ImageError as exc:
            raise _blamed(exc, path) from exc
        if header.size:
            header.content = next(self._serials)
        return header, payload

    def _take_records(self) -> Records:
        records = {**self._globals, **self._records}
        self._extended = 0
        self._records = {}
        return {k: v for k, v in records.items() if v or b".xattr." in k}

    def _sparse(self, header: Header, block: bytes, flag: int, records: Records) -> SparseMap:
        stored = header.size
        if flag == _OLD_SPARSE:
            sparse = map_from_blocks(block, self._stream.block, self._limits.pax_bytes)
        elif b"GNU.sparse.major" in records:
            limit = min(stored, self._limits.pax_bytes)
            sparse, used = map_from_payload(records, self._stream.block, limit)
            stored -= used
        else:
            sparse = map_from_records(records)
        if sparse.stored != stored:
            raise ImageError("the map of a sparse file does not fit what is stored of it")
        self._holes += sparse.size - stored
        if self._holes > self._limits.layer_bytes:
            raise exceeded("layer_bytes", self._limits.layer_bytes, "sparse files when expanded")
        return sparse


def _blamed(error: ImageError, path: bytes) -> ImageError:
    brief = f"{printable(path)}: {error.brief}"
    return ImageError(brief, code=error.code, resolution=error.resolution)


@lru_cache(maxsize=8192)
def _expected(raw: bytes) -> int:
    """The low half of a header's Adler-32, told from the checksum field that it has; -1: no number.

    The checksum is the sum of all bytes, with blanks for the eight of the field itself. The low
    half of Adler-32 is the sum plus 1, modulo 65521, and ten times as fast as `sum`.
    """
    try:
        return (number(raw) + sum(raw) - 8 * 32 + 1) % 65521
    except ImageError:
        return -1


def _check_signed(block: bytes, offset: int) -> None:
    """Some old writers took bytes for signed: what is not right even then is corrupt."""
    blanked = block[:148] + b" " * 8 + block[156:]
    wanted = sum(byte - ((byte & 0x80) << 1) for byte in blanked)
    try:
        if number(block[148:156]) == wanted:
            return
    except ImageError:
        pass
    raise ImageError(f"corrupt tar header at byte {offset} of the layer")


def _path(block: bytes, records: Records) -> bytes:
    if records:
        path = records.get(b"GNU.sparse.name") or records.get(b"path")
        if path is not None:
            return path
    name = block[:100].partition(b"\0")[0]
    if block[345] and block[257:263] == b"ustar\0":
        end = 476 if block[508:] == b"tar\0" else 500  # star keeps times behind a shorter prefix
        return block[345:end].partition(b"\0")[0] + b"/" + name
    return name


def _header(block: bytes, flag: int, path: bytes, records: Records) -> Header:
    kind = _KINDS.get(flag)
    if kind is None:
        raise ImageError(f"unknown tar entry type {printable(bytes([flag]))}")
    if flag == 0 and path.endswith(b"/"):
        kind = DIRECTORY  # as archives from before POSIX have it
    mode = number(block[100:108])
    uid = pax.field(records, b"uid", block[108:116])
    gid = pax.field(records, b"gid", block[116:124])
    size = pax.field(records, b"size", block[124:136])
    mtime_ns = pax.mtime_ns(records, block[136:148])
    _check_owner(uid, gid)
    if kind is REGULAR:
        _check_size(size)
    else:
        size = 0
    header = Header(path, kind, mode & 0o7777, uid, gid, mtime_ns, size)
    if kind is SYMLINK or kind is HARDLINK:
        header.target = records.get(b"linkpath") or block[157:257].partition(b"\0")[0]
    elif kind is CHARACTER or kind is BLOCK_DEVICE:
        major = pax.field(records, b"SCHILY.devmajor", block[329:337])
        header.rdev = (major, pax.field(records, b"SCHILY.devminor", block[337:345]))
    if records:
        header.xattrs = pax.xattrs(records)
    return header


def _check_owner(uid: int, gid: int) -> None:
    if not (0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID):
        raise ImageError(f"owner {uid}:{gid}, which Linux does not have")


def _check_size(size: int) -> None:
    if not 0 <= size <= _MAX_SIZE:
        raise ImageError(f"a size of {size} bytes")


@lru_cache(maxsize=4096)
def _owner(raw: bytes) -> tuple[int, int, int]:
    """The fields mode, uid and gid: a layer has few different ones."""
    uid, gid = number(raw[8:16]), number(raw[16:])
    _check_owner(uid, gid)
    return number(raw[:8]) & 0o7777, uid, gid


_length = lru_cache(maxsize=4096)(number)
"""The field size: that of nearly all but files is 0."""


@lru_cache(maxsize=4096)
def _time(raw: bytes) -> int:
    """The field mtime in nanoseconds."""
    return number(raw) * 1_000_000_000
