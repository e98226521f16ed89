"""Payloads on their way to disk: each serial's content into blocks, in as few writes as can be.

`direct.stream` feeds it while layers are read. Content starts at block boundaries and is gathered
over files: neighbours on disk go out in one `pwritev`. Holes of sparse files, and long runs of
zeros, take no blocks. Which blocks a content takes depends on nothing but its bytes, in whatever
pieces they come.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable

from reconciler.direct.space import Range, Space
from reconciler.ext4.inode import LONGEST_EXTENT, Extent
from reconciler.files import start_writeback
from reconciler.oci.sparse import Piece

BLOCK = 4096

_WINDOW = 64 << 10
"""What is all zeros and lies at a multiple of this many bytes in its file becomes a hole."""
_ZEROS = bytes(_WINDOW)
_PADDING = [memoryview(_ZEROS)[:size] for size in range(BLOCK)]
_GATHERED = 500
"""Buffers of one write: half of what pwritev takes, each file adds one of padding."""
_GATHERED_BYTES = 1 << 20
_BEHIND = 16 << 20
"""Bytes after which the kernel is asked to begin writing them out, so that no sync has to."""


class Contents:
    """The content of each serial: where its blocks are. Raises NoRoom, and OSError of the disk."""

    def __init__(self, descriptor: int, space: Space) -> None:
        self.extents: dict[int, tuple[Extent, ...]] = {}
        self._descriptor = descriptor
        self._space = space
        self._buffers: list[bytes | memoryview] = []
        self._start = 0
        self._end = 0
        self._begun = 0
        self._behind = threading.Thread()

    def add(self, serial: int, size: int, payload: Iterable[Piece]) -> None:
        """Store one payload of `size` bytes. Its pieces may vanish after the next `flush`."""
        if size < _WINDOW and type(payload) is tuple:
            self.extents[serial] = self._add_whole(size, payload[0])
            return
        content = _Content(self)
        for piece in payload:
            content.add(piece)
        content.close()
        self.extents[serial] = tuple(content.extents)

    def _add_whole(self, size: int, data: bytes | memoryview) -> tuple[Extent, ...]:
        """A file that came in one piece: nearly all are."""
        count = (size + BLOCK - 1) // BLOCK
        ranges = self._space.take(count)
        padding = -size % BLOCK
        if len(ranges) == 1:
            start = ranges[0][0]
            self.put(start * BLOCK, data)
            if padding:
                self._buffers.append(_PADDING[padding])
                self._end += padding
            return ((0, start, count),)
        extents: list[Extent] = []
        done = 0
        for start, length in ranges:
            append_extent(extents, done, start, length)
            at = done * BLOCK
            self.put(start * BLOCK, data[at : at + length * BLOCK])
            done += length
        if padding:
            self.put(self._end, _PADDING[padding])
        return tuple(extents)

    def take(self, count: int) -> list[Range]:
        """Blocks for content that comes in parts."""
        return self._space.take(count)

    def put(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes at an offset, soon: `flush` says when."""
        if (
            offset != self._end
            or len(self._buffers) >= _GATHERED
            or offset - self._start >= _GATHERED_BYTES
        ):
            self.flush()
            self._start = self._end = offset
        self._buffers.append(data)
        self._end += len(data)

    def flush(self) -> None:
        """Write what has been gathered."""
        buffers, self._buffers = self._buffers, []
        position, self._start = self._start, self._end
        self._begun += self._end - position
        while position < self._end:
            written = os.pwritev(self._descriptor, buffers, position)
            position += written
            if position < self._end:
                buffers = _rest(buffers, written)
        if self._begun >= _BEHIND and not self._behind.is_alive():
            self._begun = 0
            self._behind = _start_writeback(self._descriptor)


def _start_writeback(descriptor: int) -> threading.Thread:
    """Begin to write out what is dirty, in a thread, since that waits for a disk that is busy.

    The thread has a descriptor of its own: the file may be closed before it is done.
    """
    own = os.dup(descriptor)

    def begin() -> None:
        start_writeback(own)
        os.close(own)

    thread = threading.Thread(target=begin, name="writeback", daemon=True)
    thread.start()
    return thread


def _rest(buffers: list[bytes | memoryview], written: int) -> list[bytes | memoryview]:
    """What is left of buffers of which so many bytes are written."""
    for index, buffer in enumerate(buffers):
        if written < len(buffer):
            return [memoryview(buffer)[written:], *buffers[index + 1 :]]
        written -= len(buffer)
    return []


class _Content:
    """One payload that comes in parts. `_room`: free bytes in the last block that it has taken.

    `_held`: bytes at the end of what came, of a window that is not full yet.
    """

    def __init__(self, contents: Contents) -> None:
        self.extents: list[Extent] = []
        self._contents = contents
        self._position = 0
        self._offset = 0
        self._room = 0
        self._held = b""

    def add(self, piece: Piece) -> None:
        """The next part."""
        if isinstance(piece, int):
            self._spill()
            self._skip(piece)
            return
        view = memoryview(piece)
        if lead := 0 if self._held else -self._position % _WINDOW:
            self._write(view[:lead])
            view = view[lead:]
        elif self._held:
            lead = _WINDOW - len(self._held)
            self._held += view[:lead]
            view = view[lead:]
            if len(self._held) == _WINDOW:
                held, self._held = self._held, b""
                self._write_windows(memoryview(held))
        whole = len(view) - len(view) % _WINDOW
        self._write_windows(view[:whole])
        self._held = self._held or view[whole:].tobytes()

    def close(self) -> None:
        """Write what is held, and fill the last block."""
        self._spill()
        self._skip(self._room)

    def _spill(self) -> None:
        held, self._held = self._held, b""
        self._write(memoryview(held))

    def _write_windows(self, view: memoryview) -> None:
        """Whole windows: those of zeros are skipped, the others are written, neighbours at once."""
        done = 0
        for at in range(0, len(view), _WINDOW):
            if not view[at] and view[at : at + _WINDOW] == _ZEROS:
                self._write(view[done:at])
                self._skip(_WINDOW)
                done = at + _WINDOW
        self._write(view[done:])

    def _skip(self, size: int) -> None:
        """Zeros: what is left of a block that is taken gets them, blocks after it are not taken."""
        padding = min(size, self._room)
        self._position += size
        while padding:
            part = min(padding, _WINDOW)
            self._put(_ZEROS[:part])
            padding -= part

    def _write(self, data: memoryview) -> None:
        if self._room:
            part = data[: self._room]
            self._put(part)
            self._position += len(part)
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
