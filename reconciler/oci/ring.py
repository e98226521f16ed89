"""The process that decompresses and hashes one layer, and the ring of memory by which it tells.

`oci.beside` starts it as `main` and is the other side. Two pipes go with the ring: in messages of
a fixed head the child says which part it has filled, and at the end both digests, or what went
wrong; it gets back a byte for each part that may be filled again. Either side sees the other's
death as the end of its pipe. Little is imported here, since every large layer pays for it.
"""

from __future__ import annotations

import itertools
import mmap
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from reconciler.errors import BangerError, Code
from reconciler.oci.limits import Limits
from reconciler.oci.pump import AHEAD, Unpacker

PART = 1 << 20
"""Bytes of one part of the ring."""
PARTS = 4 * AHEAD
"""More than the hasher may be behind by: a part that the parser is done with has been hashed."""
HEAD = struct.Struct("<BIQ")
"""Kind of message; bytes of the part, or of the words that follow; bytes of the blob read."""
FILLED, ENDED, FAILED = range(3)
"""The words of ENDED: both digests. Of FAILED: code, brief and resolution of the error."""
SEPARATOR = "\0"


class _Ring:
    """The child's side. Raises BrokenPipeError when the parent is gone."""

    def __init__(self, memory: int, tell: int, freed: int) -> None:
        self._memory = memoryview(mmap.mmap(memory, PART * PARTS))
        self._tell = tell
        self._freed = freed

    def parts(self) -> Iterator[memoryview]:
        """The parts of the memory, round and round; waits until the parser is done with one."""
        free = PARTS
        for number in itertools.cycle(range(PARTS)):
            if not free:
                free = len(os.read(self._freed, PARTS))
                if not free:
                    raise BrokenPipeError
            free -= 1
            yield self._memory[number * PART : (number + 1) * PART]

    def hand_over(self, size: int, position: int) -> None:
        """The part that came last from `parts` holds so many bytes for the parser."""
        os.write(self._tell, HEAD.pack(FILLED, size, position))

    def end(self, kind: int, words: list[str], position: int) -> None:
        """The last message."""
        raw = SEPARATOR.join(words).encode()
        os.write(self._tell, HEAD.pack(kind, len(raw), position) + raw)


class Order(NamedTuple):
    """What the child is to do, as words of its command line: numbers of descriptors first."""

    blob: int
    memory: int
    tell: int
    freed: int
    blob_algorithm: str
    stream_algorithm: str
    limits: tuple[int, ...]

    def words(self) -> list[str]:
        """The order as it travels."""
        return [str(word) for word in (*self[:-1], *self.limits)]

    @classmethod
    def read(cls, words: list[str]) -> Order:
        """The reverse of `words`."""
        blob, memory, tell, freed, first, second, *limits = words
        numbers = int(blob), int(memory), int(tell), int(freed)
        return cls(*numbers, first, second, tuple(map(int, limits)))


def main(words: list[str]) -> None:
    """The child: unpack the blob that the order names. Its exit status says nothing."""
    order = Order.read(words)
    ring = _Ring(order.memory, order.tell, order.freed)
    algorithms = (order.blob_algorithm, order.stream_algorithm)
    unpacker = Unpacker(order.blob, algorithms, Limits(*order.limits), threading.Event())
    with suppress(BrokenPipeError):
        try:
            for part in unpacker.fill(ring.parts()):
                ring.hand_over(len(part), unpacker.position)
        except BrokenPipeError:
            raise
        except (BangerError, OSError, MemoryError) as error:
            ring.end(FAILED, _told(error), unpacker.position)
            return
        digests = [unpacker.blob_hash.hexdigest(), unpacker.stream_hash.hexdigest()]
        ring.end(ENDED, digests, unpacker.position)


def _told(error: Exception) -> list[str]:
    if isinstance(error, BangerError):
        return [error.code, error.brief, error.resolution]
    return [Code.HOST_IO, f"a layer cannot be decompressed: {error}", ""]
