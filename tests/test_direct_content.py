"""Content ends in the same blocks in whatever pieces it comes, and reads back as it was."""

from __future__ import annotations

import os
import random
import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.direct.content import Contents
from reconciler.direct.space import SpoolSpace
from reconciler.ext4.inode import Extent
from reconciler.oci.sparse import Piece

BLOCK = 4096
SIZES = st.sampled_from([1, 100, 4096, 65535, 65536, 65537, 131_072, 200_000])
PARTS = st.lists(st.tuples(st.sampled_from(["hole", "zeros", "data"]), SIZES), max_size=6)


def made(parts: list[tuple[str, int]]) -> list[Piece]:
    """Segments of a sparse file, as one piece each: no two of stored bytes stand side by side."""
    pieces: list[Piece] = []
    for kind, size in parts:
        if kind == "hole":
            pieces.append(size)
            continue
        data = bytes(size) if kind == "zeros" else random.Random(size).randbytes(size)
        if pieces and isinstance(pieces[-1], bytes):
            pieces[-1] += data
        else:
            pieces.append(data)
    return pieces


def cut(pieces: list[Piece], chance: random.Random) -> list[Piece]:
    """The same in smaller pieces."""
    found: list[Piece] = []
    for piece in pieces:
        rest = piece
        while not isinstance(rest, int) and len(rest):
            size = chance.randrange(1, 150_000)
            found.append(memoryview(rest)[:size])
            rest = memoryview(rest)[size:]
        if isinstance(rest, int):
            found.append(rest)
    return found


def stored(pieces: list[Piece], size: int) -> tuple[tuple[Extent, ...], bytes]:
    """Where content lies, and what a reader sees of it."""
    with tempfile.TemporaryFile() as file:
        contents = Contents(file.fileno(), SpoolSpace())
        contents.add(1, size, iter(pieces))
        contents.flush()
        seen = bytearray(-(-size // BLOCK) * BLOCK)
        for logical, start, count in contents.extents[1]:
            data = os.pread(file.fileno(), count * BLOCK, start * BLOCK)
            assert len(data) == count * BLOCK
            seen[logical * BLOCK : (logical + count) * BLOCK] = data
    return contents.extents[1], bytes(seen)


@settings(max_examples=150, deadline=None)
@given(parts=PARTS, seed=st.integers(0, 1000))
def test_pieces_do_not_matter(parts: list[tuple[str, int]], seed: int) -> None:
    pieces = made(parts)
    whole = b"".join(map(bytes, pieces))
    one = stored(pieces, len(whole))
    other = stored(cut(pieces, random.Random(seed)), len(whole))
    assert one == other
    assert one[1] == whole.ljust(len(one[1]), b"\0")


def test_long_runs_of_zeros_take_no_blocks() -> None:
    data = b"head" + bytes(1 << 20) + b"tail"
    extents, _ = stored([data], len(data))
    assert sum(count for _, _, count in extents) <= 32


def test_a_small_file_takes_the_same_blocks_at_once_and_in_parts() -> None:
    data = random.Random(3).randbytes(60_000)
    with tempfile.TemporaryFile() as file:
        contents = Contents(file.fileno(), SpoolSpace())
        contents.add(1, len(data), (data,))
        contents.add(2, len(data), iter([data[:5000], data[5000:]]))
        contents.flush()
    (_, start, count), (_, other, same) = (contents.extents[n][0] for n in (1, 2))
    assert (count, other) == (same, start + count)
