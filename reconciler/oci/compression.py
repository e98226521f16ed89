"""Layer blobs as tar bytes: gzip, zstd or nothing, told by the magic and never by the media type.

`oci.layers` feeds a blob in chunks and gets pieces of bounded size back, whatever the ratio.
Several gzip members and several zstd frames, skippable ones among them, are one stream (eStargz and
zstd:chunked depend on it); anything else after an end is an error. Formats: RFC 1952, RFC 8878.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol, cast

from isal import isal_zlib

from reconciler.errors import ImageError
from reconciler.oci.limits import Limits, exceeded

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE = 1 << 20
"""Decoded bytes handed out at a time, at most (plain data keeps the size of its chunks)."""

# The stub of isal declares its exception class as if it were an instance.
_CORRUPT = (cast(type[Exception], isal_zlib.IsalError), zstd.ZstdError)

_WINDOW_TOO_LARGE = "too much memory"
"""Of the library's message: it has no other sign of this."""

_MAGIC = 10
"""Bytes that tell all known formats apart."""


def decompress(raw: Iterable[bytes], limits: Limits) -> Iterator[bytes]:
    """Decode the whole of `raw`; plain data passes through.

    Raises ImageError for an unsupported format, for corruption, truncation and garbage after the
    end, and (code LIMIT_EXCEEDED) when more than `limits.layer_bytes` come out.
    """
    total = 0
    for piece in _pieces(raw, limits):
        total += len(piece)
        if total > limits.layer_bytes:
            raise exceeded("layer_bytes", limits.layer_bytes, "decompressed layer")
        yield piece


def _pieces(raw: Iterable[bytes], limits: Limits) -> Iterator[bytes]:
    chunks = iter(raw)
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= _MAGIC:
            break
    frame = _frame_for(head, limits)
    stream = _chain(head, chunks)
    return stream if frame is None else _decode(stream, frame)


def _chain(head: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from rest


def _frame_for(head: bytes, limits: Limits) -> Callable[[], _Frame] | None:
    """The decoder for data that starts like this; None for data that is not compressed."""
    if head.startswith(b"\x1f\x8b"):
        return _GzipMember
    if head.startswith(b"\x28\xb5\x2f\xfd") or _is_skippable(head):
        return partial(_ZstdFrame, limits.zstd_window)
    if head.startswith(b"\xfd7zXZ\x00"):
        raise ImageError("layers compressed with xz are not supported")
    if head.startswith(b"BZh") and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        raise ImageError("layers compressed with bzip2 are not supported")
    return None


def _is_skippable(head: bytes) -> bool:
    return head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F


class _Frame(Protocol):
    """One gzip member or zstd frame on its way through a decoder."""

    name: str

    @property
    def ended(self) -> bool:
        """Its last byte has been seen, and its checksum was right."""

    @property
    def rest(self) -> bytes:
        """What was fed beyond its end."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decode all of `data`, in pieces of at most PIECE bytes."""


def _decode(raw: Iterator[bytes], start: Callable[[], _Frame]) -> Iterator[bytes]:
    frame: _Frame | None = None
    for chunk in raw:
        data = chunk
        while data:
            frame = frame or start()
            try:
                yield from frame.feed(data)
            except _CORRUPT as exc:
                raise ImageError(f"corrupt {frame.name} data: {exc}") from exc
            if not frame.ended:
                break
            data = frame.rest
            frame = None
    if frame is not None:
        raise ImageError(f"the {frame.name} data is cut short, or has garbage after its end")


class _GzipMember:
    name = "gzip"

    def __init__(self) -> None:
        self._inflate = isal_zlib.decompressobj(16 + isal_zlib.MAX_WBITS)

    @property
    def ended(self) -> bool:
        return self._inflate.eof

    @property
    def rest(self) -> bytes:
        return self._inflate.unused_data

    def feed(self, data: bytes) -> Iterator[bytes]:
        more = True
        while more:
            piece = self._inflate.decompress(data, PIECE)
            if piece:
                yield piece
            data = self._inflate.unconsumed_tail
            more = not self._inflate.eof and (bool(data) or len(piece) == PIECE)


class _ZstdFrame:
    name = "zstd"

    def __init__(self, window: int) -> None:
        options = {int(zstd.DecompressionParameter.window_log_max): window.bit_length() - 1}
        self._window = window
        self._frame = zstd.ZstdDecompressor(options=options)

    @property
    def ended(self) -> bool:
        return self._frame.eof

    @property
    def rest(self) -> bytes:
        return self._frame.unused_data

    def feed(self, data: bytes) -> Iterator[bytes]:
        more = True
        while more:
            piece = self._decompress(data)
            if piece:
                yield piece
            data = b""
            more = not self._frame.eof and not self._frame.needs_input

    def _decompress(self, data: bytes) -> bytes:
        try:
            return self._frame.decompress(data, PIECE)
        except zstd.ZstdError as exc:
            if _WINDOW_TOO_LARGE in str(exc):
                raise exceeded("zstd_window", self._window, "the window of a zstd frame") from exc
            raise
