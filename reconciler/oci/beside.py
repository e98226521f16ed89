"""A layer decompressed and hashed by a process of its own, over a ring of shared memory.

`oci.layers` takes it for large layers. The parser and the decoder then never wait for one
interpreter's lock, and a decoder that crashes over hostile bytes takes nothing with it: its end is
an error of that build. The child is this interpreter with the same modules, and runs `oci.ring`.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import select
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

from reconciler.errors import BangerError, Code, HostError, ImageError
from reconciler.oci import ring
from reconciler.oci.limits import Limits
from reconciler.oci.ring import HEAD, PART, PARTS, Order
from reconciler.processes import Companion

_NAP_MS = 200
_CHUNK = 1 << 20

_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "1073741824", "MALLOC_TRIM_THRESHOLD_": "1073741824"}
"""For glibc: memory that was used once is kept, because pages that are new cost more than bytes."""


class ProcessPump:
    """Unpacks in a child, a ring ahead of the parser. Starts at once; `stop` ends the child."""

    def __init__(self, descriptor: int, algorithms: tuple[str, str], limits: Limits) -> None:
        """Raises HostError."""
        self.position = 0
        self._descriptor = descriptor
        self._algorithm = algorithms[0]
        self._digests: list[str] = []
        with ExitStack() as stack:
            memory = os.memfd_create("layer")
            stack.callback(os.close, memory)
            os.ftruncate(memory, PART * PARTS)
            self._memory = memoryview(mmap.mmap(memory, PART * PARTS))
            self._told, tell = os.pipe()
            freed, self._free = os.pipe()
            stack.callback(os.close, tell)
            stack.callback(os.close, freed)
            order = Order(descriptor, memory, tell, freed, *algorithms, tuple(limits))
            try:
                self._child = Companion(ring.__name__, order.words(), order[:4], _ENVIRONMENT)
            except BaseException:
                self._close()
                raise
        self._poll = select.poll()
        self._poll.register(self._told, select.POLLIN)

    def batches(self, idle: Callable[[int], None]) -> Iterator[memoryview]:
        """The decoded stream, where the child has put it: it is written over once released."""
        at = 0
        while True:
            kind, size, self.position = HEAD.unpack(self._read(HEAD.size, idle))
            if kind == ring.FILLED:
                yield self._memory[at : at + size]
                with suppress(BrokenPipeError):  # it has ended: its last message says how
                    os.write(self._free, b"+")
                at = (at + PART) % len(self._memory)
                continue
            words = self._read(size, idle).decode().split(ring.SEPARATOR)
            if kind == ring.FAILED:
                raise _error(*words)
            self._digests = words
            return

    def _read(self, size: int, idle: Callable[[int], None]) -> bytes:
        data = b""
        while len(data) < size:
            while not self._poll.poll(_NAP_MS):
                idle(self.position)
            part = os.read(self._told, size - len(data))
            if not part:
                raise HostError(
                    f"the process that decompresses a layer {self._child.end()}",
                    code=Code.TOOL_FAILED,
                )
            data += part
        return data

    def stop(self) -> None:
        """End the child, wherever it is."""
        self._child.kill()
        self._close()

    def _close(self) -> None:
        told, self._told = self._told, -1
        free, self._free = self._free, -1
        for descriptor in (told, free):
            if descriptor >= 0:
                os.close(descriptor)

    def blob_digest(self) -> str:
        """The digest of the whole blob: the child's when it came to the end, else read anew."""
        if self._digests:
            return self._digests[0]
        total = hashlib.new(self._algorithm)
        at = 0
        while chunk := os.pread(self._descriptor, _CHUNK, at):
            total.update(chunk)
            at += len(chunk)
        return total.hexdigest()

    def stream_digest(self) -> str:
        """The digest of the decoded stream."""
        return self._digests[1]


def _error(code: str, brief: str, resolution: str) -> BangerError:
    if code == Code.HOST_IO:
        return HostError(brief)
    return ImageError(brief, code=Code(code), resolution=resolution)
