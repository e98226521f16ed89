"""The inodes of files into the inode tables, many at once: what is known of a file is a record.

`direct.files` makes the records. For large images a process of its own writes them (`main`, started
by `direct.scribe`), in the time that the processors have left beside the unpacking of layers.
"""

from __future__ import annotations

import ctypes
import marshal
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from stat import S_IFREG
from typing import BinaryIO

from reconciler.errors import BangerError
from reconciler.ext4.inode import pack_mapped_inode
from reconciler.ext4.libext2fs import Writer
from reconciler.ext4.reader import Extent, Filesystem
from reconciler.files import host_errors
from reconciler.processes import Checkpoint
from reconciler.tools import FAKE_TIME

INODE = 256
"""Bytes of an inode."""
PER_BLOCK = 16
"""Inodes in a block of a table: who writes a block whole must be the only one to write it."""
CREATED = int(FAKE_TIME)
"""Of every inode, in seconds since the epoch."""
_RUN = 256
"""Inodes of one write, at most."""

Record = tuple[int, int, int, int, int, int, int, tuple[Extent, ...]]
"""(inode number, links, mode without type, uid, gid, size, mtime in ns, extents); without links the
inode is unused."""

HEAD = struct.Struct("<I")
"""Before each batch of records on its way to the process: its length in bytes."""
DONE = b"done"
"""What the process says when all is written; else the code of an error, NUL, and what it says."""
_NICE = 10
"""The process takes what nobody else wants, for who waits for it comes later."""


class Tables:
    """The inode tables of an image. `writer` knows how inodes are summed up."""

    def __init__(self, writer: Writer, image: Filesystem, descriptor: int) -> None:
        """descriptor: of the image, for writing. image: says where inodes are."""
        self._writer = writer
        self._image = image
        self._descriptor = descriptor
        self._buffer = ctypes.create_string_buffer(_RUN * INODE)
        self._view = memoryview(self._buffer).cast("B")

    def write(self, records: Iterable[Record]) -> None:
        """Write inodes, neighbours together. Raises OSError, and HostError TOOL_FAILED."""
        seal, offset_of = self._writer.seal_inode, self._image.inode_offset
        view, address = self._view, ctypes.addressof(self._buffer)
        start = at = filled = 0
        for number, links, mode, uid, gid, size, time_ns, extents in records:
            at = offset_of(number)
            if at != start + filled or filled == len(view):
                self._flush(start, filled)
                start, filled = at, 0
            following = filled + INODE
            view[filled:following] = (
                pack_mapped_inode(
                    S_IFREG | mode, uid, gid, links, size,
                    extents=extents, time_ns=time_ns, created=CREATED,
                ) if links else bytes(INODE)
            )  # fmt: skip
            seal(number, address + filled)
            filled = following
        self._flush(start, filled)

    def finish(self, checkpoint: Checkpoint) -> None:
        """Everything is written at once."""

    def _flush(self, start: int, filled: int) -> None:
        done = 0
        while done < filled:
            done += os.pwrite(self._descriptor, self._view[done:filled], start + done)


def main(words: list[str]) -> None:
    """The process. words: the image; numbers of descriptors: records come, how it ended goes."""
    image, come, tell = Path(words[0]), int(words[1]), int(words[2])
    os.nice(_NICE)
    try:
        with host_errors("cannot write inodes"), open(come, "rb") as records:
            _write_all(image, _batches(records))
        told = DONE
    except BangerError as error:
        told = f"{error.code}\0{error.brief}".encode()
    os.write(tell, told)


def _write_all(image: Path, batches: Iterable[list[Record]]) -> None:
    descriptor = os.open(image, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with Filesystem(image) as filesystem, Writer(image, only_sums=True) as writer:
        tables = Tables(writer, filesystem, descriptor)
        for batch in batches:
            tables.write(batch)
    os.close(descriptor)


def _batches(stream: BinaryIO) -> Iterator[list[Record]]:
    while head := stream.read(HEAD.size):
        yield marshal.loads(stream.read(*HEAD.unpack(head)))  # noqa: S302 - from our own process
