"""The process that decompresses and hashes one layer, and the ring of memory by which it tells.

`oci.beside` starts it as `main` and is the other side. Two pipes go with the ring: in messages of
a fixed head the child says which part it has filled, and at the end both digests, or what went
wrong; it gets back a byte for each part that may be filled again. Either side sees the other's
death as the end of its pipe. Little is imported here, since every large layer pays for it.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import threading
from contextlib import suppress

from reconciler.errors import BangerError, Code
from reconciler.oci.limits import Limits
from reconciler.oci.pump import Unpacker

PART = 1 << 20
"""Bytes of one part of the ring."""
PARTS = 8
HEAD = struct.Struct("<BIQ")
"""Kind of message; bytes of the part, or of the JSON that follows; bytes of the blob read."""
FILLED, ENDED, FAILED = range(3)


class _Ring:
    """The child's side. Raises BrokenPipeError when the parent is gone."""

    def __init__(self, memory: int, tell: int, freed: int) -> None:
        self._memory = memoryview(mmap.mmap(memory, PART * PARTS))
        self._tell = tell
        self._freed = freed
        self._free = PARTS - 1
        self._start = 0
        self._used = 0

    def add(self, piece: bytes, position: int) -> None:
        """Copy decoded bytes; a part that is full goes to the parser."""
        view = memoryview(piece)
        while view:
            part = view[: PART - self._used]
            begin = self._start + self._used
            self._memory[begin : begin + len(part)] = part
            self._used += len(part)
            view = view[len(part) :]
            if self._used == PART:
                self.flush(position)

    def flush(self, position: int) -> None:
        """Hand over what is in the current part, and wait for a free one."""
        if not self._used:
            return
        os.write(self._tell, HEAD.pack(FILLED, self._used, position))
        self._start = (self._start + PART) % len(self._memory)
        self._used = 0
        if not self._free:
            self._free = len(os.read(self._freed, PARTS))
            if not self._free:
                raise BrokenPipeError
        self._free -= 1

    def end(self, kind: int, document: dict[str, str], position: int) -> None:
        """The last message."""
        raw = json.dumps(document).encode()
        os.write(self._tell, HEAD.pack(kind, len(raw), position) + raw)


def main(order: str) -> None:
    """The child: unpack the blob that the order names. Its exit status says nothing."""
    found = json.loads(order)
    ring = _Ring(found["memory"], found["tell"], found["freed"])
    limits = Limits(**found["limits"])
    first, second = found["algorithms"]
    unpacker = Unpacker(found["blob"], (first, second), limits, threading.Event())
    with suppress(BrokenPipeError):
        try:
            for piece in unpacker.pieces():
                ring.add(piece, unpacker.position)
            ring.flush(unpacker.position)
        except BrokenPipeError:
            raise
        except (BangerError, OSError, MemoryError) as error:
            ring.end(FAILED, _told(error), unpacker.position)
            return
        digests = {
            "blob": unpacker.blob_hash.hexdigest(),
            "stream": unpacker.stream_hash.hexdigest(),
        }
        ring.end(ENDED, digests, unpacker.position)


def _told(error: Exception) -> dict[str, str]:
    if isinstance(error, BangerError):
        return {"code": error.code, "brief": error.brief, "resolution": error.resolution}
    return {"code": Code.HOST_IO, "brief": f"a layer cannot be decompressed: {error}"}
