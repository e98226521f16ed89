"""A streaming tar parser that trusts nothing: ustar, GNU and PAX, headers and payload pieces.

`oci.layers` drives it. The standard library's `tarfile` is not used, because a corrupt header or a
truncation ends it in silence; here either is an ImageError, and so is anything but zeros after the
end of the archive. A stream that ends at a block boundary without its two zero blocks is accepted:
the digest over the whole stream (`diff_id`) tells whether something is missing.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from itertools import count
from typing import BinaryIO

from reconciler.errors import ImageError
from reconciler.model import printable
from reconciler.oci import pax
from reconciler.oci.entries import Header, Kind
from reconciler.oci.limits import Limits, exceeded
from reconciler.oci.pax import Records, number, small_number
from reconciler.oci.sparse import (
    Piece,
    SparseMap,
    expand,
    map_from_blocks,
    map_from_payload,
    map_from_records,
)
from reconciler.oci.stream import BLOCK, SeekingStream, Stream

Payload = Iterator[Piece]
"""The content of an entry in order. Whoever does not read it to its end skips the rest of it."""

_ZEROS = bytes(BLOCK)
_MAX_SIZE = (1 << 63) - 1

_MAX_ID = (1 << 32) - 2
"""The largest uid and gid: 2^32 - 1 means "leave as it is" to chown(2)."""

_EXTENDED = frozenset(b"xgLK")
_SPARSE_KEYS = frozenset({b"GNU.sparse.major", b"GNU.sparse.size", b"GNU.sparse.map"})

_KINDS = {
    ord("0"): Kind.REGULAR,
    0: Kind.REGULAR,
    ord("7"): Kind.REGULAR,  # contiguous: a hint to file systems of another age
    ord("S"): Kind.REGULAR,  # GNU: sparse
    ord("1"): Kind.HARDLINK,
    ord("2"): Kind.SYMLINK,
    ord("3"): Kind.CHARACTER,
    ord("4"): Kind.BLOCK,
    ord("5"): Kind.DIRECTORY,
    ord("6"): Kind.FIFO,
}


def read_tar(
    chunks: Iterable[bytes], limits: Limits, serials: Iterator[int]
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
        stream = self._stream
        while block := stream.block():
            if block == _ZEROS:
                self._end()
                break
            _check(block, stream.offset - BLOCK)
            flag = block[156]
            if flag in _EXTENDED:
                self._extend(flag, number(block[124:136]))
                continue
            yield self._entry(block, flag)
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
            self._globals.update(pax.parse_records(data))

    def _entry(self, block: bytes, flag: int) -> tuple[Header, Payload]:
        """The entry that a block starts, with the extended headers before it, which it uses up."""
        records = self._records
        if self._extended:
            self._extended = 0
            self._records = {}
        if self._globals:
            records = {**self._globals, **records}
        if records:
            records = {k: v for k, v in records.items() if v or b".xattr." in k}
        path = _path(block, records)
        try:
            header = _header(block, flag, path, records)
            return header, self._payload(header, block, flag, records)
        except ImageError as exc:
            brief = f"{printable(path)}: {exc.brief}"
            raise ImageError(brief, code=exc.code, resolution=exc.resolution) from exc

    def _payload(self, header: Header, block: bytes, flag: int, records: Records) -> Payload:
        """Open what follows the header block; settles the header's size and serial number."""
        if header.kind is not Kind.REGULAR:
            return iter(())  # a size in such a header says nothing, as for other readers
        stream = self._stream
        if flag == ord("S") or (records and records.keys() & _SPARSE_KEYS):
            sparse = self._sparse(header, block, flag, records)
            stream.open(sparse.stored)
            header.size = sparse.size
            payload: Payload = expand(sparse, stream.pieces())
        else:
            stream.open(header.size)
            payload = stream.pieces()
        if header.size:
            header.content = next(self._serials)
        return payload

    def _sparse(self, header: Header, block: bytes, flag: int, records: Records) -> SparseMap:
        stored = header.size
        if flag == ord("S"):
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


def _check(block: bytes, offset: int) -> None:
    """Compare the checksum: the sum of all bytes, with blanks for the eight of the field itself.

    The low half of Adler-32 is that sum plus 1, modulo 65521, and ten times as fast as `sum`.
    """
    raw = block[148:156]
    try:
        stored = number(raw)
    except ImageError:
        stored = -1
    total = (zlib.adler32(block) & 0xFFFF) - (zlib.adler32(raw) & 0xFFFF) + 8 * 32
    if (stored - total) % 65521 and not _is_signed(block, stored):
        raise ImageError(f"corrupt tar header at byte {offset} of the layer")


def _is_signed(block: bytes, stored: int) -> bool:
    """Some old writers took bytes for signed."""
    blanked = block[:148] + b" " * 8 + block[156:]
    return stored == sum(byte - ((byte & 0x80) << 1) for byte in blanked)


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
        kind = Kind.DIRECTORY  # as archives from before POSIX have it
    mode = small_number(block[100:108]) & 0o7777
    if records:
        uid = pax.field(records, b"uid", block[108:116])
        gid = pax.field(records, b"gid", block[116:124])
        size = pax.field(records, b"size", block[124:136])
        mtime_ns = pax.mtime_ns(records, block[136:148])
    else:
        uid = small_number(block[108:116])
        gid = small_number(block[116:124])
        size = number(block[124:136])
        mtime_ns = number(block[136:148]) * 1_000_000_000
    if not (0 <= uid <= _MAX_ID and 0 <= gid <= _MAX_ID):
        raise ImageError(f"owner {uid}:{gid}, which Linux does not have")
    header = Header(path, kind, mode, uid, gid, mtime_ns)
    if kind is Kind.REGULAR:
        if not 0 <= size <= _MAX_SIZE:
            raise ImageError(f"a size of {size} bytes")
        header.size = size
    elif kind is Kind.SYMLINK or kind is Kind.HARDLINK:
        header.target = records.get(b"linkpath") or block[157:257].partition(b"\0")[0]
    elif kind is Kind.CHARACTER or kind is Kind.BLOCK:
        major = pax.field(records, b"SCHILY.devmajor", block[329:337])
        header.rdev = (major, pax.field(records, b"SCHILY.devminor", block[337:345]))
    if records:
        header.xattrs = pax.xattrs(records)
    return header
