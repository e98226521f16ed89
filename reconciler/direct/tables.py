"""The inodes of files into the inode tables, many at once: what is known of a file is a record.

`direct.files` makes the records. For large images a process of its own writes them (`main`, started
by `direct.scribe`), beside whoever writes directories.
"""

from __future__ import annotations

import marshal
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from stat import S_IFREG
from typing import TYPE_CHECKING, BinaryIO

from reconciler.errors import BangerError
from reconciler.ext4.inode import MADE_AT, Extent, pack_mapped_inode
from reconciler.ext4.libext2fs import INODE, Writer
from reconciler.ext4.reader import Filesystem
from reconciler.files import host_errors
from reconciler.hot import hot_loop

if TYPE_CHECKING:
    from reconciler.processes import Checkpoint

PER_BLOCK = 16
"""Inodes in a block of a table: who writes a block whole must be the only one to write it."""
_RUN = 256
"""Inodes of one write, at most."""
_UNUSED = bytes(INODE)

Record = tuple[int, int, int, int, int, int, int, tuple[Extent, ...]]
"""(inode number, links, mode without type, uid, gid, size, mtime in ns, extents); without links the
inode is unused."""

HEAD = struct.Struct("<I")
"""What the process is told for each batch of records: its length in bytes, as `marshal` has it."""
DONE = b"done"
"""What the process says when all is written; else code, brief and resolution of an error, and a
word when it can be tried again."""
SEPARATOR = "\0"


class Tables:
    """The inode tables of an image. `writer` knows how inodes are summed up."""

    def __init__(self, writer: Writer, image: Filesystem, descriptor: int) -> None:
        """descriptor: of the image, for writing. image: says where inodes are."""
        self._writer = writer
        self._image = image
        self._descriptor = descriptor

    def write(self, records: Iterable[Record]) -> None:
        """Write inodes, neighbours together. Raises OSError, and HostError TOOL_FAILED."""
        offset_of = self._image.inode_offset
        run: list[bytes] = []
        first = start = 0
        for number, links, mode, uid, gid, size, time_ns, extents in records:
            at = offset_of(number)
            if at != start + len(run) * INODE or len(run) == _RUN:
                self._flush(first, start, run)
                first, start, run = number, at, []
            run.append(
                pack_mapped_inode(
                    S_IFREG | mode, uid, gid, links, size,
                    extents=extents, time_ns=time_ns, created=MADE_AT,
                ) if links else _UNUSED
            )  # fmt: skip
        self._flush(first, start, run)

    def begin(self) -> None:
        """Everything is written at once."""

    def finish(self, checkpoint: Checkpoint) -> None:
        """Nothing is left to do."""

    def _flush(self, first: int, start: int, run: list[bytes]) -> None:
        if not run:
            return
        raw = bytearray().join(run)
        self._writer.seal_inodes(first, raw)
        done = 0
        while done < len(raw):
            done += os.pwrite(self._descriptor, memoryview(raw)[done:], start + done)


def main(words: list[str]) -> None:
    """The process. words: the image; numbers of descriptors: where records are, where it is told
    how long each batch is, and where it tells how it ended."""
    image, memory, come, tell = Path(words[0]), *map(int, words[1:])
    try:
        with host_errors("cannot write inodes"), os.fdopen(come, "rb") as heads:
            _write_all(image, _batches(memory, heads))
        told = DONE
    except BangerError as error:
        parts = (error.code, error.brief, error.resolution, "again" if error.retryable else "")
        told = SEPARATOR.join(parts).encode(errors="backslashreplace")
    os.write(tell, told)


def _write_all(image: Path, batches: Iterable[list[Record]]) -> None:
    descriptor = os.open(image, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    with Filesystem(image) as filesystem, Writer(image, only_sums=True) as writer, hot_loop():
        tables = Tables(writer, filesystem, descriptor)
        for batch in batches:
            tables.write(batch)
    os.close(descriptor)


def _batches(memory: int, heads: BinaryIO) -> Iterator[list[Record]]:
    at = 0
    while head := heads.read(HEAD.size):
        [length] = HEAD.unpack(head)
        yield marshal.loads(os.pread(memory, length, at))  # noqa: S302 - our own process wrote it
        at += length
