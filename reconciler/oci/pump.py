"""Two ways to have a layer decompressed and hashed beside the parser: threads here, or a process.

`oci.layers` chooses by size. Both hand out batches of the decoded stream and tell both digests
afterwards. This is the one with threads, good for small layers; `oci.beside` is the other, which
runs this one in a process of its own.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Iterator
from typing import Protocol

from reconciler.oci.compression import decompress
from reconciler.oci.limits import Limits

_CHUNK = 128 << 10
"""Bytes read from the blob at a time."""

_BATCH = 256 << 10
"""Decoded bytes handed out at a time, at least: a layer may be thousands of frames."""

_AHEAD = 8
"""Batches that wait for the parser, at most."""


class Pump(Protocol):
    """A blob on its way to the parser."""

    @property
    def position(self) -> int:
        """Bytes of the blob that have been read so far."""

    def batches(self) -> Iterator[bytes | memoryview]:
        """The decoded stream; each batch is good until the next is asked for.

        Raises what decompression raises, and what became of whoever does it.
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
        self._queue: queue.Queue[tuple[hashlib._Hash, bytes] | None] = queue.Queue(_AHEAD)

    def run(self) -> None:
        """Until `finish`."""
        while item := self._queue.get():
            item[0].update(item[1])

    def add(self, total: hashlib._Hash, data: bytes) -> None:
        """These bytes come next in that hash."""
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

    def pieces(self) -> Iterator[bytes]:
        """The decoded stream; when it has ended or failed, the hashes hold what was read."""
        self._hasher.start()
        try:
            for piece in decompress(self._chunks(), self._limits):
                self._hasher.add(self.stream_hash, piece)
                yield piece
        finally:
            self._hasher.finish()

    def _chunks(self) -> Iterator[bytes]:
        while not self._stopped.is_set() and (chunk := os.read(self._descriptor, _CHUNK)):
            self._hasher.add(self.blob_hash, chunk)
            self.position += len(chunk)
            yield chunk


class ThreadPump(threading.Thread):
    """Unpacks in threads, a few batches ahead of the parser. Starts at once."""

    def __init__(self, descriptor: int, algorithms: tuple[str, str], limits: Limits) -> None:
        super().__init__(name="layer-pump", daemon=True)
        self._descriptor = descriptor
        self._stopped = threading.Event()
        self._unpacker = Unpacker(descriptor, algorithms, limits, self._stopped)
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
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
            batch: list[bytes] = []
            waiting = 0
            for piece in self._unpacker.pieces():
                batch.append(piece)
                waiting += len(piece)
                if waiting >= _BATCH:
                    self._queue.put(b"".join(batch))
                    batch.clear()
                    waiting = 0
            self._queue.put(b"".join(batch))
        except BaseException as exc:
            end = exc
        self._queue.put(end)

    def batches(self) -> Iterator[bytes | memoryview]:
        """The decoded stream; raises here what went wrong in the thread."""
        while not self._ended:
            item = self._queue.get()
            if isinstance(item, bytes):
                yield item
                continue
            self._ended = True
            if item is not None:
                raise item

    def stop(self) -> None:
        """End the thread, wherever it is."""
        self._stopped.set()
        while not self._ended:
            self._ended = not isinstance(self._queue.get(), bytes)
        self.join()

    def blob_digest(self) -> str:
        """The digest of the whole blob, after hashing what has not been read."""
        total = self._unpacker.blob_hash
        while chunk := os.read(self._descriptor, _CHUNK):
            total.update(chunk)
        return total.hexdigest()

    def stream_digest(self) -> str:
        """The digest of the decoded stream."""
        return self._unpacker.stream_hash.hexdigest()
