"""Payloads on their way to disk: each serial's content into blocks, in as few writes as can be.

`direct.stream` feeds it while layers are read. Content starts at block boundaries and is gathered
over files: neighbours on disk go out in one `pwritev`. Holes of sparse files, and long runs of
zeros, take no blocks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from reconciler.direct.space import Range, Space
from reconciler.ext4.inode import LONGEST_EXTENT
from reconciler.ext4.reader import Extent
from reconciler.oci.sparse import Piece

BLOCK = 4096

_ZEROS = bytes(64 << 10)
"""The shortest run of zeros that becomes a hole; runs start at multiples of a block."""
_PADDING = [memoryview(_ZEROS)[:size] for size in range(BLOCK)]
_GATHERED = 500
"""Buffers of one write: half of what pwritev takes, each file adds one of padding."""
_GATHERED_BYTES = 1 << 20


class Contents:
    """The content of each serial: where its blocks are. Raises NoRoom, and OSError of the disk."""

    def __init__(self, descriptor: int, space: Space) -> None:
        self.extents: dict[int, tuple[Extent, ...]] = {}
        self._descriptor = descriptor
        self._space = space
        self._buffers: list[bytes | memoryview] = []
        self._start = 0
        self._end = 0

    def add(self, serial: int, size: int, payload: Iterable[Piece]) -> None:
        """Store one payload of `size` bytes."""
        pieces = iter(payload)
        first = next(pieces, b"")
        if not isinstance(first, int) and len(first) == size < len(_ZEROS):
            self.extents[serial] = self._add_whole(first)
            return
        content = _Content(self)
        content.add(first)
        for piece in pieces:
            content.add(piece)
        content.close()
        self.extents[serial] = tuple(content.extents)

    def _add_whole(self, data: bytes | memoryview) -> tuple[Extent, ...]:
        """A file that came in one piece: nearly all are."""
        count = -(-len(data) // BLOCK)
        ranges = self._space.take(count)
        if len(ranges) == 1:
            start = ranges[0][0]
            self.put(start * BLOCK, data)
            if padding := -len(data) % BLOCK:
                self._buffers.append(_PADDING[padding])
                self._end += padding
            return ((0, start, count),)
        extents = []
        done = 0
        for start, length in ranges:
            extents.append((done, start, length))
            at = done * BLOCK
            self.put(start * BLOCK, data[at : at + length * BLOCK] if length < count else data)
            done += length
        if padding := -len(data) % BLOCK:
            self.put(self._end, _ZEROS[:padding])
        return tuple(extents)

    def take(self, count: int) -> list[Range]:
        """Blocks for content that comes in parts."""
        return self._space.take(count)

    def put(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes at an offset, soon: `flush` says when."""
        size = self._end - self._start
        if offset != self._end or len(self._buffers) >= _GATHERED or size >= _GATHERED_BYTES:
            self.flush()
            self._start = self._end = offset
        self._buffers.append(data)
        self._end += len(data)

    def flush(self) -> None:
        """Write what has been gathered."""
        buffers, self._buffers = self._buffers, []
        position, self._start = self._start, self._end
        while position < self._end:
            written = os.pwritev(self._descriptor, buffers, position)
            position += written
            if position < self._end:
                buffers = _rest(buffers, written)


def _rest(buffers: list[bytes | memoryview], written: int) -> list[bytes | memoryview]:
    """What is left of buffers of which so many bytes are written."""
    for index, buffer in enumerate(buffers):
        if written < len(buffer):
            return [memoryview(buffer)[written:], *buffers[index + 1 :]]
        written -= len(buffer)
    return []


class _Content:
    """One payload that comes in parts. `room`: free bytes in the last block that it has taken."""

    def __init__(self, contents: Contents) -> None:
        self.extents: list[Extent] = []
        self._contents = contents
        self._position = 0
        self._offset = 0
        self._room = 0

    def add(self, piece: Piece) -> None:
        """The next part."""
        if isinstance(piece, int):
            self._skip(piece)
            return
        for run in _runs(memoryview(piece), -self._position % BLOCK):
            if isinstance(run, int):
                self._skip(run)
            else:
                self._write(run)

    def close(self) -> None:
        """Fill the last block."""
        self._skip(self._room)

    def _skip(self, size: int) -> None:
        """Zeros: what is left of a block that is taken gets them, blocks after it are not taken."""
        padding = min(size, self._room)
        if padding:
            self._fill(_ZEROS[:padding])
        self._position += size - padding

    def _write(self, data: memoryview) -> None:
        if self._room:
            part = data[: self._room]
            self._fill(part)
            data = data[len(part) :]
        if not data:
            return
        lead = self._position % BLOCK  # the end of a hole that ends within a block
        logical = self._position // BLOCK
        self._position += len(data)
        for start, count in self._contents.take(-(-(lead + len(data)) // BLOCK)):
            append_extent(self.extents, logical, start, count)
            self._offset = start * BLOCK
            self._room = count * BLOCK
            if lead:
                self._put(_ZEROS[:lead])
            part = data[: self._room]
            self._put(part)
            data = data[len(part) :]
            logical += count
            lead = 0

    def _fill(self, data: bytes | memoryview) -> None:
        self._put(data)
        self._position += len(data)

    def _put(self, data: bytes | memoryview) -> None:
        self._contents.put(self._offset, data)
        self._offset += len(data)
        self._room -= len(data)


def append_extent(extents: list[Extent], logical: int, start: int, count: int) -> None:
    """Add blocks to a file's extents; what goes on where the last one ends makes that longer."""
    if extents:
        before, physical, length = extents[-1]
        if (before + length, physical + length) == (logical, start) and (
            length + count <= LONGEST_EXTENT
        ):
            extents[-1] = (before, physical, length + count)
            return
    extents.append((logical, start, count))


def _runs(piece: memoryview, first: int) -> Iterator[memoryview | int]:
    """Split at long runs of zeros, which come as ints. first: where the first block starts."""
    window = len(_ZEROS)
    done = 0
    for at in range(first, len(piece) - window + 1, window):
        if not piece[at] and not piece[at + window - 1] and piece[at : at + window] == _ZEROS:
            if done < at:
                yield piece[done:at]
            yield window
            done = at + window
    if done < len(piece):
        yield piece[done:]
