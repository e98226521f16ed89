"""The files of an image as they come: content into blocks, and inodes right behind it.

`direct.builder` has `stages.replay` fill this. An inode says where content lies and what its header
said, so nearly all of them can be written before the tree is known, by somebody else and beside all
that has to wait for it. `direct.metadata` writes what is left.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import Protocol

from reconciler.direct.content import Contents
from reconciler.direct.tables import PER_BLOCK, Record
from reconciler.ext4.inode import EXTENTS_INSIDE, Extent
from reconciler.ext4.libext2fs import NoRoom, Writer
from reconciler.oci.carry import USUAL_TIMES
from reconciler.oci.entries import Node
from reconciler.oci.tar import Payload
from reconciler.processes import Checkpoint

FIRST_INODE = 12
"""The first that a new filesystem has not used: 11 is lost+found."""
_TOGETHER = 256
"""Files whose inodes are written at a time, at least."""


def _next_block(number: int) -> int:
    """The first inode, from this on, with which a block of the inode tables begins."""
    return number + -(number - 1) % PER_BLOCK


_FIRST_OF_FILES = _next_block(FIRST_INODE)


class Recorder(Protocol):
    """Whoever writes the inodes: `direct.tables.Tables` at once, `direct.scribe.Scribe` later."""

    def write(self, records: Iterable[Record]) -> None:
        """Write inodes, those written before among them."""

    def begin(self) -> None:
        """The layers are read: from now on there is time for it."""

    def finish(self, checkpoint: Checkpoint) -> None:
        """Return when all are written."""


class FileInodes:
    """Inodes that are written before the tree is known: of files as plain as nearly all are.

    They are numbered in the order in which their content came, and have blocks of the inode tables
    for themselves.
    """

    def __init__(self, recorder: Recorder, writer: Writer, count: int) -> None:
        """count: inodes of the filesystem. writer: accounts them."""
        self._recorder = recorder
        self._writer = writer
        self._count = count
        self._next = _FIRST_OF_FILES
        self._numbers = array("I")

    @property
    def following(self) -> int:
        """The first number after them."""
        return FIRST_INODE if self._next == _FIRST_OF_FILES else _next_block(self._next)

    def number(self, serial: int) -> int:
        """The inode of the file with this content; 0 when it is not written yet."""
        return self._numbers[serial] if serial < len(self._numbers) else 0

    def add(self, files: Iterable[Node], extents: Mapping[int, tuple[Extent, ...]]) -> None:
        """Write what is plain of these, as files of one name. Raises NoRoom, and as `Tables`."""
        first = number = self._next
        numbers = self._numbers
        records: list[Record] = []
        for node in files:
            serial, time_ns = node.content, node.mtime_ns
            mapped = extents[serial]
            if node.xattrs or len(mapped) > EXTENTS_INSIDE or time_ns not in USUAL_TIMES:
                continue
            if serial >= len(numbers):
                numbers.extend([0] * (serial + 1024 - len(numbers)))
            numbers[serial] = number
            records.append((number, 1, node.mode, node.uid, node.gid, node.size, time_ns, mapped))
            number += 1
        if not records:
            return
        if number - 1 > self._count:
            raise NoRoom(f"{number - 1} inodes and more do not fit")
        self._recorder.write(records)
        self._writer.mark_inodes(first, bytes(number - first))
        self._next = number

    def rewrite(self, files: Iterable[Node], extents: Mapping[int, tuple[Extent, ...]]) -> None:
        """Write again those that have other than one name."""
        self._recorder.write(
            [
                (
                    self.number(node.content), node.nlink, node.mode, node.uid, node.gid, node.size,
                    node.mtime_ns, extents[node.content],
                )
                for node in files
            ]
        )  # fmt: skip

    def clear(self, serials: Iterable[int]) -> None:
        """Give back the inodes of content that nobody has."""
        gone = [serial for serial in serials if self.number(serial)]
        numbers = [self._numbers[serial] for serial in gone]
        for serial, number in zip(gone, numbers, strict=True):
            self._writer.free_inode(number)
            self._numbers[serial] = 0
        self._recorder.write([(number, 0, 0, 0, 0, 0, 0, ()) for number in numbers])

    def gaps(self, serials: Iterable[int]) -> int:
        """How many numbers before `following` stay without a file when these are cleared."""
        given = self._next - _FIRST_OF_FILES
        gone = sum(1 for serial in serials if self.number(serial))
        return self.following - FIRST_INODE - given + gone

    def begin(self) -> None:
        """The layers are read."""
        self._recorder.begin()

    def finish(self, checkpoint: Checkpoint) -> None:
        """Return when all are written. Raises what the one who writes them does."""
        self._recorder.finish(checkpoint)


class Files:
    """A sink for the layers. inodes: None while there is no filesystem to have them.

    contents: where everything is. unused: the serials of content that no file has after all, once
    that is known. last: the highest serial that any has had.
    """

    def __init__(self, contents: Contents, inodes: FileInodes | None) -> None:
        self.contents = contents
        self._inodes = inodes
        self._new: list[Node] = []
        self.unused: list[int] = []
        self.last = 0

    def add(self, node: Node, payload: Payload) -> None:
        """Place the content of a file. Raises NoRoom, and OSError of the disk."""
        self.contents.add(node.content, node.size, payload)
        self._new.append(node)

    def flush(self) -> None:
        """Write what has been gathered. Raises NoRoom, and what the disk and the library do."""
        self.contents.flush()
        if len(self._new) >= _TOGETHER:
            self._write()

    def settle(self) -> None:
        """Write the inodes that are waiting, too: numbers do not depend on when `flush` came."""
        self._write()
        if self._inodes:
            self._inodes.begin()

    def finish(self, serials: set[int]) -> None:
        """The tree has content with these serials."""
        self._write()
        self.unused = sorted(self.contents.extents.keys() - serials)
        self.last = max(self.contents.extents, default=0)

    def _write(self) -> None:
        new, self._new = self._new, []
        if self._inodes:
            self._inodes.add(new, self.contents.extents)
