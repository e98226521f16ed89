"""Two ways to have a layer decompressed and hashed beside the parser: threads here, or a process.

`oci.layers` chooses by size. Both hand out batches of the decoded stream and tell both digests
afterwards. This is the one with threads, good for small layers; `oci.beside` is the other, which
runs this one in a process of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from reconciler.oci.compression import Decoder
from reconciler.oci.limits import Limits

_BATCH = 256 << 10
"""Bytes of memory for one batch: a small layer fits one."""

AHEAD = 8
"""Batches that wait for the parser, and pieces that wait to be hashed, at most."""


class Pump(Protocol):
    """A blob on its way to the parser."""

    @property
    def position(self) -> int:
        """Bytes of the blob that have been read so far."""

    def batches(self, idle: Callable[[int], None]) -> Iterator[memoryview]:
        """The decoded stream; each batch is good until the next is asked for.

        idle: may get `position` while the next one is long in coming, and may raise. Raises what
        decompression raises, and what became of whoever does it.
        """

    def stop(self) -> None:
        """End the work, wherever it is; harmless when it has ended."""

    def blob_digest(self) -> str:
        """The digest of the whole blob, in hex; call it when stopped."""

    def stream_digest(self) -> str:
        """The digest of the decoded stream, in hex; call it when all batches were read."""


class _Hasher(threading.Thread):
    """Hashes what it is given, a little later."""

    def __init__(self) -> None:
        super().__init__(name="layer-hasher", daemon=True)
        self._queue: queue.Queue[tuple[hashlib._Hash, bytes | memoryview] | None]
        self._queue = queue.Queue(AHEAD)

    def run(self) -> None:
        """Until `finish`."""
        while item := self._queue.get():
            item[0].update(item[1])

    def add(self, total: hashlib._Hash, data: bytes | memoryview) -> None:
        """These bytes come next in that hash. All but the last AHEAD + 1 additions are hashed."""
        self._queue.put((total, data))

    def finish(self) -> None:
        """Wait until all is hashed."""
        self._queue.put(None)
        self.join()


class Unpacker:
    """Reads, decodes and hashes a blob: decodes in the caller's thread, hashes in its own."""

    def __init__(
        self, descriptor: int, algorithms: tuple[str, str], limits: Limits, stopped: threading.Event
    ) -> None:
        """algorithms: of the digest of the blob, and of that of the stream."""
        self.position = 0
        self.blob_hash = hashlib.new(algorithms[0])
        self.stream_hash = hashlib.new(algorithms[1])
        self._descriptor = descriptor
        self._limits = limits
        self._stopped = stopped
        self._hasher = _Hasher()

    def fill(self, targets: Iterable[memoryview]) -> Iterator[memoryview]:
        """The decoded stream, put into one target after the other; each is full but the last.

        A target may be written over when AHEAD + 2 more have been asked for. When the stream has
        ended or failed, the hashes hold what was read.
        """
        self._hasher.start()
        try:
            decoder = Decoder(self._read, self._limits)
            for target in targets:
                size = _fill(decoder, target)
                if size:
                    self._hasher.add(self.stream_hash, target[:size])
                    yield target[:size]
                if size < len(target):
                    return
        finally:
            self._hasher.finish()

    def _read(self, size: int) -> bytes:
        if self._stopped.is_set():
            return b""
        chunk = os.read(self._descriptor, size)
        self._hasher.add(self.blob_hash, chunk)
        self.position += len(chunk)
        return chunk


def _fill(decoder: Decoder, target: memoryview) -> int:
    size = 0
    while size < len(target) and (count := decoder.readinto(target[size:])):
        size += count
    return size


class ThreadPump(threading.Thread):
    """Unpacks in threads, a few batches ahead of the parser. Starts at once."""

    def __init__(self, descriptor: int, algorithms: tuple[str, str], limits: Limits) -> None:
        super().__init__(name="layer-pump", daemon=True)
        self._descriptor = descriptor
        self._stopped = threading.Event()
        self._unpacker = Unpacker(descriptor, algorithms, limits, self._stopped)
        self._queue: queue.Queue[memoryview | BaseException | None] = queue.Queue(AHEAD)
        self._ended = False
        self.start()

    @property
    def position(self) -> int:
        """Bytes of the blob that have been read so far."""
        return self._unpacker.position

    def run(self) -> None:
        """Fill the queue; its last item is None, or what went wrong."""
        end: BaseException | None = None
        try:
            fresh = (memoryview(bytearray(_BATCH)) for _ in itertools.repeat(None))
            for batch in self._unpacker.fill(fresh):
                self._queue.put(batch)
        except BaseException as exc:
            end = exc
        self._queue.put(end)

    def batches(self, idle: Callable[[int], None]) -> Iterator[memoryview]:
        """The decoded stream; raises here what went wrong in the thread."""
        while not self._ended:
            item = self._queue.get()
            if isinstance(item, memoryview):
                yield item
                continue
            self._ended = True
            if item is not None:
                raise item

    def stop(self) -> None:
        """End the thread, wherever it is."""
        self._stopped.set()
        while not self._ended:
            self._ended = not isinstance(self._queue.get(), memoryview)
        self.join()

    def blob_digest(self) -> str:
        """The digest of the whole blob, after hashing what has not been read."""
        total = self._unpacker.blob_hash
        while chunk := os.read(self._descriptor, _BATCH):
            total.update(chunk)
        return total.hexdigest()

    def stream_digest(self) -> str:
        """The digest of the decoded stream."""
        return self._unpacker.stream_hash.hexdigest()
