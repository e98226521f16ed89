"""Sparse files in tar: maps of where the stored bytes belong, and their expansion.

`oci.tar` calls it. There are four spellings (GNU tar manual, "Storing Sparse Files"): the old GNU
one in header blocks, and three in extended headers, 0.0, 0.1 and 1.0. All become a `SparseMap`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from reconciler.errors import ImageError
from reconciler.oci.pax import Records, decimal, number
from reconciler.oci.stream import BLOCK

_MAX_SIZE = (1 << 63) - 1

Piece = bytes | memoryview | int
"""Some content of a file; an int stands for so many zero bytes that need not be stored."""


@dataclass(frozen=True, slots=True)
class SparseMap:
    """size: bytes of the file when expanded. segments: (offset, length) of what is stored, in
    order and without overlap."""

    size: int
    segments: tuple[tuple[int, int], ...]

    @property
    def stored(self) -> int:
        """Bytes that the archive holds."""
        return sum(length for _, length in self.segments)


def map_from_blocks(block: bytes, next_block: Callable[[], bytes], limit: int) -> SparseMap:
    """The old GNU format: four pairs in the header block, 21 in each extension block after it.

    limit: bytes of extension blocks that are still sane.
    """
    numbers = _old_gnu_numbers(block[386:482])
    size = number(block[483:495])
    more = block[482]
    read = 0
    while more:
        block = next_block()
        read += len(block)
        if not block or read > limit:
            raise ImageError("the map of a sparse file has no end")
        numbers += _old_gnu_numbers(block[:504])
        more = block[504]
    return _sparse_map(size, numbers)


def map_from_records(records: Records) -> SparseMap:
    """Formats 0.0 and 0.1: all of it in the extended header."""
    size = decimal(records.get(b"GNU.sparse.size", b""))
    text = records.get(b"GNU.sparse.map", b"")
    return _sparse_map(size, [decimal(value) for value in text.split(b",") if text])


def map_from_payload(
    records: Records, next_block: Callable[[], bytes], limit: int
) -> tuple[SparseMap, int]:
    """Format 1.0: the map is the head of the payload, as lines; also returns its length in bytes.

    limit: bytes that the map may have.
    """
    if (records.get(b"GNU.sparse.major"), records.get(b"GNU.sparse.minor")) != (b"1", b"0"):
        raise ImageError("unknown format of a sparse file")
    size = decimal(records.get(b"GNU.sparse.realsize", b""))
    blocks: list[bytes] = []
    lines = wanted = 0
    while lines <= wanted:
        block = next_block()
        blocks.append(block)
        lines += block.count(b"\n")
        if not block or len(blocks) * BLOCK > limit:
            raise ImageError("the map of a sparse file has no end")
        if len(blocks) == 1:
            wanted = 2 * decimal(block.partition(b"\n")[0])
    numbers = [decimal(line) for line in b"".join(blocks).split(b"\n", wanted + 1)[1:-1]]
    return _sparse_map(size, numbers), len(blocks) * BLOCK


def _old_gnu_numbers(fields: bytes) -> list[int]:
    """Pairs of 12-byte numbers up to the first empty one."""
    pairs = [fields[at : at + 24] for at in range(0, len(fields), 24)]
    used = itertools.takewhile(lambda pair: pair[12] != 0, pairs)
    return [number(raw) for pair in used for raw in (pair[:12], pair[12:])]


def _sparse_map(size: int, numbers: list[int]) -> SparseMap:
    """A map out of offsets and lengths in turn. Raises ImageError when they make no sense."""
    if len(numbers) % 2:
        raise ImageError("the map of a sparse file has an odd end")
    segments = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    end = 0
    for offset, length in segments:
        if offset < end or length < 0:
            raise ImageError("the map of a sparse file is out of order")
        end = offset + length
    if not end <= size <= _MAX_SIZE:
        raise ImageError("the map of a sparse file does not fit its size")
    return SparseMap(size, tuple(segment for segment in segments if segment[1]))


def expand(sparse: SparseMap, stored: Iterator[memoryview]) -> Iterator[Piece]:
    """The whole content: what is stored in its places, and the holes as ints."""
    position = 0
    rest = memoryview(b"")
    for offset, length in sparse.segments:
        if offset > position:
            yield offset - position
        missing = length
        while missing:
            rest = rest or next(stored)
            piece, rest = rest[:missing], rest[missing:]
            missing -= len(piece)
            yield piece
        position = offset + length
    if sparse.size > position:
        yield sparse.size - position
