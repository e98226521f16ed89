"""A cursor over chunks of bytes: whole blocks for tar headers, pieces without a copy for payloads.

`oci.tar` is its only user. It knows what a block and its padding are, and nothing of headers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from reconciler.errors import ImageError

BLOCK = 512
"""Bytes of a tar block: headers and payloads start at multiples of it."""


class Stream:
    """Where the parser stands. Raises ImageError when the chunks end in the middle of something.

    is_open: there is a payload for `close`.
    """

    __slots__ = ("_base", "_chunks", "_data", "_end", "_left", "_pad", "_pos", "is_open")

    def __init__(self, chunks: Iterator[bytes | memoryview]) -> None:
        self._chunks = chunks
        self._data = memoryview(b"")
        self._end = 0
        self._pos = 0
        self._base = 0
        self._left = 0
        self._pad = 0
        self.is_open = False

    @property
    def offset(self) -> int:
        """Bytes of the stream that have been taken."""
        return self._base + self._pos

    def block(self) -> bytes:
        """The next 512 bytes; none at all when the stream has ended before them."""
        start = self._pos
        stop = start + BLOCK
        if stop > self._end:
            return self._gather(BLOCK)
        self._pos = stop
        return self._data[start:stop].tobytes()

    def view(self) -> bytes | memoryview:
        """`block` without a copy, where it can be: good until the chunk is used up."""
        start = self._pos
        stop = start + BLOCK
        if stop > self._end:
            return self._gather(BLOCK)
        self._pos = stop
        return self._data[start:stop]

    def _more(self) -> bool:
        """Replace a used-up chunk by the next one that is not empty."""
        for chunk in self._chunks:
            if chunk:
                self._base += self._end
                self._data = memoryview(chunk)
                self._end = len(chunk)
                self._pos = 0
                return True
        return False

    def _gather(self, count: int) -> bytes:
        got = b""
        while len(got) < count:
            if self._pos == self._end and not self._more():
                if got:
                    raise ImageError("the tar stream is cut short")
                return b""
            part = self._data[self._pos : self._pos + count - len(got)]
            self._pos += len(part)
            got += part
        return got

    def payload(self, size: int) -> Iterable[memoryview]:
        """A payload of `size` bytes starts here: a tuple of one piece when it is in one chunk.

        In the second case it is open, else taken already.
        """
        start = self._pos
        stop = start + size
        pad = -size % BLOCK
        if stop + pad <= self._end:
            self._pos = stop + pad
            return (self._data[start:stop],)
        self._left = size
        self._pad = pad
        self.is_open = True
        return self.pieces()

    def open(self, size: int) -> None:
        """A payload of `size` bytes starts here, to be taken by `pieces`."""
        self._left = size
        self._pad = -size % BLOCK
        self.is_open = True

    def pieces(self) -> Iterator[memoryview]:
        """The open payload, as far as it has not been read."""
        while self._left:
            if self._pos == self._end and not self._more():
                raise ImageError("the tar stream is cut short inside a file")
            piece = self._data[self._pos : self._pos + self._left]
            self._left -= len(piece)
            self._pos += len(piece)
            yield piece

    def close(self) -> None:
        """Skip what is left of the open payload, and its padding."""
        self.is_open = False
        stop = self._pos + self._left + self._pad
        if stop <= self._end:
            self._pos = stop
            self._left = self._pad = 0
            return
        self._left += self._pad
        self._pad = 0
        for _ in self.pieces():
            pass

    def read(self, size: int) -> bytes:
        """A whole payload of `size` bytes at once, padding skipped."""
        self.open(size)
        data = b"".join(self.pieces())
        self.close()
        return data

    def is_zero_to_end(self) -> bool:
        """Read all the rest; True when there is nothing in it but zeros."""
        zero = True
        while zero and (self._pos < self._end or self._more()):
            zero = not self._data[self._pos :].tobytes().strip(b"\0")
            self._pos = self._end
        while self._more():
            self._pos = self._end
        return zero


class SeekingStream(Stream):
    """A cursor over a file, opened without a buffer: what is skipped is not read."""

    __slots__ = ("_handle", "_size")

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._size = os.fstat(handle.fileno()).st_size
        super().__init__(_small_chunks(handle))

    def payload(self, size: int) -> Iterable[memoryview]:
        """A payload of `size` bytes starts here; it is open."""
        self.open(size)
        return self.pieces()

    def close(self) -> None:
        """Skip what is left of the open payload, and its padding."""
        self.is_open = False
        target = self.offset + self._left + self._pad
        if target - self._base <= self._end:
            super().close()
            return
        if target > self._size:
            raise ImageError("the tar stream is cut short inside a file")
        self._handle.seek(target)
        self._base, self._data, self._end, self._pos = target, memoryview(b""), 0, 0
        self._left = self._pad = 0


def _small_chunks(handle: BinaryIO) -> Iterator[bytes]:
    while chunk := handle.read(8 * BLOCK):
        yield chunk
