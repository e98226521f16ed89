"""Layer blobs as tar bytes: gzip, zstd or nothing, told by the magic and never by the media type.

`oci.pump` reads a blob through it, into memory of its own: however far the data expands, no more is
decoded than was asked for. Several gzip members and several zstd frames, skippable ones among them,
are one stream (eStargz and zstd:chunked depend on it). Zeros after a gzip member are padding, as
for gzip(1); anything else after an end is an error. Formats: RFC 1952, RFC 8878.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, cast

from isal import igzip, isal_zlib

from reconciler.errors import ImageError
from reconciler.oci.limits import Limits, exceeded

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE = 1 << 20
"""Decoded bytes handed out at a time by `decompress`, at most."""

Read = Callable[[int], bytes]
"""The next bytes of a blob, at most so many; none at its end."""

# The stub of isal declares its exception class as if it were an instance; the last is a header that
# is longer than any that a layer has.
_CORRUPT_GZIP = (cast(type[Exception], isal_zlib.IsalError), igzip.BadGzipFile, OverflowError)

_WINDOW_TOO_LARGE = "too much memory"
"""Of the library's message: it has no other sign of this."""

_MAGIC = 10
"""Bytes that tell all known formats apart."""

_CHUNK = 128 << 10
"""Bytes of zstd data that are read at a time."""


class Decoder:
    """A blob that is decoded as it is read."""

    def __init__(self, read: Read, limits: Limits) -> None:
        """Raises ImageError for a format that is not supported."""
        self._format = _format(_Source(read), limits)
        self._limit = limits.layer_bytes
        self._total = 0

    def readinto(self, target: memoryview) -> int:
        """The number of decoded bytes that were put into `target`, from its start; 0 at the end.

        Raises ImageError for corruption, truncation and garbage after the end, and (code
        LIMIT_EXCEEDED) when more than `limits.layer_bytes` come out; what `read` raises.
        """
        count = self._format.readinto(target)
        self._total += count
        if self._total > self._limit:
            raise exceeded("layer_bytes", self._limit, "decompressed layer")
        return count


def decompress(raw: Iterable[bytes], limits: Limits) -> Iterator[bytes]:
    """Decode the whole of `raw`, which comes in chunks. Raises what `Decoder` raises."""
    chunks = iter(raw)
    rest = b""

    def read(size: int) -> bytes:
        nonlocal rest
        rest = rest or next(filter(None, chunks), b"")
        data, rest = rest[:size], rest[size:]
        return data

    decoder = Decoder(read, limits)
    buffer = bytearray(PIECE)
    while count := decoder.readinto(memoryview(buffer)):
        yield bytes(buffer[:count])


class _Format(Protocol):
    """One way in which blobs are encoded."""

    def readinto(self, target: memoryview) -> int:
        """As `Decoder.readinto`."""


class _Source(io.RawIOBase):
    """A blob as a file, of which one may look at the beginning."""

    def __init__(self, read: Read) -> None:
        super().__init__()
        self._read = read
        self._head = b""

    def head(self) -> bytes:
        """As many bytes as tell the format, less when there are less; they will be read again."""
        while len(self._head) < _MAGIC and (chunk := self._read(_CHUNK)):
            self._head += chunk
        return self._head

    def readable(self) -> bool:
        """For the io module."""
        return True

    def take(self, size: int) -> bytes:
        """The next bytes, at most `size`; none at the end."""
        if not self._head:
            return self._read(size)
        data, self._head = self._head[:size], self._head[size:]
        return data

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]
        """Put the next bytes into `target`; 0 at the end."""
        data = self.take(len(target))
        target[: len(data)] = data
        return len(data)


def _format(source: _Source, limits: Limits) -> _Format:
    """The decoder for data that starts like this."""
    head = source.head()
    if head.startswith(b"\x1f\x8b"):
        return _Gzip(source)
    if head.startswith(b"\x28\xb5\x2f\xfd") or _is_skippable(head):
        return _Zstd(source, limits.zstd_window)
    if head.startswith(b"\xfd7zXZ\x00"):
        raise ImageError("layers compressed with xz are not supported")
    if head.startswith(b"BZh") and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        raise ImageError("layers compressed with bzip2 are not supported")
    return source


def _is_skippable(head: bytes) -> bool:
    return head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F


class _Gzip:
    def __init__(self, source: _Source) -> None:
        self._file = igzip.IGzipFile(fileobj=source, mode="rb")  # type: ignore[no-untyped-call]
        # what it reads from, as does every gzip.GzipFile: its own readinto makes bytes, then copies
        self._stream: io.BufferedIOBase = getattr(self._file, "_buffer", self._file)

    def readinto(self, target: memoryview) -> int:
        try:
            return self._stream.readinto(target)
        except EOFError:
            raise ImageError("the gzip data is cut short, or has garbage after its end") from None
        except _CORRUPT_GZIP as exc:
            raise ImageError(f"corrupt gzip data: {exc}") from exc


class _Zstd:
    def __init__(self, source: _Source, window: int) -> None:
        self._source = source
        self._window = window
        self._options = {int(zstd.DecompressionParameter.window_log_max): window.bit_length() - 1}
        self._frame: zstd.ZstdDecompressor | None = None

    def readinto(self, target: memoryview) -> int:
        piece = b""
        while not piece:
            frame = self._frame
            if frame is None or frame.eof:
                data = (frame.unused_data if frame else b"") or self._source.take(_CHUNK)
                if not data:
                    return 0
                frame = self._frame = zstd.ZstdDecompressor(options=self._options)
            elif frame.needs_input:
                data = self._source.take(_CHUNK)
                if not data:
                    raise ImageError("the zstd data is cut short, or has garbage after its end")
            else:
                data = b""
            piece = self._decompress(frame, data, len(target))
        target[: len(piece)] = piece
        return len(piece)

    def _decompress(self, frame: zstd.ZstdDecompressor, data: bytes, size: int) -> bytes:
        try:
            return frame.decompress(data, size)
        except zstd.ZstdError as exc:
            if _WINDOW_TOO_LARGE in str(exc):
                raise exceeded("zstd_window", self._window, "the window of a zstd frame") from exc
            raise ImageError(f"corrupt zstd data: {exc}") from exc
