"""Content that is placed: moved out of the spool into the image, or given back when nobody has it.

A later layer may replace or delete what an earlier one brought. Its blocks are free then, and are
made to read as zeros: an image must not hold what its layers took away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from reconciler.direct.content import append_extent
from reconciler.direct.space import ImageSpace, Range
from reconciler.ext4.inode import Extent
from reconciler.files import copy_range, punch_hole

BLOCK = 4096


def give_back(mapped: Iterable[Extent], space: ImageSpace, descriptor: int) -> None:
    """Give back blocks of content that nobody has, and let them be holes."""
    for start, count in _joined((start, count) for _, start, count in mapped):
        space.give([(start, count)])
        punch_hole(descriptor, start * BLOCK, count * BLOCK)


def _joined(ranges: Iterable[Range]) -> list[Range]:
    joined: list[Range] = []
    for start, count in sorted(ranges):
        if joined and sum(joined[-1]) == start:
            joined[-1] = (joined[-1][0], joined[-1][1] + count)
        else:
            joined.append((start, count))
    return joined


def move(
    extents: Mapping[int, tuple[Extent, ...]],
    space: ImageSpace,
    source: int,
    target: int,
) -> dict[int, tuple[Extent, ...]]:
    """Copy content from the spool into new blocks of the image; where each serial is then."""
    copier = _Copier(source, target)
    moved = {}
    for serial, mapped in extents.items():
        placed: list[Extent] = []
        for logical, old, count in mapped:
            done = 0
            for start, length in space.take(count):
                copier.add(old + done, start, length)
                append_extent(placed, logical + done, start, length)
                done += length
        moved[serial] = tuple(placed)
    copier.flush()
    return moved


class _Copier:
    """Joins copies that go on where the one before ended."""

    def __init__(self, source: int, target: int) -> None:
        self._source = source
        self._target = target
        self._from = self._to = self._count = 0

    def add(self, old: int, new: int, count: int) -> None:
        """Copy so many blocks, soon."""
        if (self._from + self._count, self._to + self._count) != (old, new):
            self.flush()
            self._from, self._to, self._count = old, new, 0
        self._count += count

    def flush(self) -> None:
        """Copy what has been joined."""
        if self._count:
            start, end = self._from * BLOCK, (self._from + self._count) * BLOCK
            shift = (self._to - self._from) * BLOCK
            copy_range(self._source, self._target, start, end, shift)
        self._count = 0
