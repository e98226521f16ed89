"""Where content goes: blocks taken from the filesystem, or from a spool file to be moved later.

`direct.content` asks for blocks and is told ranges. `ImageSpace` has the library find them in large
pieces and hands those out in order, so that what arrives one after the other lies so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from reconciler.ext4.libext2fs import Writer

Range = tuple[int, int]
"""(first block, number of blocks), blocks of 4 KiB."""

_PIECE = 32768
"""Blocks that are reserved at a time: a group, as far as it is free."""


class Space(Protocol):
    """A supply of blocks."""

    def take(self, count: int) -> list[Range]:
        """That many blocks, in as few ranges as there can be. Raises NoRoom."""


class SpoolSpace:
    """The blocks of a file of its own: there is always one more."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, count: int) -> list[Range]:
        """The next blocks, in one range."""
        first = self._next
        self._next += count
        return [(first, count)]


class ImageSpace:
    """The free blocks of a filesystem. `close` gives back what was reserved and not handed out."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._next = 1
        self._end = 1

    def take(self, count: int) -> list[Range]:
        """The next free blocks of the filesystem. Raises NoRoom."""
        first = self._next
        if count <= self._end - first:
            self._next = first + count
            return [(first, count)]
        ranges = []
        while count:
            if self._next == self._end:
                self._reserve(max(count, _PIECE))
            part = min(count, self._end - self._next)
            ranges.append((self._next, part))
            self._next += part
            count -= part
        return ranges

    def _reserve(self, count: int) -> None:
        start, length = self._writer.find_free(self._end, count)
        self._writer.mark(start, length, used=True)
        self._next, self._end = start, start + length

    def give(self, ranges: Iterable[Range]) -> None:
        """Take blocks back."""
        for start, count in ranges:
            self._writer.mark(start, count, used=False)

    def close(self) -> None:
        """Give back what is reserved and not used; `take` starts anew after it."""
        if self._next < self._end:
            self.give([(self._next, self._end - self._next)])
        self._end = self._next
